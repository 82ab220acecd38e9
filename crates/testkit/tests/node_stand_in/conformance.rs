//! The stand-in held against the real shim: both go through the same scenario,
//! and have to look the same from outside at every step.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::Ipv4Addr,
    os::unix::fs::{DirEntryExt, PermissionsExt},
    path::{Path, PathBuf},
    time::Duration,
};

use aya::maps::{HashMap, Map, MapData};
use tokio::time::{sleep, timeout};
use ttrpc::context::{Context, with_duration};
use zeropod_redirector_abi::{
    ACTIVE_CONNECTIONS, DISABLE_REDIRECT, EGRESS_REDIRECTS, INGRESS_REDIRECTS, MapGeometry,
};
use zeropod_shim_api::{
    names::{managed_by_shim_dir, sandbox_maps_dir},
    rpc::{
        shim::{ContainerRequest, ContainerStatus},
        shim_ttrpc::ShimClient,
    },
    status::{MetricsReading, Phase, StatusEvent, metrics_request, subscribe_request},
};
use zeropod_testkit::{
    node::{
        attach::attach,
        isolated,
        real_shim::{RealShim, RealShimConfig, own_paths},
        sandbox::{Sandbox, SandboxConfig},
        stand_in::{AttachedBy, ContainerSpec, Mode, PodConfig, SandboxSource, StandIn},
    },
    skip, tools,
};

use crate::common::{LONG, PORT, config, container, count, get, maps_dir};

#[test]
fn checkpointing_looks_the_same_from_outside() {
    compare(Mode::Checkpoint);
}

#[test]
fn killing_looks_the_same_from_outside() {
    compare(Mode::Kill);
}

#[test]
fn the_real_shim_takes_over_our_redirector() {
    // It compares every pinned map with its own and keeps links that it finds,
    // so that all of this runs on the project's programs.
    let Some(program) = real_shim() else { return };
    let mode = Mode::Checkpoint;
    let theirs = isolated(async || of_real_shim(&program, mode, false).await).unwrap();
    let ours = isolated(async || of_real_shim(&program, mode, true).await).unwrap();
    same(&ours, &theirs);
}

fn compare(mode: Mode) {
    let Some(program) = real_shim() else { return };
    let stand_in = isolated(async || of_stand_in(mode).await).unwrap();
    let real = isolated(async || of_real_shim(&program, mode, false).await).unwrap();
    same(&stand_in, &real);
}

fn same(left: &[String], right: &[String]) {
    for (step, (left, right)) in left.iter().zip(right).enumerate() {
        assert_eq!(left, right, "step {step}; right is the real shim on its own redirector");
    }
    assert_eq!(left.len(), right.len());
}

fn real_shim() -> Option<PathBuf> {
    if skip::without_root() {
        return None;
    }
    match tools::zeropod_shim() {
        Ok(program) => Some(program),
        Err(error) => {
            skip::skip(&format!("no real shim: {error}"));
            None
        }
    }
}

async fn of_real_shim(program: &Path, mode: Mode, on_our_redirector: bool) -> Vec<String> {
    own_paths().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let sandbox = Sandbox::start(&SandboxConfig::default()).unwrap();
    let pins = on_our_redirector.then(|| {
        attach(&maps_dir(), sandbox.pid()).unwrap();
        identities(&sandbox)
    });
    let spec = slow_container(mode);
    let shim = RealShim::start(RealShimConfig {
        program: program.into(),
        work_dir: dir.path().into(),
        runc: tools::runc().unwrap(),
        criu: tools::criu().unwrap(),
        namespace: "default".into(),
        pod: "web".into(),
        sandbox_pid: sandbox.pid(),
        container: spec.clone(),
    })
    .await
    .unwrap();
    if let Some(pins) = pins {
        assert_eq!(identities(&sandbox), pins, "it has taken over every pin");
    }
    let socket = shim.socket().to_path_buf();
    observe(&socket, &sandbox, &spec, async || shim.stop().await.unwrap()).await
}

