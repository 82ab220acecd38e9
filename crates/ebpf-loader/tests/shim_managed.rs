//! Sandboxes that their shims attach (zeropod from 0.12 on), and what all
//! sandboxes are told about the kubelet.
#![expect(clippy::unwrap_used, reason = "helpers of tests are tests")]

mod common;

use std::{
    fs,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    time::{Duration, SystemTime},
};

use common::{
    can_run,
    foreign::{attach_as_shim, attach_behind, replace_by},
    manager::{Manager, config},
    node::{Node, Sandbox},
    sh,
    shim::{LINKS, activity, ask, attached_programs, map_ids, programs, scale_down},
    wait_until,
};
use zeropod_ebpf_loader::{Attachment, Config, ManagedBy, Mechanism, Redirectors, SandboxState};

const BY_SHIM: SandboxState =
    SandboxState { managed_by: ManagedBy::Shim, attachment: Attachment::Attached(Mechanism::Tcx) };

const TC_ACT_OK: i32 = 0;
const TC_ACT_SHOT: i32 = 2;

/// Puts programs that do nothing in the place of all the shim's.
fn replace_all(sandbox: &Sandbox) {
    for link in LINKS {
        replace_by(TC_ACT_OK, &sandbox.pins.join(link));
    }
}

/// A sandbox with what a shim from 0.12 on makes first.
fn sandbox(node: &Node) -> Sandbox {
    let sandbox = node.sandbox();
    let marker = format!("{}_managed_by_shim", sandbox.pid());
    fs::create_dir_all(node.maps_dir().join(marker)).unwrap();
    sandbox.make_pin_dir();
    sandbox
}

fn wait_until_attached(manager: &mut Manager, sandbox: &Sandbox) {
    let pid = sandbox.pid();
    manager.wait_for("the sandbox", |state| state.sandboxes.get(&pid) == Some(&BY_SHIM));
}

/// Makes the directory look as if nobody had touched it for a while.
fn settle(sandbox: &Sandbox) {
    let long_ago = SystemTime::now() - Duration::from_mins(1);
    fs::File::open(&sandbox.pins).unwrap().set_modified(long_ago).unwrap();
}

#[test]
fn programs_of_a_shim_are_replaced_behind_its_links() {
    if !can_run(&["ip"]) {
        return;
    }
    let node = Node::new();
    let sandbox = sandbox(&node);
    attach_as_shim(&sandbox, &["lo", "eth0"], true);
    let proxy = sandbox.serve(SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), 0), "proxy");
    scale_down(&sandbox, 80, proxy);
    // As far as connections go the shim's programs do nothing.
    replace_all(&sandbox);
    assert!(ask(sandbox.ipv4(), 80).is_err());
    let (programs_before, maps_before) = (programs(&sandbox), map_ids(&sandbox));

    let mut manager = Manager::start(&node);
    wait_until_attached(&mut manager, &sandbox);
    for address in [sandbox.ipv4(), sandbox.ipv6()] {
        assert_eq!(ask(address, 80).unwrap(), "proxy");
    }
    let programs = programs(&sandbox);
    assert!(programs_before.iter().zip(&programs).all(|(before, after)| before != after));
    assert_eq!(map_ids(&sandbox), maps_before, "the shim has them open");
    assert_eq!(attached_programs(&sandbox), 4);
    manager.stop();
}

#[test]
fn programs_of_a_shim_stay_if_that_is_wanted() {
    if !can_run(&["ip"]) {
        return;
    }
    let node = Node::new();
    let sandbox = sandbox(&node);
    attach_as_shim(&sandbox, &["lo", "eth0"], true);
    replace_all(&sandbox);
    let before = programs(&sandbox);
    let redirectors = Redirectors::new(config(&node)).replace_shim_programs(false);
    redirectors.kubelet().set_addresses(Some(Ipv4Addr::new(10, 0, 0, 1)), None);
    let mut manager = Manager::run(redirectors);
    wait_until_attached(&mut manager, &sandbox);
    assert_eq!(programs(&sandbox), before);
    // It is told the kubelet's address all the same.
    let known = sandbox.map::<u8, [u8; 4]>("kubelet_addrs_v4").get(&0, 0).unwrap();
    assert_eq!(known, [10, 0, 0, 1]);
    manager.stop();
}

