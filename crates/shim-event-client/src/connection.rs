//! One connection to a shim: dialling, and the three calls, each with its
//! deadline.

use std::{io, path::Path, time::Duration};

use futures_util::FutureExt;
use protobuf::Message as _;
use tokio::{
    net::UnixStream,
    time::{Instant, timeout},
};
use ttrpc::{
    asynchronous::{Client, StreamInner, transport},
    proto::Request,
};
use zeropod_shim_api::{
    id::ContainerId,
    rpc::{
        shim::{ContainerMetrics, ContainerRequest, ContainerStatus},
        shim_ttrpc::ShimClient,
    },
    status::{metrics_request, subscribe_request},
};

use crate::{
    Error,
    socket::{self, Owner},
};

/// A connection, which ends when this is dropped.
pub(crate) struct Connection {
    client: Client,
    shim: ShimClient,
    deadline: Duration,
    owner: Owner,
}

impl Connection {
    pub(crate) async fn dial(path: &Path, deadline: Duration) -> Result<Self, Error> {
        let dial = |source| Error::Dial { path: path.to_path_buf(), source };
        let stream = timeout(deadline, UnixStream::connect(path))
            .await
            .map_err(|_| dial(io::ErrorKind::TimedOut.into()))?
            .map_err(dial)?;
        let (owner, transport) = socket::split(stream);
        let client = Client::new(transport::Socket::new(transport));
        let shim = ShimClient::new(client.clone());
        Ok(Self { client, shim, deadline, owner })
    }

    /// Subscribes to the events. On the wire the call has no timeout: the shim
    /// would end the stream at it.
    pub(crate) async fn subscribe(&self) -> Result<Events<'_>, Error> {
        let call = "SubscribeStatus";
        let request = Request {
            service: "zeropod.shim.v1.Shim".to_owned(),
            method: call.to_owned(),
            payload: subscribe_request()
                .write_to_bytes()
                .map_err(|error| failed(call, ttrpc::Error::Others(error.to_string())))?,
            ..Request::default()
        };
        let stream = self.within(call, self.client.new_stream(request, false, true)).await?;
        Ok(Events { stream, owner: &self.owner })
    }

    /// Reads, and so clears, what happened since the last read.
    pub(crate) async fn metrics(&self) -> Result<Vec<ContainerMetrics>, Error> {
        let request = metrics_request();
        let call = self.shim.metrics(ttrpc::context::with_duration(self.deadline), &request);
        Ok(self.within("Metrics", call).await?.metrics)
    }

    /// State of one container; `None` when the shim does not know it.
    pub(crate) async fn status(&self, id: &ContainerId) -> Result<Option<ContainerStatus>, Error> {
        let request =
            ContainerRequest { id: id.as_str().to_owned(), ..ContainerRequest::default() };
        let call = self.shim.get_status(ttrpc::context::with_duration(self.deadline), &request);
        match self.within("GetStatus", call).await {
            Ok(status) => Ok(Some(status)),
            // The code of a Go error without one, and the only error of this
            // call.
            Err(Error::Refused { code: ttrpc::Code::UNKNOWN, .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Waits beyond the deadline that a call has itself: it does not cover a
    /// peer that stops reading.
    async fn within<T>(
        &self,
        call: &'static str,
        reply: impl Future<Output = ttrpc::Result<T>>,
    ) -> Result<T, Error> {
        let deadline = self.deadline;
        let start = Instant::now();
        match timeout(deadline, reply).await {
            Ok(Ok(reply)) => Ok(reply),
            Ok(Err(source @ ttrpc::Error::RpcStatus(_))) => Err(failed(call, source)),
            Ok(Err(source)) if start.elapsed() < deadline => Err(failed(call, source)),
            // ttrpc has no error of its own for its deadline.
            Ok(Err(_)) | Err(_) => Err(Error::Deadline { call, deadline }),
        }
    }
}

fn failed(call: &'static str, error: ttrpc::Error) -> Error {
    match error {
        ttrpc::Error::RpcStatus(status) => {
            Error::Refused { call, code: status.code(), message: status.message }
        }
        source => Error::Call { call, source },
    }
}

/// Events of one shim, as they come.
pub(crate) struct Events<'a> {
    stream: StreamInner,
    owner: &'a Owner,
}

impl Events<'_> {
    /// The next message; what is wrong with it does not end the stream.
    pub(crate) async fn next(&mut self) -> Result<protobuf::Result<ContainerStatus>, Error> {
        let received = loop {
            if let Some(received) = self.stream.recv().now_or_never() {
                break received;
            }
            self.owner.caught_up();
            tokio::select! {
                biased;
                received = self.stream.recv() => break received,
                () = self.owner.reader_waits() => {}
            }
        };
        match received {
            Ok(message) => Ok(ContainerStatus::parse_from_bytes(&message)),
            Err(error @ ttrpc::Error::RpcStatus(_)) => Err(failed("SubscribeStatus", error)),
            Err(source) => Err(Error::StreamEnded { source }),
        }
    }
}
