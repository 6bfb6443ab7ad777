//! What zenith sets when it starts a server. All on the command line: the configuration files in a
//! snapshot are the user's and stay as they are. Which settings, and why, says [`policy`](super::policy).

use std::ffi::{OsStr, OsString};
use std::fs::{self, DirBuilder};
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, TcpListener};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
use nix::unistd::geteuid;
use sha2::{Digest, Sha256};

use super::Error;
use super::account::{self, Account};
use super::conf::{self, Values};
use super::policy::{Class, RULES, Rule, Value, without_schedulers};
use super::process::Process;
use crate::objects::file_error::cannot;
use crate::objects::pg::control::{self, ControlFile, Sizes, State};
use crate::objects::pg::version::Version;
use crate::objects::{bounded, folder};

/// The longest path of a socket, in bytes, that every system takes (macOS: 104 with the NUL).
const SOCKET_PATH: usize = 103;

/// What differs between servers.
#[derive(Debug, Clone)]
pub struct Settings {
    pub port: u16,
    /// The folder of the unix socket, mode 0700.
    pub socket_dir: PathBuf,
    /// The address to listen on too.
    pub tcp: Option<IpAddr>,
    /// The name that shows in the process list.
    pub name: String,
    /// Who may connect, how: see [`write_hba_file`].
    pub hba_file: PathBuf,
    /// What the user wants set for this branch: names and values.
    pub own: Vec<(String, String)>,
    /// It acts on the world outside as the original does, rather than as a copy of it.
    pub is_live: bool,
    /// What the WAL that it replays was written with, as far as `pg_control` does not know.
    pub replayed: Sizes,
    pub role: Role,
}

/// What a server is for.
#[derive(Debug, Clone)]
pub enum Role {
    /// Reads and writes. Segments are sealed by the shell command: see [`shell_command`].
    Primary { archive_command: String },
    /// Brings files that are temporary to the end of their WAL, for a [standby](Role::Standby) to show them.
    Recovery,
    /// Shows the past, from files that are temporary.
    Standby,
}

/// What a standby runs before it takes writes, when somebody promotes it. PostgreSQL ends the server where that command
/// does not end by itself: what was written would be gone with the files.
const NEVER_PROMOTED: &str = "kill -KILL $$";

impl Settings {
    /// Returns the arguments for the `postgres` of a major version on `data_dir`: what the table in
    /// [`policy`] says of each setting that the version knows, after the branch's own, since the last one counts.
    pub fn arguments(&self, major: u32, data_dir: &Path) -> Vec<OsString> {
        let mut values = conf::read(data_dir);
        values.extend(self.own.iter().map(|(name, value)| (name.to_ascii_lowercase(), value.clone())));
        let own = self.own.iter().map(|(name, value)| setting(name, value));
        let rules = RULES.iter().filter(|rule| rule.is_known_to(major));
        let least = self.least(data_dir, major);
        let ruled = rules.filter_map(|rule| Some(setting(rule.name, &self.value(rule, &values, data_dir, least)?)));
        own.chain(ruled).flat_map(|setting| [OsString::from("-c"), setting]).collect()
    }

