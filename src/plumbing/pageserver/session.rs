//! The life of a client's connection: what it wants, who it is, its server, and then bytes both ways.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{Semaphore, watch};
use tokio::task::spawn_blocking;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;

use super::log::Throttle;
use super::message::{
    ADMIN_SHUTDOWN, Login, NOT_AUTHORIZED, PROTOCOL_VIOLATION, Refusal, SYSTEM_ERROR, Step, TOO_MANY_CONNECTIONS,
};
use super::metrics::{Code, Direction, Metrics};
use super::peer::Peer;
use super::relay::relay;
use super::socket::{Socket, Stream};
use super::startup::{self, First, Session};
use super::supervisor::{Lease, Supervisor, Target};
use super::upstream::{Address, Server, is_in_between, is_refused, is_refused_for, may_be_gone};
use crate::objects::format::{Config, Others};
use crate::plumbing::postgres::server;

/// How long a client may take until it has said what it wants.
const GREETING: Duration = Duration::from_secs(10);
/// So many clients may be about to say so, of those who need a password and of the owner's; each holds at most
/// one startup packet.
const GREETINGS: usize = 512;
const OWN_GREETINGS: usize = 4096;
/// How long a client waits for a server that is stopped or started by hand, and between two looks.
const BETWEEN: Duration = Duration::from_secs(30);
const BETWEEN_PAUSE: Duration = Duration::from_millis(20);
/// How long a client may take to hear why its connection ends.
const LAST_WORDS: Duration = Duration::from_secs(10);
/// How long servers may take to end the sessions when the page server ends, and between two looks.
const END: Duration = Duration::from_secs(5);
const END_PAUSE: Duration = Duration::from_millis(20);
/// How long a server may take to cancel a query.
const CANCEL: Duration = Duration::from_secs(10);
/// A client asks for encryption at most so many times: GSSAPI, then TLS.
const ROUNDS: usize = 3;
/// The first byte of a TLS handshake; no startup packet is so long that it begins with it.
const HANDSHAKE: u8 = 0x16;

/// A session that has begun.
struct Begun {
    lease: Lease,
    address: Address,
    server: Server,
    /// The first that the server said.
    answer: Vec<u8>,
}

/// What all sessions share.
pub struct Proxy {
    pub supervisor: Arc<Supervisor>,
    pub metrics: Arc<Metrics>,
    pub tls: TlsAcceptor,
    greetings: Semaphore,
    own_greetings: Semaphore,
    /// Sessions of users other than the owner.
    others: AtomicUsize,
    /// Process id and cancel key of each session, and where its server is.
    keys: Mutex<HashMap<Vec<u8>, Address>>,
    /// Lines of the log about clients that are sent away: the owner's, and those of others.
    own_lines: Throttle,
    lines: Throttle,
    /// The page server ends.
    ends: watch::Sender<bool>,
}

/// A client that is counted as connected, until this is dropped.
struct Connected<'a>(&'a Metrics);

impl Connected<'_> {
    fn new(metrics: &Metrics) -> Connected<'_> {
        metrics.connections.inc();
        Connected(metrics)
    }
}

impl Drop for Connected<'_> {
    fn drop(&mut self) {
        self.0.connections.dec();
    }
}

/// A place among the sessions of others, until it is dropped.
struct Place<'a>(&'a AtomicUsize);

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A client that has said what it wants.
enum Wants {
    /// Nothing any more.
    Gone,
    Cancel(Vec<u8>),
    Session(Session),
}

/// A session's cancel key, as long as the session lives.
struct Key<'a> {
    proxy: &'a Proxy,
    bytes: Option<Vec<u8>>,
}

impl Key<'_> {
    fn set(&mut self, bytes: Vec<u8>, address: &Address) {
        self.proxy.keys().insert(bytes.clone(), address.clone());
        self.bytes = Some(bytes);
    }
}

impl Drop for Key<'_> {
    fn drop(&mut self) {
        if let Some(bytes) = &self.bytes {
            self.proxy.keys().remove(bytes);
        }
    }
}

impl Proxy {
    pub fn new(supervisor: Arc<Supervisor>, metrics: Arc<Metrics>, tls: TlsAcceptor) -> Proxy {
        Proxy {
            supervisor,
            metrics,
            tls,
            greetings: Semaphore::new(GREETINGS),
            own_greetings: Semaphore::new(OWN_GREETINGS),
            others: AtomicUsize::new(0),
            keys: Mutex::default(),
            own_lines: Throttle::default(),
            lines: Throttle::default(),
            ends: watch::Sender::new(false),
        }
    }

