//! The API and the health endpoints over real connections.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::response::IntoResponse as _;
use common::{
    Node, Running, container, eventually, failed, get, raw, removed, scaled_down, snapshot,
    woken_up,
};
use serde_json::{Value, json};
use zeropod_status_api::{
    Client, Error, Limits, Liveness, Message, Output, Public,
    api::{Degraded, Resources},
    print_status, public, watch_status,
};

fn body(answer: &str) -> Value {
    let (_, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
    serde_json::from_str(body).unwrap_or_else(|error| panic!("{error} in {answer}"))
}

fn trouble(name: &'static str, unready: bool) -> Degraded {
    Degraded { name: name.into(), detail: "for a reason".into(), unready }
}

#[tokio::test]
async fn containers_have_the_documented_form() {
    let node = Node::new();
    node.apply(&snapshot(["web", "idle"]));
    node.apply(&scaled_down("idle", Duration::from_millis(250)));
    node.apply(&woken_up("idle", Duration::from_millis(50)));
    node.apply(&scaled_down("idle", Duration::from_millis(300)));
    node.apply(&failed("web"));
    let given = Resources { cpu_cores: 0.1, memory_bytes: 64 << 20 };
    node.board.set_given_back([(container("idle"), given)].into());
    node.board.set_degraded("shims", vec![trouble("shim-disconnected", false)]);
    let server = node.serve().await;

    let answer = get(server.addr, "/api/v1/containers").await;
    assert!(answer.contains("\r\ncontent-type: application/json\r\n"), "{answer}");
    assert!(answer.contains("\r\ncache-control: no-store\r\n"), "{answer}");
    assert!(!answer.to_lowercase().contains("access-control"), "{answer}");
    assert!(!answer.contains("a log line of CRIU"), "names only");
    let mut status = body(&answer);
    for path in ["/at", "/containers/0/since", "/containers/0/last_checkpoint/ended"] {
        let time = status.pointer_mut(path).unwrap().take();
        let time: jiff::Timestamp = time.as_str().unwrap().parse().unwrap();
        assert_eq!(time.as_nanosecond() % 1_000_000, 0, "{path} is in milliseconds");
    }
    let idle = status["containers"][0].as_object_mut().unwrap();
    assert!(idle.remove("scaled_down_seconds").unwrap().is_number());
    assert_eq!(
        status["containers"][0],
        json!({
            "namespace": "default", "pod": "idle", "container": "app",
            "phase": "SCALED_DOWN", "since": null,
            "last_checkpoint": { "ended": null, "seconds": 0.3 }, "last_restore": null,
            "wake_ups": 1, "checkpoint_failures": 0, "restore_failures": 0,
            "gives_back": { "cpu_cores": 0.1, "memory_bytes": 67_108_864 },
        })
    );
    assert_eq!(status["containers"][1]["checkpoint_failures"], 1);
    assert_eq!((&status["node"], &status["version"]), (&json!("worker-3"), &json!("1.2.3")));
    let mut totals = status["totals"].clone();
    assert!(totals.as_object_mut().unwrap().remove("scaled_down_seconds").unwrap().is_number());
    assert_eq!(
        totals,
        json!({
            "containers": 2, "running": 1, "scaled_down": 1, "wake_ups": 1,
            "checkpoint_failures": 1, "restore_failures": 0,
            "gives_back": { "cpu_cores": 0.1, "memory_bytes": 67_108_864 },
        })
    );
    assert_eq!(
        status["degraded"],
        json!([{ "name": "shim-disconnected", "detail": "for a reason", "unready": false }])
    );
    server.stop().await;
}

#[tokio::test]
async fn the_stream_tells_everything_then_changes() {
    let node = Node::new();
    node.apply(&snapshot(["web"]));
    let server = node.serve().await;
    let mut follow = Client::new(server.addr).follow().await.unwrap();
    let Message::Snapshot(first) = follow.next().await.unwrap() else { panic!("no snapshot") };
    assert_eq!(first.containers.len(), 1);

    node.apply(&scaled_down("web", Duration::from_millis(250)));
    let Message::Change(change) = follow.next().await.unwrap() else { panic!("no change") };
    assert_eq!((change.container.pod.as_str(), &*change.container.phase), ("web", "SCALED_DOWN"));

    node.board.set_degraded("shims", vec![trouble("shim-dead", false)]);
    node.board.set_degraded("shims", vec![trouble("shim-dead", false)]);
    let expected = Message::Degraded(vec![trouble("shim-dead", false)]);
    assert_eq!(follow.next().await.unwrap(), expected);

    node.apply(&removed("web"));
    let Message::Removed(gone) = follow.next().await.unwrap() else { panic!("told twice") };
    assert_eq!((gone.namespace.as_str(), gone.container.as_str()), ("default", "app"));

    node.apply(&snapshot(["a", "b"]));
    let Message::Snapshot(anew) = follow.next().await.unwrap() else { panic!("no snapshot") };
    assert_eq!(anew.containers.len(), 2);

    server.stop().await;
    assert!(matches!(follow.next().await, Err(Error::Ended { .. } | Error::Http { .. })));
}

// A client that does not read must cost no memory, and be right in the end.
#[tokio::test]
async fn a_client_that_lags_gets_a_snapshot_instead_of_what_it_missed() {
    let pods: Vec<String> = (0..200).map(|n| format!("{}-{n}", "a-long-name".repeat(4))).collect();
    let node = Node::new();
    node.apply(&snapshot(pods.iter().map(String::as_str)));
    let server = node.serve().await;
    let mut follow = Client::new(server.addr).follow().await.unwrap();
    let Message::Snapshot(_) = follow.next().await.unwrap() else { panic!("no snapshot") };
    // More than the sockets between them hold.
    let mut sent = 0_usize;
    for _ in 0..100 {
        for pod in &pods {
            node.apply(&woken_up(pod, Duration::from_millis(50)));
            sent += 1;
        }
        tokio::task::yield_now().await;
    }
    node.apply(&removed(&pods[0]));
    let mut received = 0;
    let mut containers = pods.len();
    while containers == pods.len() {
        received += 1;
        match follow.next().await.unwrap() {
            Message::Snapshot(status) => containers = status.containers.len(),
            Message::Removed(_) => containers -= 1,
            Message::Change(_) | Message::Degraded(_) => {}
        }
    }
    assert!(received < sent, "{received} messages of {sent}: nothing was left out");
    server.stop().await;
}

#[tokio::test]
async fn a_local_server_refuses_requests_for_other_hosts() {
    let server = Node::new().serve().await;
    for (host, status) in [("localhost:1", "200"), ("evil.example", "421"), ("", "421")] {
        for path in ["/", "/api/v1/containers"] {
            let head = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
            let answer = raw(server.addr, &head).await;
            assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{host}: {answer}");
        }
    }
    server.stop().await;
}

// X5, F-C19: health endpoints from the first moment.
#[tokio::test]
async fn health_readiness_metrics_and_probe() {
    let node = Node::new();
    let liveness = Liveness::new(Duration::from_millis(50));
    let probes = Arc::new(Mutex::new(Vec::new()));
    let noted = Arc::clone(&probes);
    let router = public(Public {
        liveness: liveness.clone(),
        board: node.board.clone(),
        metrics: Arc::new(|headers| {
            let accept = headers.get("accept").and_then(|value| value.to_str().ok());
            format!("my_metric 1 for {accept:?}\n").into_response()
        }),
        probed: Arc::new(move |peer, agent: Option<&str>| {
            noted.lock().unwrap().push((peer, agent.map(str::to_owned)));
        }),
    });
    let any = "[::]:0".parse().unwrap();
    let server = Running::start(any, Limits::default(), |_| router).await;
    let addr = format!("127.0.0.1:{}", server.addr.port()).parse().unwrap();

    let healthy = get(addr, "/healthz").await;
    assert!(healthy.starts_with("HTTP/1.1 200 "), "{healthy}");
    assert_eq!(body(&healthy), json!({ "alive": true, "stuck": [] }));
    assert_eq!(body(&get(addr, "/readyz").await), json!({ "ready": true, "degraded": [] }));

    node.board
        .set_degraded("shims", vec![trouble("b", false), trouble("b", false), trouble("a", false)]);
    let degraded = get(addr, "/readyz").await;
    assert!(degraded.starts_with("HTTP/1.1 200 "), "{degraded}");
    assert!(!degraded.contains("for a reason"), "names only: the network is not trusted");
    assert_eq!(body(&degraded), json!({ "ready": true, "degraded": ["a", "b"] }));
    node.board.set_degraded("loader", vec![trouble("no-bpf", true)]);
    let useless = get(addr, "/readyz").await;
    assert!(useless.starts_with("HTTP/1.1 503 "), "{useless}");
    assert_eq!(body(&useless), json!({ "ready": false, "degraded": ["a", "b", "no-bpf"] }));

    assert!(get(addr, "/metrics").await.ends_with("my_metric 1 for None\n"));
    let probe = "GET /probe HTTP/1.1\r\nHost: x\r\nUser-Agent: kube-probe/1.34\r\nConnection: close\r\n\r\n";
    assert!(raw(addr, probe).await.starts_with("HTTP/1.1 200 "));
    let peer = ("127.0.0.1".parse().unwrap(), Some("kube-probe/1.34".to_owned()));
    assert_eq!(*probes.lock().unwrap(), [peer], "IPv4, although the socket is for both families");

    // What is meant for the node alone is not here.
    for path in ["/", "/api/v1/containers", "/api/v1/stream"] {
        assert!(get(addr, path).await.starts_with("HTTP/1.1 404 "), "{path}");
    }

    // X5: a loop that hangs, and one that ends.
    let (release, hold) = std::sync::mpsc::channel::<()>();
    let stuck = liveness.watch("stuck loop", async move { hold.recv().unwrap_or(()) });
    let thread = std::thread::spawn(|| futures_util::FutureExt::now_or_never(stuck));
    eventually("a stuck loop shows", async || {
        get(addr, "/healthz").await.contains("stuck loop is")
    })
    .await;
    assert!(get(addr, "/healthz").await.starts_with("HTTP/1.1 503 "));
    release.send(()).unwrap();
    thread.join().unwrap();
    assert_eq!(body(&get(addr, "/healthz").await)["stuck"], json!(["stuck loop ended"]));
    server.stop().await;
}

#[tokio::test]
async fn a_loop_that_waits_is_alive() {
    let liveness = Liveness::new(Duration::ZERO);
    let waits = tokio::spawn(liveness.watch("waits", std::future::pending::<()>()));
    tokio::task::yield_now().await;
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert_eq!(liveness.stuck(), [""; 0]);
    waits.abort();
    let _ = waits.await;
    assert_eq!(liveness.stuck(), ["waits ended"]);
}

/// A loop that waits for ever holds up no thread: its heartbeat tells.
#[tokio::test]
async fn a_loop_that_no_longer_turns_is_stuck() {
    let liveness = Liveness::new(Duration::from_secs(1));
    let (beat, heart) = tokio::sync::watch::channel(std::time::Instant::now());
    liveness.listen("shim events", heart);
    let (stop, stopped) = tokio::sync::oneshot::channel();
    let turns = tokio::spawn(liveness.watch("turns", async move {
        // Until it waits for somebody who never answers.
        tokio::select! {
            () = async {
                loop {
                    beat.send_replace(std::time::Instant::now());
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            } => (),
            _ = stopped => (),
        }
        std::future::pending::<()>().await;
        drop(beat);
    }));
    let node = Node::new();
    let router = public(Public {
        liveness,
        board: node.board.clone(),
        metrics: Arc::new(|_| "".into_response()),
        probed: Arc::new(|_, _| ()),
    });
    let server = Running::start(common::ANY, Limits::default(), |_| router).await;
    let answers = async |status: &str| get(server.addr, "/healthz").await.starts_with(status);
    eventually("it to turn", async || answers("HTTP/1.1 200 ").await).await;
    stop.send(()).unwrap();
    eventually("its silence to be noticed", async || answers("HTTP/1.1 503 ").await).await;
    let stuck = body(&get(server.addr, "/healthz").await);
    assert!(stuck["stuck"][0].as_str().unwrap().starts_with("shim events has not turned for "));
    turns.abort();
    server.stop().await;
}

#[tokio::test]
async fn the_status_command_prints_table_wide_and_json() {
    let node = Node::new();
    let server = node.serve().await;
    let client = Client::new(server.addr);
    let print = async |output| {
        let mut text = Vec::new();
        print_status(&client, output, &mut text).await.unwrap();
        String::from_utf8(text).unwrap()
    };
    assert_eq!(print(Output::Table).await, "No zeropod containers on worker-3.\n");

    node.apply(&snapshot(["web", "a-longer-name"]));
    node.apply(&scaled_down("web", Duration::from_millis(250)));
    let given = Resources { cpu_cores: 0.1, memory_bytes: 64 << 20 };
    node.board.set_given_back([(container("web"), given)].into());
    node.board.set_degraded("loader", vec![trouble("no-bpf", true)]);
    let table = print(Output::Table).await;
    let lines: Vec<&str> = table.lines().collect();
    assert_eq!(lines[0], "NOT READY  no-bpf: for a reason");
    let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(
        words(lines[1]),
        ["NAMESPACE", "POD", "CONTAINER", "PHASE", "FOR", "RESTORE", "WAKE-UPS", "GIVES", "BACK"]
    );
    assert_eq!(words(lines[2])[..4], ["default", "a-longer-name", "app", "RUNNING"]);
    assert!(words(lines[2])[4].starts_with("5m"), "{table}");
    assert_eq!(lines[1].find("WAKE-UPS"), lines[3].find("0   "), "columns are aligned: {table}");
    assert!(lines[3].starts_with("default    web            app        SCALED_DOWN  "), "{table}");
    assert!(lines[3].ends_with("  0         100m/64Mi"), "{table}");
    assert_eq!(
        lines[4],
        "worker-3: 1 of 2 scaled down, 0 wake-ups, 0 failures, gives back 100m/64Mi"
    );
    let wide = print(Output::Wide).await;
    assert!(wide.contains("CHECKPOINT") && wide.contains("  250ms  "), "{wide}");
    let json: Value = serde_json::from_str(&print(Output::Json).await).unwrap();
    assert_eq!(json["containers"][1]["pod"], "web");
    server.stop().await;
}

#[tokio::test]
async fn the_status_command_watches() {
    let node = Node::new();
    node.apply(&snapshot(["web"]));
    let server = node.serve().await;
    for output in [Output::Table, Output::Json] {
        let text = Shared::default();
        let (client, mut to) = (Client::new(server.addr), text.clone());
        let watching = tokio::spawn(async move { watch_status(&client, output, &mut to).await });
        eventually("the first picture", async || text.get().contains("web")).await;
        node.apply(&scaled_down("web", Duration::from_millis(250)));
        eventually("the change", async || text.get().contains("SCALED_DOWN")).await;
        node.apply(&removed("web"));
        let gone = if output == Output::Json { "\"removed\"" } else { "GONE" };
        eventually("the end", async || text.get().contains(gone)).await;
        if output == Output::Json {
            for line in text.get().lines() {
                let message: Value = serde_json::from_str(line).unwrap();
                assert!(message["event"].is_string() && message["data"].is_object(), "{line}");
            }
        }
        watching.abort();
        node.apply(&snapshot(["web"]));
    }
    server.stop().await;
    let nobody = Client::new(server_gone().await);
    let error = nobody.status().await.unwrap_err().to_string();
    assert!(error.contains("cannot connect to 127.0.0.1:"), "{error}");
}

async fn server_gone() -> std::net::SocketAddr {
    let server = Node::new().serve().await;
    let addr = server.addr;
    server.stop().await;
    addr
}

/// A writer whose text others can read.
#[derive(Clone, Default)]
struct Shared(Arc<Mutex<Vec<u8>>>);

impl Shared {
    fn get(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

impl std::io::Write for Shared {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
