//! The manager as people meet it: its servers, its subcommands and its log,
//! with a stand-in shim to report. Needs root for namespaces of its own.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpStream,
    os::unix::{fs::PermissionsExt as _, net::UnixListener},
    path::Path,
    process::{Child, Command, Output, Stdio},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use nix::{
    mount::{MsFlags, mount},
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value, json};
use zeropod_testkit::{
    kube::{Cluster as _, InProcessApi, create_pod, pod, run_pod},
    node::{
        isolated,
        shim::{Identity, Service},
    },
    skip,
};

const ID: &str = "c0ffee";
const SOCKET: &str = "/run/zeropod/manager.sock";
/// Generous: the machine may be busy.
const PATIENCE: Duration = Duration::from_mins(1);

#[test]
fn page_api_command_health_and_log_tell_of_a_scaling() {
    in_a_node(|| {
        let (shim, server) = shim();
        let manager = Manager::start(&["-metrics-addr=127.0.0.1:8080"]);
        until("the container shows", || !containers().is_empty());
        shim.scaled_down(ID, Duration::from_millis(250)).unwrap();
        until("it is scaled down", || containers()[0]["phase"] == "SCALED_DOWN");
        shim.restored(ID, Duration::from_millis(50)).unwrap();
        until("it is woken up", || containers()[0]["phase"] == "RUNNING");
        let container = &containers()[0];
        assert_eq!(container["pod"], "web");
        assert_eq!(container["last_checkpoint"]["seconds"], 0.25);
        assert_eq!(container["last_restore"]["seconds"], 0.05);
        // The page counts what the metrics count.
        assert_eq!(container["wake_ups"], 1);
        let metrics = get(8080, "/metrics");
        let count = "zeropod_restore_duration_seconds_count{container=\"app\",namespace=\"default\",\
                     pod=\"web\"} 1";
        assert!(metrics.contains(count), "{metrics}");

        // Each server has its own.
        assert!(get(8091, "/").contains("<title>zeropod</title>"));
        for (port, path) in [(8080, "/"), (8080, "/api/v1/containers"), (8091, "/metrics")] {
            assert!(get(port, path).starts_with("HTTP/1.1 404 "), "{port} {path}");
        }
        assert!(get(8080, "/healthz").starts_with("HTTP/1.1 200 "));
        assert!(get(8080, "/readyz").starts_with("HTTP/1.1 200 "));
        assert!(get(8080, "/probe").starts_with("HTTP/1.1 200 "));

        let table = text(&command(&["status"]));
        assert!(table.contains("NAMESPACE") && table.contains("RUNNING"), "{table}");
        let wide = text(&command(&["status", "-o", "wide"]));
        assert!(wide.contains("CHECKPOINT") && wide.contains("250ms"), "{wide}");
        let mut watch = Running::start(&["status", "--watch", "-o=json"]);
        until("a first message", || watch.said().contains("\"snapshot\""));
        shim.scaled_down(ID, Duration::from_millis(77)).unwrap();
        until("a change", || watch.said().contains("\"change\"") && watch.said().contains("0.077"));

        // A shim that dies shows by name, and the node stays of use.
        drop(server);
        let degraded = || get(8080, "/readyz").contains("\"shim-disconnected\"");
        until("the shim is missed", degraded);
        assert!(get(8080, "/readyz").starts_with("HTTP/1.1 200 "));

        let log = manager.stop();
        until("the watch ends with the manager", || watch.ended().is_some_and(|good| !good));
        let scaling = log.iter().find(|line| line["phase"] == "SCALED_DOWN").expect("a line");
        let scaling = scaling.to_string();
        assert!(scaling.contains("default/web/app") && scaling.contains("250"), "{scaling}");
    });
}

