//! A running server: starts it, waits until it is ready, asks it, stops it.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::net::IpAddr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use postgres::error::SqlState;
use postgres::{Client, NoTls};

use super::Error;
use super::account::Account;
pub use super::alive::Status;
use super::alive::{self, Alive, Held};
use super::find::Binaries;
use super::process::Process;
use super::settings::{Settings, is_free, remove_stale_socket};
use crate::objects::bounded;
use crate::objects::file_error::cannot;
use crate::objects::pg::Lsn;
use crate::objects::regular;
use crate::progress::{Hidden, Progress};

/// How long a server may take to let zenith in and to answer a question that costs it nothing.
const ANSWER_WAIT: Duration = Duration::from_secs(20);
/// How long a server whose start failed may take to react to a signal, before it gets a harder one.
const UNDO_WAIT: Duration = Duration::from_secs(10);
/// Between two looks at whether a server that comes up is suspended.
const SUSPENDED_WAIT: Duration = Duration::from_secs(5);
/// How long WAL that is written may take to be flushed by itself.
const FLUSH_WAIT: Duration = Duration::from_secs(2);
/// `SizeOfXLogLongPHD` (`src/include/access/xlog_internal.h`), bytes.
const LONGEST_PAGE_HEADER: u64 = 40;
/// How long a server that lives may give no answer before that is an error.
const DOUBT_WAIT: Duration = Duration::from_secs(20);
/// How long a server may take to shut down, before whoever wants it back ends it as a crash would.
const SHUTDOWN_WAIT: Duration = Duration::from_secs(12);
/// How long a server may take to end that has nothing to write, before it is killed.
const CRASH_WAIT: Duration = Duration::from_secs(5);
/// Between two looks at a server that starts or stops: short at first, longer where it takes its time.
const FIRST_PAUSE: Duration = Duration::from_millis(2);
const IMPATIENCE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_millis(50);
/// Lines of the log that an error shows.
const TAIL_LINES: usize = 10;

/// Where a server is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Endpoint {
    pub socket_dir: PathBuf,
    pub port: u16,
    /// As whom zenith connects: a superuser of the cluster.
    pub superuser: String,
    /// The server's version.
    pub major: u32,
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

