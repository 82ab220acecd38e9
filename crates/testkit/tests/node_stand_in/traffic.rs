//! The whole stand-in on real traffic through a real redirector.

use std::fs;

use crate::common::{Manager, PORT, config, container, count, get, maps_dir, pod};
use zeropod_testkit::{
    node::{
        isolated,
        stand_in::{Mode, StandIn, What},
    },
    skip,
};

#[test]
fn an_idle_container_is_checkpointed_and_the_next_connection_restores_it() {
    if !skip::without_root() {
        isolated(async || scenario(Mode::Checkpoint).await).unwrap();
    }
}

#[test]
fn without_criu_it_is_killed_and_started_afresh() {
    if !skip::without_root() {
        isolated(async || scenario(Mode::Kill).await).unwrap();
    }
}

async fn scenario(mode: Mode) {
    let dir = tempfile::tempdir().unwrap();
    let (config, mut happenings) = config(dir.path());
    let stand_in = StandIn::start(config).unwrap();
    let pod = stand_in.run_pod(pod("web", vec![container(PORT, mode)])).await.unwrap();
    let ipv4 = pod.addresses().unwrap().ipv4;
    let pins = maps_dir().join(pod.sandbox_pid().to_string());
    assert_eq!(fs::read_dir(&pins).unwrap().count(), 0, "the manager attaches");

    let manager = Manager::start();
    happenings
        .next("registered", |what| matches!(what, What::Registered { .. }).then_some(()))
        .await;
    // The redirect outlives the manager.
    drop(manager);
    let first = get(ipv4, PORT, "test").await;
    let mut expected = count(&first);

    for _ in 0..2 {
        let down = happenings
            .next("scaled down", |what| match what {
                What::ScaledDown { mode, .. } => Some(*mode),
                _ => None,
            })
            .await;
        assert_eq!(down, mode);
        // A probe is answered and wakes nobody.
        let probe = get(ipv4, PORT, "kube-probe/1.34").await;
        assert!(probe.starts_with("HTTP/1.1 204 "), "{probe}");
        let woken = get(ipv4, PORT, "test").await;
        expected = if mode == Mode::Checkpoint { expected + 1 } else { 1 };
        assert_eq!(count(&woken), expected, "{woken}");
        happenings.next("proxied", |what| matches!(what, What::Proxied { .. }).then_some(())).await;
        // Now directly: nothing is told of it.
        expected += 1;
        assert_eq!(count(&get(ipv4, PORT, "test").await), expected);
        if let Some(ipv6) = pod.addresses().unwrap().ipv6 {
            expected += 1;
            assert_eq!(count(&get(ipv6, PORT, "test").await), expected);
        }
    }
    let socket = stand_in.socket().to_path_buf();
    stand_in.stop().await.unwrap();
    assert!(!socket.exists() && !pins.exists());
    assert!(fs::read_dir(dir.path().join("work")).unwrap().next().is_none());
}
