//! The stand-in shim over a real socket, asked by the Rust client.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use std::{fs, os::unix::fs::PermissionsExt, path::PathBuf, time::Duration};

use protobuf::Message as _;
use tokio::time::{sleep, timeout};
use ttrpc::{
    Code, Error,
    context::{Context, with_duration},
    proto::{MESSAGE_HEADER_LENGTH, MESSAGE_LENGTH_MAX},
};
use zeropod_shim_api::{
    rpc::{
        shim::{ContainerRequest, ContainerStatus},
        shim_ttrpc::ShimClient,
    },
    status::{Phase, StatusEvent, metrics_request, subscribe_request},
};
use zeropod_testkit::node::shim::{
    Answer, Faults, Identity, QUEUE_CAPACITY, Server, Service, frame,
};

const LONG: Duration = Duration::from_secs(30);

struct Shim {
    service: Service,
    server: Server,
    socket: PathBuf,
    _dir: tempfile::TempDir,
}

impl Shim {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("s").join(format!("{}.sock", "0123456789abcdef".repeat(4)));
        let service = Service::new();
        let server = service.serve(&socket).unwrap();
        Self { service, server, socket, _dir: dir }
    }

    fn with_container() -> Self {
        let shim = Self::start();
        shim.service.create(identity("c0ffee", "web"));
        shim
    }

    async fn client(&self) -> ShimClient {
        let address = format!("unix://{}", self.socket.display());
        ShimClient::new(ttrpc::asynchronous::Client::connect(&address).await.unwrap())
    }
}

fn identity(id: &str, pod: &str) -> Identity {
    Identity {
        id: id.into(),
        name: "app".into(),
        pod_name: pod.into(),
        pod_namespace: "default".into(),
    }
}

fn deadline() -> Context {
    with_duration(LONG)
}

