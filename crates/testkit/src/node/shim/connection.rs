//! One connection to a shim, served as Go's ttrpc server does.

use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, SystemTime},
};

use protobuf::Message;
use tokio::{
    io::AsyncWriteExt,
    net::{
        UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::{Mutex, broadcast, watch},
    task::JoinSet,
    time::sleep,
};
use ttrpc::{
    Code,
    proto::{MESSAGE_LENGTH_MAX, MESSAGE_TYPE_REQUEST, MessageHeader, Request},
};
use zeropod_shim_api::rpc::shim::ContainerRequest;

use super::{
    Answer, Command, Done, Open, Shared,
    frame::{self, Received, encode},
};

const SERVICE: &str = "zeropod.shim.v1.Shim";

pub(super) async fn serve(socket: UnixStream, shared: Arc<Shared>) {
    shared.counters.connections.fetch_add(1, Ordering::Relaxed);
    let _open = Open::count(&shared.counters.open_connections);
    let (reader, writer) = socket.into_split();
    let (closed, _) = watch::channel(false);
    let connection =
        Arc::new(Connection { shared: Arc::clone(&shared), writer: Mutex::new(writer), closed });
    let commands = shared.commands.subscribe();
    let mut calls = JoinSet::new();
    // How a connection ends is nothing to the shim.
    let _ = tokio::select! {
        done = read_calls(reader, &connection, &mut calls) => done,
        done = obey(commands, &connection) => done,
    };
    // Calls see this, like the cancelled context of a Go handler, or their
    // next write fails.
    connection.closed.send_replace(true);
    while calls.join_next().await.is_some() {}
}

struct Connection {
    shared: Arc<Shared>,
    writer: Mutex<OwnedWriteHalf>,
    closed: watch::Sender<bool>,
}

impl Connection {
    async fn send(&self, bytes: &[u8]) -> Done {
        self.writer.lock().await.write_all(bytes).await
    }

    async fn closed(&self) {
        // Fails only when the sender is gone, which is in `self`.
        let _ = self.closed.subscribe().wait_for(|closed| *closed).await;
    }
}

/// Reads requests until the connection ends, and starts a task for each.
async fn read_calls(
    mut reader: OwnedReadHalf,
    connection: &Arc<Connection>,
    calls: &mut JoinSet<()>,
) -> Done {
    let mut faults = connection.shared.faults.subscribe();
    let mut last_stream = 0;
    loop {
        let received = frame::receive(&mut reader).await?;
        // Fails only when the sender is gone, which is in the service.
        let _ = faults.wait_for(|faults| !faults.stop_reading).await;
        let (header, data) = match received {
            Received::End => return Ok(()),
            Received::Oversized(header) => {
                let message = format!(
                    "message length {} exceed maximum message size of {MESSAGE_LENGTH_MAX}",
                    header.length
                );
                let answer = frame::error(header.stream_id, Code::RESOURCE_EXHAUSTED, &message);
                connection.send(&answer).await?;
                continue;
            }
            Received::Frame(header, data) => (header, data),
        };
        // All methods take one message, which comes with the request.
        if header.type_ != MESSAGE_TYPE_REQUEST {
            continue;
        }
        match check(header, &data, &mut last_stream) {
            Ok(request) => {
                let connection = Arc::clone(connection);
                calls.spawn(async move {
                    let _ = call(&connection, header.stream_id, request).await;
                });
            }
            Err(message) => {
                let answer = frame::error(header.stream_id, Code::INVALID_ARGUMENT, message);
                connection.send(&answer).await?;
            }
        }
        while calls.try_join_next().is_some() {}
    }
}

fn check(header: MessageHeader, data: &[u8], last: &mut u32) -> Result<Request, &'static str> {
    if header.stream_id.is_multiple_of(2) {
        return Err("StreamID must be odd for client initiated streams");
    }
    if header.stream_id <= *last {
        return Err("StreamID cannot be re-used and must increment");
    }
    *last = header.stream_id;
    Request::parse_from_bytes(data).map_err(|_| "unmarshal request error: proto: cannot parse")
}