    fn keys(&self) -> std::sync::MutexGuard<'_, HashMap<Vec<u8>, Address>> {
        self.keys.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Serves a client until one of the two sides has ended.
    pub async fn serve(&self, socket: Socket) {
        self.metrics.connections_total.inc();
        let peer = socket.peer();
        let greetings = if peer.is_owner() { &self.own_greetings } else { &self.greetings };
        let Ok(permit) = greetings.try_acquire() else {
            // Whoever came before has ten seconds.
            return self.count(&Refusal::new(TOO_MANY_CONNECTIONS, "too many clients are connecting"), peer);
        };
        let mut stream = Stream::Plain(socket);
        let greeted = tokio::select! {
            greeted = timeout(GREETING, self.greet(&mut stream)) => greeted,
            () = self.end_of_service() => return,
        };
        drop(permit);
        // Counted until it has heard the last word.
        let (ended, _connected) = match greeted {
            Err(_) => return tracing::debug!("a client did not say what it wants"),
            Ok(Err(Failure::Refused(refusal))) => (Err(Failure::Refused(refusal)), None),
            Ok(Err(Failure::Broken(error))) => return tracing::debug!("a client broke off: {error}"),
            Ok(Ok(Wants::Gone)) => return,
            Ok(Ok(Wants::Cancel(key))) => {
                self.cancel(&key).await;
                (Ok(()), None)
            }
            Ok(Ok(Wants::Session(session))) => {
                let connected = Connected::new(&self.metrics);
                (Box::pin(self.relay(&mut stream, session, peer)).await, Some(connected))
            }
        };
        let last_words = match ended {
            Ok(()) => Vec::new(),
            Err(Failure::Broken(error)) => return tracing::debug!("a session broke off: {error}"),
            Err(Failure::Refused(refusal)) => {
                self.count(&refusal, peer);
                if peer.is_owner() { refusal.packet() } else { refusal.for_others().packet() }
            }
        };
        // Over TLS the end is said too: otherwise clients take it for an attack. It may be gone, or not listen.
        let _ = timeout(LAST_WORDS, async {
            say(&mut stream, &last_words).await?;
            stream.shutdown().await
        })
        .await;
    }

    fn count(&self, refusal: &Refusal, peer: Peer) {
        self.metrics.refused.get_or_create(&Code { sqlstate: refusal.sqlstate }).inc();
        let lines = if peer.is_owner() { &self.own_lines } else { &self.lines };
        if let Some(held_back) = lines.admit() {
            let (uid, address) = (peer.uid, peer.address.map(tracing::field::display));
            let held_back = Some(held_back).filter(|count| *count > 0);
            tracing::info!(sqlstate = refusal.sqlstate, uid, address, held_back, "refused: {}", refusal.message);
        }
    }

    /// Waits until the page server ends.
    async fn end_of_service(&self) {
        let mut ends = self.ends.subscribe();
        // It is there as long as the proxy is.
        let _ = ends.wait_for(|ends| *ends).await;
    }

    /// Ends all sessions as a server does that is stopped: PostgreSQL tells its clients (57P01), at a place where
    /// they listen. Takes no longer than a few seconds.
    pub async fn end(&self) {
        self.ends.send_replace(true);
        let patience = Instant::now() + END;
        while self.metrics.connections.get() > 0 && Instant::now() < patience {
            let mut servers: HashMap<_, Vec<i32>> = HashMap::new();
            for (key, address) in &*self.keys() {
                if let Some(pid) = key.first_chunk() {
                    servers.entry(address.endpoint.clone()).or_default().push(i32::from_be_bytes(*pid));
                }
            }
            for (endpoint, pids) in servers {
                let told = spawn_blocking(move || server::terminate(&endpoint, &pids));
                // One that does not answer cannot be asked to.
                let _ = timeout(patience.saturating_duration_since(Instant::now()), told).await;
            }
            sleep(END_PAUSE).await;
        }
    }

    fn config(&self) -> Result<Config, Refusal> {
        self.supervisor.config().map_err(|error| Refusal::new(SYSTEM_ERROR, error.text()).private())
    }

