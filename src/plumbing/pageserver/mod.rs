//! The page server: a proxy that starts a branch's server when somebody connects and stops it when nobody uses it,
//! with its status and metrics over HTTP.
//!
//! ```text
//! startup     what a client sends first        peer      who it is
//! session     the life of a connection         tls       the certificate
//! supervisor  starts and stops servers         upstream  the way to a server
//! socket      the client's connection          relay     bytes both ways
//! http        status, metrics, a page          visitors  who asks for them
//! lineage     which branch a timeline is of    message   errors, the end of a login
//! log         its lines                        places    where it listens
//! ```
//!
//! # Format
//! `pageserver/lock` names the daemon (see [`Process`]), which has an exclusive `flock(2)` on it; `pageserver/log` is its
//! log; `pageserver/address` is JSON, see [`Addresses`]; `pageserver/token` is 32 hex digits; `server.crt` and `server.key` are the certificate that it made.
//!
//! The only part of the program that is asynchronous. What blocks (starts, stops, the repository) runs on threads
//! of its own.

mod http;
mod lineage;
mod log;
pub mod message;
pub mod metrics;
mod peer;
mod places;
mod relay;
mod session;
mod socket;
pub mod startup;
mod status;
mod supervisor;
mod tls;
mod upstream;
mod visitors;

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use nix::sys::socket::{setsockopt, sockopt};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::{Deserialize, Serialize};
use tokio::net::{TcpListener, UnixListener};
use tokio::signal::unix::{SignalKind, signal};

use crate::error::{Class, CommandError};
use crate::objects::file_error::{FileError, cannot};
use crate::objects::{Repo, bounded, durable, folder, regular};
use crate::plumbing::health::health;
use crate::plumbing::instance;
use crate::plumbing::instance::pid_lock::PidLock;
use crate::plumbing::postgres::account::Account;
use crate::plumbing::postgres::find::Binaries;
use crate::plumbing::postgres::initdb::SUPERUSER;
use crate::plumbing::postgres::process::Process;
use crate::plumbing::postgres::process::raise_file_limit;
use crate::plumbing::postgres::settings::socket_path;
use metrics::Metrics;
pub use places::{Place, check_places};
use places::{listen, listen_unix, servers};
use session::Proxy;
use socket::Socket;
use supervisor::Supervisor;

/// Between two looks at what can be stopped.
const LOOK: Duration = Duration::from_millis(500);
/// Between two looks at what will stop the servers.
const WARN: Duration = Duration::from_secs(60);
/// How long a daemon may take to end.
const STOP_WAIT: Duration = Duration::from_secs(15);
const PAUSE: Duration = Duration::from_millis(5);
/// After a failed accept, such as for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The page server cannot do what it should.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the page server runs already{}", .0.map(|Process { pid, .. }| format!(", as process {pid}")).unwrap_or_default())]
    Runs(Option<Process>),
    #[error("the page server does not run")]
    Stopped,
    #[error("cannot listen on {address}")]
    Listen { address: String, source: io::Error },
    #[error("cannot listen on {address}, since {by} does")]
    Taken { address: SocketAddr, by: String, option: &'static str, next: Option<SocketAddr> },
    #[error("'{address}' can be reached from other machines; without TLS passwords can be read on the way")]
    Remote { address: SocketAddr },
    #[error("cannot use the certificate '{}'", path.display())]
    Certificate { path: PathBuf, source: Box<dyn std::error::Error + Send + Sync> },
    #[error("the page server did not stop within {} seconds", STOP_WAIT.as_secs())]
    Stays(Option<Process>),
    #[error(transparent)]
    Io(#[from] FileError),
    #[error("the page server failed")]
    Failed(#[from] io::Error),
}

impl From<Error> for CommandError {
    fn from(error: Error) -> CommandError {
        let text = |hint: &str| Some(hint.to_owned());
        let hint = match &error {
            Error::Runs(_) => text("see what it does: zenith pageserver status"),
            Error::Stopped => text("start it: zenith pageserver start"),
            Error::Listen { .. } => {
                text("choose another address: --listen, --http, or zenith config proxy.listen ADDRESS")
            }
            Error::Taken { option, next: Some(next), .. } => Some(format!(
                "the next free one: zenith pageserver start --{option} {next}, or for good: zenith config proxy.{option} {next}"
            )),
            Error::Taken { option, .. } => Some(format!("choose another one: --{option} ADDRESS")),
            Error::Remote { .. } => text("if that is meant: --allow-remote"),
            Error::Stays(Some(process)) => Some(format!("it is suspended: kill -CONT {} lets it go on", process.pid)),
            _ => None,
        };
        let error = CommandError::new(Class::Refused, error);
        hint.into_iter().fold(error, CommandError::hint)
    }
}

/// Where a page server listens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Addresses {
    /// PostgreSQL's clients.
    pub listen: SocketAddr,
    pub http: SocketAddr,
    /// The folder of its unix socket, whose port is that of `listen`.
    pub socket_dir: PathBuf,
    /// Who has this may see the status over HTTP, as the owner may.
    #[serde(default)]
    pub token: String,
}

/// How it is to run.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    pub listen: Place,
    pub http: Place,
    /// The addresses may be such as other machines reach.
    pub allow_remote: bool,
    /// Log to standard error rather than to the file.
    pub to_terminal: bool,
}