/// Looks again and again, until there is a result or `patience` is over.
fn poll<T>(patience: Option<Duration>, mut look: impl FnMut() -> Result<Option<T>, Error>) -> Result<Option<T>, Error> {
    let (begun, mut pause) = (Instant::now(), FIRST_PAUSE);
    loop {
        if let Some(found) = look()? {
            return Ok(Some(found));
        }
        if patience.is_some_and(|patience| begun.elapsed() > patience) {
            return Ok(None);
        }
        sleep(pause);
        if begun.elapsed() > IMPATIENCE {
            pause = (pause * 2).min(LONGEST_PAUSE);
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
    pub fn keep(mut self) {
        if let Some(child) = self.child.take() {
            let_run(child);
        }
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        for signal in [Mode::Fast.signal(), Mode::Immediate.signal(), Signal::SIGKILL] {
            // Its number is its own until it is waited for.
            let _ = kill(Pid::from_raw(child.id() as i32), signal); // pids are i32
            if let Ok(Some(())) = poll(Some(UNDO_WAIT), || Ok((!matches!(child.try_wait(), Ok(None))).then_some(()))) {
                return;
            }
        }
    }
}

/// Lets a child run on, and waits for its end as long as this process lives: otherwise it would stay as a zombie.
pub fn let_run(mut child: Child) {
    let wait = move || drop(child.wait());
    // Without the thread it is a zombie, and harmless.
    let _ = thread::Builder::new().name("child".to_owned()).stack_size(64 << 10).spawn(wait);
}

/// Starts a server on `data_dir`, which inherits the proof of its life, and waits until it takes connections. It gets its own
/// process group, so that Ctrl-C in this terminal does not reach it. Recovery may take as long as it does.
pub fn start(
    binaries: &Binaries,
    account: &Account,
    data_dir: &Path,
    log: &Path,
    settings: &Settings,
    held: &Held,
    progress: &dyn Progress,
) -> Result<Started, Error> {
    let program = binaries.program("postgres")?;
    let datadirs = data_dir.parent().and_then(Path::parent).unwrap_or(data_dir);
    remove_stale_socket(settings.port, &settings.socket_dir, datadirs);
    // Nobody runs there: that is what the lock in hand says. PostgreSQL would take another process with that number for one.
    let _ = fs::remove_file(data_dir.join("postmaster.pid"));
    if !is_free(settings.port, &settings.socket_dir, settings.tcp) {
        return Err(Error::PortTaken { port: settings.port, dir: settings.socket_dir.clone() });
    }
    let mut command = account.command(&program);
    command.arg("-D").arg(data_dir).args(settings.arguments(binaries.major, data_dir));
    let log_start = detach(&mut command, log)?;
    held.hand_to(&mut command)?;
    let child = command.spawn().map_err(cannot::<Error>("run", &program))?;
    let pid = child.id() as i32; // pids are i32
    let mut started = Started { child: Some(child) };
    held.note(Process::of(pid).map_err(cannot::<Error>("look at", &program))?)?;
    let mut suspension = Suspension::of(held, settings.port);
    poll(None, || {
        progress.check()?;
        suspension.check()?;
        let child = started.child.as_mut().expect("invariant: taken only by keep and drop");
        if child.try_wait().map_err(cannot::<Error>("wait for", &program))?.is_some() {
            started.child = None;
            return Err(did_not_start(log, log_start));
        }
        Ok(says(data_dir, pid, READY).then_some(()))
    })?;
    Ok(started)
}

/// Notices that a server cannot come up since a signal has suspended it, or a process of its own. One that recovers may take as long
/// as it does.
struct Suspension<'a> {
    held: &'a Held,
    port: u16,
    looked: Instant,
    /// Who was found so at the last look.
    found: Option<Process>,
}

impl Suspension<'_> {
    fn of(held: &Held, port: u16) -> Suspension<'_> {
        Suspension { held, port, looked: Instant::now(), found: None }
    }

    /// Fails where the same process was found suspended at two looks.
    fn check(&mut self) -> Result<(), Error> {
        if self.looked.elapsed() < SUSPENDED_WAIT {
            return Ok(());
        }
        self.looked = Instant::now();
        // What cannot be looked at now is looked at again.
        let found = self.held.inheritors().unwrap_or_default().into_iter().find(Process::is_suspended);
        match found {
            Some(process) if self.found == found => Err(Error::Suspended { port: self.port, process }),
            _ => {
                self.found = found;
                Ok(())
            }
        }
    }
}

/// Gives a command its own process group, nothing to read, and `log` to write to. Returns where its messages begin.
fn detach(command: &mut Command, log: &Path) -> Result<u64, Error> {
    let mut file =
        regular::open_with(File::options().create(true).append(true).read(true), log)
            .map_err(cannot::<Error>("open", log))?;
    let log_start = file.seek(SeekFrom::End(0)).map_err(cannot::<Error>("read", log))?;
    let stdout = file.try_clone().map_err(cannot::<Error>("open", log))?;
    command.stdin(Stdio::null()).stdout(stdout).stderr(file).process_group(0);
    Ok(log_start)
}

/// A recovery that is under way. Dropping it ends that as a crash would.
struct Recovering(Child);

