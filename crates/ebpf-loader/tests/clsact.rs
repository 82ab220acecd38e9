//! The mechanism of kernels without TCX, which this one has as well.

mod common;

use std::{
    fs,
    net::{Ipv6Addr, SocketAddr},
};

use common::{
    can_run,
    manager::Manager,
    node::{Node, Sandbox},
    shim::{ask, attached_programs, scale_down},
    wait_until,
};
use zeropod_ebpf_loader::Mechanism;

fn by_clsact(node: &Node) -> Manager {
    Manager::start_with(node, Mechanism::Clsact)
}

/// How many BPF filters are on all hooks of a sandbox.
fn filters(sandbox: &Sandbox) -> usize {
    let mut filters = 0;
    for interface in ["lo", "eth0"] {
        for direction in ["ingress", "egress"] {
            let shown = sandbox.sh(&format!("tc filter show dev {interface} {direction}"));
            filters += shown.matches("direct-action").count();
        }
    }
    filters
}

#[test]
fn every_interface_gets_its_filters_b1() {
    if !can_run(&["ip", "tc"]) {
        return;
    }
    let node = Node::new();
    fs::create_dir(node.maps_dir()).unwrap();
    let sandbox = node.sandbox();
    sandbox.make_pin_dir();
    let mut manager = by_clsact(&node);
    manager.wait_until_attached_by(&sandbox, Mechanism::Clsact);
    assert_eq!((filters(&sandbox), attached_programs(&sandbox)), (4, 0));
    let proxy = sandbox.serve(SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), 0), "proxy");
    scale_down(&sandbox, 80, proxy);
    for address in [sandbox.ipv4(), sandbox.ipv6()] {
        assert_eq!(ask(address, 80).unwrap(), "proxy");
    }
    assert_eq!(sandbox.inside(|| ask(Ipv6Addr::LOCALHOST.into(), 80)).unwrap(), "proxy");
    manager.stop();
}

#[test]
fn filters_do_not_stack_and_those_of_others_stay_b12() {
    if !can_run(&["ip", "tc"]) {
        return;
    }
    let node = Node::new();
    fs::create_dir(node.maps_dir()).unwrap();
    let sandbox = node.sandbox();
    sandbox.make_pin_dir();
    // A clsact of somebody else, with a filter where the Go manager puts its.
    sandbox.sh("tc qdisc add dev eth0 clsact &&
         tc filter add dev eth0 ingress prio 49152 handle 1 bpf da bytecode \"1,6 0 0 0,\"");
    for _ in 0..3 {
        let mut manager = by_clsact(&node);
        manager.wait_until_attached_by(&sandbox, Mechanism::Clsact);
        manager.stop();
        assert_eq!(filters(&sandbox), 5);
    }
    // Maps that were lost are a reason to put other programs there.
    fs::remove_file(sandbox.pins.join("socket_tracker")).unwrap();
    let mut manager = by_clsact(&node);
    manager.wait_until_attached_by(&sandbox, Mechanism::Clsact);
    assert_eq!(filters(&sandbox), 5);
    let proxy = sandbox.serve(SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), 0), "proxy");
    scale_down(&sandbox, 80, proxy);
    assert_eq!(ask(sandbox.ipv4(), 80).unwrap(), "proxy");
    manager.stop();
}

#[test]
fn a_sandbox_moves_from_one_mechanism_to_the_other_and_back() {
    if !can_run(&["ip", "tc"]) {
        return;
    }
    let node = Node::new();
    fs::create_dir(node.maps_dir()).unwrap();
    let sandbox = node.sandbox();
    sandbox.make_pin_dir();
    let mut proxy = None;
    for mechanism in [Mechanism::Clsact, Mechanism::Tcx, Mechanism::Clsact, Mechanism::Tcx] {
        let mut manager = Manager::start_with(&node, mechanism);
        manager.wait_until_attached_by(&sandbox, mechanism);
        let expected = if mechanism == Mechanism::Tcx { (0, 4) } else { (4, 0) };
        // The kernel lets go of a link whose pin was removed when it likes to.
        let attached = || (filters(&sandbox), attached_programs(&sandbox));
        wait_until("only one mechanism is left", || attached() == expected);
        let any = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), 0);
        let proxy = *proxy.get_or_insert_with(|| sandbox.serve(any, "proxy"));
        scale_down(&sandbox, 80, proxy);
        assert_eq!(ask(sandbox.ipv4(), 80).unwrap(), "proxy");
        manager.stop();
    }
}