impl Options {
    /// Refuses addresses that other machines reach, unless they are meant.
    pub fn check(&self) -> Result<(), Error> {
        let remote = [self.listen.address, self.http.address].into_iter().find(|address| !address.ip().is_loopback());
        match remote.filter(|_| !self.allow_remote) {
            Some(address) => Err(Error::Remote { address }),
            None => Ok(()),
        }
    }
}

/// Returns the folder of the page server's files.
pub fn dir(repo: &Repo) -> PathBuf {
    repo.dir().join("pageserver")
}

/// Returns the file of its log.
pub fn log_file(repo: &Repo) -> PathBuf {
    dir(repo).join("log")
}

/// Returns the session's option that names a branch or revision.
pub fn option(name: &str) -> String {
    let quote = |char: char| (char.is_whitespace() || char == '\\').then_some('\\');
    let name: String = name.chars().flat_map(|char| quote(char).into_iter().chain([char])).collect();
    format!("-c zenith.branch={name}")
}

impl Addresses {
    /// Returns the URL of the page, which whoever has it may see.
    pub fn page(&self) -> String {
        format!("http://{}/?token={}", reached_at(self.http), self.token)
    }

    /// Returns where clients of this machine connect.
    pub fn reached_at(&self) -> SocketAddr {
        reached_at(self.listen)
    }

    /// Returns the URL by which programs reach a branch or revision. The branch stands with the user: that all clients
    /// pass on, while many drop parameters that they do not know.
    pub fn url(&self, name: &str) -> String {
        let user = utf8_percent_encode(&format!("{SUPERUSER}@{name}"), RESERVED).to_string();
        format!("postgresql://{user}@{}/postgres", self.reached_at())
    }
}

/// All that has a meaning in a URL (RFC 3986, section 2.3).
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// Returns the address at which a listener is reached from this machine: one that listens on all addresses, on that of
/// the loopback.
pub fn reached_at(listen: SocketAddr) -> SocketAddr {
    match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => (Ipv4Addr::LOCALHOST, listen.port()).into(),
        IpAddr::V6(ip) if ip.is_unspecified() => (Ipv6Addr::LOCALHOST, listen.port()).into(),
        _ => listen,
    }
}

/// Returns the file whose lock the daemon holds as long as it lives.
fn lock_file(repo: &Repo) -> PathBuf {
    dir(repo).join("lock")
}

fn open_lock(repo: &Repo) -> Result<PidLock, Error> {
    let dir = dir(repo);
    folder::make_in_place(&dir).map_err(cannot::<Error>("create", &dir))?;
    let path = lock_file(repo);
    PidLock::open(&path).map_err(cannot::<Error>("open", &path))
}