#[test]
fn what_a_shim_told_its_programs_ours_are_told_too() {
    if !can_run(&["ip"]) {
        return;
    }
    let node = Node::new();
    let sandbox = sandbox(&node);
    attach_as_shim(&sandbox, &["lo", "eth0"], false);
    // One of the programs is another: the rest tells what it was told.
    replace_by(TC_ACT_OK, &sandbox.pins.join("tcx_ingress_lo"));
    let before = programs(&sandbox);
    let ignoring = Config { ignore_localhost: true, ..config(&node) };
    let mut manager = Manager::run(Redirectors::new(ignoring));
    wait_until_attached(&mut manager, &sandbox);
    let after = programs(&sandbox);
    assert_ne!(after[0], before[0]);
    let any = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), 0);
    let application = sandbox.serve(any, "application");
    sandbox.map("socket_tracker").insert(application, 0_u64, 0).unwrap();
    let localhost = Ipv4Addr::LOCALHOST.into();
    assert_eq!(sandbox.inside(|| ask(localhost, application)).unwrap(), "application");
    assert_ne!(activity(&sandbox, application), 0, "localhost counts");
    manager.stop();
}

#[test]
fn interfaces_that_a_shim_forgot_are_attached_b1() {
    if !can_run(&["ip"]) {
        return;
    }
    let node = Node::new();
    let sandbox = sandbox(&node);
    attach_as_shim(&sandbox, &["lo"], true);
    let mut manager = Manager::start(&node);
    // Its shim may be at work still. What we record is a change as well.
    wait_until("it is looked at", || sandbox.pins.join("identity").symlink_metadata().is_ok());
    assert!(!sandbox.pins.join("tcx_ingress_eth0").exists());
    settle(&sandbox);
    wait_until("eth0 is attached", || sandbox.pins.join("tcx_ingress_eth0").exists());
    wait_until_attached(&mut manager, &sandbox);
    let proxy = sandbox.serve(SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), 0), "proxy");
    scale_down(&sandbox, 80, proxy);
    assert_eq!(ask(sandbox.ipv4(), 80).unwrap(), "proxy");
    manager.stop();
}

#[test]
fn a_map_of_a_shim_is_never_replaced() {
    if !can_run(&["ip", "bpftool"]) {
        return;
    }
    let node = Node::new();
    let sandbox = sandbox(&node);
    attach_as_shim(&sandbox, &["lo", "eth0"], true);
    let pin = sandbox.pins.join("socket_tracker");
    fs::remove_file(&pin).unwrap();
    sh(&format!(
        "bpftool map create {} type hash key 4 value 8 entries 128 name socket_tracker",
        pin.display()
    ));
    let (programs_before, maps_before) = (programs(&sandbox), map_ids(&sandbox));
    let mut manager = Manager::start(&node);
    let pid = sandbox.pid();
    manager.wait_for("a failure", |state| {
        matches!(
            state.sandboxes.get(&pid).map(|sandbox| &sandbox.attachment),
            Some(Attachment::Failed { error, .. }) if error.contains("socket_tracker is ")
        )
    });
    assert_eq!((programs(&sandbox), map_ids(&sandbox)), (programs_before, maps_before));
    manager.stop();
}

#[test]
fn a_redirect_that_was_lost_is_put_back_b3() {
    if !can_run(&["ip"]) {
        return;
    }
    let node = Node::new();
    let sandbox = sandbox(&node);
    attach_as_shim(&sandbox, &["lo", "eth0"], true);
    let proxy = sandbox.serve(SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), 0), "proxy");
    scale_down(&sandbox, 80, proxy);
    // A proxy of before, whose way back was never removed, and another port
    // whose proxy is gone.
    sandbox.map("egress_redirects").insert(1_u16, 80_u16, 0).unwrap();
    sandbox.map("egress_redirects").insert(2_u16, 81_u16, 0).unwrap();
    sandbox.map::<u16, u16>("ingress_redirects").remove(&80).unwrap();
    let mut manager = Manager::start(&node);
    wait_until_attached(&mut manager, &sandbox);
    assert_eq!(ask(sandbox.ipv4(), 80).unwrap(), "proxy");
    assert!(sandbox.map::<u16, u16>("ingress_redirects").get(&81, 0).is_err());
    manager.stop();
}

