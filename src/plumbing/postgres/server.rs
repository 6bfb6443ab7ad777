//! A running server: starts it, waits until it is ready, asks it, stops it.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use postgres::{Client, NoTls};

use super::Error;
use super::account::Account;
use super::find::Binaries;
use super::initdb::SUPERUSER;
use super::settings::{Settings, is_free, remove_stale_socket};
use crate::objects::pg::Lsn;
use crate::progress::Progress;

/// How long a server may take to answer a connection.
const CONNECT_WAIT: Duration = Duration::from_secs(10);
/// Between two looks at a server that starts or stops: short at first, longer where it takes its time.
const FIRST_PAUSE: Duration = Duration::from_millis(2);
const IMPATIENCE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_millis(50);
/// How long a standby may stay at one record.
const REPLAY_PATIENCE: Duration = Duration::from_secs(60);
/// Lines of the log that an error shows.
const TAIL_LINES: usize = 10;

/// Where a server is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    pub socket_dir: PathBuf,
    pub port: u16,
}

/// What is known of a data directory's server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Status {
    Stopped,
    Running { pid: i32 },
}

/// How to stop, as `pg_ctl` calls it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Waits for clients to go.
    Smart,
    /// Ends their transactions.
    Fast,
    /// Without a checkpoint, as in a crash.
    Immediate,
}

impl Mode {
    fn signal(self) -> Signal {
        match self {
            Mode::Smart => Signal::SIGTERM,
            Mode::Fast => Signal::SIGINT,
            Mode::Immediate => Signal::SIGQUIT,
        }
    }
}

/// A server that was started. Dropping it stops the server, unless it was [kept](Started::keep).
#[must_use = "the server is stopped again when this is dropped"]
pub struct Started {
    child: Option<Child>,
}

impl Started {
    /// Lets the server run on after this process.
    pub fn keep(mut self) -> u32 {
        self.child.take().map_or(0, |child| child.id())
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = kill(Pid::from_raw(child.id() as i32), Mode::Fast.signal()); // pids are i32
            let _ = child.wait();
        }
    }
}