/// Takes the lock for this process. A page server that ends, and says no more where it listens, is waited for.
fn take_lock(repo: &Repo) -> Result<PidLock, Error> {
    let mut lock = open_lock(repo)?;
    let patience = Instant::now() + STOP_WAIT;
    while !lock.try_take() {
        if running(repo)?.is_some() || Instant::now() > patience {
            return Err(Error::Runs(lock.noted(&lock_file(repo))));
        }
        std::thread::sleep(PAUSE);
    }
    // Where one was that was killed. First: as long as that one is noted, nobody takes its addresses for this one's.
    let _ = fs::remove_file(dir(repo).join("address"));
    lock.note().map_err(cannot::<Error>("write", &lock_file(repo)))?;
    Ok(lock)
}

/// Returns the pid of the page server and where it listens, if it runs.
pub fn running(repo: &Repo) -> Result<Option<(i32, Addresses)>, Error> {
    let path = lock_file(repo);
    if PidLock::is_held(&path).map_err(cannot::<Error>("lock", &path))? != Some(true) {
        return Ok(None);
    }
    // It is about to note itself, and then to write where it listens.
    let Some(Process { pid, .. }) = open_lock(repo)?.noted(&path) else { return Ok(None) };
    let text = regular::read(&dir(repo).join("address")).unwrap_or_default();
    Ok(serde_json::from_slice(&text).ok().map(|addresses| (pid, addresses)))
}

/// Ends the page server; its servers go on. Returns its pid, or `None` where it did not run.
pub fn stop(repo: &Repo) -> Result<Option<i32>, Error> {
    let (mut lock, path, mut told) = (open_lock(repo)?, lock_file(repo), None);
    let patience = Instant::now() + STOP_WAIT;
    // Whoever looks at the lock has it too, for an instant, and one that has just begun has not noted itself yet.
    while !lock.try_take() {
        if Instant::now() > patience {
            return Err(Error::Stays(lock.noted(&path).filter(Process::is_suspended)));
        }
        if let Some(process) = lock.noted(&path).filter(|process| told != Some(*process)) {
            let _ = process.signal(Signal::SIGTERM); // then it stays
            told = Some(process);
        }
        std::thread::sleep(PAUSE);
    }
    Ok(told.map(|process| process.pid))
}

/// A page server that is to run.
pub struct PageServer {
    pub repo: Repo,
    pub binaries: Binaries,
    pub account: Account,
    /// For the reflog.
    pub who: String,
    pub options: Options,
}

impl PageServer {
    /// Runs until it is told to end (SIGTERM, SIGINT). Calls `ready` once it listens.
    pub fn serve(self, ready: impl FnOnce(&Addresses) -> io::Result<()>) -> Result<(), CommandError> {
        let options = self.options;
        options.check()?;
        let _lock = take_lock(&self.repo)?;
        let log = log_file(&self.repo);
        match options.to_terminal {
            true => log::to_terminal(),
            false => log::to_file(&log).map_err(cannot::<Error>("open", &log))?,
        }
        raise_file_limit();
        // The servers need processors too, and a thread that has much to do at a time does it faster than two that
        // wake each other.
        let workers = std::thread::available_parallelism().map_or(1, |cores| cores.get().div_ceil(2));
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(workers).enable_all().build();
        let runtime = runtime.map_err(Error::Failed)?;
        let served = runtime.block_on(self.run(ready));
        // Servers that are being started or stopped are held by locks that go with this process.
        runtime.shutdown_timeout(Duration::from_secs(5));
        served
    }