impl Drop for Recovering {
    fn drop(&mut self) {
        // Both fail only where it has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Recovers the files in `data_dir` to the end of their WAL, and shuts them down cleanly there. It is one process that
/// talks to nobody: no client comes in, and nothing of the cluster's own runs, such as its schedulers. May take as long
/// as recovery does. Returns where its messages begin in `log`; whether all went well stands in `pg_control`.
pub fn recover(
    binaries: &Binaries,
    account: &Account,
    data_dir: &Path,
    log: &Path,
    settings: &Settings,
    held: &Held,
    progress: &dyn Progress,
) -> Result<u64, Error> {
    let program = binaries.program("postgres")?;
    let mut command = account.command(&program);
    // It recovers before it looks for the database in which it reads statements, of which there are none.
    command.args(["--single", "-D"]).arg(data_dir).args(settings.arguments(binaries.major, data_dir)).arg("template1");
    let log_start = detach(&mut command, log)?;
    held.hand_to(&mut command)?;
    let mut child = Recovering(command.spawn().map_err(cannot::<Error>("run", &program))?);
    let pid = child.0.id() as i32; // pids are i32
    held.note(Process::of(pid).map_err(cannot::<Error>("look at", &program))?)?;
    let mut suspension = Suspension::of(held, settings.port);
    poll(None, || {
        progress.check()?;
        suspension.check()?;
        child.0.try_wait().map_err(cannot::<Error>("wait for", &program))
    })?;
    Ok(log_start)
}

/// What a server says in its pid file when it takes connections, and when it shuts down (`src/include/utils/pidfile.h`).
const READY: &[&str] = &["ready", "standby"];
const STOPPING: &[&str] = &["stopping"];

/// Returns whether the server with that pid says one of `words` in its pid file.
fn says(data_dir: &Path, pid: i32, words: &[&str]) -> bool {
    let text = bounded::read_to_string(&data_dir.join("postmaster.pid"), bounded::OF_CLUSTER).unwrap_or_default();
    let mut lines = text.lines();
    lines.next().is_some_and(|line| line.trim().parse() == Ok(pid))
        && lines.nth(6).is_some_and(|status| words.contains(&status.trim()))
}

/// Returns the port of the server that runs in `data_dir`, or did, and the address that it listens on, from its pid file
/// (`src/include/utils/pidfile.h`).
pub fn listens(data_dir: &Path) -> Option<(u16, Option<IpAddr>)> {
    let text = bounded::read_to_string(&data_dir.join("postmaster.pid"), bounded::OF_CLUSTER).ok()?;
    let mut lines = text.lines().skip(3);
    let port = lines.next()?.trim().parse().ok()?;
    Some((port, lines.nth(1).and_then(|address| address.trim().parse().ok())))
}

/// Returns the error of a server that ended before it was ready, and whose messages begin at byte `from` of its log.
pub fn did_not_start(log: &Path, from: u64) -> Error {
    let mut tail = tail(log, from);
    if tail.is_empty() {
        tail.push_str("(none: log_min_messages may say that there are to be none)");
    }
    Error::DidNotStart { log: log.to_owned(), tail }
}

/// Returns the last lines of a log, from byte `from` on.
pub fn tail(log: &Path, from: u64) -> String {
    let mut text = Vec::new();
    let read = regular::open(log).and_then(|mut file| {
        let end = file.seek(SeekFrom::End(0))?;
        file.seek(SeekFrom::Start(from.max(end.saturating_sub(64 << 10))))?;
        file.read_to_end(&mut text)
    });
    let text = read.map(|_| String::from_utf8_lossy(&text).into_owned()).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
}

/// What the sessions of zenith itself have, whatever the cluster's files, the role and the database say: no time ends them, no
/// library that is missing refuses them, nothing of the user's runs in them. Each with the first version that knows it.
const SESSION: [(u32, &str); 13] = [
    (14, "statement_timeout=0"),
    (14, "lock_timeout=0"),
    (14, "idle_session_timeout=0"),
    (14, "idle_in_transaction_session_timeout=0"),
    (17, "transaction_timeout=0"),
    (14, "session_preload_libraries="),
    (14, "local_preload_libraries="),
    (14, "search_path=pg_catalog"),
    (14, "role=none"),
    (14, "default_transaction_read_only=off"),
    // A server that only reads refuses the strictest one.
    (14, "default_transaction_isolation=repeatable read"),
    (14, "synchronous_commit=local"),
    (17, "event_triggers=off"),
];

/// Returns those of a version.
pub(super) fn session(major: u32) -> impl Iterator<Item = &'static str> {
    SESSION.iter().filter(move |(since, _)| major >= *since).map(|(_, setting)| *setting)
}

/// Logs in, and asks; both within [`ANSWER_WAIT`]. A server that is suspended says nothing, and nothing ends a wait for
/// it: the kernel accepts connections on its behalf. So a thread waits, which is left behind, until the server answers or
/// is gone.
fn ask<T: Send + 'static>(
    endpoint: &Endpoint,
    question: impl FnOnce(Client) -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    let (answer, answered) = mpsc::channel();
    let asked = endpoint.clone();
    let wait = move || drop(answer.send(log_in(&asked).and_then(question)));
    let thread = thread::Builder::new().name("question".to_owned()).spawn(wait);
    thread.map_err(cannot::<Error>("ask the server in", &endpoint.socket_dir))?;
    let silent = |_| Error::Silent { port: endpoint.port, seconds: ANSWER_WAIT.as_secs() };
    answered.recv_timeout(ANSWER_WAIT).map_err(silent)?
}

