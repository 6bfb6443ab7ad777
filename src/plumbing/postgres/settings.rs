//! What zenith sets when it starts a server. All on the command line: the configuration files in a
//! snapshot are the user's and stay as they are.

use std::ffi::OsString;
use std::fs::{self, DirBuilder};
use std::net::{IpAddr, Ipv4Addr, TcpListener};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::unistd::{User, geteuid};
use sha2::{Digest, Sha256};

use super::Error;
use super::process::Process;

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

/// What a crash leaves of temporary files, nobody goes on with: nothing has to be durable, and nothing is sealed.
const TEMPORARY: [&str; 2] = ["archive_mode=off", "fsync=off"];

/// All of its WAL is replayed already; it has nobody to ask for more. PostgreSQL runs the last command before it takes
/// writes, when somebody promotes the standby, and ends the server where that command does not end by itself:
/// what was written would be gone with the files.
const STANDBY: [&str; 5] = [
    "hot_standby=on",
    "primary_conninfo=",
    "restore_command=",
    "recovery_target_timeline=current",
    "recovery_end_command=kill -KILL $$",
];

impl Settings {
    /// Returns the arguments for `postgres`.
    pub fn arguments(&self) -> Vec<OsString> {
        let mut socket_dir = OsString::from("unix_socket_directories=");
        socket_dir.push(&self.socket_dir);
        let name: String = self.name.chars().filter(char::is_ascii_graphic).take(60).collect();
        let mut hba_file = OsString::from("hba_file=");
        hba_file.push(&self.hba_file);
        // Of two the last one counts: nobody can set what zenith needs.
        let own = self.own.iter().map(|(name, value)| format!("{name}={value}").into());
        let mut arguments: Vec<OsString> = own.collect();
        arguments.extend([socket_dir, hba_file]);
        let settings = [
            format!("port={}", self.port),
            format!("listen_addresses={}", self.tcp.map(|address| address.to_string()).unwrap_or_default()),
            "unix_socket_permissions=0700".to_owned(),
            format!("cluster_name={name}"),
            "archive_timeout=0".to_owned(),
            "full_page_writes=on".to_owned(),
            // Tablespaces are folders inside the data directory: two servers never share one.
            "allow_in_place_tablespaces=on".to_owned(),
            "logging_collector=off".to_owned(),
            "log_destination=stderr".to_owned(),
            "external_pid_file=".to_owned(),
        ];
        arguments.extend(settings.map(OsString::from));
        match &self.role {
            // A segment is recycled only after it is sealed (INVARIANT 4).
            Role::Primary { archive_command } => {
                arguments.extend(["archive_mode=on".into(), format!("archive_command={archive_command}").into()]);
            }
            // A standby accepts no less, and no replication slot asks for more.
            Role::Recovery => arguments.extend(TEMPORARY.into_iter().chain(["wal_level=logical"]).map(OsString::from)),
            Role::Standby => arguments.extend(TEMPORARY.into_iter().chain(STANDBY).map(OsString::from)),
        }
        if cfg!(target_os = "linux") {
            // The default opens every file before recovery.
            arguments.push("recovery_init_sync_method=syncfs".into());
        }
        arguments.into_iter().flat_map(|setting| [OsString::from("-c"), setting]).collect()
    }
}

/// Returns the words as a shell command in the form that `archive_command` wants: quoted, and with
/// `%` doubled. `tail` is appended as it is.
pub fn shell_command(words: &[&std::ffi::OsStr], tail: &str) -> String {
    let quote =
        |word: &&std::ffi::OsStr| format!("'{}'", word.to_string_lossy().replace('\'', "'\\''").replace('%', "%%"));
    let quoted: Vec<String> = words.iter().map(quote).collect();
    format!("{} {tail}", quoted.join(" "))
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

/// Returns whether what belongs to that user is this user's, or for root that of the account that its servers may have.
pub fn is_ours(uid: u32) -> bool {
    let of_servers = || User::from_name("postgres").ok().flatten().is_some_and(|user| user.uid.as_raw() == uid);
    uid == geteuid().as_raw() || (geteuid().is_root() && of_servers())
}

fn make_private(dir: &Path) -> Result<(), Error> {
    match DirBuilder::new().mode(0o700).create(dir) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            let metadata = fs::symlink_metadata(dir).map_err(Error::io("read", dir))?;
            if !metadata.is_dir() || !is_ours(metadata.uid()) {
                return Err(Error::SocketDir(dir.to_owned()));
            }
            if metadata.mode() & 0o077 != 0 {
                fs::set_permissions(dir, fs::Permissions::from_mode(0o700))
                    .map_err(Error::io("change the mode of", dir))?;
            }
            Ok(())
        }
        Err(error) => Err(Error::io("create", dir)(error)),
    }
}

/// Who may connect to the servers that zenith starts. Their unix sockets lie in a folder that only their owner can
/// enter; whoever else comes, comes over the loopback address. What the cluster's own file says was written for
/// another place, and may let in everybody.
const HBA: &str = "# Written by zenith; see zenith(1).\n\
local all         all              trust\n\
local replication all              trust\n\
host  all         all 127.0.0.0/8 scram-sha-256\n\
host  replication all 127.0.0.0/8 scram-sha-256\n";

/// Writes the file that says who may connect, if it is not there yet, and returns its path.
pub fn write_hba_file(dir: &Path) -> Result<PathBuf, Error> {
    let path = dir.join("pg_hba.conf");
    if fs::read_to_string(&path).is_ok_and(|text| text == HBA) {
        return Ok(path);
    }
    let write = || {
        // A server may read it at this moment.
        let mut file = crate::objects::durable::temp_file(dir)?;
        std::io::Write::write_all(&mut file, HBA.as_bytes())?;
        crate::objects::durable::keep_as(file, &path)
    };
    write().map_err(Error::io("write", &path))?;
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

/// Returns whether nobody listens on `port` in `socket_dir` and at the address `tcp`.
pub fn is_free(port: u16, socket_dir: &Path, tcp: Option<IpAddr>) -> bool {
    let answers = std::os::unix::net::UnixStream::connect(socket_path(socket_dir, port)).is_ok();
    !answers && tcp.is_none_or(|address| TcpListener::bind((address, port)).is_ok())
}

/// Removes the socket and its lock file that a server left which is gone. PostgreSQL does so itself,
/// but takes a process for alive that has ended and waits to be noticed by a careless parent, as in
/// containers whose first process is no init.
pub fn remove_stale_socket(port: u16, socket_dir: &Path) {
    let lock = socket_dir.join(format!(".s.PGSQL.{port}.lock"));
    let owner = fs::read_to_string(&lock).unwrap_or_default();
    let owner = owner.lines().next().and_then(|pid| pid.trim().parse().ok());
    if owner.is_some_and(|pid: i32| !Process::of(pid).is_alive()) {
        let _ = fs::remove_file(lock);
        let _ = fs::remove_file(socket_path(socket_dir, port));
    }
}

/// Returns the first free port from `from` on that is not among `taken`.
pub fn free_port(from: u16, taken: &[u16], socket_dir: &Path) -> Result<u16, Error> {
    let mut ports = from..u16::MAX;
    ports.find(|port| !taken.contains(port) && is_free(*port, socket_dir, Some(LOOPBACK))).ok_or(Error::NoPort { from })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shell_commands_survive_quotes_spaces_and_percent_signs() {
        let words = ["/a b/z'x", "50%"].map(std::ffi::OsStr::new);
        assert_eq!(shell_command(&words, "%f"), r"'/a b/z'\''x' '50%%' %f");
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