async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let wait = async {
        while !condition() {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(LONG, wait).await.unwrap_or_else(|_| panic!("never: {what}"));
}

type Stream = ttrpc::asynchronous::ClientStreamReceiver<ContainerStatus>;

async fn subscribe(client: &ShimClient) -> Stream {
    // No deadline: a shim would end the stream at it.
    client.subscribe_status(Context::default(), &subscribe_request()).await.unwrap()
}

async fn next(stream: &mut Stream) -> Option<StatusEvent> {
    let message = timeout(LONG, stream.recv()).await.expect("no event").unwrap();
    message.map(|message| StatusEvent::try_from(message).unwrap())
}

#[tokio::test]
async fn the_socket_is_private_and_stays_behind_only_after_a_kill() {
    let shim = Shim::start();
    assert_eq!(fs::metadata(&shim.socket).unwrap().permissions().mode() & 0o777, 0o600);
    drop(shim.server);
    assert!(shim.socket.exists(), "S6: what SIGKILL leaves");

    let shim = Shim::start();
    shim.server.close().unwrap();
    assert!(!shim.socket.exists());
}

#[tokio::test]
async fn events_wait_for_a_subscriber_and_the_newest_are_lost() {
    // H1
    let shim = Shim::with_container();
    shim.service.started("c0ffee").unwrap();
    for _ in 0..QUEUE_CAPACITY {
        shim.service.scaled_down("c0ffee", Duration::from_millis(1)).unwrap();
    }
    assert_eq!(shim.service.counters().dropped, 1);
    let mut stream = subscribe(&shim.client().await).await;
    assert_eq!(next(&mut stream).await.unwrap().phase, Phase::Running);
    for _ in 1..QUEUE_CAPACITY {
        assert_eq!(next(&mut stream).await.unwrap().phase, Phase::ScaledDown);
    }
    until("an empty queue", || shim.service.counters().queued == 0).await;
    // There is no message of the current state on subscription.
    shim.service.stopping("c0ffee").unwrap();
    assert_eq!(next(&mut stream).await.unwrap().phase, Phase::Stopping);
}

#[tokio::test]
async fn subscribers_compete() {
    // H1
    let shim = Shim::with_container();
    let (first, second) = (shim.client().await, shim.client().await);
    let (mut first, mut second) = (subscribe(&first).await, subscribe(&second).await);
    until("two subscriptions", || shim.service.counters().open_subscriptions == 2).await;
    for _ in 0..10 {
        shim.service.started("c0ffee").unwrap();
    }
    for _ in 0..10 {
        tokio::select! {
            event = next(&mut first) => event.unwrap(),
            event = next(&mut second) => event.unwrap(),
        };
    }
    assert_eq!(shim.service.counters().delivered, 10);
}

#[tokio::test]
async fn an_idle_dead_subscriber_swallows_nothing() {
    let shim = Shim::with_container();
    let dead = subscribe(&shim.client().await).await;
    until("a subscription", || shim.service.counters().open_subscriptions == 1).await;
    drop(dead);
    until("its end", || shim.service.counters().open_subscriptions == 0).await;
    shim.service.started("c0ffee").unwrap();
    let mut stream = subscribe(&shim.client().await).await;
    assert_eq!(next(&mut stream).await.unwrap().phase, Phase::Running);
    assert_eq!(shim.service.counters().lost, 0);
}

#[tokio::test]
async fn reading_metrics_clears_them() {
    // H2
    let shim = Shim::with_container();
    shim.service.create(identity("decaf", "other"));
    shim.service.scaled_down("c0ffee", Duration::from_millis(70)).unwrap();
    let client = shim.client().await;
    let read = async || {
        let metrics = client.metrics(deadline(), &metrics_request()).await.unwrap().metrics;
        let mut metrics: Vec<_> = metrics
            .into_iter()
            .map(|it| (it.pod_name, it.running, it.last_checkpoint.is_some()))
            .collect();
        metrics.sort();
        metrics
    };
    assert_eq!(read().await, [("other".into(), true, false), ("web".into(), false, true)]);
    assert_eq!(read().await, [("other".into(), true, false), ("web".into(), false, false)]);
    assert_eq!(shim.service.counters().metrics_reads, 2);
}

#[tokio::test]
async fn errors_carry_the_codes_of_go() {
    let shim = Shim::with_container();
    let client = shim.client().await;
    let request = |id: &str| ContainerRequest { id: id.into(), ..ContainerRequest::default() };
    let known = client.get_status(deadline(), &request("c0ffee")).await.unwrap();
    assert_eq!(StatusEvent::try_from(known).unwrap().phase, Phase::Running);
    let unknown = client.get_status(deadline(), &request("decaf")).await.unwrap_err();
    let Error::RpcStatus(status) = unknown else { panic!("{unknown:?}") };
    assert_eq!(status.code.enum_value(), Ok(Code::UNKNOWN));
}

#[tokio::test]
async fn streams_end_cleanly_or_with_an_error_or_with_their_connection() {
    let shim = Shim::with_container();
    let client = shim.client().await;
    for _ in 0..2 {
        let mut clean = subscribe(&client).await;
        until("a subscription", || shim.service.counters().open_subscriptions == 1).await;
        shim.service.end_streams();
        assert_eq!(next(&mut clean).await, None);
    }
    let mut failed = subscribe(&client).await;
    until("a subscription", || shim.service.counters().open_subscriptions == 1).await;
    shim.service.fail_streams(Code::INTERNAL, "broken");
    timeout(LONG, failed.recv()).await.unwrap().unwrap_err();
    // A deadline ends the stream on the shim's side.
    let short = with_duration(Duration::from_millis(10));
    let mut ended = client.subscribe_status(short, &subscribe_request()).await.unwrap();
    let _ = timeout(LONG, ended.recv()).await.unwrap();
    until("its end", || shim.service.counters().open_subscriptions == 0).await;

    let mut cut = subscribe(&client).await;
    until("a subscription", || shim.service.counters().open_subscriptions == 1).await;
    shim.service.close_connections();
    timeout(LONG, cut.recv()).await.unwrap().unwrap_err();
    until("no connection", || shim.service.counters().open_connections == 0).await;
}

#[tokio::test]
async fn faults_are_served_and_heal() {
    let shim = Shim::with_container();
    let client = shim.client().await;
    shim.service.scaled_down("c0ffee", Duration::from_millis(70)).unwrap();
    let short = || with_duration(Duration::from_millis(100));
    let faults = |metrics| Faults { metrics, ..Faults::default() };
    shim.service.set_faults(faults(Answer::Never));
    client.metrics(short(), &metrics_request()).await.unwrap_err();
    shim.service.set_faults(faults(Answer::Error(Code::INTERNAL, "no".into())));
    client.metrics(deadline(), &metrics_request()).await.unwrap_err();
    shim.service.set_faults(Faults { stop_reading: true, ..Faults::default() });
    client.metrics(short(), &metrics_request()).await.unwrap_err();
    shim.service.set_faults(Faults::default());
    // Whatever was asked while it did not read is answered now, and clears.
    until("the late answer", || shim.service.counters().metrics_reads == 3).await;
    let healthy = client.metrics(deadline(), &metrics_request()).await.unwrap();
    assert!(!healthy.metrics[0].running);
    shim.service.set_faults(faults(Answer::Close));
    client.metrics(deadline(), &metrics_request()).await.unwrap_err();
}

#[tokio::test]
async fn messages_can_be_large_late_or_garbage() {
    let shim = Shim::with_container();
    let client = shim.client().await;
    let faults = |metrics| Faults { metrics, ..Faults::default() };
    shim.service.set_faults(faults(Answer::Delayed(Duration::from_millis(20))));
    assert!(client.metrics(deadline(), &metrics_request()).await.unwrap().metrics[0].running);
    shim.service.set_faults(faults(Answer::Message(vec![0xff; 100])));
    client.metrics(deadline(), &metrics_request()).await.unwrap_err();

    // One event that fills a frame to the last of its 4 MiB.
    let mut event = ContainerStatus { event_log: String::new(), ..event() };
    let room = MESSAGE_LENGTH_MAX - usize::try_from(event.compute_size()).unwrap();
    event.event_log = "x".repeat(room - 5);
    assert_eq!(event.compute_size(), MESSAGE_LENGTH_MAX as u64);
    let mut stream = subscribe(&client).await;
    shim.service.emit(event);
    let message = timeout(LONG, stream.recv()).await.expect("no event").unwrap().unwrap();
    assert_eq!(message.event_log.len(), room - 5);

    // Neither a frame that nobody asked for nor a message that is none ends
    // the shim; what it does to the client is the client's.
    shim.service.send_raw(frame(99, 3, 0, &[0xff; 10]));
    shim.service.send_raw(vec![0xff; MESSAGE_HEADER_LENGTH]);
    shim.service.set_faults(Faults::default());
    let next = shim.client().await;
    assert!(next.metrics(deadline(), &metrics_request()).await.unwrap().metrics[0].running);
}

fn event() -> ContainerStatus {
    ContainerStatus {
        id: "c0ffee".into(),
        name: "app".into(),
        pod_name: "web".into(),
        pod_namespace: "default".into(),
        ..ContainerStatus::default()
    }
}
