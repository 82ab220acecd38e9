//! The stand-in held against the real shim: both go through the same scenario,
//! and have to look the same from outside at every step.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::DirEntryExt,
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::time::{sleep, timeout};
use zeropod_shim_api::names::sandbox_maps_dir;
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

use crate::{
    common::{LONG, PORT, config, container, maps_dir, tiny_file_system},
    seen::Seen,
};

const IMAGES: &str = "/var/lib/zeropod/i";

#[test]
fn checkpointing_looks_the_same_from_outside() {
    compare(Mode::Checkpoint, Scenario::Healthy);
}

#[test]
fn killing_looks_the_same_from_outside() {
    compare(Mode::Kill, Scenario::Healthy);
}

#[test]
fn a_failed_checkpoint_looks_the_same_from_outside() {
    compare(Mode::Checkpoint, Scenario::NoRoom);
}

#[test]
fn a_failed_restore_looks_the_same_from_outside() {
    compare(Mode::Checkpoint, Scenario::BrokenImage);
}

#[test]
fn the_real_shim_takes_over_our_redirector() {
    // It compares every pinned map with its own and keeps links that it finds,
    // so that all of this runs on the project's programs.
    let Some(program) = real_shim() else { return };
    let observe =
        async |ours| of_real_shim(&program, Mode::Checkpoint, Scenario::Healthy, ours).await;
    let theirs = isolated(async || observe(false).await).unwrap();
    let ours = isolated(async || observe(true).await).unwrap();
    same(&ours, &theirs);
}

/// What happens to a shim.
#[derive(Debug, Clone, Copy)]
enum Scenario {
    /// Nothing but idle times and requests.
    Healthy,
    /// There is no room for images.
    NoRoom,
    /// The first image loses a part.
    BrokenImage,
}

fn compare(mode: Mode, scenario: Scenario) {
    let Some(program) = real_shim() else { return };
    let stand_in = isolated(async || of_stand_in(mode, scenario).await).unwrap();
    let real = isolated(async || of_real_shim(&program, mode, scenario, false).await).unwrap();
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

async fn of_real_shim(
    program: &Path,
    mode: Mode,
    scenario: Scenario,
    on_our_redirector: bool,
) -> Vec<String> {
    scenario.prepare();
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
    let seen = Seen::connect(&socket, &sandbox, &spec).await;
    scenario.run(seen, &socket, &sandbox, async || shim.stop().await.unwrap()).await
}

/// Inodes of the pins: a pin that is made again gets another.
fn identities(sandbox: &Sandbox) -> BTreeSet<u64> {
    let pins = sandbox_maps_dir(&maps_dir(), sandbox.pid());
    fs::read_dir(pins).unwrap().map(|entry| entry.unwrap().ino()).collect()
}

async fn of_stand_in(mode: Mode, scenario: Scenario) -> Vec<String> {
    scenario.prepare();
    let dir = tempfile::tempdir().unwrap();
    let sandbox = Sandbox::start(&SandboxConfig::default()).unwrap();
    let spec = slow_container(mode);
    let (mut config, _happenings) = config(dir.path());
    config.images = IMAGES.into();
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
    let seen = Seen::connect(&socket, &sandbox, &spec).await;
    scenario.run(seen, &socket, &sandbox, async || stand_in.stop().await.unwrap()).await
}

/// One that stays up long enough to be looked at on a busy machine.
fn slow_container(mode: Mode) -> ContainerSpec {
    ContainerSpec { scaledown: Duration::from_secs(3), ..container(PORT, mode) }
}

impl Scenario {
    fn prepare(self) {
        own_paths().unwrap();
        fs::create_dir_all(IMAGES).unwrap();
        if let Self::NoRoom = self {
            tiny_file_system(Path::new(IMAGES));
        }
    }

    async fn run(
        self,
        mut seen: Seen,
        socket: &Path,
        sandbox: &Sandbox,
        stop: impl AsyncFnOnce(),
    ) -> Vec<String> {
        seen.socket(socket);
        seen.event().await;
        seen.reads().await;
        match self {
            Self::Healthy => healthy(&mut seen, sandbox).await,
            Self::NoRoom => no_room(&mut seen).await,
            Self::BrokenImage => broken_image(&mut seen).await,
        }
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
}

async fn healthy(seen: &mut Seen, sandbox: &Sandbox) {
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
    seen.status_of_container().await;
    seen.request("test").await;
    seen.event().await;
}

async fn no_room(seen: &mut Seen) {
    // CHECKPOINT_FAILED, then killed, started afresh, and killed again.
    seen.event().await;
    seen.reads().await;
    seen.maps("after a failed checkpoint").await;
    for _ in 0..2 {
        seen.event().await;
        seen.reads().await;
        seen.request("test").await;
        seen.event().await;
        seen.reads().await;
    }
}

async fn broken_image(seen: &mut Seen) {
    seen.request("test").await;
    seen.event().await;
    let image = Path::new(IMAGES).join(seen.id()).join("snapshot/inventory.img");
    fs::remove_file(image).unwrap();
    seen.request("test").await;
    // RESTORE_FAILED, then started afresh; from then on killed.
    seen.event().await;
    seen.event().await;
    seen.reads().await;
    seen.event().await;
    seen.request("test").await;
    seen.event().await;
    seen.reads().await;
}