#[test]
fn all_sandboxes_learn_the_kubelets_addresses_and_learn_them_anew() {
    if !can_run(&["ip", "bpftool"]) {
        return;
    }
    let node = Node::new();
    let (of_shim, of_manager) = (sandbox(&node), node.sandbox());
    attach_as_shim(&of_shim, &["lo", "eth0"], true);
    of_manager.make_pin_dir();
    // What the next shim makes, one of them frozen as it is by its manager.
    for (version, size) in [("v4", 4), ("v6", 16)] {
        let pin = of_shim.pins.join(format!("kubelet_addr_{version}"));
        sh(&format!(
            "bpftool map create {} type array key 4 value {size} entries 1 name kubelet_addr",
            pin.display()
        ));
    }
    let frozen = of_shim.pins.join("kubelet_addr_v6");
    sh(&format!("bpftool map freeze pinned {}", frozen.display()));
    // A guess of the programs.
    let guess = of_shim.map::<u8, [u8; 4]>("kubelet_addrs_v4").insert(0, [1, 2, 3, 4], 0);
    guess.unwrap();

    let redirectors = Redirectors::new(config(&node));
    let kubelet = redirectors.kubelet();
    let mut manager = Manager::run(redirectors);
    wait_until_attached(&mut manager, &of_shim);
    manager.wait_until_attached(&of_manager);
    let knows = |sandbox: &Sandbox, ipv4: Ipv4Addr, ipv6: Ipv6Addr| {
        sandbox.map::<u8, [u8; 4]>("kubelet_addrs_v4").get(&0, 0).ok() == Some(ipv4.octets())
            && sandbox.map::<u8, [u8; 16]>("kubelet_addrs_v6").get(&0, 0).ok()
                == Some(ipv6.octets())
    };
    for last in [1, 2] {
        let ipv4 = Ipv4Addr::new(10, 0, 0, last);
        let ipv6 = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, last.into());
        kubelet.set_addresses(Some(ipv4), None);
        kubelet.set_addresses(None, Some(ipv6));
        for sandbox in [&of_shim, &of_manager] {
            wait_until("the sandbox knows", || knows(sandbox, ipv4, ipv6));
        }
        let array = of_shim.pins.join("kubelet_addr_v4");
        wait_until("the next shim knows", || {
            let shown = sh(&format!("bpftool map dump pinned {}", array.display()));
            shown.contains(&format!("0a 00 00 {last:02x}"))
        });
    }
    // One that comes later knows too.
    let late = node.sandbox();
    late.make_pin_dir();
    manager.wait_until_attached(&late);
    let ipv6 = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 2);
    assert!(knows(&late, Ipv4Addr::new(10, 0, 0, 2), ipv6));
    manager.stop();
}

#[test]
fn programs_of_others_run_after_ours_b10() {
    if !can_run(&["ip"]) {
        return;
    }
    let node = Node::new();
    fs::create_dir_all(node.maps_dir()).unwrap();
    let sandbox = node.sandbox();
    sandbox.make_pin_dir();
    let mut manager = Manager::start(&node);
    manager.wait_until_attached(&sandbox);
    manager.stop();
    let proxy = sandbox.serve(SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), 0), "proxy");
    scale_down(&sandbox, 80, proxy);
    assert_eq!(ask(sandbox.ipv4(), 80).unwrap(), "proxy");
    let link = sandbox.inside(|| attach_behind(TC_ACT_SHOT, "eth0"));
    assert!(ask(sandbox.ipv4(), 80).is_err(), "it drops everything");
    drop(link);
    assert_eq!(ask(sandbox.ipv4(), 80).unwrap(), "proxy");
}
