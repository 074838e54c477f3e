//! A connection of the socket, read so that its peer is not woken in vain.
//!
//! Taking bytes off a unix socket's queue wakes whoever waits at the other end (`unix_write_space`, net/unix/af_unix.c): the
//! peer, which has asked and blocks until it is answered. It would run, find nothing, and wait again, while its question is
//! being answered, often on the very processor that answers it. So a request is read by peeking, and taken off when the answer
//! is on its way.

use std::io;
use std::os::fd::AsRawFd;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Instant;

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::UnixStream;

use super::pace::Pace;
use crate::kernel::peek_each_byte_once;

/// How many bytes that were read are left on the queue at most: who sends more than it holds waits for room.
const MOST_LEFT: usize = 32 * 1024;

/// When the first bytes of the question that is being answered were read, if one is; shared with whoever asks.
#[derive(Clone, Debug, Default)]
pub(super) struct Arrival(Arc<Mutex<Option<Instant>>>);

impl Arrival {
    fn is_now(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    /// When it came; now, if nothing is known of it.
    pub(super) fn at(&self) -> Instant {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).unwrap_or_else(Instant::now)
    }
}

/// The connection.
pub(super) struct Quiet {
    stream: UnixStream,
    /// Bytes that were read and are on the queue still.
    left: usize,
    pace: Pace,
    arrival: Arrival,
}

impl Quiet {
    /// # Errors
    /// The kernel does not keep a place to peek from.
    pub(super) fn new(stream: UnixStream, pace: Pace, arrival: Arrival) -> io::Result<Self> {
        peek_each_byte_once(&stream)?;
        Ok(Self { stream, left: 0, pace, arrival })
    }

    /// Notes what was read.
    fn has_read(&mut self, read: usize) {
        if self.left == 0 && read > 0 {
            self.arrival.is_now();
            self.pace.asked();
        }
        self.left += read;
    }

    /// Takes off the queue what was read.
    fn take(&mut self) -> io::Result<()> {
        let mut bytes = [0; 4096];
        while self.left > 0 {
            let most = self.left.min(bytes.len());
            let room = bytes.get_mut(..most).unwrap_or_default();
            match recv(self.stream.as_raw_fd(), room, MsgFlags::MSG_DONTWAIT) {
                // What was there is gone: what follows on this connection cannot be told from what was read.
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(taken) => self.left = self.left.saturating_sub(taken),
                Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// After something was written.
    fn written(&mut self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if matches!(written, Poll::Ready(Ok(_))) {
            self.take()?;
            self.pace.answered();
        }
        written
    }
}

impl Drop for Quiet {
    fn drop(&mut self) {
        // A queue that is not empty when it is closed looks to the peer as if the connection had been broken off.
        let _ = self.take();
    }
}

impl AsyncRead for Quiet {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.left >= MOST_LEFT {
            this.take()?;
        }
        let most = into.remaining().min(MOST_LEFT);
        let room = into.initialize_unfilled_to(most);
        // An error is told by the next read.
        if let Some(read) = this.pace.wait(|| peek(&this.stream, room).ok()) {
            into.advance(read);
            this.has_read(read);
            return Poll::Ready(Ok(()));
        }
        loop {
            ready!(this.stream.poll_read_ready(context))?;
            let room = into.initialize_unfilled_to(most);
            match this.stream.try_io(Interest::READABLE, || peek(&this.stream, room)) {
                Ok(read) => {
                    into.advance(read);
                    this.has_read(read);
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

fn peek(stream: &UnixStream, room: &mut [u8]) -> io::Result<usize> {
    Ok(recv(stream.as_raw_fd(), room, MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT)?)
}

impl AsyncWrite for Quiet {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, from: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.stream).poll_write(context, from);
        this.written(written)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        from: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.stream).poll_write_vectored(context, from);
        this.written(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::super::pace::Askers;
    use super::*;

    fn queued(stream: &UnixStream) -> usize {
        let mut bytes = [0; 65_536];
        peek_each_byte_once(stream).unwrap();
        recv(stream.as_raw_fd(), &mut bytes, MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT).unwrap_or(0)
    }

    #[tokio::test]
    async fn every_byte_is_read_once_and_taken_off_with_the_answer() {
        let (mut asker, stream) = UnixStream::pair().unwrap();
        let mut quiet = Quiet::new(stream, Askers::here().pace(), Arrival::default()).unwrap();
        let mut read = [0; 4];
        for (part, question) in [*b"one ", *b"two "].into_iter().enumerate() {
            asker.write_all(&question).await.unwrap();
            quiet.read_exact(&mut read).await.unwrap();
            assert_eq!((read, quiet.left), (question, 4 * (part + 1)), "it is read, and still there");
        }
        quiet.write_all(b"answer").await.unwrap();
        asker.read_exact(&mut [0; 6]).await.unwrap();
        assert_eq!((quiet.left, queued(&quiet.stream)), (0, 0));
        asker.write_all(b"next").await.unwrap();
        quiet.read_exact(&mut read).await.unwrap();
        assert_eq!(&read, b"next");
        drop(asker);
        assert_eq!(quiet.read(&mut read).await.unwrap(), 0, "the end is seen behind what was read");
    }

    #[tokio::test]
    async fn who_is_not_answered_sees_the_end_and_no_error() {
        let (mut asker, stream) = UnixStream::pair().unwrap();
        let mut quiet = Quiet::new(stream, Askers::here().pace(), Arrival::default()).unwrap();
        asker.write_all(b"head").await.unwrap();
        let mut read = [0; 4];
        quiet.read_exact(&mut read).await.unwrap();
        drop(quiet);
        assert_eq!(asker.read(&mut read).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn more_than_the_queue_holds_is_read_without_an_answer() {
        let (mut asker, stream) = UnixStream::pair().unwrap();
        let mut quiet = Quiet::new(stream, Askers::here().pace(), Arrival::default()).unwrap();
        let sent: Vec<u8> = (0..1_000_000u32).map(|at| (at % 251) as u8).collect();
        let expected = sent.clone();
        let sending = tokio::spawn(async move {
            asker.write_all(&sent).await.unwrap();
            asker
        });
        let mut read = vec![0; expected.len()];
        quiet.read_exact(&mut read).await.unwrap();
        assert!(read == expected, "the bytes are those that were sent");
        assert!(quiet.left <= 2 * MOST_LEFT);
        drop(sending.await.unwrap());
    }
}