/// Inodes of the pins: a pin that is made again gets another.
fn identities(sandbox: &Sandbox) -> BTreeSet<u64> {
    let pins = sandbox_maps_dir(&maps_dir(), sandbox.pid());
    fs::read_dir(pins).unwrap().map(|entry| entry.unwrap().ino()).collect()
}

async fn of_stand_in(mode: Mode) -> Vec<String> {
    own_paths().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let sandbox = Sandbox::start(&SandboxConfig::default()).unwrap();
    let spec = slow_container(mode);
    let (mut config, _happenings) = config(dir.path());
    config.attached_by = AttachedBy::Shim { helper: env!("CARGO_BIN_EXE_stand-in-shim").into() };
    let stand_in = StandIn::start(config).unwrap();
    let pod = PodConfig {
        namespace: "default".into(),
        name: "web".into(),
        sandbox: SandboxSource::Pid(sandbox.pid()),
        containers: vec![spec.clone()],
    };
    stand_in.run_pod(pod).await.unwrap();
    let socket = stand_in.socket().to_path_buf();
    observe(&socket, &sandbox, &spec, async || stand_in.stop().await.unwrap()).await
}

/// One that stays up long enough to be looked at on a busy machine.
fn slow_container(mode: Mode) -> ContainerSpec {
    ContainerSpec { scaledown: Duration::from_secs(3), ..container(PORT, mode) }
}

