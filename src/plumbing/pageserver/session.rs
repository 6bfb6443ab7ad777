//! The life of a client's connection: what it wants, who it is, its server, and then bytes both ways.

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use super::message::{Login, NOT_AUTHORIZED, PROTOCOL_VIOLATION, Refusal, SYSTEM_ERROR, Step, TOO_MANY_CONNECTIONS};
use super::metrics::{Code, Direction, Metrics};
use super::relay::relay;
use super::socket::{Socket, Stream};
use super::startup::{self, First, Session};
use super::supervisor::{Lease, Supervisor};
use crate::plumbing::postgres::server::Endpoint;
use crate::plumbing::postgres::settings::socket_path;

/// How long a client may take until it has said what it wants.
const GREETING: Duration = Duration::from_secs(10);
/// So many clients may be about to say so, of those who need a password and of the owner's; each holds at most
/// one startup packet.
const GREETINGS: usize = 512;
const OWN_GREETINGS: usize = 4096;
/// How long a server may take to say the first word of a login, and how much of that is read at once, bytes.
const LOGIN: Duration = Duration::from_secs(60);
const ANSWER: usize = 1024;
/// How long a server may take to cancel a query.
const CANCEL: Duration = Duration::from_secs(10);
/// A client asks for encryption at most so many times: GSSAPI, then TLS.
const ROUNDS: usize = 3;
/// The first byte of a TLS handshake; no startup packet is so long that it begins with it.
const HANDSHAKE: u8 = 0x16;

/// Where a session's server is.
#[derive(Debug, Clone)]
struct Address {
    endpoint: Endpoint,
    /// The loopback address, where PostgreSQL asks for a password, rather than the unix socket.
    tcp: Option<IpAddr>,
}

/// A connection to a server.
enum Server {
    Unix(UnixStream),
    Tcp(TcpStream),
}

impl Address {
    async fn connect(&self) -> io::Result<Server> {
        let Endpoint { socket_dir, port } = &self.endpoint;
        if let Some(address) = self.tcp {
            let stream = TcpStream::connect((address, *port)).await?;
            stream.set_nodelay(true)?;
            return Ok(Server::Tcp(stream));
        }
        Ok(Server::Unix(UnixStream::connect(socket_path(socket_dir, *port)).await?))
    }
}