    /// Returns what the cluster's settings lose on a branch that is a copy: their names.
    pub fn dropped(&self, major: u32, data_dir: &Path) -> Vec<&'static str> {
        let values = conf::read(data_dir);
        let rules = RULES.iter().filter(|rule| matches!(rule.class, Class::Dropped(_)) && rule.is_known_to(major));
        let is_lost = |rule: &&Rule| {
            let was = values.get(rule.name).map(String::as_str).unwrap_or_default();
            self.value(rule, &values, data_dir, None).is_some_and(|now| !was.is_empty() && *was != *now)
        };
        rules.filter(is_lost).map(|rule| rule.name).collect()
    }

    /// Returns the value that a rule gives to its setting in this server, if it gives one. `values` are those of
    /// the cluster's files and of the branch; `least` are those of [`Settings::least`].
    fn value(&self, rule: &Rule, values: &Values, data_dir: &Path, least: Option<Sizes>) -> Option<OsString> {
        let is_own = self.own.iter().any(|(name, _)| name.eq_ignore_ascii_case(rule.name));
        let configured = values.get(rule.name).map(String::as_str);
        match rule.class {
            Class::Kept => None,
            Class::Forced(Value::Fixed(value)) => Some(value.into()),
            Class::Forced(Value::OfServer) => Some(self.own_value(rule.name, data_dir)),
            // A standby accepts no less, and no replication slot asks for more.
            Class::Instead { .. } if rule.name == "wal_level" && matches!(self.role, Role::Recovery) => {
                Some("logical".into())
            }
            Class::Instead { of, with } => {
                let gives_way = !is_own && configured.is_some_and(|value| value.eq_ignore_ascii_case(of));
                gives_way.then(|| with.into())
            }
            Class::Reading { of, with } => {
                let is_it = matches!(self.role, Role::Standby)
                    && configured.is_some_and(|value| value.eq_ignore_ascii_case(of));
                is_it.then(|| with.into())
            }
            Class::AtLeast => {
                let least = least?.more_than(rule.name, configured)?;
                Some(least.to_string().into())
            }
            Class::Dropped(_) if is_own || self.is_live => None,
            Class::Dropped(value) => {
                let libraries = values.get("shared_preload_libraries").map(String::as_str).unwrap_or_default();
                match (value, rule.name.split_once('.')) {
                    (Value::OfServer, _) => {
                        let (kept, out) = without_schedulers(libraries);
                        (!out.is_empty()).then(|| kept.into())
                    }
                    // Of an extension: only where that is there.
                    (Value::Fixed(_), Some((extension, _))) if !libraries.contains(extension) => None,
                    (Value::Fixed(value), _) => Some(value.into()),
                }
            }
        }
    }

    /// Returns the sizes that the server must have for what is in its files and its WAL; `None` where it may have
    /// any: it goes on after a shutdown, and no transaction is prepared. A standby must have as much as who wrote,
    /// whatever that used.
    fn least(&self, data_dir: &Path, major: u32) -> Option<Sizes> {
        let bytes = bounded::read(&data_dir.join(control::PATH), bounded::OF_CLUSTER).ok()?;
        let control = ControlFile::parse(&bytes, Version::of_major(major)?).ok()?;
        let has_none = folder::names(&data_dir.join("pg_twophase")).is_ok_and(|prepared| prepared.is_empty());
        let is_unlabelled = data_dir.join("backup_label").try_exists().is_ok_and(|is_there| !is_there);
        let is_at_rest = control.state == State::ShutDown && is_unlabelled && has_none;
        let mut least = control.sizes;
        least.raise(&self.replayed);
        (!is_at_rest || matches!(self.role, Role::Standby)).then_some(least)
    }

    /// Returns the value of a setting that each server has its own of.
    fn own_value(&self, name: &str, data_dir: &Path) -> OsString {
        let is_primary = matches!(self.role, Role::Primary { .. });
        match name {
            "data_directory" => data_dir.into(),
            "config_file" => data_dir.join("postgresql.conf").into(),
            "hba_file" => self.hba_file.clone().into(),
            // Nothing is mapped: those rules do not use it.
            "ident_file" => "/dev/null".into(),
            "port" => self.port.to_string().into(),
            "listen_addresses" => self.tcp.map(|address| address.to_string()).unwrap_or_default().into(),
            "unix_socket_directories" => self.socket_dir.clone().into(),
            "cluster_name" => self.name.chars().filter(char::is_ascii_graphic).take(60).collect::<String>().into(),
            "recovery_init_sync_method" if cfg!(target_os = "linux") => "syncfs".into(),
            "recovery_init_sync_method" => "fsync".into(),
            "archive_mode" => if is_primary { "on" } else { "off" }.into(),
            "archive_command" => match &self.role {
                Role::Primary { archive_command } => archive_command.into(),
                Role::Recovery | Role::Standby => OsString::new(),
            },
            // What a crash leaves of temporary files, nobody goes on with: nothing has to be durable.
            "fsync" => if is_primary { "on" } else { "off" }.into(),
            "recovery_end_command" if matches!(self.role, Role::Standby) => NEVER_PROMOTED.into(),
            "recovery_end_command" => OsString::new(),
            _ => unreachable!("invariant: a test asks for each of the table"),
        }
    }
}