async fn obey(mut commands: broadcast::Receiver<Command>, connection: &Connection) -> Done {
    loop {
        match commands.recv().await {
            Ok(Command::Send(bytes)) => connection.send(&bytes).await?,
            Ok(Command::EndStreams | Command::FailStreams(..)) => {}
            Ok(Command::Close) | Err(_) => return Ok(()),
        }
    }
}

async fn call(connection: &Connection, stream: u32, request: Request) -> Done {
    let Shared { counters, faults, .. } = &*connection.shared;
    if request.service != SERVICE {
        let message = format!("service {}", request.service);
        return connection.send(&frame::error(stream, Code::UNIMPLEMENTED, &message)).await;
    }
    let faults = faults.borrow().clone();
    let (counter, answer) = match request.method.as_str() {
        "Metrics" => (&counters.metrics_reads, faults.metrics),
        "GetStatus" => (&counters.status_reads, faults.get_status),
        "SubscribeStatus" => (&counters.subscriptions, faults.subscribe),
        other => {
            let message = format!("method {other}");
            return connection.send(&frame::error(stream, Code::UNIMPLEMENTED, &message)).await;
        }
    };
    counter.fetch_add(1, Ordering::Relaxed);
    let streams = request.method == "SubscribeStatus";
    if let Answer::Delayed(time) = answer {
        tokio::select! {
            () = connection.closed() => return Ok(()),
            () = sleep(time) => {}
        }
    }
    let bytes = match answer {
        Answer::Normal | Answer::Delayed(_) if streams => {
            return subscribe(connection, stream, request.timeout_nano).await;
        }
        Answer::Normal | Answer::Delayed(_) => unary(&connection.shared, stream, &request),
        Answer::Never => return Ok(()),
        Answer::Error(code, message) => frame::error(stream, code, &message),
        Answer::Message(message) if streams => frame::data(stream, &message),
        Answer::Message(message) => frame::response(stream, &message),
        Answer::Raw(bytes) => bytes,
        Answer::Close => return connection.writer.lock().await.shutdown().await,
    };
    connection.send(&bytes).await
}

fn unary(shared: &Shared, stream: u32, request: &Request) -> Vec<u8> {
    if request.method == "Metrics" {
        return frame::response(stream, &encode(&shared.state().read_metrics()));
    }
    let Ok(ContainerRequest { id, .. }) = ContainerRequest::parse_from_bytes(&request.payload)
    else {
        let message = "ttrpc: error unmarshalling payload: proto: cannot parse";
        return frame::error(stream, Code::INTERNAL, message);
    };
    if let Some(status) = shared.state().status(&id, SystemTime::now()) {
        return frame::response(stream, &encode(&status));
    }
    let message = format!("could not find zeropod container with id: {id}");
    frame::error(stream, Code::UNKNOWN, &message)
}

/// Sends events until the connection or the time ends. Of a closed connection
/// and an event it takes either: so a dead subscriber can swallow some.
async fn subscribe(connection: &Connection, stream: u32, timeout_nano: i64) -> Done {
    let Shared { counters, queue, commands, .. } = &*connection.shared;
    let _open = Open::count(&counters.open_subscriptions);
    let mut commands = commands.subscribe();
    let deadline = async {
        match u64::try_from(timeout_nano) {
            Ok(nanos @ 1..) => sleep(Duration::from_nanos(nanos)).await,
            _ => std::future::pending().await,
        }
    };
    tokio::pin!(deadline);
    loop {
        let event = tokio::select! {
            () = connection.closed() => return Ok(()),
            () = &mut deadline => return connection.send(&frame::end(stream)).await,
            command = commands.recv() => match command {
                Ok(Command::EndStreams) => return connection.send(&frame::end(stream)).await,
                Ok(Command::FailStreams(code, message)) => {
                    return connection.send(&frame::error(stream, code, &message)).await;
                }
                _ => continue,
            },
            event = queue.pop() => event,
        };
        // A Go handler logs the failure and goes on to the next pick.
        let sent = connection.send(&frame::data(stream, &encode(&event))).await;
        let counter = if sent.is_ok() { &counters.delivered } else { &counters.lost };
        counter.fetch_add(1, Ordering::Relaxed);
    }
}
