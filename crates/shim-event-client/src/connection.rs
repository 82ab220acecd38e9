//! One connection to a shim: ttrpc as far as three calls need it.
//!
//! Not the ttrpc crate's client: its queue of received messages has no bound,
//! it never ends for a peer that does not read, and with two tasks and their
//! channels it takes several times the memory, for each shim of a node.

use std::{
    io,
    path::Path,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use protobuf::Message;
use tokio::{net::UnixStream, sync::oneshot, time::timeout};
use ttrpc::proto::{
    Code, FLAG_NO_DATA, FLAG_REMOTE_CLOSED, MESSAGE_TYPE_DATA, MESSAGE_TYPE_REQUEST,
    MESSAGE_TYPE_RESPONSE, MessageHeader, Request, Response,
};
use zeropod_shim_api::{
    id::ContainerId,
    rpc::shim::{ContainerMetrics, ContainerRequest, ContainerStatus, MetricsResponse},
    status::{metrics_request, subscribe_request},
};

use crate::{Error, frames::Frames};

const SERVICE: &str = "zeropod.shim.v1.Shim";
const SUBSCRIBE: &str = "SubscribeStatus";

/// A connection, closed when dropped. Answers to calls arrive only while
/// somebody waits for [events](Self::events).
#[derive(Debug)]
pub(crate) struct Connection {
    stream: UnixStream,
    deadline: Duration,
    calls: Mutex<Calls>,
}

#[derive(Debug, Default)]
struct Calls {
    /// Stream id of the last call.
    last: u32,
    /// Stream id of the subscription.
    subscription: Option<u32>,
    /// The call that waits for its answer.
    waiting: Option<(u32, oneshot::Sender<Vec<u8>>)>,
}

impl Connection {
    pub(crate) async fn dial(path: &Path, deadline: Duration) -> Result<Self, Error> {
        let dial = |source| Error::Dial { path: path.to_path_buf(), source };
        let stream = timeout(deadline, UnixStream::connect(path))
            .await
            .map_err(|_| dial(io::ErrorKind::TimedOut.into()))?
            .map_err(dial)?;
        Ok(Self { stream, deadline, calls: Mutex::default() })
    }

    /// Subscribes to the events. On the wire the call has no timeout: the shim
    /// would end the stream at it.
    pub(crate) async fn subscribe(&self) -> Result<(), Error> {
        let id = self.next_id();
        self.calls().subscription = Some(id);
        let request = request(SUBSCRIBE, &subscribe_request(), Duration::ZERO)?;
        self.send(id, FLAG_REMOTE_CLOSED, &request).await
    }

    /// Reads, and so clears, what happened since the last read.
    pub(crate) async fn metrics(&self) -> Result<Vec<ContainerMetrics>, Error> {
        let answer: MetricsResponse = self.call("Metrics", &metrics_request()).await?;
        Ok(answer.metrics)
    }

    /// State of one container; `None` when the shim does not know it.
    pub(crate) async fn status(&self, id: &ContainerId) -> Result<Option<ContainerStatus>, Error> {
        let request =
            ContainerRequest { id: id.as_str().to_owned(), ..ContainerRequest::default() };
        match self.call("GetStatus", &request).await {
            Ok(status) => Ok(Some(status)),
            // The code of a Go error without one, and the only error of this
            // call.
            Err(Error::Refused { code: Code::UNKNOWN, .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// What arrives on the connection.
    pub(crate) fn events(&self) -> Events<'_> {
        Events { connection: self, frames: Frames::default(), last: false }
    }

    /// Calls a method and waits for its answer. One call at a time: another
    /// one takes the place of a call that waits in vain.
    async fn call<A: Message>(
        &self,
        call: &'static str,
        message: &impl Message,
    ) -> Result<A, Error> {
        let deadline = self.deadline;
        let id = self.next_id();
        let (sender, answer) = oneshot::channel();
        self.calls().waiting = Some((id, sender));
        self.send(id, 0, &request(call, message, deadline)?).await?;
        let answer =
            timeout(deadline, answer).await.map_err(|_| Error::Deadline { call, deadline })?;
        let answer = answer.map_err(|_| Error::Deadline { call, deadline })?;
        let malformed = |source| Error::Malformed { call, source };
        let answer = Response::parse_from_bytes(&answer).map_err(malformed)?;
        refusal(call, &answer)?;
        A::parse_from_bytes(&answer.payload).map_err(malformed)
    }

    /// Sends a request. One that is sent in part only is the end of the
    /// connection.
    async fn send(&self, stream_id: u32, flags: u8, request: &[u8]) -> Result<(), Error> {
        let length = request.len().try_into().unwrap_or(u32::MAX);
        let header = MessageHeader { length, stream_id, type_: MESSAGE_TYPE_REQUEST, flags };
        let mut frame = Vec::from(header);
        frame.extend_from_slice(request);
        let write = async {
            let mut rest = &frame[..];
            while !rest.is_empty() {
                self.stream.writable().await?;
                match self.stream.try_write(rest) {
                    Ok(written) => rest = &rest[written..],
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(error) => return Err(error),
                }
            }
            Ok(())
        };
        let written = timeout(self.deadline, write).await;
        written.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())).map_err(Error::Broken)
    }

    /// Clients use odd ids, and each only once.
    fn next_id(&self) -> u32 {
        let mut calls = self.calls();
        calls.last = if calls.last == 0 { 1 } else { calls.last.wrapping_add(2) };
        calls.last
    }

    fn calls(&self) -> MutexGuard<'_, Calls> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Events of one shim, as they come.
#[derive(Debug)]
pub(crate) struct Events<'a> {
    connection: &'a Connection,
    frames: Frames,
    /// The shim has sent the last one.
    last: bool,
}

impl Events<'_> {
    /// The next event; what is wrong with it does not end the stream.
    pub(crate) async fn next(&mut self) -> Result<protobuf::Result<ContainerStatus>, Error> {
        while !self.last {
            let (header, message) = self.frames.next(&self.connection.stream).await?;
            if let Some(event) = self.sort(header, message)? {
                return Ok(ContainerStatus::parse_from_bytes(&event));
            }
        }
        Err(Error::StreamEnded)
    }

    /// Hands an answer to the call that waits for it. Returns the message of
    /// an event.
    fn sort(&mut self, header: MessageHeader, message: Vec<u8>) -> Result<Option<Vec<u8>>, Error> {
        let MessageHeader { stream_id, type_, flags, .. } = header;
        let mut calls = self.connection.calls();
        let subscribed = calls.subscription == Some(stream_id);
        match type_ {
            MESSAGE_TYPE_DATA if subscribed => {
                self.last = flags & FLAG_REMOTE_CLOSED != 0;
                return Ok((flags & FLAG_NO_DATA == 0).then_some(message));
            }
            MESSAGE_TYPE_RESPONSE if subscribed => {
                self.last = true;
                let malformed = |source| Error::Malformed { call: SUBSCRIBE, source };
                refusal(SUBSCRIBE, &Response::parse_from_bytes(&message).map_err(malformed)?)?;
            }
            MESSAGE_TYPE_RESPONSE => {
                if let Some((_, caller)) = calls.waiting.take_if(|(id, _)| *id == stream_id) {
                    // Fails when the caller has given up.
                    let _ = caller.send(message);
                }
            }
            // Of a stream that nobody opened.
            MESSAGE_TYPE_DATA => {}
            _ => return Err(Error::Protocol(format!("it sent a message of type {type_}"))),
        }
        Ok(None)
    }
}

fn request(call: &'static str, message: &impl Message, within: Duration) -> Result<Vec<u8>, Error> {
    let malformed = |source| Error::Malformed { call, source };
    let request = Request {
        service: SERVICE.to_owned(),
        method: call.to_owned(),
        payload: message.write_to_bytes().map_err(malformed)?,
        timeout_nano: within.as_nanos().try_into().unwrap_or(i64::MAX),
        ..Request::default()
    };
    request.write_to_bytes().map_err(malformed)
}

fn refusal(call: &'static str, response: &Response) -> Result<(), Error> {
    match response.status.as_ref() {
        Some(status) if status.code.value() != Code::OK as i32 => {
            Err(Error::Refused { call, code: status.code(), message: status.message.clone() })
        }
        _ => Ok(()),
    }
}