    /// Returns a place for a session of somebody who is not the owner, if there is one.
    fn admit_other(&self) -> Result<Place<'_>, Refusal> {
        let config = self.config()?;
        if config.proxy.others == Others::Refuse {
            let message = "only the operating-system user who owns the repository may connect";
            let hint = "The owner can let others in who know a role's password: zenith config proxy.others scram";
            return Err(Refusal::new(NOT_AUTHORIZED, message).hint(hint));
        }
        let place = Place(&self.others);
        if self.others.fetch_add(1, Ordering::Relaxed) >= config.proxy.others_sessions {
            let message = "too many sessions of users other than the owner (proxy.others_sessions)";
            return Err(Refusal::new(TOO_MANY_CONNECTIONS, message));
        }
        Ok(place)
    }

    /// Reads what the client wants, and turns encryption on if it asks for that.
    async fn greet(&self, stream: &mut Stream) -> Result<Wants, Failure> {
        for _ in 0..ROUNDS {
            let mut header = [0; 4];
            match stream.read_exact(&mut header).await {
                // Whoever only looks whether somebody listens.
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(Wants::Gone),
                read => read?,
            };
            if header[0] == HANDSHAKE && matches!(stream, Stream::Plain(_)) {
                self.encrypt(stream, &header).await?;
                continue;
            }
            let length = startup::length(header)?;
            let mut packet = vec![0; length];
            packet[..4].copy_from_slice(&header);
            stream.read_exact(&mut packet[4..]).await?;
            match startup::parse(&packet)? {
                First::Cancel(key) => return Ok(Wants::Cancel(key)),
                First::Session(session) => return Ok(Wants::Session(session)),
                First::Tls if matches!(stream, Stream::Plain(socket) if !socket.is_unix()) => {
                    say(stream, b"S").await?;
                    self.encrypt(stream, b"").await?;
                }
                First::Tls | First::Gssapi => say(stream, b"N").await?,
            }
        }
        Err(Refusal::new(PROTOCOL_VIOLATION, "asked for encryption again and again").into())
    }

    /// Shakes hands for TLS with a client of which `read` was read already.
    async fn encrypt(&self, stream: &mut Stream, read: &[u8]) -> Result<(), Failure> {
        let gone = Stream::Plain(Socket::closed());
        let Stream::Plain(mut socket) = std::mem::replace(stream, gone) else {
            return Err(Refusal::new(PROTOCOL_VIOLATION, "asked for TLS within TLS").into());
        };
        socket.unread(read);
        *stream = Stream::Tls(Box::new(self.tls.accept(socket).await?));
        Ok(())
    }

    /// Passes a request to cancel on to the server whose key it has. A key that nobody has is nobody's.
    async fn cancel(&self, key: &[u8]) {
        self.metrics.cancels.inc();
        let Some(address) = self.keys().get(key).cloned() else { return };
        // The client learns from its query whether that was cancelled.
        let _ = timeout(CANCEL, address.tell(&startup::cancel_packet(key))).await;
    }

    /// Finds the server of a session, and relays.
    async fn relay(&self, stream: &mut Stream, mut session: Session, peer: Peer) -> Result<(), Failure> {
        let _place = if peer.is_owner() { None } else { Some(self.admit_other()?) };
        let name = session.take_branch(stream.server_name());
        let name = name.map(String::from_utf8).transpose();
        let name = name.map_err(|_| Refusal::new(super::message::UNKNOWN_BRANCH, "a branch's name is UTF-8"))?;
        let begun = tokio::select! {
            begun = self.begin(name, peer.is_owner(), session) => begun?,
            () = self.end_of_service() => {
                let message = "terminating connection due to administrator command";
                return Err(Refusal::new(ADMIN_SHUTDOWN, message).into());
            }
        };
        let Begun { lease, address, server, answer } = begun;
        // The server takes it for the owner by now, and has not got a byte of what the client said since.
        if peer.is_owner() && stream.peer() != peer {
            return Err(Refusal::new(NOT_AUTHORIZED, "the client is not who it was when it came").into());
        }
        tracing::debug!(branch = lease.target().name(), "session begins");
        let (up, down) = match server {
            Server::Unix(server) => self.login(stream, server, answer, &address, &lease).await?,
            Server::Tcp(server) => self.login(stream, server, answer, &address, &lease).await?,
        };
        self.metrics.bytes.get_or_create(&Direction { direction: "from_clients" }).inc_by(up);
        self.metrics.bytes.get_or_create(&Direction { direction: "to_clients" }).inc_by(down);
        Ok(())
    }

    /// Leases a server, connects to it and begins a session there. One that is stopped or started by somebody else
    /// at this moment, or was killed this instant, is looked at again.
    async fn begin(&self, name: Option<String>, is_owner: bool, session: Session) -> Result<Begun, Refusal> {
        let patience = Instant::now() + BETWEEN;
        loop {
            let lease = self.supervisor.lease(name.clone(), is_owner).await?;
            let packet = session.packet_on(lease.target().name())?;
            if !is_owner && lease.tcp.is_none() {
                let message = "the branch's server takes no connections from other users: it was started by hand, or \
                               before they were let in";
                return Err(Refusal::new(NOT_AUTHORIZED, message).hint("Its owner can start it again with --tcp."));
            }
            let address = Address { endpoint: lease.endpoint.clone(), tcp: lease.tcp.filter(|_| !is_owner) };
            let may_wait = Instant::now() < patience;
            match address.begin(&packet).await {
                Ok((_, answer)) if may_wait && is_in_between(&answer) => {}
                Ok((_, answer)) if may_wait && is_refused(&answer) && self.supervisor.is_forsaken(&lease) => {}
                Ok((server, answer)) if self.supervisor.has_answered(&lease).await? => {
                    if let Target::Branch(branch) = lease.target()
                        && is_owner
                        && session.is_for_replication()
                        && is_refused_for(&answer, NOT_AUTHORIZED)
                        && !self.config()?.is_replicated(branch)
                    {
                        return Err(without_replication(branch));
                    }
                    return Ok(Begun { lease, address, server, answer });
                }
                Ok(_) if may_wait => {}
                Ok(_) => {
                    let message = "the branch's server was stopped and started by others again and again";
                    return Err(Refusal::new(SYSTEM_ERROR, message));
                }
                Err(error) if may_wait && may_be_gone(&error) => {}
                Err(error) => {
                    let message = format!("cannot connect to the branch's server: {error}");
                    return Err(Refusal::new(SYSTEM_ERROR, message).private());
                }
            }
            self.supervisor.doubt(lease);
            sleep(BETWEEN_PAUSE).await;
        }
    }

    async fn login(
        &self,
        stream: &mut Stream,
        mut server: impl AsyncRead + AsyncWrite + Unpin,
        answer: Vec<u8>,
        address: &Address,
        lease: &Lease,
    ) -> Result<(u64, u64), Failure> {
        let mut key = Key { proxy: self, bytes: None };
        let mut login = Login::default();
        let mut inspect = |bytes: &[u8]| {
            for step in login.feed(bytes) {
                match step {
                    Step::Key(bytes) => key.set(bytes, address),
                    Step::Ready => lease.prove(),
                    Step::Asked | Step::Refused => {}
                }
            }
        };
        inspect(&answer);
        say(stream, &answer).await?;
        drop(answer);
        let relayed = match stream {
            Stream::Plain(client) => relay(client, &mut server, inspect).await,
            Stream::Tls(client) => relay(&mut **client, &mut server, inspect).await,
        };
        Ok(relayed?)
    }
}