#[test]
fn the_log_level_changes_while_the_manager_runs() {
    in_a_node(|| {
        let (shim, _server) = shim();
        let manager = Manager::start(&["-metrics-addr=", "-control-socket", SOCKET]);
        until("the socket is there", || Path::new(SOCKET).exists());
        until("it is for root alone", || {
            fs::metadata(SOCKET).is_ok_and(|meta| meta.permissions().mode() & 0o777 == 0o600)
        });
        assert_eq!(text(&command(&["log-level"])), "info\n");
        until("the container shows", || !containers().is_empty());
        // What CRIU says is for debugging only.
        shim.checkpoint_failed(ID, "a secret of the application").unwrap();
        until("the failure counts", || containers()[0]["checkpoint_failures"] == 1);
        assert_eq!(text(&command(&["log-level", "debug"])), "debug\n");
        assert_eq!(text(&command(&["log-level"])), "debug\n");
        shim.checkpoint_failed(ID, "another line").unwrap();
        until("the second failure counts", || containers()[0]["checkpoint_failures"] == 2);
        assert_eq!(text(&command(&["log-level", "info"])), "info\n");

        let wrong = command(&["log-level", "loud"]);
        assert_eq!(wrong.status.code(), Some(64));
        let mut stranger = std::os::unix::net::UnixStream::connect(SOCKET).unwrap();
        stranger.write_all(&[b'x'; 4096]).unwrap();
        let mut answer = String::new();
        let _ = stranger.read_to_string(&mut answer);
        assert!(answer.is_empty() || answer.starts_with("error "), "{answer}");

        let log = manager.stop();
        let log: Vec<String> = log.iter().map(ToString::to_string).collect();
        assert!(!log.iter().any(|line| line.contains("a secret of the application")));
        assert!(log.iter().any(|line| line.contains("another line")), "{log:#?}");
        assert!(!Path::new(SOCKET).exists(), "the socket goes with the manager");
        let gone = command(&["log-level"]);
        assert_eq!(gone.status.code(), Some(1));
        let error = String::from_utf8(gone.stderr).unwrap();
        assert!(error.contains("cannot connect to /run/zeropod/manager.sock: No such"), "{error}");
    });
}

// F-C19: from the first moment, and by name.
#[test]
fn a_node_that_cannot_do_its_job_is_not_ready() {
    in_a_node(|| {
        // The directory of the shims' sockets cannot be made.
        fs::create_dir_all("/run/zeropod").unwrap();
        fs::write("/run/zeropod/s", "").unwrap();
        let manager = Manager::start(&["-status-addr=", "-metrics-addr=127.0.0.1:8080"]);
        until("it is not ready", || get(8080, "/readyz").starts_with("HTTP/1.1 503 "));
        assert!(get(8080, "/readyz").contains("\"shim-directory\""));
        assert!(get(8080, "/healthz").starts_with("HTTP/1.1 200 "), "a restart does not help");
        fs::remove_file("/run/zeropod/s").unwrap();
        until("it is ready", || get(8080, "/readyz").starts_with("HTTP/1.1 200 "));
        let off = command(&["status"]);
        let error = String::from_utf8(off.stderr).unwrap();
        assert!(error.contains("127.0.0.1:8091"), "{error}");
        manager.stop();
    });
}

#[test]
fn what_a_pod_gives_back_shows_until_it_wakes_up() {
    in_a_node(|| {
        let (shim, _server) = shim();
        let api = InProcessApi::start().unwrap();
        tokio::runtime::Handle::current().block_on(async {
            let client = api.client();
            let pod = pod("default", "web")
                .on_node("worker-3")
                .container("app", &[("cpu", "250m"), ("memory", "128Mi")], &[])
                .build();
            create_pod(&client, &pod).await.unwrap();
            run_pod(&client, &pod, &[("app", ID)]).await.unwrap();
        });
        let kubeconfig = api.kubeconfig().to_str().unwrap();
        let manager = Manager::start(&["-in-place-scaling", "-kubeconfig", kubeconfig]);
        shim.scaled_down(ID, Duration::from_millis(250)).unwrap();
        let given = || containers().first().map(|one| one["gives_back"].clone());
        let expected = json!({ "cpu_cores": 0.249, "memory_bytes": (128 << 20) - 1024 });
        until("the requests are given back", || given() == Some(expected.clone()));
        assert!(get(8080, "/metrics").contains("zeropod_requests_given_back_cpu_cores 0.249\n"));
        assert!(text(&command(&["status"])).contains("249m/128Mi"));
        shim.restored(ID, Duration::from_millis(50)).unwrap();
        until("they are back", || given() == Some(Value::Null));
        manager.stop();
    });
}

