//! Bytes between a client and its server, both ways, untouched.
//!
//! Ten thousand idle sessions are the ordinary case, so a session keeps no buffers: bytes are read into one
//! that all sessions of a thread share, and only what the other side does not take at once is kept.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// The most that one side can be ahead of the other in this process, bytes.
const BUFFER: usize = 64 << 10;

thread_local! {
    static SHARED: RefCell<Vec<u8>> = RefCell::new(vec![0; BUFFER]);
}

/// Who failed in one direction.
#[derive(Debug)]
enum Failed {
    Reader(io::Error),
    Writer(io::Error),
}

/// One direction.
#[derive(Debug, Default)]
struct Half {
    /// What was read and could not be written yet.
    kept: Vec<u8>,
    /// How much of that is written.
    written: usize,
    must_flush: bool,
    is_at_end: bool,
    is_closed: bool,
    /// Bytes so far.
    count: u64,
}

impl Half {
    /// Goes on as far as possible. Ready once the reader has ended and the writer knows it, or one of them fails.
    fn poll(
        &mut self,
        cx: &mut Context,
        mut reader: Pin<&mut impl AsyncRead>,
        mut writer: Pin<&mut impl AsyncWrite>,
        inspect: &mut impl FnMut(&[u8]),
    ) -> Poll<Result<(), Failed>> {
        loop {
            while self.written < self.kept.len() {
                let written =
                    ready!(writer.as_mut().poll_write(cx, &self.kept[self.written..])).map_err(Failed::Writer)?;
                if written == 0 {
                    return Poll::Ready(Err(Failed::Writer(io::ErrorKind::WriteZero.into())));
                }
                self.written += written;
            }
            if self.written > 0 {
                (self.kept, self.written) = (Vec::new(), 0);
            }
            if self.is_closed {
                return Poll::Ready(Ok(()));
            }
            if self.is_at_end {
                ready!(writer.as_mut().poll_shutdown(cx)).map_err(Failed::Writer)?;
                self.is_closed = true;
                continue;
            }
            match self.poll_pass(cx, reader.as_mut(), writer.as_mut(), inspect)? {
                Poll::Ready(()) => {}
                Poll::Pending => {
                    if self.must_flush {
                        ready!(writer.as_mut().poll_flush(cx)).map_err(Failed::Writer)?;
                        self.must_flush = false;
                    }
                    return Poll::Pending;
                }
            }
        }
    }

    /// Reads once, and writes what came as far as it goes.
    fn poll_pass(
        &mut self,
        cx: &mut Context,
        reader: Pin<&mut impl AsyncRead>,
        writer: Pin<&mut impl AsyncWrite>,
        inspect: &mut impl FnMut(&[u8]),
    ) -> Poll<Result<(), Failed>> {
        SHARED.with_borrow_mut(|shared| {
            let mut buffer = ReadBuf::new(shared);
            ready!(reader.poll_read(cx, &mut buffer)).map_err(Failed::Reader)?;
            let bytes = buffer.filled();
            if bytes.is_empty() {
                self.is_at_end = true;
                return Poll::Ready(Ok(()));
            }
            inspect(bytes);
            self.count += bytes.len() as u64;
            let written = match writer.poll_write(cx, bytes).map_err(Failed::Writer)? {
                Poll::Ready(written) => written,
                Poll::Pending => 0,
            };
            self.must_flush = true;
            self.kept.extend_from_slice(&bytes[written..]);
            Poll::Ready(Ok(()))
        })
    }
}

/// Relays until the server has ended, or the client fails. What the server said before that arrives, whatever the client writes
/// at that moment. Shows `inspect` what the server sends. Returns the bytes from the client and from the server.
pub async fn relay(
    client: &mut (impl AsyncRead + AsyncWrite + Unpin),
    server: &mut (impl AsyncRead + AsyncWrite + Unpin),
    mut inspect: impl FnMut(&[u8]),
) -> io::Result<(u64, u64)> {
    let (mut up, mut down, mut server_listens) = (Half::default(), Half::default(), true);
    std::future::poll_fn(|cx| {
        if server_listens {
            match up.poll(cx, Pin::new(&mut *client), Pin::new(&mut *server), &mut |_| {}) {
                Poll::Ready(Err(Failed::Reader(error))) => return Poll::Ready(Err(error)),
                // It has ended, and its last words are yet to be read.
                Poll::Ready(Err(Failed::Writer(_))) => server_listens = false,
                Poll::Ready(Ok(())) | Poll::Pending => {}
            }
        }
        loop {
            match down.poll(cx, Pin::new(&mut *server), Pin::new(&mut *client), &mut inspect) {
                // One that ends before it has read all that it was sent: the system says so behind its last words.
                Poll::Ready(Err(Failed::Reader(_))) => down.is_at_end = true,
                Poll::Ready(Err(Failed::Writer(error))) => return Poll::Ready(Err(error)),
                // Nobody reads what the client still says.
                Poll::Ready(Ok(())) => return Poll::Ready(Ok(())),
                Poll::Pending => return Poll::Pending,
            }
        }
    })
    .await?;
    Ok((up.count, down.count))
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
    use tokio::net::UnixStream;

    use super::*;

    #[tokio::test]
    async fn gigabytes_come_through_small_pipes_and_half_closed_ones() {
        let (client, mut client_side) = duplex(1000);
        let (mut server, mut server_side) = duplex(777);
        let relayed = tokio::spawn(async move { relay(&mut client_side, &mut server_side, |_| {}).await.unwrap() });
        let sent: Vec<u8> = (0..3_000_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        let expected = sent.clone();
        let (mut reader, mut writer) = tokio::io::split(client);
        let sender = tokio::spawn(async move {
            writer.write_all(&sent).await.unwrap();
            writer.shutdown().await.unwrap();
        });
        let mut received = Vec::new();
        server.read_to_end(&mut received).await.unwrap();
        sender.await.unwrap();
        assert!(received == expected);
        // The client has ended its half; the server still answers.
        server.write_all(b"answer").await.unwrap();
        drop(server);
        let mut answer = Vec::new();
        reader.read_to_end(&mut answer).await.unwrap();
        assert_eq!(answer, b"answer");
        assert_eq!(relayed.await.unwrap(), (3_000_000, 6));
    }

    #[tokio::test]
    async fn what_a_server_says_last_arrives_though_the_client_writes_meanwhile() {
        let (mut client, mut client_side) = duplex(1000);
        let (mut server, mut server_side) = UnixStream::pair().unwrap();
        server_side.write_all(b"never read").await.unwrap();
        server.write_all(b"last words").await.unwrap();
        drop(server);
        client.write_all(b"the next query").await.unwrap();
        relay(&mut client_side, &mut server_side, |_| {}).await.unwrap();
        drop(client_side);
        let mut heard = Vec::new();
        client.read_to_end(&mut heard).await.unwrap();
        assert_eq!(heard, b"last words");
    }
}
