//! One connection to a shim: dialling, and the three calls, each with its
//! deadline.

use std::{
    io,
    path::Path,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use nix::sys::socket::{Shutdown, shutdown};
use std::os::fd::AsRawFd;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::UnixStream,
    time::timeout,
};
use ttrpc::asynchronous::{Client, ClientStreamReceiver, transport::Socket};
use zeropod_shim_api::{
    id::ContainerId,
    rpc::{
        shim::{ContainerMetrics, ContainerRequest, ContainerStatus},
        shim_ttrpc::ShimClient,
    },
    status::{metrics_request, subscribe_request},
};

use crate::Error;

/// Events of one shim, as they come.
pub(crate) type Events = ClientStreamReceiver<ContainerStatus>;

/// A connection; closed when dropped, whatever its peer does.
pub(crate) struct Connection {
    client: ShimClient,
    deadline: Duration,
    stream: Arc<UnixStream>,
}

impl Connection {
    pub(crate) async fn dial(path: &Path, deadline: Duration) -> Result<Self, Error> {
        let dial = |source| Error::Dial { path: path.to_path_buf(), source };
        let stream = timeout(deadline, UnixStream::connect(path))
            .await
            .map_err(|_| dial(io::ErrorKind::TimedOut.into()))?
            .map_err(dial)?;
        let stream = Arc::new(stream);
        let client = Client::new(Socket::new(Shared(Arc::clone(&stream))));
        Ok(Self { client: ShimClient::new(client), deadline, stream })
    }

    /// Subscribes to the events. The call itself has no deadline on the wire:
    /// the shim would end the stream at it.
    pub(crate) async fn subscribe(&self) -> Result<Events, Error> {
        let request = subscribe_request();
        let call = self.client.subscribe_status(ttrpc::context::Context::default(), &request);
        self.within("SubscribeStatus", call).await
    }

    /// Reads, and so clears, what happened since the last read.
    pub(crate) async fn metrics(&self) -> Result<Vec<ContainerMetrics>, Error> {
        let request = metrics_request();
        let call = self.client.metrics(ttrpc::context::with_duration(self.deadline), &request);
        Ok(self.within("Metrics", call).await?.metrics)
    }

    /// State of one container; `None` when the shim does not know it.
    pub(crate) async fn status(&self, id: &ContainerId) -> Result<Option<ContainerStatus>, Error> {
        let request =
            ContainerRequest { id: id.as_str().to_owned(), ..ContainerRequest::default() };
        let call = self.client.get_status(ttrpc::context::with_duration(self.deadline), &request);
        match self.within("GetStatus", call).await {
            Ok(status) => Ok(Some(status)),
            // Go's code for an error without one: the only one this call has.
            Err(Error::Call { source: ttrpc::Error::RpcStatus(status), .. })
                if status.code() == ttrpc::Code::UNKNOWN =>
            {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Waits beyond the deadline that the call has itself: it does not cover
    /// a peer that stops reading.
    async fn within<T>(
        &self,
        call: &'static str,
        reply: impl Future<Output = ttrpc::Result<T>>,
    ) -> Result<T, Error> {
        match timeout(self.deadline, reply).await {
            Ok(reply) => reply.map_err(|source| Error::Call { call, source }),
            Err(_) => Err(Error::Deadline { call, deadline: self.deadline }),
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        // The client's writer would wait for ever for a peer that does not
        // read. An error means that the connection has ended already.
        let _ = shutdown(self.stream.as_raw_fd(), Shutdown::Both);
    }
}

/// The client's side of a stream that its owner can shut down.
struct Shared(Arc<UnixStream>);

impl AsyncRead for Shared {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            ready!(self.0.poll_read_ready(cx))?;
            match self.0.try_read(buf.initialize_unfilled()) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => return Poll::Ready(result.map(|read| buf.advance(read))),
            }
        }
    }
}

impl AsyncWrite for Shared {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.0.poll_write_ready(cx))?;
            match self.0.try_write(buf) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => return Poll::Ready(result),
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(shutdown(self.0.as_raw_fd(), Shutdown::Write).map_err(io::Error::from))
    }
}