/// Connects to the database `postgres`, or where there is none, or one that nobody may connect to, to `template1`, as the superuser.
fn log_in(endpoint: &Endpoint) -> Result<Client, Error> {
    let options: String =
        session(endpoint.major).map(|setting| format!("-c {} ", setting.replace(' ', "\\ "))).collect();
    let mut config = postgres::Config::new();
    config.host_path(&endpoint.socket_dir).port(endpoint.port).user(&endpoint.superuser).dbname("postgres");
    config.application_name("zenith").connect_timeout(ANSWER_WAIT).options(&options);
    let connected = config.connect(NoTls).or_else(|error| match error.code() {
        Some(&SqlState::INVALID_CATALOG_NAME | &SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE) => {
            config.dbname("template1").connect(NoTls)
        }
        _ => Err(error),
    });
    connected.map_err(|source| match source.code() {
        Some(&SqlState::INVALID_AUTHORIZATION_SPECIFICATION) => {
            Error::Superuser { name: endpoint.superuser.clone(), port: endpoint.port, source }
        }
        _ => Error::Query { port: endpoint.port, source },
    })
}

/// Waits until a server takes connections, however long it recovers. Returns false where it ends instead, as one does that
/// was killed a moment ago, or whose files are gone. One that shuts down, which nobody waits for any more, is ended if that
/// takes too long: clients may hold it up, and PostgreSQL 15 and later wait for their checkpointer for ever when they are told
/// to shut down while they recover from the death of a child. What it has acknowledged is in the WAL.
pub fn wait_until_it_answers(
    status: impl Fn() -> Status,
    data_dir: &Path,
    endpoint: &Endpoint,
    progress: &dyn Progress,
) -> Result<bool, Error> {
    let (mut doubted, mut stopping) = (None, None);
    while let Status::Running(postmaster) = status() {
        progress.check()?;
        if !says(data_dir, postmaster.pid, STOPPING) {
            stopping = None;
        } else if stopping.get_or_insert_with(Instant::now).elapsed() > SHUTDOWN_WAIT {
            end_at_once(postmaster).map_err(cannot::<Error>("end the server of", data_dir))?;
            continue;
        }
        let error = match ask(endpoint, |_| Ok(())) {
            Ok(()) => return Ok(true),
            Err(Error::Query { source, .. }) => source,
            Err(Error::Superuser { .. }) => return Ok(true),
            Err(error) => return Err(error),
        };
        match error.code() {
            Some(&SqlState::CANNOT_CONNECT_NOW) => doubted = None,
            // It cannot read its files; its guardian sees to that.
            Some(code) if !["58", "XX"].iter().any(|class| code.code().starts_with(class)) => return Ok(true),
            _ if doubted.get_or_insert_with(Instant::now).elapsed() > DOUBT_WAIT => {
                return Err(Error::Query { port: endpoint.port, source: error });
            }
            _ => {}
        }
        sleep(LONGEST_PAUSE);
    }
    Ok(false)
}

