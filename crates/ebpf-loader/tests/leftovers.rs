//! What earlier sandboxes and earlier managers left.
#![expect(clippy::unwrap_used, reason = "helpers of tests are tests")]

mod common;

use std::{
    fs,
    net::{Ipv6Addr, SocketAddr},
    os::unix::fs::symlink,
    path::Path,
};

use common::{
    can_run,
    manager::{Manager, config},
    node::{Node, Sandbox, open_map},
    sh,
    shim::{LINKS, ask, attached_programs, programs, scale_down},
    wait_until,
};
use zeropod_ebpf_loader::{Config, Mechanism, Redirectors};
use zeropod_redirector_abi::MAPS;

/// A sandbox that a manager attached, which is gone again.
fn attached(node: &Node, mechanism: Mechanism) -> Sandbox {
    let sandbox = node.sandbox();
    fs::create_dir_all(&sandbox.pins).unwrap();
    let mut manager = Manager::start_with(node, mechanism);
    manager.wait_until_attached_by(&sandbox, mechanism);
    manager.stop();
    sandbox
}

fn exists(path: &Path) -> bool {
    // Not exists(): a dangling symlink is there too.
    path.symlink_metadata().is_ok()
}

#[test]
fn what_a_sandbox_left_is_removed_r2_r3() {
    if !can_run(&["ip"]) {
        return;
    }
    let node = Node::new();
    for mechanism in [Mechanism::Tcx, Mechanism::Clsact] {
        let sandbox = attached(&node, mechanism);
        let pins = sandbox.pins.clone();
        let marker = node.maps_dir().join(format!("{}_managed_by_shim", sandbox.pid()));
        fs::create_dir(&marker).unwrap();
        sandbox.end();
        let manager = Manager::start(&node);
        wait_until("both directories are gone", || !exists(&pins) && !exists(&marker));
        manager.stop();
    }
}

#[test]
fn what_may_be_another_nodes_stays_r2() {
    if !can_run(&["ip"]) {
        return;
    }
    let node = Node::new();
    fs::create_dir(node.maps_dir()).unwrap();
    // Empty, and of no process that can be seen here.
    let empty = node.maps_dir().join("4194305");
    fs::create_dir(&empty).unwrap();
    // With the identity of a sandbox that another node saw.
    let foreign = node.maps_dir().join("4194306");
    fs::create_dir(&foreign).unwrap();
    symlink("node:1 net:4026532281 start:4711", foreign.join("identity")).unwrap();
    // Attached to a sandbox that lives, but is not to be seen here.
    let alive = attached(&node, Mechanism::Tcx);
    let unseen = node.maps_dir().join("4194307");
    fs::rename(&alive.pins, &unseen).unwrap();
    // One that is gone shows when all have been looked at.
    let gone = attached(&node, Mechanism::Tcx);
    let pins = gone.pins.clone();
    gone.end();
    let manager = Manager::start(&node);
    wait_until("the one that is gone is removed", || !exists(&pins));
    manager.stop();
    assert!(exists(&empty) && exists(&foreign) && exists(&unseen.join(LINKS[0])));
    assert_eq!(attached_programs(&alive), 4);
}

#[test]
fn a_reused_pid_inherits_nothing_b11_r2() {
    if !can_run(&["ip"]) {
        return;
    }
    let node = Node::new();
    let sandbox = attached(&node, Mechanism::Tcx);
    let any = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), 0);
    let (application, proxy) = (sandbox.serve(any, "application"), sandbox.serve(any, "proxy"));
    // The sandbox before had the same port, on links to a device that is gone:
    // the pins of this one are removed, and those of another put there.
    let before = attached(&node, Mechanism::Tcx);
    scale_down(&before, application, proxy);
    let early = before.map::<u16, u64>("socket_tracker").insert(application, 1, 0);
    early.unwrap();
    before.map("active_connections").insert(4711_u16, 1_u8, 0).unwrap();
    fs::remove_dir_all(&sandbox.pins).unwrap();
    fs::rename(&before.pins, &sandbox.pins).unwrap();
    before.end();

    let mut manager = Manager::start(&node);
    manager.wait_until_attached(&sandbox);
    assert_eq!(attached_programs(&sandbox), 4);
    assert_eq!(ask(sandbox.ipv4(), application).unwrap(), "application");
    for map in ["ingress_redirects", "egress_redirects"] {
        assert_eq!(sandbox.map::<u16, u16>(map).keys().count(), 0, "{map}");
    }
    assert_eq!(sandbox.map::<u16, u8>("active_connections").keys().count(), 0);
    // What the shim of this sandbox wrote since its start stays.
    scale_down(&sandbox, application, proxy);
    assert_eq!(ask(sandbox.ipv4(), application).unwrap(), "proxy");
    manager.stop();
    fs::remove_file(sandbox.pins.join("identity")).unwrap();
    symlink("node:1 net:2 start:3", sandbox.pins.join("identity")).unwrap();
    let mut manager = Manager::start(&node);
    manager.wait_until_attached(&sandbox);
    assert_eq!(ask(sandbox.ipv4(), application).unwrap(), "proxy");
    manager.stop();
}

