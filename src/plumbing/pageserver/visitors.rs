//! Connections over HTTP: of which there are only so many, and each has only so long. Whoever sends half a request and
//! waits takes a place for a few seconds, of those that others have, and no file descriptor from PostgreSQL's clients.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::extract::connect_info::Connected;
use axum::serve::{IncomingStream, Listener};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Sleep, sleep};

use super::ACCEPT_PAUSE;
use super::peer::Peer;

/// So many visits of the owner, and of others, may be under way, and each may take so long, all in all.
const OWN: (usize, Duration) = (256, Duration::from_secs(60));
const OTHERS: (usize, Duration) = (32, Duration::from_secs(10));

/// Where they come in.
pub struct Visitors {
    listener: TcpListener,
    own: Arc<Semaphore>,
    others: Arc<Semaphore>,
}

/// One of them.
#[derive(Debug)]
pub struct Visit {
    stream: TcpStream,
    end: Pin<Box<Sleep>>,
    _place: OwnedSemaphorePermit,
}

impl Visitors {
    pub fn new(listener: TcpListener) -> Visitors {
        Visitors { listener, own: Arc::new(Semaphore::new(OWN.0)), others: Arc::new(Semaphore::new(OTHERS.0)) }
    }
}

impl Listener for Visitors {
    type Io = Visit;
    type Addr = Peer;

    async fn accept(&mut self) -> (Visit, Peer) {
        loop {
            let stream = match self.listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!("cannot accept over HTTP: {error}");
                    sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let peer = Peer::of_tcp(&stream);
            let (places, time) = if peer.is_owner() { (&self.own, OWN.1) } else { (&self.others, OTHERS.1) };
            // For whom there is no place, the connection just ends.
            if let Ok(place) = places.clone().try_acquire_owned() {
                return (Visit { stream, end: Box::pin(sleep(time)), _place: place }, peer);
            }
        }
    }

    fn local_addr(&self) -> io::Result<Peer> {
        Ok(Peer::NOBODY)
    }
}

impl Connected<IncomingStream<'_, Visitors>> for Peer {
    fn connect_info(stream: IncomingStream<'_, Visitors>) -> Peer {
        *stream.remote_addr()
    }
}

impl Visit {
    /// Fails once its time is over.
    fn check(&mut self, cx: &mut Context) -> io::Result<()> {
        match self.end.as_mut().poll(cx) {
            Poll::Ready(()) => Err(io::ErrorKind::TimedOut.into()),
            Poll::Pending => Ok(()),
        }
    }
}

impl AsyncRead for Visit {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context, buffer: &mut ReadBuf) -> Poll<io::Result<()>> {
        self.check(cx)?;
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Visit {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.check(cx)?;
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context) -> Poll<io::Result<()>> {
        self.check(cx)?;
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context) -> Poll<io::Result<()>> {
        self.check(cx)?;
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