/// Returns how far a server's WAL is flushed, once all is that was written before this call: a commit with synchronous_commit = off
/// is seen by others before it is durable, and whoever saw it expects it in a branch that is made then. PostgreSQL's WAL writer
/// flushes it within three times wal_writer_delay; where that is more than [`FLUSH_WAIT`] a commit of our own has it flushed.
pub fn flushed_lsn(endpoint: &Endpoint) -> Result<Lsn, Error> {
    let port = endpoint.port;
    ask(endpoint, move |client| flushed_lsn_of(client, port))
}

fn flushed_lsn_of(mut client: Client, port: u16) -> Result<Lsn, Error> {
    let query = |source| Error::Query { port, source };
    let ask = |client: &mut Client, function: &str| {
        let text: String = client.query_one(&format!("SELECT {function}()::text"), &[]).map_err(query)?.get(0);
        text.parse().map_err(|error| Error::Failed { program: "postgres", output: format!("{error}") })
    };
    let written: Lsn = ask(&mut client, "pg_current_wal_insert_lsn")?;
    let mut may_wait = true;
    let begun = Instant::now();
    loop {
        let flushed: Lsn = ask(&mut client, "pg_current_wal_flush_lsn")?;
        // The one counts the header of a page in which there is nothing yet, the other does not.
        let is_page_empty = flushed == written.page_start() && written.since(flushed) <= LONGEST_PAGE_HEADER;
        if flushed >= written || is_page_empty || !may_wait {
            return Ok(flushed);
        }
        sleep(LONGEST_PAUSE);
        if begun.elapsed() > FLUSH_WAIT {
            may_wait = false;
            // One that wrote something: else PostgreSQL does not wait for its flush. It waits for no standby: see SESSION.
            let commit = "SELECT pg_logical_emit_message(true, 'zenith', '')";
            client.batch_execute(commit).map_err(query)?;
        }
    }
}

/// Returns how many clients are connected to a server, beside the one who asks.
pub fn clients(endpoint: &Endpoint) -> Result<u64, Error> {
    // From PostgreSQL 18 on those who have not authenticated are listed, too; they do not count.
    let count = "SELECT count(*) FROM pg_stat_activity WHERE backend_type IN ('client backend', 'walsender') \
                 AND pid <> pg_backend_pid() AND state IS DISTINCT FROM 'starting'";
    let port = endpoint.port;
    let row =
        ask(endpoint, move |mut client| client.query_one(count, &[]).map_err(|source| Error::Query { port, source }))?;
    Ok(row.get::<_, i64>(0).unsigned_abs())
}

/// Ends sessions of a server, which tells their clients so.
pub fn terminate(endpoint: &Endpoint, pids: &[i32]) -> Result<(), Error> {
    let end = "SELECT pg_terminate_backend(pid) FROM unnest($1::int[]) AS pid";
    let (port, pids) = (endpoint.port, pids.to_owned());
    ask(endpoint, move |mut client| {
        client.execute(end, &[&pids]).map(drop).map_err(|source| Error::Query { port, source })
    })
}

/// Returns a process of a server that was suspended, of those which a backup waits for.
fn suspended(endpoint: &Endpoint) -> Result<Option<Process>, Error> {
    let needed = "SELECT pid FROM pg_stat_activity WHERE backend_type = 'checkpointer' OR application_name = 'zenith'";
    let port = endpoint.port;
    let rows =
        ask(endpoint, move |mut client| client.query(needed, &[]).map_err(|source| Error::Query { port, source }))?;
    // Of whom nothing is to be known now, that is asked again.
    Ok(rows.iter().filter_map(|row| Process::of(row.get(0)).ok()).find(Process::is_suspended))
}