impl Address {
    /// Begins a session; returns the connection and the first that the server said.
    async fn begin(&self, packet: &[u8]) -> io::Result<(Server, Vec<u8>)> {
        let mut server = self.connect().await?;
        let mut answer = vec![0; ANSWER];
        let exchange = async {
            match &mut server {
                Server::Unix(server) => {
                    server.write_all(packet).await?;
                    server.read(&mut answer).await
                }
                Server::Tcp(server) => {
                    server.write_all(packet).await?;
                    server.read(&mut answer).await
                }
            }
        };
        let count = timeout(LOGIN, exchange).await.map_err(|_| io::ErrorKind::TimedOut)??;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        answer.truncate(count);
        Ok((server, answer))
    }
}

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
    /// Process id and cancel key of each session, and where its server is.
    keys: Mutex<HashMap<Vec<u8>, Address>>,
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
        let (greetings, own_greetings) = (Semaphore::new(GREETINGS), Semaphore::new(OWN_GREETINGS));
        Proxy { supervisor, metrics, tls, greetings, own_greetings, keys: Mutex::default() }
    }

    fn keys(&self) -> std::sync::MutexGuard<'_, HashMap<Vec<u8>, Address>> {
        self.keys.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Serves a client until one of the two sides has ended. `is_trusted`: it is the user who owns the
    /// repository.
    pub async fn serve(&self, socket: Socket, is_trusted: bool) {
        self.metrics.connections_total.inc();
        let greetings = if is_trusted { &self.own_greetings } else { &self.greetings };
        let Ok(permit) = greetings.try_acquire() else {
            // Whoever came before has ten seconds.
            return self.count(&Refusal::new(TOO_MANY_CONNECTIONS, "too many clients are connecting"));
        };
        let mut stream = Stream::Plain(socket);
        let greeted = timeout(GREETING, self.greet(&mut stream)).await;
        drop(permit);
        let ended = match greeted {
            Err(_) => return tracing::debug!("a client did not say what it wants"),
            Ok(Err(Failure::Refused(refusal))) => Err(Failure::Refused(refusal)),
            Ok(Err(Failure::Broken(error))) => return tracing::debug!("a client broke off: {error}"),
            Ok(Ok(Wants::Gone)) => return,
            Ok(Ok(Wants::Cancel(key))) => return self.cancel(&key).await,
            Ok(Ok(Wants::Session(session))) => {
                self.metrics.connections.inc();
                let ended = Box::pin(self.relay(&mut stream, session, is_trusted)).await;
                self.metrics.connections.dec();
                ended
            }
        };
        match ended {
            Ok(()) => {}
            Err(Failure::Broken(error)) => tracing::debug!("a session broke off: {error}"),
            Err(Failure::Refused(refusal)) => {
                self.count(&refusal);
                // It may be gone, or not listen.
                let _ = timeout(GREETING, say(&mut stream, &refusal.packet())).await;
            }
        }
    }

    fn count(&self, refusal: &Refusal) {
        tracing::info!(sqlstate = refusal.sqlstate, "refused: {}", refusal.message);
        self.metrics.refused.get_or_create(&Code { sqlstate: refusal.sqlstate }).inc();
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
        let pass_on = async {
            let packet = startup::cancel_packet(key);
            let mut rest = Vec::new();
            match address.connect().await? {
                Server::Unix(mut server) => {
                    server.write_all(&packet).await?;
                    server.read_to_end(&mut rest).await
                }
                Server::Tcp(mut server) => {
                    server.write_all(&packet).await?;
                    server.read_to_end(&mut rest).await
                }
            }
        };
        // The client learns from its query whether that was cancelled.
        let _ = timeout(CANCEL, pass_on).await;
    }

    /// Finds the server of a session, and relays.
    async fn relay(&self, stream: &mut Stream, mut session: Session, is_trusted: bool) -> Result<(), Failure> {
        let name = session.take_branch(stream.server_name());
        let name = name.map(String::from_utf8).transpose();
        let name = name.map_err(|_| Refusal::new(super::message::UNKNOWN_BRANCH, "a branch's name is UTF-8"))?;
        let packet = session.packet();
        drop(session);
        let Begun { lease, address, server, answer } = self.begin(name, is_trusted, &packet).await?;
        drop(packet);
        tracing::debug!(branch = lease.target().name(), "session begins");
        let (up, down) = match server {
            Server::Unix(server) => self.login(stream, server, answer, &address).await?,
            Server::Tcp(server) => self.login(stream, server, answer, &address).await?,
        };
        self.metrics.bytes.get_or_create(&Direction { direction: "from_clients" }).inc_by(up);
        self.metrics.bytes.get_or_create(&Direction { direction: "to_clients" }).inc_by(down);
        Ok(())
    }

    /// Leases a server, connects to it and begins a session there; one that does not answer, since it was killed
    /// this instant, is looked at again once.
    async fn begin(&self, name: Option<String>, is_trusted: bool, packet: &[u8]) -> Result<Begun, Refusal> {
        let mut first = true;
        loop {
            let lease = self.supervisor.lease(name.clone(), is_trusted).await?;
            if !is_trusted && lease.tcp.is_none() {
                let message = "the branch's server was started by hand and takes no connections from other users";
                return Err(Refusal::new(NOT_AUTHORIZED, message).hint("Its owner can start it with --tcp."));
            }
            let address = Address { endpoint: lease.endpoint.clone(), tcp: lease.tcp.filter(|_| !is_trusted) };
            match address.begin(packet).await {
                Ok((server, answer)) => return Ok(Begun { lease, address, server, answer }),
                Err(_) if std::mem::take(&mut first) => self.supervisor.doubt(lease).await,
                Err(error) => {
                    return Err(Refusal::new(SYSTEM_ERROR, format!("cannot connect to the branch's server: {error}")));
                }
            }
        }
    }

    async fn login(
        &self,
        stream: &mut Stream,
        mut server: impl AsyncRead + AsyncWrite + Unpin,
        answer: Vec<u8>,
        address: &Address,
    ) -> Result<(u64, u64), Failure> {
        let mut key = Key { proxy: self, bytes: None };
        let mut login = Login::default();
        let mut inspect = |bytes: &[u8]| {
            for step in login.feed(bytes) {
                if let Step::Key(bytes) = step {
                    key.set(bytes, address);
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

impl From<startup::Malformed> for Failure {
    fn from(error: startup::Malformed) -> Failure {
        let sqlstate = match error {
            startup::Malformed::Protocol(..) => "0A000",
            _ => PROTOCOL_VIOLATION,
        };
        Failure::Refused(Refusal::new(sqlstate, error.to_string()))
    }
}

async fn say(stream: &mut Stream, bytes: &[u8]) -> io::Result<()> {
    stream.write_all(bytes).await?;
    stream.flush().await
}