#[test]
fn a_foreign_program_behind_a_pin_is_replaced_in_place_b11() {
    if !can_run(&["ip", "bpftool"]) {
        return;
    }
    let node = Node::new();
    let sandbox = attached(&node, Mechanism::Tcx);
    let other = attached(&node, Mechanism::Tcx);
    // Programs on the maps of another sandbox: right code, wrong maps.
    for map in MAPS {
        let (from, to) = (other.pins.join(map.name), sandbox.pins.join(map.name));
        fs::rename(from, to).unwrap();
    }
    let before = programs(&sandbox);
    let mut manager = Manager::start(&node);
    manager.wait_until_attached(&sandbox);
    let after = programs(&sandbox);
    assert!(before.iter().zip(&after).all(|(before, after)| before != after));
    assert_eq!(attached_programs(&sandbox), 4);
    let any = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), 0);
    let proxy = sandbox.serve(any, "proxy");
    scale_down(&sandbox, 80, proxy);
    assert_eq!(ask(sandbox.ipv4(), 80).unwrap(), "proxy");
    manager.stop();
    // Other globals are another program too.
    let before = programs(&sandbox);
    let mut manager =
        Manager::run(Redirectors::new(Config { ignore_localhost: false, ..config(&node) }));
    manager.wait_until_attached(&sandbox);
    let after = programs(&sandbox);
    assert!(before[0] != after[0] && before[2] != after[2], "the ingress programs");
    manager.stop();
}

#[test]
fn a_map_of_another_geometry_is_replaced_f_e9() {
    if !can_run(&["ip", "bpftool"]) {
        return;
    }
    let node = Node::new();
    fs::create_dir(node.maps_dir()).unwrap();
    let sandbox = node.sandbox();
    sandbox.make_pin_dir();
    // As zeropod 0.6 had it.
    let pin = sandbox.pins.join("socket_tracker");
    sh(&format!(
        "bpftool map create {} type lru_hash key 4 value 8 entries 128 name socket_tracker",
        pin.display()
    ));
    let mut manager = Manager::start(&node);
    manager.wait_until_attached(&sandbox);
    open_map::<u16, u64>(&pin).insert(80, 0, 0).unwrap();
    manager.stop();
}

#[test]
fn maps_that_a_port_depends_on_throw_nothing_out_b3() {
    if !can_run(&["ip", "bpftool"]) {
        return;
    }
    let node = Node::new();
    let sandbox = attached(&node, Mechanism::Tcx);
    for (map, kind) in [
        ("ingress_redirects", " hash "),
        ("disable_redirect", " hash "),
        ("socket_tracker", " hash "),
        // These keep entries of the past, which must make room.
        ("egress_redirects", " lru_hash "),
        ("active_connections", " lru_hash "),
    ] {
        let shown = sh(&format!("bpftool map show pinned {}", sandbox.pins.join(map).display()));
        assert!(shown.contains(kind), "{shown}");
    }
}

#[test]
fn an_interface_of_another_name_is_found_by_its_route_b13() {
    if !can_run(&["ip"]) {
        return;
    }
    let node = Node::new();
    fs::create_dir(node.maps_dir()).unwrap();
    // bpffs takes no dots.
    let sandbox = node.sandbox_with("net1.7");
    sandbox.make_pin_dir();
    let mut manager = Manager::start(&node);
    manager.wait_until_attached(&sandbox);
    assert!(exists(&sandbox.pins.join("tcx_ingress_net1_7")));
    let any = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), 0);
    let proxy = sandbox.serve(any, "proxy");
    scale_down(&sandbox, 80, proxy);
    assert_eq!(ask(sandbox.ipv4(), 80).unwrap(), "proxy");
    manager.stop();
}