/// Does something that may take as long as it does, such as a checkpoint: until the user does not want to wait, the server
/// gives no sign of life, or who should do it is suspended. A thread that waits in vain is left behind.
fn wait_for<T: Send + 'static>(
    endpoint: &Endpoint,
    progress: &dyn Progress,
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    let (done, is_done) = mpsc::channel();
    let thread = thread::Builder::new().name("backup".to_owned()).spawn(move || drop(done.send(work())));
    thread.map_err(cannot::<Error>("ask the server in", &endpoint.socket_dir))?;
    let mut asked = Instant::now();
    loop {
        match is_done.recv_timeout(LONGEST_PAUSE) {
            Ok(result) => return result,
            Err(mpsc::RecvTimeoutError::Timeout) => progress.check()?,
            Err(mpsc::RecvTimeoutError::Disconnected) => {
                return Err(Error::Silent { port: endpoint.port, seconds: asked.elapsed().as_secs() });
            }
        }
        if asked.elapsed() > ANSWER_WAIT {
            match suspended(endpoint) {
                Ok(Some(process)) => return Err(Error::Suspended { port: endpoint.port, process }),
                Err(error @ Error::Silent { .. }) => return Err(error),
                // One that shuts down refuses new sessions, and ends ours.
                _ => asked = Instant::now(),
            }
        }
    }
}

/// A server in backup mode. Dropping it ends the backup without a result.
pub struct Backup {
    client: Client,
    endpoint: Endpoint,
}

impl Backup {
    /// Begins a backup: every page that changes from now on is in the WAL as a whole. Its checkpoint is done at
    /// once: the function holds back vacuum as long as it waits, and would wait for minutes. It may take as long as it does.
    pub fn begin(endpoint: &Endpoint, progress: &dyn Progress) -> Result<Backup, Error> {
        let port = endpoint.port;
        let query = move |source| Error::Query { port, source };
        let (mut client, is_before_15) = ask(endpoint, move |mut client| {
            let is_before_15 = is_before_15(&mut client).map_err(query)?;
            Ok((client, is_before_15))
        })?;
        let begin = if is_before_15 {
            "SELECT pg_start_backup('zenith', true, false)"
        } else {
            "SELECT pg_backup_start('zenith', true)"
        };
        let client = wait_for(endpoint, progress, move || client.query_one(begin, &[]).map(|_| client).map_err(query))?;
        Ok(Backup { client, endpoint: endpoint.clone() })
    }

