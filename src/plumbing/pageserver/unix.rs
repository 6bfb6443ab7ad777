//! A unix socket of which the kernel tells only what matters.
//!
//! tokio's own asks for news of room to write as well, and a unix socket has such news whenever its peer has read
//! something: a session would be woken twice for each message. This one asks for room only when there was none.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as Std;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::UnixStream;

/// The socket.
#[derive(Debug)]
pub struct Quiet {
    socket: AsyncFd<Std>,
    /// While there is no room.
    room: Option<AsyncFd<OwnedFd>>,
}

impl Quiet {
    /// Takes a connection over.
    pub fn new(stream: UnixStream) -> io::Result<Quiet> {
        let socket = AsyncFd::with_interest(stream.into_std()?, Interest::READABLE)?;
        Ok(Quiet { socket, room: None })
    }
}

impl AsyncRead for Quiet {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context, buffer: &mut ReadBuf) -> Poll<io::Result<()>> {
        loop {
            let mut guard = ready!(self.socket.poll_read_ready(cx))?;
            let room = buffer.initialize_unfilled();
            let length = room.len();
            match guard.try_io(|socket| socket.get_ref().read(room)) {
                Ok(Ok(count)) => {
                    // There was no more: the kernel tells when there is.
                    if count > 0 && count < length {
                        guard.clear_ready();
                    }
                    buffer.advance(count);
                    return Poll::Ready(Ok(()));
                }
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(Err(error)) => return Poll::Ready(Err(error)),
                Err(_would_block) => {}
            }
        }
    }
}

impl AsyncWrite for Quiet {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context, bytes: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            match self.socket.get_ref().write(bytes) {
                Ok(count) => {
                    self.room = None;
                    return Poll::Ready(Ok(count));
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if self.room.is_none() {
                        let fd = self.socket.get_ref().try_clone()?.into();
                        self.room = Some(AsyncFd::with_interest(fd, Interest::WRITABLE)?);
                    }
                    let room = self.room.as_ref().expect("set above");
                    ready!(room.poll_write_ready(cx))?.clear_ready();
                }
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context) -> Poll<io::Result<()>> {
        match self.socket.get_ref().shutdown(Shutdown::Write) {
            Err(error) if error.kind() != io::ErrorKind::NotConnected => Poll::Ready(Err(error)),
            _ => Poll::Ready(Ok(())),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn what_does_not_fit_goes_through_when_there_is_room() {
        let (one, two) = UnixStream::pair().unwrap();
        let (mut one, mut two) = (Quiet::new(one).unwrap(), Quiet::new(two).unwrap());
        let sent: Vec<u8> = (0..5_000_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        let expected = sent.clone();
        let sender = tokio::spawn(async move {
            one.write_all(&sent).await.unwrap();
            one.shutdown().await.unwrap();
            let mut answer = Vec::new();
            one.read_to_end(&mut answer).await.unwrap();
            answer
        });
        // Now slow, now fast.
        let mut received = Vec::new();
        for _ in 0..20 {
            tokio::time::sleep(std::time::Duration::from_millis(2)).await;
            received.push(two.read_u8().await.unwrap());
        }
        two.read_to_end(&mut received).await.unwrap();
        assert!(received == expected);
        two.write_all(b"answer").await.unwrap();
        drop(two);
        assert_eq!(sender.await.unwrap(), b"answer");
    }
}
