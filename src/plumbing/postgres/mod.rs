//! The PostgreSQL engine: finds, creates, configures, starts and stops servers.
//!
//! The only place that runs PostgreSQL's programs.

pub mod account;
pub mod alive;
pub mod conf;
pub mod conf_files;
pub mod conninfo;
pub mod find;
pub mod initdb;
pub mod policy;
#[allow(clippy::disallowed_methods, reason = "it reads /proc")]
pub mod process;
pub mod recovery;
pub mod server;
pub mod settings;

use std::io;
use std::path::PathBuf;

use postgres::error::SqlState;

use crate::objects::file_error::FileError;
use crate::progress::Interrupted;

/// PostgreSQL cannot be found or does not do what it should.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No programs, or not those of the version that is needed.
    #[error("{}", not_found(*major, searched))]
    NotFound { major: Option<u32>, searched: Vec<PathBuf> },
    #[error("'{}' lacks PostgreSQL's program '{program}'", dir.display())]
    Lacks { dir: PathBuf, program: &'static str, major: u32 },
    #[error("'{}' holds PostgreSQL {found}, but the repository needs PostgreSQL {wanted}", dir.display())]
    WrongVersion { dir: PathBuf, found: u32, wanted: u32 },
    #[error("zenith works with PostgreSQL 14 to 18; '{}' holds version {found}", dir.display())]
    Unsupported { dir: PathBuf, found: u32 },
    #[error("PostgreSQL does not run as root, and here root can become nobody else")]
    Root,
    #[error("'{program}' failed: {output}")]
    Failed { program: &'static str, output: String },
    /// The server ended before it was ready.
    #[error("PostgreSQL did not start; the last lines of '{}':\n{tail}", log.display())]
    DidNotStart { log: PathBuf, tail: String },
    #[error("PostgreSQL did not stop within {seconds} seconds; its log is '{}'", log.display())]
    DidNotStop { postmaster: process::Process, seconds: u64, log: PathBuf },
    /// A server runs there, or what it left behind, or another command is about to start it.
    #[error("{} holds the lock '{}' of a server", holder(process), lock.display())]
    StillAlive { lock: PathBuf, process: Option<process::Process> },
    #[error("port {port} is taken, in '{}'", dir.display())]
    PortTaken { port: u16, dir: PathBuf },
    #[error("no free port from {from} on")]
    NoPort { from: u16 },
    #[error("the folder for sockets '{}' belongs to somebody else", .0.display())]
    SocketDir(PathBuf),
    #[error("the path {0:?} is not UTF-8, and PostgreSQL's settings are text")]
    NotUtf8(PathBuf),
    #[error("cannot ask the server on port {port}")]
    Query { port: u16, source: postgres::Error },
    /// It runs, and takes connections or not: nothing is known of it.
    #[error("the server on port {port} has given no answer for {seconds} seconds")]
    Silent { port: u16, seconds: u64 },
    /// It would be waited for without end.
    #[error("a process of the server on port {port} is suspended: {}", process.pid)]
    Suspended { port: u16, process: process::Process },
    #[error("the server on port {port} knows no user '{name}' who may connect")]
    Superuser { name: String, port: u16, source: postgres::Error },
    #[error("the repository's config names PostgreSQL's programs in '{}', where others than root can write", .0.display())]
    Untrusted(PathBuf),
    #[error("the repository '{}' has to be given to the user postgres, and lies where others than root can put something in its place", .0.display())]
    Exposed(PathBuf),
    #[error("the cluster has no superuser who may connect")]
    NoSuperuser,
    #[error(transparent)]
    Io(#[from] FileError),
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
}

fn holder(process: &Option<process::Process>) -> String {
    process.map_or_else(|| "another command".to_owned(), |process| format!("process {}", process.pid))
}

/// Returns what helps against what a server said that did not start because of the cluster's settings.
fn start_hint(said: &str) -> Option<String> {
    let quoted = |after: &str| said.split_once(after).and_then(|(_, rest)| rest.split('"').next());
    if let Some(library) = quoted("could not access file \"") {
        return Some(format!(
            "the cluster loads '{library}': install the package that has it, or leave it out: \
             zenith config branch.NAME.postgres.shared_preload_libraries ''"
        ));
    }
    if said.contains("invalid value for parameter \"lc_") {
        return Some("this machine lacks the locale: make it with locale-gen, see locale -a".to_owned());
    }
    // What its file system says where an object is missing or damaged; PostgreSQL puts it like the latter when it reads its settings.
    if ["Input/output error", "flex scanner failed"].iter().any(|words| said.contains(words)) {
        return Some("files of it cannot be read: see what is damaged: zenith fsck".to_owned());
    }
    if said.contains("contains errors") {
        return Some(
            "correct that file, and start with it: zenith start NAME --config-file FILE; the one that the branch has is in \
             what 'zenith restore NAME FOLDER' writes"
                .to_owned(),
        );
    }
    let memory =
        said.contains("could not map anonymous shared memory") || said.contains("could not create shared memory");
    memory.then(|| "give the branch less: zenith config branch.NAME.postgres.shared_buffers 128MB".to_owned())
}

/// Returns whether the server could not even be reached.
fn is_about_the_socket(error: &postgres::Error) -> bool {
    std::error::Error::source(error).is_some_and(|cause| cause.is::<io::Error>())
}

fn not_found(major: Option<u32>, searched: &[PathBuf]) -> String {
    let version = major.map(|major| format!(" {major}")).unwrap_or_default();
    let searched: Vec<String> = searched.iter().map(|dir| format!("'{}'", dir.display())).collect();
    let searched = if searched.is_empty() { "nothing of it".to_owned() } else { searched.join(", ") };
    format!("cannot find PostgreSQL{version}; found {searched}")
}

impl Error {
    /// Returns whether the server did not answer because it starts or shuts down.
    pub fn may_pass(&self) -> bool {
        let Error::Query { source, .. } = self else { return false };
        match source.code() {
            Some(code) => {
                [SqlState::CANNOT_CONNECT_NOW, SqlState::ADMIN_SHUTDOWN, SqlState::CRASH_SHUTDOWN].contains(code)
            }
            // Its socket is not there yet, or not any more.
            None => source.is_closed() || is_about_the_socket(source),
        }
    }

    /// Returns what the user can do about it.
    pub fn hint(&self) -> Option<String> {
        let package = |major: Option<u32>, kind: &str| {
            let version = major.map(|major| format!("-{major}")).unwrap_or_default();
            let formula = major.map(|major| format!("@{major}")).unwrap_or_default();
            format!(
                "install it: apt-get install postgresql{kind}{version} (Debian, Ubuntu), brew install postgresql{formula} \
                 (macOS); or name its folder with --pg-bin"
            )
        };
        Some(match self {
            Error::NotFound { major, .. } => package(*major, ""),
            Error::Lacks { program: "psql", major, .. } => package(Some(*major), "-client"),
            Error::Lacks { major, .. } => package(Some(*major), ""),
            Error::WrongVersion { wanted, .. } => package(Some(*wanted), ""),
            Error::Root => {
                "use another account, or allow user namespaces: sysctl kernel.unprivileged_userns_clone=1".to_owned()
            }
            Error::StillAlive { process: Some(process), .. } => format!("see what it is: ps -fp {}", process.pid),
            Error::StillAlive { process: None, .. } => {
                "wait for it, then look: zenith status; processes of another container are not seen here".to_owned()
            }
            Error::Untrusted(dir) => format!("if you trust them, name them yourself: zenith --pg-bin '{}'", dir.display()),
            Error::Exposed(_) => "move it to a folder that is root's, or act as the user whose the folder is".to_owned(),
            Error::PortTaken { .. } => "choose another with --port".to_owned(),
            Error::Superuser { .. } => {
                "name a superuser of the cluster: zenith config postgres.superuser NAME".to_owned()
            }
            Error::Silent { .. } => {
                "it is suspended, or the machine very busy: if ps shows its processes as stopped, kill -CONT lets them go on"
                    .to_owned()
            }
            Error::Suspended { process, .. } => format!("kill -CONT {} lets it go on", process.pid),
            Error::Query { source, .. } if is_about_the_socket(source) => {
                "its socket is gone, or nobody answers there: zenith restart NAME makes it anew".to_owned()
            }
            Error::NoSuperuser => "make one in the original: CREATE ROLE postgres SUPERUSER LOGIN".to_owned(),
            Error::DidNotStart { tail, .. } => return start_hint(tail),
            Error::DidNotStop { postmaster, .. } if postmaster.is_suspended() => {
                format!("it is suspended: kill -CONT {} lets it go on", postmaster.pid)
            }
            Error::DidNotStop { .. } => {
                "end it at once, without a loss of what was committed: zenith stop NAME --mode immediate".to_owned()
            }
            Error::SocketDir(dir) => {
                let dir = dir.display();
                format!("act as that user; if no server of that user is left, remove it: rm -r '{dir}'")
            }
            _ => return None,
        })
    }
}