/// Starts a server on `data_dir` and waits until it takes connections. It gets its own process
/// group, so that Ctrl-C in this terminal does not reach it. Recovery may take as long as it does.
pub fn start(
    binaries: &Binaries,
    account: &Account,
    data_dir: &Path,
    log: &Path,
    settings: &Settings,
    progress: &dyn Progress,
) -> Result<Started, Error> {
    let program = binaries.program("postgres")?;
    remove_stale_socket(settings.port, &settings.socket_dir);
    remove_stale_pid_file(data_dir);
    if !is_free(settings.port, &settings.socket_dir, settings.tcp) {
        return Err(Error::PortTaken { port: settings.port, dir: settings.socket_dir.clone() });
    }
    let mut file = File::options().create(true).append(true).read(true).open(log).map_err(Error::io("open", log))?;
    let log_start = file.seek(SeekFrom::End(0)).map_err(Error::io("read", log))?;
    let stdout = file.try_clone().map_err(Error::io("open", log))?;
    let mut command = account.command(&program);
    command.arg("-D").arg(data_dir).args(settings.arguments());
    command.stdin(Stdio::null()).stdout(stdout).stderr(file).process_group(0);
    let child = command.spawn().map_err(Error::io("run", &program))?;
    let mut started = Started { child: Some(child) };
    let (begun, mut pause) = (Instant::now(), FIRST_PAUSE);
    loop {
        progress.check()?;
        let child = started.child.as_mut().expect("invariant: taken only by keep and drop");
        if child.try_wait().map_err(Error::io("wait for", &program))?.is_some() {
            started.child = None;
            return Err(Error::DidNotStart { log: log.to_owned(), tail: tail(log, log_start) });
        }
        if is_ready(data_dir) {
            return Ok(started);
        }
        sleep(pause);
        if begun.elapsed() > IMPATIENCE {
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }
}

/// Removes the pid file of a server that is gone, for the same reason as its socket.
fn remove_stale_pid_file(data_dir: &Path) {
    if status(data_dir) == Status::Stopped {
        let _ = fs::remove_file(data_dir.join("postmaster.pid")); // PostgreSQL says so if it minds
    }
}

/// Returns whether the server says in its pid file that it takes connections.
fn is_ready(data_dir: &Path) -> bool {
    let text = fs::read_to_string(data_dir.join("postmaster.pid")).unwrap_or_default();
    text.lines().nth(7).is_some_and(|status| ["ready", "standby"].contains(&status.trim()))
}

/// Returns the last lines of a log, from byte `from` on.
pub fn tail(log: &Path, from: u64) -> String {
    let mut text = Vec::new();
    let read = File::open(log).and_then(|mut file| {
        let end = file.seek(SeekFrom::End(0))?;
        file.seek(SeekFrom::Start(from.max(end.saturating_sub(64 << 10))))?;
        file.read_to_end(&mut text)
    });
    let text = read.map(|_| String::from_utf8_lossy(&text).into_owned()).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
}

/// Connects to the database `postgres` as the superuser.
pub fn connect(endpoint: &Endpoint) -> Result<Client, Error> {
    let mut config = postgres::Config::new();
    config.host_path(&endpoint.socket_dir).port(endpoint.port).user(SUPERUSER).dbname("postgres");
    config.application_name("zenith").connect_timeout(CONNECT_WAIT);
    config.connect(NoTls).map_err(|source| Error::Query { port: endpoint.port, source })
}

/// Asks a server how far its WAL is flushed.
pub fn flushed_lsn(endpoint: &Endpoint) -> Result<Lsn, Error> {
    let row = connect(endpoint)?.query_one("SELECT pg_current_wal_flush_lsn()::text", &[]);
    let row = row.map_err(|source| Error::Query { port: endpoint.port, source })?;
    let text: String = row.get(0);
    text.parse().map_err(|error| Error::Failed { program: "postgres", output: format!("{error}") })
}

/// Returns how many clients are connected to a server, beside the one who asks.
pub fn clients(endpoint: &Endpoint) -> Result<u64, Error> {
    let count = "SELECT count(*) FROM pg_stat_activity \
                 WHERE backend_type IN ('client backend', 'walsender') AND pid <> pg_backend_pid()";
    let row = connect(endpoint)?.query_one(count, &[]);
    let row = row.map_err(|source| Error::Query { port: endpoint.port, source })?;
    Ok(row.get::<_, i64>(0).unsigned_abs())
}

/// Waits until a standby has replayed the WAL up to `lsn`. Fails when it gets no further for a minute.
pub fn wait_for_replay(endpoint: &Endpoint, lsn: Lsn, log: &Path, progress: &dyn Progress) -> Result<(), Error> {
    let query = |source| Error::Query { port: endpoint.port, source };
    let mut client = connect(endpoint)?;
    let (mut reached, mut moved) = (Lsn(0), Instant::now());
    loop {
        progress.check()?;
        let row = client.query_one("SELECT coalesce(pg_last_wal_replay_lsn(), '0/0')::text", &[]).map_err(query)?;
        let text: String = row.get(0);
        let now = text.parse().map_err(|error| Error::Failed { program: "postgres", output: format!("{error}") })?;
        if now >= lsn {
            return Ok(());
        }
        if now > reached {
            (reached, moved) = (now, Instant::now());
        } else if moved.elapsed() > REPLAY_PATIENCE {
            let seconds = REPLAY_PATIENCE.as_secs();
            return Err(Error::Timeout { what: "replay its WAL", seconds, log: log.to_owned() });
        }
        sleep(FIRST_PAUSE);
    }
}

/// A server in backup mode. Dropping it ends the backup without a result.
pub struct Backup {
    client: Client,
    port: u16,
}

impl Backup {
    /// Begins a backup: every page that changes from now on is in the WAL as a whole. Its checkpoint is done at
    /// once: the function holds back vacuum as long as it waits, and would wait for minutes.
    pub fn begin(endpoint: &Endpoint) -> Result<Backup, Error> {
        let query = |source| Error::Query { port: endpoint.port, source };
        let mut client = connect(endpoint)?;
        let begin = if is_before_15(&mut client).map_err(query)? {
            "SELECT pg_start_backup('zenith', true, false)"
        } else {
            "SELECT pg_backup_start('zenith', true)"
        };
        client.query_one(begin, &[]).map_err(query)?;
        Ok(Backup { client, port: endpoint.port })
    }

    /// Ends it. Returns the label, and the LSN from which on what was copied is consistent.
    pub fn end(mut self) -> Result<(String, Lsn), Error> {
        let query = |source| Error::Query { port: self.port, source };
        let end = if is_before_15(&mut self.client).map_err(query)? {
            "SELECT labelfile, lsn::text FROM pg_stop_backup(false, false)"
        } else {
            "SELECT labelfile, lsn::text FROM pg_backup_stop(false)"
        };
        let row = self.client.query_one(end, &[]).map_err(query)?;
        let (label, lsn): (String, String) = (row.get(0), row.get(1));
        let lsn = lsn.parse().map_err(|error| Error::Failed { program: "postgres", output: format!("{error}") })?;
        Ok((label, lsn))
    }
}

/// The functions were renamed in PostgreSQL 15.
fn is_before_15(client: &mut Client) -> Result<bool, postgres::Error> {
    let row = client.query_one("SELECT current_setting('server_version_num')::int < 150000", &[])?;
    Ok(row.get(0))
}

/// Returns whether a server runs on `data_dir`. A pid file that a crash left behind does not count,
/// even if another process has its number by now.
pub fn status(data_dir: &Path) -> Status {
    let text = fs::read_to_string(data_dir.join("postmaster.pid")).unwrap_or_default();
    match text.lines().next().and_then(|pid| pid.trim().parse::<i32>().ok()) {
        Some(pid) if pid > 0 && runs_in(pid, data_dir) => Status::Running { pid },
        _ => Status::Stopped,
    }
}

/// Returns whether `pid` is a process that has not ended.
pub fn is_alive(pid: i32) -> bool {
    if !Path::new("/proc/self").exists() {
        return kill(Pid::from_raw(pid), None).is_ok();
    }
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, state)| !state.starts_with(['Z', 'X']))
}