/// X1, X4, F-H2: neither a good shim nor one that answers nothing is asked for
/// a scrape, and no file stays open after it.
#[test]
fn a_scrape_asks_no_shim() {
    const SCRAPES: usize = 200;
    in_a_node(|| {
        let (shim, _server) = shim();
        let hung = UnixListener::bind("/run/zeropod/s/hung.sock").unwrap();
        hung.set_nonblocking(true).unwrap();
        let manager = Manager::start(&["-metrics-addr=127.0.0.1:8080"]);
        let unresponsive = "zeropod_shim_connections{state=\"unresponsive\"} 1\n";
        until("the hung shim is noticed", || get(8080, "/metrics").contains(unresponsive));
        until("the container shows", || !containers().is_empty());
        // It is dialled again from time to time, but not for a scrape.
        let dialled = || std::iter::from_fn(|| hung.accept().ok()).count();
        let fds = || {
            let page = get(8080, "/metrics");
            let line = page.lines().find_map(|line| line.strip_prefix("process_open_fds "));
            line.and_then(|count| count.parse::<usize>().ok()).unwrap()
        };
        let asked = || {
            let counters = shim.counters();
            counters.connections + counters.metrics_reads + counters.status_reads
        };
        dialled();
        let before = (asked(), fds());
        for _ in 0..SCRAPES {
            assert!(get(8080, "/metrics").contains("zeropod_running{"));
        }
        assert!(dialled() < SCRAPES / 10, "a scrape dials");
        assert!(asked() - before.0 < SCRAPES / 10, "a scrape asks");
        assert!(fds() < before.1 + SCRAPES / 10, "a scrape leaves files open");
        manager.stop();
    });
}

/// Runs a test where nobody else is: mounts, network and `/run` of its own.
fn in_a_node(test: impl FnOnce() + Send) {
    if skip::without_root() {
        return;
    }
    isolated(async || {
        let flags = MsFlags::empty();
        mount(Some("tmpfs"), "/run", Some("tmpfs"), flags, None::<&str>).unwrap();
        // In place, so that the shim's tasks run meanwhile.
        tokio::task::block_in_place(test);
    })
    .unwrap();
}

/// A shim with one container that runs.
fn shim() -> (Service, zeropod_testkit::node::shim::Server) {
    fs::create_dir_all("/run/zeropod/s").unwrap();
    let shim = Service::new();
    shim.create(Identity {
        id: ID.into(),
        name: "app".into(),
        pod_name: "web".into(),
        pod_namespace: "default".into(),
    });
    let socket = format!("/run/zeropod/s/{}.sock", "0123456789abcdef".repeat(4));
    let server = shim.serve(Path::new(&socket)).unwrap();
    shim.started(ID).unwrap();
    (shim, server)
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < PATIENCE, "in vain: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// What a server of the manager answers; nothing while it does not listen.
fn get(port: u16, path: &str) -> String {
    let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)) else { return String::new() };
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

fn containers() -> Vec<Value> {
    let answer = get(8091, "/api/v1/containers");
    let Some((_, body)) = answer.split_once("\r\n\r\n") else { return Vec::new() };
    let status: Value = serde_json::from_str(body).unwrap();
    status["containers"].as_array().unwrap().clone()
}

fn program(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_zeropod-manager"));
    command.args(args).env("NODE_NAME", "worker-3").stdin(Stdio::null());
    command
}

/// Runs a subcommand to its end.
fn command(args: &[&str]) -> Output {
    program(args).output().unwrap()
}

fn text(output: &Output) -> String {
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{error}");
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// A program that runs; killed when dropped.
struct Running {
    child: Child,
    said: Arc<Mutex<String>>,
}

impl Running {
    fn start(args: &[&str]) -> Self {
        let mut child = program(args).stdout(Stdio::piped()).spawn().unwrap();
        let mut stdout = child.stdout.take().unwrap();
        let said = Arc::<Mutex<String>>::default();
        let heard = Arc::clone(&said);
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(read @ 1..) = stdout.read(&mut bytes) {
                heard.lock().unwrap().push_str(&String::from_utf8_lossy(&bytes[..read]));
            }
        });
        Self { child, said }
    }

    fn said(&self) -> String {
        self.said.lock().unwrap().clone()
    }

    /// Whether it ended, and then whether well.
    fn ended(&mut self) -> Option<bool> {
        self.child.try_wait().unwrap().map(|status| status.success())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

struct Manager(Running);

impl Manager {
    fn start(args: &[&str]) -> Self {
        Self(Running::start(args))
    }

    /// Stops it in order and returns its log.
    fn stop(mut self) -> Vec<Value> {
        let pid = Pid::from_raw(self.0.child.id().try_into().unwrap());
        kill(pid, Signal::SIGTERM).unwrap();
        until("the manager ends", || self.0.ended().is_some());
        let parsed: Result<_, _> = self.0.said().lines().map(serde_json::from_str).collect();
        parsed.expect("a log of JSON lines")
    }
}
