//! Shims from 0.12 on, which attach the redirector themselves.

use std::{collections::BTreeSet, fs, path::Path};

use aya::maps::{Array, MapData};
use zeropod_shim_api::names::{managed_by_shim_dir, sandbox_maps_dir};
use zeropod_testkit::{
    node::{
        attach::attach,
        isolated,
        sandbox::{Sandbox, SandboxConfig},
        stand_in::{AttachedBy, Mode, StandIn, What},
    },
    skip,
};

use crate::common::{PORT, config, container, count, get, maps_dir, pod};

#[test]
fn a_shim_that_attaches_needs_no_manager() {
    if !skip::without_root() {
        isolated(without_manager).unwrap();
    }
}

async fn without_manager() {
    let dir = tempfile::tempdir().unwrap();
    let (mut config, mut happenings) = config(dir.path());
    config.attached_by = AttachedBy::Shim { helper: env!("CARGO_BIN_EXE_stand-in-shim").into() };
    let stand_in = StandIn::start(config).unwrap();
    let spec = container(PORT, Mode::Checkpoint);
    let pod = stand_in.run_pod(pod("web", vec![spec])).await.unwrap();
    let ipv4 = pod.addresses().unwrap().ipv4;
    let marker = managed_by_shim_dir(&maps_dir(), pod.sandbox_pid());
    let pins = sandbox_maps_dir(&maps_dir(), pod.sandbox_pid());
    assert_eq!(fs::read_dir(&marker).unwrap().count(), 0);
    assert_eq!(names(&pins), expected_pins());

    assert_eq!(count(&get(ipv4, PORT, "test").await), 1);
    for expected in 2..4 {
        happenings
            .next("scaled down", |what| matches!(what, What::ScaledDown { .. }).then_some(()))
            .await;
        assert_eq!(count(&get(ipv4, PORT, "test").await), expected);
    }
    stand_in.stop().await.unwrap();
    assert!(!marker.exists() && !pins.exists());
}

#[test]
fn what_is_pinned_is_taken_over_if_it_fits() {
    if !skip::without_root() {
        isolated(reuse).unwrap();
    }
}

async fn reuse() {
    let sandbox = Sandbox::start(&SandboxConfig::default()).unwrap();
    let pins = sandbox_maps_dir(&maps_dir(), sandbox.pid());
    attach(&maps_dir(), sandbox.pid()).unwrap();
    let first = identities(&pins);
    attach(&maps_dir(), sandbox.pid()).unwrap();
    assert_eq!(identities(&pins), first, "links and maps stay");

    // Only what is missing is made again.
    fs::remove_file(pins.join("tcx_ingress_eth0")).unwrap();
    attach(&maps_dir(), sandbox.pid()).unwrap();
    assert_eq!(names(&pins), expected_pins());

    // A map of another kind is refused.
    let foreign = pins.join("ingress_redirects");
    fs::remove_file(&foreign).unwrap();
    Array::<MapData, u32>::create(128, 0).unwrap().pin(&foreign).unwrap();
    let error = attach(&maps_dir(), sandbox.pid()).unwrap_err().to_string();
    assert!(error.contains("ingress_redirects") && error.contains("not (LruHash"), "{error}");
}

#[test]
fn a_failed_attachment_means_that_nothing_is_scaled_down() {
    if !skip::without_root() {
        isolated(failed).unwrap();
    }
}

async fn failed() {
    let dir = tempfile::tempdir().unwrap();
    let (mut config, mut happenings) = config(dir.path());
    config.attached_by = AttachedBy::Shim { helper: "false".into() };
    let stand_in = StandIn::start(config).unwrap();
    let spec = container(PORT, Mode::Checkpoint);
    let pod = stand_in.run_pod(pod("web", vec![spec])).await.unwrap();
    happenings.next("unmanaged", |what| matches!(what, What::Unmanaged { .. }).then_some(())).await;
    assert_eq!(count(&get(pod.addresses().unwrap().ipv4, PORT, "test").await), 1);
    stand_in.stop().await.unwrap();
}

fn names(dir: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(dir).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

fn expected_pins() -> BTreeSet<String> {
    [
        "active_connections",
        "disable_redirect",
        "egress_redirects",
        "ingress_redirects",
        "kubelet_addrs_v4",
        "kubelet_addrs_v6",
        "socket_tracker",
        "tcx_egress_eth0",
        "tcx_egress_lo",
        "tcx_ingress_eth0",
        "tcx_ingress_lo",
    ]
    .map(String::from)
    .into()
}

/// Inodes of the pins: a pin that is made again gets another.
fn identities(dir: &Path) -> BTreeSet<u64> {
    use std::os::unix::fs::DirEntryExt;

    fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().ino()).collect()
}