    /// Ends it. Returns the label, and the LSN from which on what was copied is consistent.
    pub fn end(self, progress: &dyn Progress) -> Result<(String, Lsn), Error> {
        let Backup { mut client, endpoint } = self;
        let port = endpoint.port;
        let row = wait_for(&endpoint, progress, move || {
            let query = |source| Error::Query { port, source };
            let end = if is_before_15(&mut client).map_err(query)? {
                "SELECT labelfile, lsn::text FROM pg_stop_backup(false, false)"
            } else {
                "SELECT labelfile, lsn::text FROM pg_backup_stop(false)"
            };
            client.query_one(end, &[]).map_err(query)
        })?;
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

/// Returns the pid of the server that runs on a data directory that zenith did not make. A pid file that a crash
/// left behind does not count, even if another process has its number by now.
pub fn runs_on_foreign(data_dir: &Path) -> Option<i32> {
    let text = bounded::read_to_string(&data_dir.join("postmaster.pid"), bounded::OF_CLUSTER).unwrap_or_default();
    let pid = text.lines().next().and_then(|pid| pid.trim().parse::<i32>().ok()).filter(|pid| *pid > 1)?;
    let works_there = match (fs::read_link(format!("/proc/{pid}/cwd")), fs::canonicalize(data_dir)) {
        (Ok(cwd), Ok(dir)) => cwd == dir,
        // Another user's process hides where it works; other systems have no such link.
        (Err(error), _) => error.kind() == io::ErrorKind::PermissionDenied || !Path::new("/proc/self").exists(),
        _ => false,
    };
    (works_there && Process::of(pid).is_ok_and(|process| process.is_alive())).then_some(pid)
}

/// Stops the server that holds the lock of `alive`, if one runs, and waits until it and all that it started are gone; what
/// outlives the postmaster for more than [`alive::GRACE`] is killed. One that still `recovers` a while after it was told to stop is
/// ended as a crash would: PostgreSQL 15 and later may wait for their checkpointer for ever then, and recovery has nothing to lose.
pub fn stop(
    alive: &Alive,
    mode: Mode,
    timeout: Duration,
    recovers: impl Fn() -> bool,
    log: &Path,
    progress: &dyn Progress,
) -> Result<(), Error> {
    let mut grace = Duration::ZERO;
    if let Some(postmaster) = alive.postmaster()? {
        grace = alive::GRACE;
        let cannot_stop = || cannot::<Error>("stop the server that holds", alive.path());
        postmaster.signal(mode.signal()).map_err(cannot_stop())?;
        let has_ended_soon = has_ended(postmaster, timeout.min(CRASH_WAIT), progress)?;
        if !has_ended_soon && recovers() {
            end_at_once(postmaster).map_err(cannot_stop())?;
        } else if !has_ended_soon && !has_ended(postmaster, timeout.saturating_sub(CRASH_WAIT), progress)? {
            return Err(Error::DidNotStop { postmaster, seconds: timeout.as_secs(), log: log.to_owned() });
        }
    }
    match alive.status()? {
        // Another command looks after what was left: it goes on with that.
        Status::Stopped | Status::Held | Status::Running(_) => Ok(()),
        Status::Orphaned => alive.end_orphans(Instant::now() + grace),
    }
}

/// Ends a server whose files are gone, as a crash would: it could write nothing, and what it has acknowledged is in the WAL.
pub fn end_at_once(postmaster: Process) -> io::Result<()> {
    for signal in [Mode::Immediate.signal(), Signal::SIGKILL] {
        postmaster.signal(signal)?;
        if has_ended(postmaster, CRASH_WAIT, &Hidden).is_ok_and(|ended| ended) {
            return Ok(());
        }
    }
    Err(io::ErrorKind::TimedOut.into())
}

/// Waits until a process has ended. Returns false if it has not within `timeout`.
fn has_ended(process: Process, timeout: Duration, progress: &dyn Progress) -> Result<bool, Error> {
    let ended = poll(Some(timeout), || {
        progress.check()?;
        Ok((!process.is_alive()).then_some(()))
    })?;
    Ok(ended.is_some())
}

/// Becomes `psql`, connected to a server with the session's `options`; the user's own arguments come last
/// and win. Returns only if that fails.
pub fn become_psql(psql: &Path, endpoint: &Endpoint, options: &str, arguments: &[std::ffi::OsString]) -> Error {
    let mut command = Command::new(psql);
    if !options.is_empty() {
        let own = std::env::var("PGOPTIONS").unwrap_or_default();
        command.env("PGOPTIONS", format!("{own} {options}").trim());
    }
    command.env("PGHOST", &endpoint.socket_dir).env("PGPORT", endpoint.port.to_string());
    command.env("PGUSER", &endpoint.superuser).env("PGDATABASE", "postgres").args(arguments);
    cannot("run", psql)(command.exec())
}

/// Returns the URL of a server's socket.
pub fn url(endpoint: &Endpoint) -> String {
    use std::os::unix::ffi::OsStrExt;
    let dir = endpoint.socket_dir.as_os_str().as_bytes();
    let dir = percent_encoding::percent_encode(dir, percent_encoding::NON_ALPHANUMERIC);
    let user = percent_encoding::utf8_percent_encode(&endpoint.superuser, percent_encoding::NON_ALPHANUMERIC);
    format!("postgresql:///postgres?host={dir}&port={}&user={user}", endpoint.port)
}