    async fn run(self, ready: impl FnOnce(&Addresses) -> io::Result<()>) -> Result<(), CommandError> {
        let PageServer { repo, binaries, account, who, options } = self;
        let config = repo.config().proxy.clone();
        let own = config.tls_certificate.zip(config.tls_key).map(|(certificate, key)| tls::Files { certificate, key });
        let tls = tls::acceptor(own, &dir(&repo))?;
        let socket_dir = instance::socket_dir(&repo)?;
        let tcp = listen("listen", options.listen, &servers(&repo, &socket_dir)?).await?;
        let http = listen("http", options.http, &[]).await?;
        let local = |listener: &TcpListener| listener.local_addr().map_err(Error::Failed);
        let addresses = Addresses { listen: local(&tcp)?, http: local(&http)?, socket_dir, token: token(&repo)? };
        let unix = listen_unix(&addresses.socket_dir, addresses.listen.port())?;

        let metrics = Arc::new(Metrics::default());
        let supervisor = Arc::new(Supervisor::new(&repo, binaries, account, who, metrics.clone())?);
        let proxy = Arc::new(Proxy::new(supervisor.clone(), metrics, tls));
        // Before anybody can tell it to end.
        let mut terminate = signal(SignalKind::terminate()).map_err(Error::Failed)?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(Error::Failed)?;
        let path = dir(&repo).join("address");
        let text = serde_json::to_vec(&addresses).expect("invariant: only simple fields");
        durable::replace(repo.tmp()?, &path, &text).map_err(cannot::<Error>("write", &path))?;

        let accepting = tokio::spawn(accept_tcp(tcp, proxy.clone()));
        let accepting_unix = tokio::spawn(accept_unix(unix, proxy.clone()));
        tokio::spawn(http::serve(http, proxy.clone(), addresses.clone()));
        let looking = supervisor.clone();
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    () = tokio::time::sleep(LOOK) => {}
                    () = looking.look.notified() => {}
                }
                looking.stop_idle().await;
            }
        });
        tokio::spawn(warn(supervisor.clone()));
        tracing::info!(listen = %addresses.listen, http = %addresses.http, "ready");
        // Whoever wanted to know may be gone. Others know where it listens by now, and rely on it.
        let _ = ready(&addresses);
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("ends");
        // First: whoever starts the next one waits for this one then, rather than to take it for one that stays.
        let _ = fs::remove_file(path);
        accepting.abort();
        accepting_unix.abort();
        proxy.end().await;
        let _ = fs::remove_file(socket_path(&addresses.socket_dir, addresses.listen.port()));
        Ok(())
    }
}

/// Returns the token, the same as the last time; makes one first if there is none.
fn token(repo: &Repo) -> Result<String, CommandError> {
    let path = dir(repo).join("token");
    match bounded::read_to_string(&path, bounded::CONFIG) {
        Ok(text) if text.len() == 32 => Ok(text),
        _ => {
            let text = uuid::Uuid::new_v4().simple().to_string();
            durable::replace(repo.tmp()?, &path, text.as_bytes()).map_err(cannot::<Error>("write", &path))?;
            Ok(text)
        }
    }
}

/// Logs what will stop the servers if nobody acts, as long as it is so.
async fn warn(supervisor: Arc<Supervisor>) {
    loop {
        let looking = supervisor.clone();
        let look = tokio::task::spawn_blocking(move || health(&looking.repo()?)).await;
        match look {
            Ok(Ok(health)) => health.warnings.iter().for_each(|warning| tracing::warn!("{warning}")),
            Ok(Err(error)) => tracing::warn!("{}", error.text()),
            Err(error) => tracing::warn!("{error}"),
        }
        tokio::time::sleep(WARN).await;
    }
}

/// Serves whoever comes over TCP.
async fn accept_tcp(listener: TcpListener, proxy: Arc<Proxy>) {
    loop {
        let (stream, _) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!("cannot accept: {error}");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let _ = stream.set_nodelay(true); // then it is only slower
        let _ = keep_alive(&stream); // then one that has vanished stays for longer
        let proxy = proxy.clone();
        tokio::spawn(async move { proxy.serve(Socket::from(stream)).await });
    }
}

/// Has the kernel find out within two minutes that a client's machine has vanished, so that its session and its server
/// do not stay for ever.
fn keep_alive(stream: &tokio::net::TcpStream) -> nix::Result<()> {
    setsockopt(stream, sockopt::KeepAlive, &true)?;
    #[cfg(target_os = "linux")]
    {
        setsockopt(stream, sockopt::TcpKeepIdle, &60)?;
        setsockopt(stream, sockopt::TcpKeepInterval, &10)?;
        setsockopt(stream, sockopt::TcpKeepCount, &6)?;
    }
    Ok(())
}

/// Serves whoever comes over the unix socket, whose folder is the owner's alone.
async fn accept_unix(listener: UnixListener, proxy: Arc<Proxy>) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let proxy = proxy.clone();
                tokio::spawn(async move { proxy.serve(Socket::from(stream)).await });
            }
            Err(error) => {
                tracing::warn!("cannot accept: {error}");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}