fn setting(name: &str, value: impl AsRef<OsStr>) -> OsString {
    let mut setting = OsString::from(format!("{name}="));
    setting.push(value);
    setting
}

/// Returns the words as a shell command in the form that `archive_command` wants: quoted, and with
/// `%` doubled. `tail` is appended as it is.
pub fn shell_command(words: &[&OsStr], tail: &str) -> Result<String, Error> {
    let quote = |word: &&OsStr| {
        let text = word.to_str().ok_or_else(|| Error::NotUtf8(word.into()))?;
        Ok(format!("'{}'", text.replace('\'', "'\\''").replace('%', "%%")))
    };
    let quoted: Vec<String> = words.iter().map(quote).collect::<Result<_, Error>>()?;
    Ok(format!("{} {tail}", quoted.join(" ")))
}

/// Returns the folder for the sockets of a repository, made with mode 0700: `preferred` if socket
/// paths in it are short enough, else one of this user's in `fallback`, named by a hash.
pub fn socket_dir(preferred: &Path, fallback: &Path) -> Result<PathBuf, Error> {
    let fits = |dir: &Path| dir.as_os_str().as_bytes().len() + "/.s.PGSQL.65535".len() <= SOCKET_PATH;
    // PostgreSQL takes a comma for the end of a folder's name.
    if fits(preferred) && !preferred.as_os_str().as_bytes().contains(&b',') {
        make_private(preferred)?;
        return Ok(preferred.to_owned());
    }
    let user = fallback.join(format!("zenith-{}", geteuid()));
    make_private(&user)?;
    let digest = Sha256::digest(preferred.as_os_str().as_bytes());
    let name: String = digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    let dir = user.join(name);
    make_private(&dir)?;
    Ok(dir)
}

/// Returns whether what belongs to that user is this user's, or for root that of the account that its servers have.
pub fn is_ours(uid: u32) -> bool {
    let is_postgres = || account::postgres().is_some_and(|user| user.uid.as_raw() == uid);
    uid == geteuid().as_raw() || is_postgres() && matches!(Account::detect(), Ok(Account::Postgres))
}

fn make_private(dir: &Path) -> Result<(), Error> {
    match DirBuilder::new().mode(0o700).create(dir) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            let metadata = fs::symlink_metadata(dir).map_err(cannot::<Error>("read", dir))?;
            if !metadata.is_dir() || !is_ours(metadata.uid()) {
                return Err(Error::SocketDir(dir.to_owned()));
            }
            if metadata.mode() & 0o077 != 0 {
                fs::set_permissions(dir, fs::Permissions::from_mode(0o700))
                    .map_err(cannot::<Error>("change the mode of", dir))?;
            }
            Ok(())
        }
        Err(error) => Err(cannot::<Error>("create", dir)(error)),
    }
}

/// Who may connect to the servers that zenith starts. Their unix sockets lie in a folder that only their owner can
/// enter; whoever else comes, comes over the loopback address. What the cluster's own file says was written for
/// another place, and may let in everybody.
const HBA: &str = "# Written by zenith; see zenith(1).\n\
local all         all              trust\n\
host  all         all 127.0.0.0/8 scram-sha-256\n";
const HBA_OF_REPLICATION: &str = "\
local replication all              trust\n\
host  replication all 127.0.0.0/8 scram-sha-256\n";
const HBA_WITHOUT: &str = "# No physical replication; see REPLICATION in zenith-settings(5).\n";

/// Writes the file that says who may connect, if it is not there yet, and returns its path. There are two: with physical
/// replication, and without.
pub fn write_hba_file(dir: &Path, is_replicated: bool) -> Result<PathBuf, Error> {
    let (name, rest) = match is_replicated {
        // As earlier versions wrote it, for all.
        true => ("pg_hba.conf", HBA_OF_REPLICATION),
        false => ("pg_hba.alone.conf", HBA_WITHOUT),
    };
    let (path, text) = (dir.join(name), [HBA, rest].concat());
    if bounded::read_to_string(&path, bounded::OF_CLUSTER).is_ok_and(|found| found == text) {
        return Ok(path);
    }
    let write = || {
        // A server may read it at this moment.
        let mut file = crate::objects::durable::temp_file(dir)?;
        std::io::Write::write_all(&mut file, text.as_bytes())?;
        crate::objects::durable::keep_as(file, &path)
    };
    write().map_err(cannot::<Error>("write", &path))?;
    Ok(path)
}