/// Returns whether `pid` is a process that works in `data_dir`, as every server does in its own.
fn runs_in(pid: i32, data_dir: &Path) -> bool {
    let same = match (fs::read_link(format!("/proc/{pid}/cwd")), fs::canonicalize(data_dir)) {
        (Ok(cwd), Ok(dir)) => cwd == dir,
        // Another user's process hides where it works; other systems have no such link.
        (Err(error), _) => error.kind() == std::io::ErrorKind::PermissionDenied || !Path::new("/proc/self").exists(),
        _ => false,
    };
    same && is_alive(pid)
}

/// Returns the path without symbolic links. The folder itself is not looked at: it may be a mount
/// whose file system does not answer any more.
fn real_path(data_dir: &Path) -> PathBuf {
    let parent = data_dir.parent().and_then(|parent| fs::canonicalize(parent).ok());
    parent.zip(data_dir.file_name()).map_or_else(|| data_dir.to_owned(), |(parent, name)| parent.join(name))
}

/// Ends what is left of a server whose postmaster is gone. A backend that outlives it goes on until
/// its statement is done, and would acknowledge commits into WAL that has been sealed already.
pub fn end_orphans(data_dir: &Path) {
    let dir = real_path(data_dir);
    let mut deleted = dir.clone().into_os_string();
    deleted.push(" (deleted)");
    let works_there =
        |pid: &i32| fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd == dir || cwd.as_os_str() == deleted);
    let patience = Instant::now() + Duration::from_secs(10);
    while Instant::now() < patience {
        let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
        let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        // Only PostgreSQL's own: a shell may stand in the folder too.
        let is_postgres = |pid: &i32| {
            fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim().starts_with("postgres"))
        };
        let orphans: Vec<i32> = pids.filter(|pid| works_there(pid) && is_postgres(pid)).collect();
        if orphans.is_empty() {
            return;
        }
        for pid in orphans {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        sleep(FIRST_PAUSE);
    }
}

/// Stops the server on `data_dir`, if one runs, and waits until it is gone.
pub fn stop(data_dir: &Path, mode: Mode, timeout: Duration, log: &Path, progress: &dyn Progress) -> Result<(), Error> {
    let Status::Running { pid } = status(data_dir) else { return Ok(()) };
    match kill(Pid::from_raw(pid), mode.signal()) {
        // It may have gone this instant.
        Ok(()) | Err(Errno::ESRCH) => {}
        Err(error) => {
            return Err(Error::Io { verb: "stop the server on", path: data_dir.to_owned(), source: error.into() });
        }
    }
    let patience = Instant::now() + timeout;
    let (begun, mut pause) = (Instant::now(), FIRST_PAUSE);
    while runs_in(pid, data_dir) {
        progress.check()?;
        if Instant::now() > patience {
            return Err(Error::Timeout { what: "stop", seconds: timeout.as_secs(), log: log.to_owned() });
        }
        sleep(pause);
        if begun.elapsed() > IMPATIENCE {
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }
    Ok(())
}

/// Becomes `psql`, connected to a server with the session's `options`; the user's own arguments come last
/// and win. Returns only if that fails.
pub fn become_psql(psql: &Path, endpoint: &Endpoint, options: &str, arguments: &[std::ffi::OsString]) -> Error {
    let mut command = std::process::Command::new(psql);
    if !options.is_empty() {
        let own = std::env::var("PGOPTIONS").unwrap_or_default();
        command.env("PGOPTIONS", format!("{own} {options}").trim());
    }
    command.env("PGHOST", &endpoint.socket_dir).env("PGPORT", endpoint.port.to_string());
    command.env("PGUSER", SUPERUSER).env("PGDATABASE", "postgres").args(arguments);
    Error::Io { verb: "run", path: psql.to_owned(), source: command.exec() }
}

/// Returns the URL of a server's socket.
pub fn url(endpoint: &Endpoint) -> String {
    use std::os::unix::ffi::OsStrExt;
    let dir = endpoint.socket_dir.as_os_str().as_bytes();
    let dir = percent_encoding::percent_encode(dir, percent_encoding::NON_ALPHANUMERIC);
    format!("postgresql:///postgres?host={dir}&port={}&user={SUPERUSER}", endpoint.port)
}
