//! What a shim tells when CRIU fails, and how it goes on.

use std::fs;

use tokio::time::timeout;
use ttrpc::context::Context;
use zeropod_shim_api::{
    rpc::{shim::ContainerStatus, shim_ttrpc::ShimClient},
    status::{Phase, StatusEvent, subscribe_request},
};
use zeropod_testkit::{
    node::{
        isolated,
        stand_in::{Mode, StandIn, What},
    },
    skip,
};

use crate::common::{
    Happenings, LONG, Manager, PORT, config, container, count, get, pod, tiny_file_system,
};

#[test]
fn a_failed_checkpoint_is_told_and_later_ones_are_kills() {
    if !skip::without_root() {
        isolated(failed_checkpoint).unwrap();
    }
}

async fn failed_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let (config, mut happenings) = config(dir.path());
    tiny_file_system(&config.images);
    let stand_in = StandIn::start(config).unwrap();
    let mut events = Events::of(&stand_in).await;
    let spec = container(PORT, Mode::Checkpoint);
    let pod = stand_in.run_pod(pod("web", vec![spec])).await.unwrap();
    let ipv4 = pod.addresses().unwrap().ipv4;
    let _manager = Manager::start();

    assert_eq!(events.next().await, (Phase::Running, false));
    assert_eq!(events.next().await, (Phase::CheckpointFailed, false));
    happenings
        .next("checkpoint failed", |what| {
            matches!(what, What::CheckpointFailed { .. }).then_some(())
        })
        .await;
    assert_eq!(events.next().await, (Phase::ScaledDown, true));
    assert_eq!(count(&get(ipv4, PORT, "test").await), 1);
    assert_eq!(events.next().await, (Phase::Running, true));
    assert_eq!(scaled_down(&mut happenings).await, Mode::Kill);
}

#[test]
fn a_failed_restore_is_told_and_the_container_starts_afresh() {
    if !skip::without_root() {
        isolated(failed_restore).unwrap();
    }
}

async fn failed_restore() {
    let dir = tempfile::tempdir().unwrap();
    let (config, mut happenings) = config(dir.path());
    let images = config.images.clone();
    let stand_in = StandIn::start(config).unwrap();
    let mut events = Events::of(&stand_in).await;
    let _manager = Manager::start();
    let spec = container(PORT, Mode::Checkpoint);
    let snapshot = images.join(&spec.id).join("snapshot");
    let pod = stand_in.run_pod(pod("web", vec![spec])).await.unwrap();
    let ipv4 = pod.addresses().unwrap().ipv4;
    assert_eq!(events.next().await, (Phase::Running, false));
    assert_eq!(events.next().await, (Phase::ScaledDown, true));
    assert_eq!(scaled_down(&mut happenings).await, Mode::Checkpoint);

    fs::remove_file(snapshot.join("inventory.img")).unwrap();
    assert_eq!(count(&get(ipv4, PORT, "test").await), 1, "a fresh process answers");
    // With the duration of the checkpoint, since nobody has read the metrics.
    assert_eq!(events.next().await, (Phase::RestoreFailed, true));
    assert_eq!(events.next().await, (Phase::Running, true));

    // H11: once for the kill and once more when the shim ends.
    stand_in.stop().await.unwrap();
    assert_eq!(events.next_stopping().await, 2);
}

/// Reads events as a manager does.
struct Events(ttrpc::asynchronous::ClientStreamReceiver<ContainerStatus>);

impl Events {
    async fn of(stand_in: &StandIn) -> Self {
        let address = format!("unix://{}", stand_in.socket().display());
        let client = ShimClient::new(ttrpc::asynchronous::Client::connect(&address).await.unwrap());
        Self(client.subscribe_status(Context::default(), &subscribe_request()).await.unwrap())
    }

    /// Phase of the next event, and whether it has a duration. A failure has a
    /// log, and nothing else has.
    async fn next(&mut self) -> (Phase, bool) {
        let message = timeout(LONG, self.0.recv()).await.expect("no event").unwrap().unwrap();
        let event = StatusEvent::try_from(message).unwrap();
        let failed = matches!(event.phase, Phase::CheckpointFailed | Phase::RestoreFailed);
        assert_eq!(event.log.is_empty(), !failed, "{event:?}");
        assert!(event.time.is_some());
        (event.phase, event.duration.is_some())
    }

    /// How often STOPPING comes until the shim is gone. Others may come first.
    async fn next_stopping(&mut self) -> usize {
        let mut stopping = 0;
        while let Ok(Some(message)) = timeout(LONG, self.0.recv()).await.expect("no end") {
            let event = StatusEvent::try_from(message).unwrap();
            stopping += usize::from(event.phase == Phase::Stopping);
        }
        stopping
    }
}

async fn scaled_down(happenings: &mut Happenings) -> Mode {
    happenings
        .next("scaled down", |what| match what {
            What::ScaledDown { mode, .. } => Some(*mode),
            _ => None,
        })
        .await
}
