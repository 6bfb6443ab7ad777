//! A session's server: where it is, how it is reached, and the first that it says.

use std::io;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::{sleep, timeout};

use super::message::{Login, Step};
use super::peer::Peer;
use crate::plumbing::postgres::server::Endpoint;
use crate::plumbing::postgres::settings::{is_ours, socket_path};

/// How long a server may take for a login, or to say the first word of one. How much of that is read at once, and how
/// much is kept at most, bytes.
const LOGIN: Duration = Duration::from_secs(60);
const ANSWER: usize = 1024;
const LONGEST: usize = 64 << 10;
/// How long a client waits until the queue of those who connect is shorter, and between two tries.
const QUEUE_WAIT: Duration = Duration::from_secs(30);
const QUEUE_PAUSE: Duration = Duration::from_millis(5);

/// Where a session's server is.
#[derive(Debug, Clone)]
pub struct Address {
    pub endpoint: Endpoint,
    /// The loopback address, where PostgreSQL asks for a password, rather than the unix socket.
    pub tcp: Option<IpAddr>,
}

/// A connection to a server.
pub enum Server {
    Unix(UnixStream),
    Tcp(TcpStream),
}

impl Address {
    async fn connect(&self) -> io::Result<Server> {
        let Endpoint { socket_dir, port, .. } = &self.endpoint;
        if let Some(address) = self.tcp {
            let stream = TcpStream::connect((address, *port)).await?;
            stream.set_nodelay(true)?;
            return Ok(Server::Tcp(stream));
        }
        let (path, patience) = (socket_path(socket_dir, *port), Instant::now() + QUEUE_WAIT);
        loop {
            match UnixStream::connect(&path).await {
                // More clients connect at this moment than the server's queue takes: listen(2).
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && Instant::now() < patience => {
                    sleep(QUEUE_PAUSE).await;
                }
                connected => return connected.map(Server::Unix),
            }
        }
    }

    /// Begins a session; returns the connection and what the server said until the session was ready, or had to be told
    /// something, or was refused. The client has heard none of that yet.
    pub async fn begin(&self, packet: &[u8]) -> io::Result<(Server, Vec<u8>)> {
        let mut server = self.connect().await?;
        let exchange = async {
            match &mut server {
                Server::Unix(server) => log_in(server, packet).await,
                Server::Tcp(server) => log_in(server, packet).await,
            }
        };
        let answer = timeout(LOGIN, exchange).await.map_err(|_| io::ErrorKind::TimedOut)??;
        // Any user of this machine may listen on a free port. Who has answered has taken the connection, so the
        // kernel knows whose it is.
        if let Server::Tcp(stream) = &server
            && !Peer::of_tcp(stream).uid.is_some_and(is_ours)
        {
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, "another user listens on its port"));
        }
        Ok((server, answer))
    }

    /// Sends a packet that is answered with the end of the connection, and waits for that.
    pub async fn tell(&self, packet: &[u8]) -> io::Result<()> {
        let mut rest = Vec::new();
        match self.connect().await? {
            Server::Unix(mut server) => {
                server.write_all(packet).await?;
                server.read_to_end(&mut rest).await?;
            }
            Server::Tcp(mut server) => {
                server.write_all(packet).await?;
                server.read_to_end(&mut rest).await?;
            }
        }
        Ok(())
    }
}

async fn log_in(server: &mut (impl AsyncRead + AsyncWrite + Unpin), packet: &[u8]) -> io::Result<Vec<u8>> {
    server.write_all(packet).await?;
    let (mut answer, mut login) = (Vec::with_capacity(ANSWER), Login::default());
    loop {
        let known = answer.len();
        if server.read_buf(&mut answer).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let is_over = login.feed(&answer[known..]).iter().any(|step| !matches!(step, Step::Key(_)));
        if is_over || answer.len() > LONGEST {
            return Ok(answer);
        }
        answer.reserve(ANSWER);
    }
}

/// Returns whether a server that answers so to a login does not let the client in.
pub fn is_refused(answer: &[u8]) -> bool {
    Login::default().feed(answer).contains(&Step::Refused)
}

/// Returns whether a server that answers so to a login starts or stops at this moment (57P03), or began to stop amid
/// the login (57P01).
pub fn is_in_between(answer: &[u8]) -> bool {
    is_refused_for(answer, "57P03") || is_refused_for(answer, "57P01")
}

/// Returns whether a server that answers so to a login does not let the client in for that SQLSTATE.
pub fn is_refused_for(answer: &[u8], sqlstate: &str) -> bool {
    let field = format!("\0C{sqlstate}\0");
    is_refused(answer) && answer.windows(field.len()).any(|bytes| bytes == field.as_bytes())
}

/// Returns whether a server that cannot be reached for this reason may have stopped this instant.
pub fn may_be_gone(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionRefused, ConnectionReset, NotFound, UnexpectedEof};
    [BrokenPipe, ConnectionRefused, ConnectionReset, NotFound, UnexpectedEof].contains(&error.kind())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plumbing::pageserver::message::{ADMIN_SHUTDOWN, CANNOT_CONNECT_NOW, Refusal, UNKNOWN_BRANCH};

    #[test]
    fn a_server_that_starts_or_stops_is_known_by_its_answer() {
        assert!(is_in_between(&Refusal::new(CANNOT_CONNECT_NOW, "the database system is shutting down").packet()));
        assert!(!is_in_between(&Refusal::new(UNKNOWN_BRANCH, "C57P03").packet()));
        assert!(!is_in_between(b"R\0\0\0\x08\0\0\0\0"));
        let begun = [&b"R\0\0\0\x08\0\0\0\0"[..], &Refusal::new(ADMIN_SHUTDOWN, "fast").packet()].concat();
        assert!(is_in_between(&begun));
    }

    #[tokio::test]
    #[cfg(target_os = "linux")]
    async fn a_server_of_somebody_else_is_none() {
        if !nix::unistd::geteuid().is_root() {
            println!("SKIPPED: only root can listen as somebody else");
            return;
        }
        let (send, receive) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            use std::io::{Read, Write};
            // Of this thread alone: whose the sockets are that it makes.
            nix::unistd::setfsuid(nix::unistd::Uid::from_raw(65534));
            let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            send.send(listener.local_addr().unwrap()).unwrap();
            let (mut stream, _) = listener.accept().unwrap();
            stream.read_exact(&mut [0]).unwrap();
            stream.write_all(b"R\0\0\0\x08\0\0\0\x03").unwrap();
            let _ = stream.read(&mut [0]);
        });
        let listens = receive.recv().unwrap();
        let endpoint =
            Endpoint { socket_dir: "/nowhere".into(), port: listens.port(), superuser: "postgres".into(), major: 15 };
        let begun = Address { endpoint, tcp: Some(listens.ip()) }.begin(b"hello").await;
        assert_eq!(begun.err().map(|error| error.kind()), Some(io::ErrorKind::PermissionDenied));
    }
}