/// Returns what a client hears that PostgreSQL does not let in for physical replication.
fn without_replication(branch: &str) -> Refusal {
    let hint = format!(
        "Standbys, pg_receivewal and pg_basebackup are let in from its next start after: \
         zenith config branch.{branch}.replication true"
    );
    Refusal::new(NOT_AUTHORIZED, format!("the branch {branch} takes no physical replication")).hint(hint)
}

/// Why a session ended before its time.
enum Failure {
    /// The client is told.
    Refused(Refusal),
    /// There is nobody to tell.
    Broken(io::Error),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Failure {
        Failure::Broken(error)
    }
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Failure {
        Failure::Refused(refusal)
    }
}

impl From<startup::Malformed> for Refusal {
    fn from(error: startup::Malformed) -> Refusal {
        let sqlstate = match error {
            startup::Malformed::Protocol(..) => "0A000",
            _ => PROTOCOL_VIOLATION,
        };
        Refusal::new(sqlstate, error.to_string())
    }
}

impl From<startup::Malformed> for Failure {
    fn from(error: startup::Malformed) -> Failure {
        Refusal::from(error).into()
    }
}

async fn say(stream: &mut Stream, bytes: &[u8]) -> io::Result<()> {
    stream.write_all(bytes).await?;
    stream.flush().await
}
