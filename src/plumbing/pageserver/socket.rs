//! The connections of clients: TCP or unix sockets, perhaps with TLS.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::server::TlsStream;

use super::peer::Peer;

/// A connection without TLS, and what was read of it too early.
#[derive(Debug)]
pub struct Socket {
    kind: Kind,
    unread: Vec<u8>,
}

#[derive(Debug)]
enum Kind {
    Tcp(TcpStream),
    Unix(UnixStream),
    Closed,
}

impl From<TcpStream> for Socket {
    fn from(stream: TcpStream) -> Socket {
        Socket { kind: Kind::Tcp(stream), unread: Vec::new() }
    }
}

impl From<UnixStream> for Socket {
    fn from(stream: UnixStream) -> Socket {
        Socket { kind: Kind::Unix(stream), unread: Vec::new() }
    }
}

impl Socket {
    /// Returns what stands in for a connection while that becomes another.
    pub fn closed() -> Socket {
        Socket { kind: Kind::Closed, unread: Vec::new() }
    }

    /// Has `bytes` read once more.
    pub fn unread(&mut self, bytes: &[u8]) {
        self.unread.extend_from_slice(bytes);
    }

    pub fn is_unix(&self) -> bool {
        matches!(self.kind, Kind::Unix(_))
    }

    /// Returns who is at the other end at this moment.
    pub fn peer(&self) -> Peer {
        match &self.kind {
            Kind::Tcp(stream) => Peer::of_tcp(stream),
            Kind::Unix(stream) => Peer::of_unix(stream),
            Kind::Closed => Peer::NOBODY,
        }
    }
}

/// A connection as the protocol sees it.
#[derive(Debug)]
pub enum Stream {
    Plain(Socket),
    Tls(Box<TlsStream<Socket>>),
}

impl Stream {
    /// Returns who is at the other end at this moment.
    pub fn peer(&self) -> Peer {
        match self {
            Stream::Plain(socket) => socket.peer(),
            Stream::Tls(stream) => stream.get_ref().0.peer(),
        }
    }

    /// Returns the name by which a TLS client called this server.
    pub fn server_name(&self) -> Option<&str> {
        match self {
            Stream::Plain(_) => None,
            Stream::Tls(stream) => stream.get_ref().1.server_name(),
        }
    }
}

/// Both directions.
trait Duplex: AsyncRead + AsyncWrite + Unpin {}

impl<T: AsyncRead + AsyncWrite + Unpin> Duplex for T {}

impl Socket {
    fn duplex(&mut self) -> io::Result<Pin<&mut dyn Duplex>> {
        match &mut self.kind {
            Kind::Tcp(stream) => Ok(Pin::new(stream)),
            Kind::Unix(stream) => Ok(Pin::new(stream)),
            Kind::Closed => Err(io::ErrorKind::NotConnected.into()),
        }
    }
}

impl Stream {
    fn duplex(&mut self) -> Pin<&mut dyn Duplex> {
        match self {
            Stream::Plain(stream) => Pin::new(stream),
            Stream::Tls(stream) => Pin::new(&mut **stream),
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context, buffer: &mut ReadBuf) -> Poll<io::Result<()>> {
        if !self.unread.is_empty() {
            let count = self.unread.len().min(buffer.remaining());
            buffer.put_slice(&self.unread[..count]);
            self.unread.drain(..count);
            return Poll::Ready(Ok(()));
        }
        self.duplex()?.poll_read(cx, buffer)
    }
}

impl AsyncWrite for Socket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.duplex()?.poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context) -> Poll<io::Result<()>> {
        self.duplex()?.poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context) -> Poll<io::Result<()>> {
        self.duplex()?.poll_shutdown(cx)
    }
}

impl AsyncRead for Stream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context, buffer: &mut ReadBuf) -> Poll<io::Result<()>> {
        self.duplex().poll_read(cx, buffer)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.duplex().poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context) -> Poll<io::Result<()>> {
        self.duplex().poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context) -> Poll<io::Result<()>> {
        self.duplex().poll_shutdown(cx)
    }
}
