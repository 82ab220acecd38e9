//! The bytes of one connection: a stream that its owner can end, and that
//! stops reading while too much of what was read has not been looked at.

use std::{
    io,
    os::fd::AsRawFd,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
};

use futures_util::task::AtomicWaker;
use nix::sys::socket::{Shutdown, shutdown};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::UnixStream,
    sync::Notify,
};

/// Bytes read ahead of the consumer. ttrpc's own queue of received messages
/// has no bound, so that a shim that floods its socket would fill the memory.
/// The longest message, 4 MiB, must fit.
const READ_AHEAD: usize = 5 << 20;

/// The owner's end; dropping it ends the connection, whatever the peer does.
pub(crate) struct Owner(Arc<Socket>);

/// The end that ttrpc reads and writes.
pub(crate) struct Transport(Arc<Socket>);

struct Socket {
    stream: UnixStream,
    /// Bytes read since the consumer had seen everything.
    unseen: AtomicUsize,
    /// The reader, while it waits for the consumer.
    reader: AtomicWaker,
    /// Tells the consumer that the reader waits for it.
    waiting: Notify,
}

pub(crate) fn split(stream: UnixStream) -> (Owner, Transport) {
    let socket = Arc::new(Socket {
        stream,
        unseen: AtomicUsize::new(0),
        reader: AtomicWaker::new(),
        waiting: Notify::new(),
    });
    (Owner(Arc::clone(&socket)), Transport(socket))
}

impl Owner {
    /// The consumer has seen every message so far.
    pub(crate) fn caught_up(&self) {
        self.0.unseen.store(0, Ordering::Release);
        self.0.reader.wake();
    }

    /// Waits until reading stops for the consumer to catch up.
    pub(crate) async fn reader_waits(&self) {
        self.0.waiting.notified().await;
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        // ttrpc would wait for ever for a peer that does not read. An error
        // means that the connection has ended already.
        let _ = shutdown(self.0.stream.as_raw_fd(), Shutdown::Both);
        self.caught_up();
    }
}

impl Socket {
    fn poll_room(&self, cx: &mut Context<'_>) -> Poll<()> {
        if self.unseen.load(Ordering::Acquire) < READ_AHEAD {
            return Poll::Ready(());
        }
        self.reader.register(cx.waker());
        if self.unseen.load(Ordering::Acquire) < READ_AHEAD {
            return Poll::Ready(());
        }
        self.waiting.notify_one();
        Poll::Pending
    }
}

impl AsyncRead for Transport {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        ready!(self.0.poll_room(cx));
        loop {
            ready!(self.0.stream.poll_read_ready(cx))?;
            match self.0.stream.try_read(buf.initialize_unfilled()) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => {
                    let read = result?;
                    buf.advance(read);
                    self.0.unseen.fetch_add(read, Ordering::AcqRel);
                    return Poll::Ready(Ok(()));
                }
            }
        }
    }
}

impl AsyncWrite for Transport {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.0.stream.poll_write_ready(cx))?;
            match self.0.stream.try_write(buf) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => return Poll::Ready(result),
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(shutdown(self.0.stream.as_raw_fd(), Shutdown::Write).map_err(io::Error::from))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        time::timeout,
    };

    use super::*;

    const MEGABYTE: usize = 1 << 20;

    /// A peer that floods: no more is read than the consumer keeps up with.
    #[tokio::test]
    async fn reading_waits_for_the_consumer() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let (owner, mut transport) = split(ours);
        let flood =
            tokio::spawn(
                async move { while theirs.write_all(&vec![0; MEGABYTE]).await.is_ok() {} },
            );
        let mut buffer = vec![0; MEGABYTE];
        for _ in 0..3 {
            let mut read = 0;
            loop {
                tokio::select! {
                    biased;
                    count = transport.read(&mut buffer) => read += count.unwrap(),
                    () = owner.reader_waits() => break,
                }
            }
            assert!((READ_AHEAD..READ_AHEAD + MEGABYTE).contains(&read), "{read}");
            owner.caught_up();
        }
        drop(owner);
        // Also without a consumer the end is seen, by both sides.
        let end = async { while transport.read(&mut buffer).await.unwrap() > 0 {} };
        timeout(Duration::from_secs(30), end).await.unwrap();
        timeout(Duration::from_secs(30), flood).await.unwrap().unwrap();
    }

    /// F-G5: a peer that reads nothing does not keep a writer for ever.
    #[tokio::test]
    async fn writing_ends_with_the_owner() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let (owner, mut transport) = split(ours);
        let stuck =
            tokio::spawn(
                async move { while transport.write_all(&vec![0; MEGABYTE]).await.is_ok() {} },
            );
        tokio::task::yield_now().await;
        drop(owner);
        timeout(Duration::from_secs(30), stuck).await.unwrap().unwrap();
    }
}