/// What a manager and a client see, step by step. Times, ports and pids, which
/// differ from run to run, are left out.
async fn observe(
    socket: &Path,
    sandbox: &Sandbox,
    spec: &ContainerSpec,
    stop: impl AsyncFnOnce(),
) -> Vec<String> {
    let mut seen = Seen::connect(socket, sandbox, spec).await;
    seen.socket(socket);
    seen.event().await;
    seen.reads().await;
    seen.pins(sandbox).await;
    seen.request("test").await;
    seen.event().await;
    seen.reads().await;
    seen.maps("scaled down").await;
    seen.request("kube-probe/1.34").await;
    seen.reads().await;
    seen.request("test").await;
    seen.event().await;
    seen.reads().await;
    seen.maps("running again").await;
    seen.request("test").await;
    seen.event().await;
    // Nobody has read the metrics, so that a status has a duration.
    seen.status(&spec.id).await;
    seen.request("test").await;
    seen.event().await;
    stop().await;
    seen.events_until_the_end().await;
    // Sockets are removed a moment after their connections end.
    let removed = async {
        while socket.exists() {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(LONG, removed).await.expect("the socket stays");
    seen.lines
}

struct Seen {
    client: ShimClient,
    events: ttrpc::asynchronous::ClientStreamReceiver<ContainerStatus>,
    address: Ipv4Addr,
    id: String,
    maps: PathBuf,
    lines: Vec<String>,
}

impl Seen {
    async fn connect(socket: &Path, sandbox: &Sandbox, spec: &ContainerSpec) -> Self {
        let address = format!("unix://{}", socket.display());
        let client = ShimClient::new(ttrpc::asynchronous::Client::connect(&address).await.unwrap());
        let events =
            client.subscribe_status(Context::default(), &subscribe_request()).await.unwrap();
        Self {
            client,
            events,
            address: sandbox.addresses().ipv4,
            id: spec.id.clone(),
            maps: sandbox_maps_dir(&maps_dir(), sandbox.pid()),
            lines: Vec::new(),
        }
    }

    fn socket(&mut self, socket: &Path) {
        let mode = fs::metadata(socket).unwrap().permissions().mode() & 0o777;
        self.lines.push(format!("socket mode: {mode:o}"));
    }

    fn event_line(what: &str, message: ContainerStatus) -> String {
        let event = StatusEvent::try_from(message).unwrap();
        let (time, duration) = (event.time.is_some(), event.duration.is_some());
        let log = !event.log.is_empty();
        let (phase, container) = (event.phase, event.container);
        format!("{what}: {container} {phase}, time {time}, duration {duration}, log {log}")
    }

    async fn event(&mut self) {
        let message = timeout(LONG, self.events.recv()).await.expect("no event").unwrap().unwrap();
        assert_eq!(message.id, self.id);
        self.lines.push(Self::event_line("event", message));
    }

    async fn events_until_the_end(&mut self) {
        let mut stopping = 0;
        while let Ok(Some(message)) = timeout(LONG, self.events.recv()).await.expect("no end") {
            let event = StatusEvent::try_from(message).unwrap();
            assert_eq!(event.phase, Phase::Stopping);
            stopping += 1;
        }
        // One for the kill; the one of the shutdown can come too late.
        assert!(matches!(stopping, 1 | 2), "{stopping}");
    }

    /// All that can be read: `GetStatus` of known and unknown ids, and
    /// `Metrics` twice.
    async fn reads(&mut self) {
        self.status(&self.id.clone()).await;
        self.status("unknown").await;
        for _ in 0..2 {
            let answer =
                self.client.metrics(with_duration(LONG), &metrics_request()).await.unwrap();
            for entry in answer.metrics {
                let MetricsReading {
                    container,
                    running,
                    checkpoint,
                    restore,
                    checkpoint_errors,
                    restore_errors,
                } = MetricsReading::try_from(entry).unwrap();
                self.lines.push(format!(
                    "metrics: {container} running {running}, checkpoint {}, restore {}, \
                     errors {checkpoint_errors} {restore_errors}",
                    checkpoint.is_some(),
                    restore.is_some(),
                ));
            }
        }
    }

    async fn status(&mut self, id: &str) {
        let request = ContainerRequest { id: id.into(), ..ContainerRequest::default() };
        let line = match self.client.get_status(with_duration(LONG), &request).await {
            Ok(message) => Self::event_line("status", message),
            Err(ttrpc::Error::RpcStatus(status)) => {
                format!("status: {:?} {}", status.code, status.message)
            }
            Err(error) => panic!("{error}"),
        };
        self.lines.push(line);
    }

    async fn pins(&mut self, sandbox: &Sandbox) {
        let mut names: Vec<_> = fs::read_dir(&self.maps)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        let marker = managed_by_shim_dir(&maps_dir(), sandbox.pid()).is_dir();
        self.lines.push(format!("marker {marker}, pins {names:?}"));
        self.maps("running").await;
    }

    /// Keys and values of the shim's maps, with the proxy's port as `proxy`.
    async fn maps(&mut self, when: &str) {
        // The entry of a connection goes a moment after the connection.
        let proxied = async {
            while self.open::<u8>(&ACTIVE_CONNECTIONS).keys().next().is_some() {
                sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(LONG, proxied).await.expect("a connection stays active");
        let port = |port: u16| if port == PORT { "app" } else { "proxy" };
        let redirects = |map: &MapGeometry| -> BTreeMap<&str, &str> {
            let entries = self.open::<u16>(map);
            entries.iter().map(|entry| entry.unwrap()).map(|(k, v)| (port(k), port(v))).collect()
        };
        let ports = |map: &MapGeometry| -> Vec<&str> {
            let entries = self.open::<u8>(map);
            entries.keys().map(|key| port(key.unwrap())).collect()
        };
        self.lines.push(format!(
            "maps, {when}: ingress {:?}, egress {:?}, disabled {:?}",
            redirects(&INGRESS_REDIRECTS),
            redirects(&EGRESS_REDIRECTS),
            ports(&DISABLE_REDIRECT),
        ));
    }

    fn open<V: aya::Pod>(&self, map: &MapGeometry) -> HashMap<MapData, u16, V> {
        let map = MapData::from_pin(self.maps.join(map.name)).unwrap();
        Map::from_map_data(map).unwrap().try_into().unwrap()
    }

    /// Status line of the answer, and the count of the counter server.
    async fn request(&mut self, user_agent: &str) {
        let answer = get(self.address, PORT, user_agent).await;
        let status = answer.lines().next().unwrap_or_default().to_owned();
        let count = answer.contains("count=").then(|| count(&answer));
        self.lines.push(format!("{user_agent}: {status}, count {count:?}"));
    }
}