/// Where servers listen that people start with --tcp.
pub const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// Returns the loopback address for the servers of the repository in `dir` that nobody asked to be on the usual
/// one: ports are each repository's own, and there may be many repositories.
pub fn own_loopback(dir: &Path) -> IpAddr {
    if !cfg!(target_os = "linux") {
        return LOOPBACK;
    }
    let digest = Sha256::digest(dir.as_os_str().as_bytes());
    // None that ends in 0 or 255, and not the one that everybody uses.
    IpAddr::V4(Ipv4Addr::new(127, 1 + digest[0] % 254, digest[1], 1 + digest[2] % 254))
}

/// Returns the path of the unix socket that belongs to `port` in `dir`.
pub fn socket_path(dir: &Path, port: u16) -> PathBuf {
    dir.join(format!(".s.PGSQL.{port}"))
}

/// Returns whether somebody listens on the unix socket `path`. Does not wait for who does not come to it, with whom others wait in
/// line (connect(2)). What cannot be found out counts as somebody.
pub fn answers(path: &Path) -> bool {
    let connected = || {
        let socket = socket(AddressFamily::Unix, SockType::Stream, SockFlag::empty(), None)?;
        fcntl(&socket, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
        fcntl(&socket, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        connect(socket.as_raw_fd(), &UnixAddr::new(path)?)
    };
    !matches!(connected(), Err(Errno::ECONNREFUSED | Errno::ENOENT | Errno::ENAMETOOLONG))
}

/// Returns whether nobody listens on `port` in `socket_dir` and at the address `tcp`.
pub fn is_free(port: u16, socket_dir: &Path, tcp: Option<IpAddr>) -> bool {
    !answers(&socket_path(socket_dir, port)) && tcp.is_none_or(|address| TcpListener::bind((address, port)).is_ok())
}

/// Removes the socket and its lock file that a server left which is gone. PostgreSQL does so itself,
/// but takes a process for alive that has ended and waits to be noticed by a careless parent, as in
/// containers whose first process is no init; and takes any process for the server that has its number by now, as after a
/// reboot. Where nobody listens, the lock file is no server's of this repository unless it names one of the data directories in
/// `datadirs`: it came with a copy of that of another.
pub fn remove_stale_socket(port: u16, socket_dir: &Path, datadirs: &Path) {
    let (socket, lock) = (socket_path(socket_dir, port), socket_dir.join(format!(".s.PGSQL.{port}.lock")));
    let read = || bounded::read_to_string(&lock, bounded::OF_CLUSTER).unwrap_or_default();
    let mut text = read();
    let is_empty = |text: &str| text.trim().is_empty() && lock.exists();
    if is_empty(&text) {
        // Somebody writes it this instant, or the power failed before that was durable: then nobody is ever let in.
        std::thread::sleep(WRITTEN);
        text = read();
    }
    let remove = || {
        let _ = fs::remove_file(&lock);
        let _ = fs::remove_file(&socket);
    };
    let nobody_listens = || !answers(&socket);
    if is_empty(&text) && nobody_listens() {
        return remove();
    }
    let mut lines = text.lines();
    let Some(pid) = lines.next().and_then(|pid| pid.trim().parse::<i32>().ok()) else { return };
    let data = lines.next().unwrap_or_default();
    // A server works in its data directory, and listens; the look does not touch that folder.
    let data = Path::new(data);
    let works_elsewhere =
        || !data.starts_with(datadirs) || fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd != data);
    // One that listens may be of another container, which has numbers of its own.
    let is_gone = || Process::of(pid).is_ok_and(|process| !process.is_alive());
    if nobody_listens() && (is_gone() || works_elsewhere()) {
        remove();
    }
}

/// How long a server takes at most to write its number into the lock file that it made.
const WRITTEN: std::time::Duration = std::time::Duration::from_millis(200);

/// Returns the first free port from `from` on that is not among `taken`.
pub fn free_port(from: u16, taken: &[u16], socket_dir: &Path) -> Result<u16, Error> {
    let mut ports = from..u16::MAX;
    ports.find(|port| !taken.contains(port) && is_free(*port, socket_dir, Some(LOOPBACK))).ok_or(Error::NoPort { from })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(role: Role) -> Settings {
        let (socket_dir, hba_file) = ("/s".into(), "/hba".into());
        let own = vec![("max_connections".into(), "150".into()), ("fsync".into(), "off".into())];
        let (name, replayed) = ("a b".into(), Sizes::default());
        Settings { port: 1, socket_dir, tcp: None, name, hba_file, own, is_live: false, replayed, role }
    }

    #[test]
    fn who_listens_and_lets_nobody_in_is_not_waited_for() {
        use nix::sys::socket::{Backlog, bind, listen};
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        assert!(!answers(&path));
        let listener = socket(AddressFamily::Unix, SockType::Stream, SockFlag::empty(), None).unwrap();
        bind(listener.as_raw_fd(), &UnixAddr::new(&path).unwrap()).unwrap();
        listen(&listener, Backlog::new(1).unwrap()).unwrap();
        // Each look takes a place in the queue, as a client does.
        assert!((0..10).all(|_| answers(&path)));
        drop(listener);
        assert!(path.exists() && !answers(&path));
    }

    #[test]
    fn the_lock_of_a_socket_goes_unless_a_server_listens_there_or_works_where_it_says() {
        let dir = tempfile::tempdir().unwrap();
        let (lock, pid) = (dir.path().join(".s.PGSQL.5433.lock"), std::process::id());
        let here = std::env::current_dir().unwrap();
        let stays = |data: &Path| {
            fs::write(&lock, format!("{pid}\n{}\n1\n5433\n", data.display())).unwrap();
            remove_stale_socket(5433, dir.path(), &here);
            lock.exists()
        };
        assert!(stays(&here));
        // The same in the copy of a repository.
        let copied = |datadirs: &Path| {
            remove_stale_socket(5433, dir.path(), datadirs);
            lock.exists()
        };
        assert!(copied(&here));
        assert!(!copied(Path::new("/copy/datadirs")));
        // Another process has the number by now.
        assert!(!stays(Path::new("/elsewhere")));
        let listener = std::os::unix::net::UnixListener::bind(socket_path(dir.path(), 5433)).unwrap();
        assert!(stays(Path::new("/elsewhere")));
        fs::write(&lock, "").unwrap();
        remove_stale_socket(5433, dir.path(), &here);
        assert!(lock.exists());
        drop(listener);
        // A power cut left nothing in it, and PostgreSQL takes it for one that is being written.
        remove_stale_socket(5433, dir.path(), &here);
        assert!(!lock.exists());
        assert!(!stays(Path::new("/elsewhere")));
        assert!(!socket_path(dir.path(), 5433).exists());
    }

    /// Returns the value that counts, as PostgreSQL takes the last one.
    fn value(settings: &Settings, major: u32, dir: &Path, name: &str) -> Option<String> {
        let arguments = settings.arguments(major, dir);
        let start = format!("{name}=");
        let mut values = arguments.iter().filter_map(|word| word.to_str()?.strip_prefix(&start).map(str::to_owned));
        values.next_back()
    }

    #[test]
    fn the_socket_of_who_listens_stays_whoever_its_number_is_about() {
        let dir = tempfile::tempdir().unwrap();
        let (socket, lock) = (socket_path(dir.path(), 5433), dir.path().join(".s.PGSQL.5433.lock"));
        // Of a process that is not seen from here.
        fs::write(&lock, format!("{}\n{}\n", i32::MAX, dir.path().join("datadirs/x/data").display())).unwrap();
        let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        remove_stale_socket(5433, dir.path(), &dir.path().join("datadirs"));
        assert!(socket.exists() && lock.exists());
        drop(listener);
        remove_stale_socket(5433, dir.path(), &dir.path().join("datadirs"));
        assert!(!socket.exists() && !lock.exists());
    }

    #[test]
    fn every_rule_has_its_value_and_only_where_it_is_known() {
        let dir = tempfile::tempdir().unwrap();
        for role in [Role::Primary { archive_command: "seal".into() }, Role::Recovery, Role::Standby] {
            let settings = settings(role);
            for (rule, major) in RULES.iter().flat_map(|rule| (14..=18).map(move |major| (rule, major))) {
                let found = value(&settings, major, dir.path(), rule.name);
                if matches!(rule.class, Class::Forced(_)) {
                    assert_eq!(found.is_some(), rule.is_known_to(major), "{} in {major}", rule.name);
                }
            }
        }
        let settings = settings(Role::Primary { archive_command: "seal".into() });
        assert_eq!(value(&settings, 15, dir.path(), "fsync").unwrap(), "on");
        assert_eq!(value(&settings, 15, dir.path(), "cluster_name").unwrap(), "ab");
        assert_eq!(value(&settings, 15, dir.path(), "max_connections").unwrap(), "150");
    }

    #[test]
    fn a_copy_loses_what_acts_outside_unless_it_is_live_or_says_so_itself() {
        let dir = tempfile::tempdir().unwrap();
        let conf = "shared_preload_libraries = 'auto_explain, pg_cron, timescaledb'\nwal_level = minimal\n\
                    synchronous_standby_names = '*'\nhuge_pages = on\n";
        fs::write(dir.path().join("postgresql.conf"), conf).unwrap();
        let mut settings = settings(Role::Primary { archive_command: "seal".into() });
        let of = |settings: &Settings, name: &str| value(settings, 16, dir.path(), name);
        assert_eq!(of(&settings, "shared_preload_libraries").unwrap(), "auto_explain,timescaledb");
        assert_eq!(of(&settings, "timescaledb.max_background_workers").unwrap(), "0");
        assert_eq!(of(&settings, "synchronous_standby_names").unwrap(), "");
        assert_eq!(of(&settings, "wal_level").unwrap(), "replica");
        assert_eq!(of(&settings, "huge_pages").unwrap(), "try");
        assert_eq!(
            settings.dropped(16, dir.path()),
            ["synchronous_standby_names", "shared_preload_libraries"],
            "what was not set is not lost"
        );
        settings.own.push(("huge_pages".into(), "on".into()));
        settings.own.push(("max_logical_replication_workers".into(), "2".into()));
        assert_eq!(of(&settings, "huge_pages").unwrap(), "on");
        assert_eq!(of(&settings, "max_logical_replication_workers").unwrap(), "2");
        settings.is_live = true;
        assert_eq!(of(&settings, "synchronous_standby_names"), None);
        assert_eq!(of(&settings, "shared_preload_libraries"), None);
        assert_eq!(settings.dropped(16, dir.path()), Vec::<&str>::new());
    }

    #[test]
    fn shell_commands_survive_quotes_spaces_and_percent_signs() {
        let words = ["/a b/z'x", "50%"].map(OsStr::new);
        assert_eq!(shell_command(&words, "%f").unwrap(), r"'/a b/z'\''x' '50%%' %f");
        // No other path than the one that was meant.
        assert!(matches!(shell_command(&[OsStr::from_bytes(b"/\xff")], ""), Err(Error::NotUtf8(_))));
    }

    #[test]
    fn a_long_path_gets_a_short_folder() {
        let dir = tempfile::tempdir().unwrap();
        let long = dir.path().join("x".repeat(120));
        let found = socket_dir(&long, dir.path()).unwrap();
        assert!(found.starts_with(dir.path()) && found.as_os_str().len() < 100);
        assert_eq!(fs::metadata(&found).unwrap().mode() & 0o777, 0o700);
        assert_eq!(socket_dir(&long, dir.path()).unwrap(), found);
        let short = dir.path().join("run");
        assert_eq!(socket_dir(&short, dir.path()).unwrap(), short);
    }

    #[test]
    fn a_folder_that_is_a_link_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let link = dir.path().join("run");
        std::os::unix::fs::symlink("/etc", &link).unwrap();
        assert!(matches!(socket_dir(&link, dir.path()), Err(Error::SocketDir(_))));
    }
}
