//! Held against Go's own ttrpc, in both directions: the stand-in's server by a
//! Go client, and the Rust client, which the manager uses, by a Go server.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use std::{
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Lines},
    net::UnixStream,
    process::{Child, ChildStdin, ChildStdout, Command},
    time::timeout,
};
use ttrpc::{
    Code,
    context::{Context, with_duration},
    proto::{MESSAGE_HEADER_LENGTH, MESSAGE_LENGTH_MAX, MessageHeader, Request, Response},
};
use zeropod_shim_api::{
    rpc::{
        shim::{ContainerPhase, ContainerRequest, ContainerStatus},
        shim_ttrpc::ShimClient,
    },
    status::{Phase, StatusEvent, metrics_request, subscribe_request},
};
use zeropod_testkit::{
    node::shim::{Identity, Server, Service, frame},
    skip, tools,
};

const LONG: Duration = Duration::from_secs(30);

/// The peer, or `None` where it cannot be built: offline, without Go.
fn peer() -> Option<PathBuf> {
    match tools::ttrpc_peer() {
        Ok(peer) => Some(peer),
        Err(error) => {
            skip::skip(&format!("no Go peer: {error}"));
            None
        }
    }
}

fn peer_command(peer: &Path, args: &[&str], socket: &Path) -> Command {
    let proto = concat!(env!("CARGO_MANIFEST_DIR"), "/../shim-api/proto/shim.proto");
    let mut command = Command::new(peer);
    command.arg(proto).arg(args[0]).arg(socket).args(&args[1..]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
    command
}

/// The stand-in with one running container.
struct Shim {
    service: Service,
    server: Server,
    _dir: tempfile::TempDir,
}

impl Shim {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let service = Service::new();
        let server = service.serve(&dir.path().join("shim.sock")).unwrap();
        service.create(Identity {
            id: "c0ffee".into(),
            name: "app".into(),
            pod_name: "web".into(),
            pod_namespace: "default".into(),
        });
        Self { service, server, _dir: dir }
    }

    async fn subscribed(&self) {
        let subscribed = async {
            while self.service.counters().open_subscriptions == 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(LONG, subscribed).await.expect("nobody subscribed");
    }
}

/// A Go client or server and what it prints.
struct Peer {
    input: ChildStdin,
    lines: Lines<BufReader<ChildStdout>>,
    _child: Child,
}

impl Peer {
    fn spawn(mut command: Command) -> Self {
        let mut child = command.spawn().unwrap();
        let input = child.stdin.take().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { input, lines, _child: child }
    }

    /// The next line; JSON without the spaces that Go puts in at random.
    async fn next(&mut self) -> String {
        let line = timeout(LONG, self.lines.next_line()).await.expect("the peer is silent");
        let line = line.unwrap().expect("the peer has ended");
        match serde_json::from_str::<serde_json::Value>(&line) {
            Ok(json) => json.to_string(),
            Err(_) => line,
        }
    }

    async fn say(&mut self, line: &str) {
        self.input.write_all(format!("{line}\n").as_bytes()).await.unwrap();
    }
}

#[tokio::test]
async fn a_go_client_reads_the_stand_in() {
    let Some(peer) = peer() else { return };
    let shim = Shim::start();
    let client = |args: &[&str]| Peer::spawn(peer_command(&peer, args, shim.server.socket()));
    assert_eq!(
        client(&["metrics"]).next().await,
        r#"{"metrics":[{"name":"app","podName":"web","podNamespace":"default","running":true}]}"#
    );
    let status = client(&["status", "c0ffee"]).next().await;
    assert!(status.contains(r#""id":"c0ffee""#) && status.contains("RUNNING"), "{status}");
    assert_eq!(
        client(&["status", "decaf"]).next().await,
        "error Unknown could not find zeropod container with id: decaf"
    );

    let mut subscriber = client(&["subscribe"]);
    shim.subscribed().await;
    shim.service.started("c0ffee").unwrap();
    shim.service.scaled_down("c0ffee", Duration::from_millis(70)).unwrap();
    let started = subscriber.next().await;
    assert!(started.contains("RUNNING") && !started.contains("eventDuration"), "{started}");
    // The phase is the zero of its enum, so that it is not on the wire.
    let down = subscriber.next().await;
    assert!(!down.contains("phase") && down.contains(r#""eventDuration":"0.070s""#), "{down}");
    shim.service.end_streams();
    assert_eq!(subscriber.next().await, "end", "and no empty message before it");

    let mut subscriber = client(&["subscribe"]);
    shim.subscribed().await;
    shim.service.fail_streams(Code::INTERNAL, "broken");
    assert_eq!(subscriber.next().await, "error Internal broken");

    let mut subscriber = client(&["subscribe"]);
    shim.subscribed().await;
    shim.service.close_connections();
    let closed = subscriber.next().await;
    assert!(closed.contains("ttrpc: closed") || closed == "end", "{closed}");
}

/// A Go server, once it serves.
async fn go_server(peer: &Path, socket: &Path) -> Peer {
    let mut server = Peer::spawn(peer_command(peer, &["serve"], socket));
    assert_eq!(server.next().await, "serving");
    server
}

#[tokio::test]
async fn the_rust_client_reads_a_go_server() {
    let Some(peer) = peer() else { return };
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("go.sock");
    let mut server = go_server(&peer, &socket).await;
    let address = format!("unix://{}", socket.display());
    let client = ShimClient::new(ttrpc::asynchronous::Client::connect(&address).await.unwrap());

    let answer = client.metrics(with_duration(LONG), &metrics_request()).await.unwrap();
    assert!(answer.metrics[0].running);
    let request = |id: &str| ContainerRequest { id: id.into(), ..ContainerRequest::default() };
    let status = client.get_status(with_duration(LONG), &request("c0ffee")).await.unwrap();
    assert_eq!(StatusEvent::try_from(status).unwrap().phase, Phase::Running);
    let unknown = client.get_status(with_duration(LONG), &request("decaf")).await.unwrap_err();
    let ttrpc::Error::RpcStatus(status) = unknown else { panic!("{unknown:?}") };
    assert_eq!(status.code.enum_value(), Ok(Code::UNKNOWN));

    for end in ["end", "fail"] {
        let mut stream =
            client.subscribe_status(Context::default(), &subscribe_request()).await.unwrap();
        server.say(EVENT_JSON).await;
        let event = timeout(LONG, stream.recv()).await.unwrap().unwrap().unwrap();
        assert_eq!(event, event_message());
        server.say(end).await;
        let ended = timeout(LONG, stream.recv()).await.unwrap();
        assert!(if end == "end" { ended == Ok(None) } else { ended.is_err() }, "{ended:?}");
    }
}

/// Answers to these calls have to be the same bytes from Go and the stand-in.
#[tokio::test]
async fn the_stand_in_answers_in_the_frames_of_go() {
    let Some(peer) = peer() else { return };
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("go.sock");
    let mut go = go_server(&peer, &socket).await;
    let shim = Shim::start();
    let mut connections = [
        UnixStream::connect(&socket).await.unwrap(),
        UnixStream::connect(shim.server.socket()).await.unwrap(),
    ];
    for (what, frame) in [
        ("a unary call", request(1, "Metrics", &[0x0a, 0])),
        ("a status", request(3, "GetStatus", b"\x0a\x06c0ffee")),
        ("an unknown container", request(5, "GetStatus", b"\x0a\x05decaf")),
        ("an unknown method", request(7, "Nothing", &[])),
        ("an unknown service", service_request(9, "zeropod.shim.v1.Other", "Metrics", &[])),
        ("an even stream", request(10, "Metrics", &[])),
        ("a stream that was", request(9, "Metrics", &[])),
        ("a malformed payload", request(11, "GetStatus", b"\x0a\xff")),
        ("a malformed request", frame(13, 1, 1, b"\x0a\xff")),
        ("too long a message", frame(15, 1, 1, &vec![0; MESSAGE_LENGTH_MAX + 1])),
    ] {
        let [of_go, ours] = exchange(&mut connections, &frame).await;
        let header = |(header, _): &Frame| (header.stream_id, header.type_, header.flags);
        assert_eq!(header(&of_go), header(&ours), "{what}");
        let (of_go, ours) = (status(&of_go.1), status(&ours.1));
        // What Go's decoder says after that varies from build to build.
        let prefix = |(code, message): &(i32, String)| {
            (*code, message.split("proto:").next().map(str::to_owned))
        };
        assert_eq!(prefix(&of_go), prefix(&ours), "{what}");
    }

    // A stream: a message, an end; and again, ended by an error.
    for (end, stream) in [("end", 17), ("fail", 19)] {
        let subscribe = request(stream, "SubscribeStatus", &[0x0a, 0]);
        for connection in &mut connections {
            connection.write_all(&subscribe).await.unwrap();
        }
        shim.subscribed().await;
        go.say(EVENT_JSON).await;
        assert!(shim.service.emit(event_message()));
        let [of_go, ours] = answers(&mut connections).await;
        assert_eq!(of_go.0, ours.0, "header of a message");
        go.say(end).await;
        match end {
            "end" => shim.service.end_streams(),
            _ => shim.service.fail_streams(Code::UNKNOWN, "broken"),
        }
        let [of_go, ours] = answers(&mut connections).await;
        assert_eq!(of_go, ours, "{end}");
    }
}

const EVENT_JSON: &str =
    r#"{"id":"c0ffee","name":"app","podName":"web","podNamespace":"default","phase":"RUNNING"}"#;

fn event_message() -> ContainerStatus {
    ContainerStatus {
        id: "c0ffee".into(),
        name: "app".into(),
        pod_name: "web".into(),
        pod_namespace: "default".into(),
        phase: ContainerPhase::RUNNING.into(),
        ..ContainerStatus::default()
    }
}

fn request(stream: u32, method: &str, payload: &[u8]) -> Vec<u8> {
    service_request(stream, "zeropod.shim.v1.Shim", method, payload)
}

fn service_request(stream: u32, service: &str, method: &str, payload: &[u8]) -> Vec<u8> {
    use protobuf::Message;

    let request = Request {
        service: service.into(),
        method: method.into(),
        payload: payload.into(),
        ..Request::default()
    };
    let (type_, remote_closed) = (1, 1);
    frame(stream, type_, remote_closed, &request.write_to_bytes().unwrap())
}

type Frame = (MessageHeader, Vec<u8>);

async fn exchange(connections: &mut [UnixStream; 2], frame: &[u8]) -> [Frame; 2] {
    for connection in &mut *connections {
        connection.write_all(frame).await.unwrap();
    }
    answers(connections).await
}

async fn answers([go, ours]: &mut [UnixStream; 2]) -> [Frame; 2] {
    [answer(go).await, answer(ours).await]
}

async fn answer(connection: &mut UnixStream) -> Frame {
    let read = async {
        let mut header = [0; MESSAGE_HEADER_LENGTH];
        connection.read_exact(&mut header).await.unwrap();
        let header = MessageHeader::from(header);
        let mut data = vec![0; header.length as usize];
        connection.read_exact(&mut data).await.unwrap();
        (header, data)
    };
    timeout(LONG, read).await.expect("no answer")
}

/// Code and message of an answer.
fn status(body: &[u8]) -> (i32, String) {
    use protobuf::Message;

    let response = Response::parse_from_bytes(body).unwrap();
    let status = response.status.unwrap_or_default();
    (status.code.value(), status.message)
}
