//! Real sandboxes in network namespaces, with real connections.

mod common;

use std::{
    fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::unix::fs::symlink,
    process::{self, Command},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::SystemTime,
};

use common::{
    can_run,
    manager::{Manager, config},
    node::{Node, Sandbox},
    shim::{activity, ask, attached_programs, programs, scale_down},
    wait_until,
};
use zeropod_ebpf_loader::{
    Attachment, Config, Degraded, ManagedBy, Redirectors, SandboxState, State,
};

#[test]
fn connections_are_redirected_while_scaled_down_and_direct_when_running() {
    if !can_run(&["ip"]) {
        return;
    }
    let node = Node::new();
    let mut manager = Manager::start(&node);
    wait_until("the directory is made", || node.maps_dir().exists());
    let sandbox = node.sandbox();
    sandbox.make_pin_dir();
    manager.wait_until_attached(&sandbox);

    let any = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), 0);
    let application = sandbox.serve(any, "application");
    let proxy = sandbox.serve(any, "proxy");
    for address in [sandbox.ipv4(), sandbox.ipv6()] {
        assert_eq!(ask(address, application).unwrap(), "application");
    }
    scale_down(&sandbox, application, proxy);
    assert_eq!(activity(&sandbox, application), 0);
    for address in [sandbox.ipv4(), sandbox.ipv6()] {
        assert_eq!(ask(address, application).unwrap(), "proxy");
    }
    assert_ne!(activity(&sandbox, application), 0);
    for localhost in [IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()] {
        assert_eq!(sandbox.inside(|| ask(localhost, application)).unwrap(), "proxy");
    }
    sandbox.map("disable_redirect").insert(application, 1_u8, 0).unwrap();
    for address in [sandbox.ipv4(), sandbox.ipv6()] {
        assert_eq!(ask(address, application).unwrap(), "application");
    }
    manager.stop();
    assert_eq!(attached_programs(&sandbox), 4);
}

#[test]
fn checksums_are_right_without_offload_b2() {
    if !can_run(&["ip", "ethtool"]) {
        return;
    }
    let node = Node::new();
    let mut manager = Manager::start(&node);
    let sandbox = node.sandbox();
    wait_until("the directory is made", || node.maps_dir().exists());
    sandbox.make_pin_dir();
    manager.wait_until_attached(&sandbox);
    // Without transmit offload every packet carries its sum and every receiver
    // checks it.
    common::sh(
        "ethtool -K $(ip -br link | sed -n \"s/^\\(host[0-9]*\\).*/\\1/p\") tx off gro off >/dev/null",
    );
    sandbox.sh("ethtool -K eth0 tx off gro off >/dev/null");

    let any = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), 0);
    let proxy = sandbox.serve(any, "proxy");
    scale_down(&sandbox, 80, proxy);
    for address in [sandbox.ipv4(), sandbox.ipv6()] {
        assert_eq!(ask(address, 80).unwrap(), "proxy");
    }
    // Large packets, whole ones and trains of them.
    common::sh(&format!("ip link set host{} mtu 9000", sandbox.number()));
    sandbox.sh("ip link set eth0 mtu 9000");
    let long: &'static str = Box::leak("0123456789".repeat(50_000).into());
    let large = sandbox.serve(any, long);
    scale_down(&sandbox, 82, large);
    for address in [sandbox.ipv4(), sandbox.ipv6()] {
        assert!(ask(address, 82).unwrap() == long);
    }
    // A proxy that is gone refuses, rather than leaving the client to wait:
    // its RST passes the checks too.
    scale_down(&sandbox, 81, 1);
    for address in [sandbox.ipv4(), sandbox.ipv6()] {
        let refused = ask(address, 81).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
    }
    manager.stop();
}

#[test]
fn a_sandbox_made_while_no_manager_ran_is_attached_r1() {
    if !can_run(&["ip"]) {
        return;
    }
    let node = Node::new();
    fs::create_dir(node.maps_dir()).unwrap();
    let sandboxes = [node.sandbox(), node.sandbox(), node.sandbox()];
    sandboxes.iter().for_each(Sandbox::make_pin_dir);
    let mut manager = Manager::start(&node);
    for sandbox in &sandboxes {
        manager.wait_until_attached(sandbox);
        assert_eq!(attached_programs(sandbox), 4);
    }
    manager.stop();
}

#[test]
fn a_restart_changes_nothing_f_e7() {
    if !can_run(&["ip"]) {
        return;
    }
    let node = Node::new();
    fs::create_dir(node.maps_dir()).unwrap();
    let sandbox = node.sandbox();
    sandbox.make_pin_dir();
    let mut manager = Manager::start(&node);
    manager.wait_until_attached(&sandbox);
    let proxy = sandbox.serve(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 0), "proxy");
    scale_down(&sandbox, 80, proxy);
    let before = programs(&sandbox);
    for kill in [false, true] {
        if kill {
            manager.kill();
        } else {
            manager.stop();
        }
        assert_eq!(ask(sandbox.ipv4(), 80).unwrap(), "proxy");
        manager = Manager::start(&node);
        manager.wait_until_attached(&sandbox);
        assert_eq!(ask(sandbox.ipv4(), 80).unwrap(), "proxy");
        assert_eq!(programs(&sandbox), before);
        assert_eq!(attached_programs(&sandbox), 4);
    }
    manager.stop();
}

#[test]
fn what_is_missing_is_attached_again_and_what_is_there_is_kept() {
    if !can_run(&["ip"]) {
        return;
    }
    let node = Node::new();
    fs::create_dir(node.maps_dir()).unwrap();
    let sandbox = node.sandbox();
    sandbox.make_pin_dir();
    let mut manager = Manager::start(&node);
    manager.wait_until_attached(&sandbox);
    manager.stop();
    let before = programs(&sandbox);
    let proxy = sandbox.serve(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 0), "proxy");
    scale_down(&sandbox, 80, proxy);

    fs::remove_file(sandbox.pins.join("tcx_ingress_eth0")).unwrap();
    let mut manager = Manager::start(&node);
    manager.wait_until_attached(&sandbox);
    assert_eq!(ask(sandbox.ipv4(), 80).unwrap(), "proxy");
    // The kernel lets go of the link whose pin was removed when it likes to.
    wait_until("only the new one is attached", || attached_programs(&sandbox) == 4);
    let after = programs(&sandbox);
    assert_ne!(after[2], before[2]);
    assert_eq!([after[0], after[1], after[3]], [before[0], before[1], before[3]]);
    manager.stop();
}

#[test]
fn a_sandbox_that_its_shim_attaches_is_left_alone() {
    if !can_run(&["ip"]) {
        return;
    }
    let node = Node::new();
    let mut manager = Manager::start(&node);
    wait_until("the directory is made", || node.maps_dir().exists());
    let sandbox = node.sandbox();
    let marker = format!("{}_managed_by_shim", sandbox.pid());
    fs::create_dir(node.maps_dir().join(marker)).unwrap();
    sandbox.make_pin_dir();
    let by_shim = SandboxState { managed_by: ManagedBy::Shim, attachment: Attachment::Pending };
    let pid = sandbox.pid();
    manager.wait_for("the sandbox", |state| state.sandboxes.get(&pid) == Some(&by_shim));
    // Another one, attached after it, shows that it is not merely late.
    let other = node.sandbox();
    other.make_pin_dir();
    manager.wait_until_attached(&other);
    assert_eq!(fs::read_dir(&sandbox.pins).unwrap().count(), 0);
    manager.stop();
}

#[test]
fn a_sandbox_in_the_hosts_namespace_is_refused_f_e10() {
    if !can_run(&["ip"]) {
        return;
    }
    let node = Node::new();
    let mut process = Command::new("sleep").arg("infinity").spawn().unwrap();
    let pid = process.id();
    fs::create_dir_all(node.maps_dir().join(pid.to_string())).unwrap();
    let mut manager = Manager::start(&node);
    let state = manager.wait_for("a refusal", |state| {
        matches!(
            state.sandboxes.get(&pid).map(|sandbox| &sandbox.attachment),
            Some(Attachment::Failed { .. })
        )
    });
    let Attachment::Failed { error, .. } = &state.sandboxes[&pid].attachment else {
        unreachable!()
    };
    assert_eq!(*error, format!("sandbox {pid} is in the network namespace of the host"));
    manager.stop();
    process.kill().unwrap();
    process.wait().unwrap();
}

#[test]
fn a_failed_sandbox_is_tried_again_and_hurts_no_other() {
    if !can_run(&["ip"]) {
        return;
    }
    let node = Node::new();
    fs::create_dir(node.maps_dir()).unwrap();
    let (broken, healthy) = (node.sandbox(), node.sandbox());
    let begun = SystemTime::now();
    broken.sh("ip link set eth0 down && ip link set eth0 name net1");
    // Without a route nothing says which interface is meant.
    broken.make_pin_dir();
    healthy.make_pin_dir();
    let mut manager = Manager::start(&node);
    manager.wait_until_attached(&healthy);
    let pid = broken.pid();
    let state = manager.wait_for("a failure", |state| {
        matches!(state.sandboxes[&pid].attachment, Attachment::Failed { attempts: 2.., .. })
    });
    let Attachment::Failed { error, since, pod_uid, .. } = &state.sandboxes[&pid].attachment else {
        unreachable!()
    };
    assert!(error.starts_with(&format!("sandbox {pid} has no interface eth0: ")), "{error}");
    assert!(*since >= begun && *since <= SystemTime::now());
    // Nobody's pod: the tests do not run in a cgroup of one.
    assert_eq!(*pod_uid, None);
    let first = *since;
    let state = manager.wait_for("another failure", |state| {
        matches!(state.sandboxes[&pid].attachment, Attachment::Failed { attempts: 3.., .. })
    });
    let Attachment::Failed { since, .. } = &state.sandboxes[&pid].attachment else {
        unreachable!()
    };
    assert_eq!(*since, first, "it is the same trouble");
    // A shim up to 0.11 would take it for attached.
    assert!(!broken.pins.join("active_connections").exists());
    broken.sh("ip link set net1 name eth0 && ip link set eth0 up");
    manager.wait_until_attached(&broken);
    assert!(broken.pins.join("active_connections").exists());
    manager.stop();
}

#[test]
fn a_sandbox_that_ends_is_forgotten() {
    if !can_run(&["ip"]) {
        return;
    }
    let node = Node::new();
    fs::create_dir(node.maps_dir()).unwrap();
    let sandbox = node.sandbox();
    sandbox.make_pin_dir();
    let mut manager = Manager::start(&node);
    manager.wait_until_attached(&sandbox);
    let pins = sandbox.pins.clone();
    drop(sandbox);
    // As its shim does when the sandbox is deleted.
    fs::remove_dir_all(pins).unwrap();
    manager.wait_for("nothing", |state| state.sandboxes.is_empty());
    manager.stop();
}

#[test]
fn without_a_bpf_file_system_the_state_says_so_r6_f_d3() {
    if !can_run(&["ip"]) {
        return;
    }
    let node = Node::without_bpffs();
    let mut manager = Manager::start(&node);
    let state = manager.wait_for("a degraded state", |state| !state.degraded.is_empty());
    assert_eq!(state.degraded.into_iter().collect::<Vec<_>>(), [Degraded::BpffsMissing]);
    assert!(!node.maps_dir().exists());
    manager.stop();
}

#[test]
fn a_bpf_file_system_of_the_containers_own_is_not_used_f_d4() {
    if !can_run(&["ip"]) {
        return;
    }
    // The first process of this machine does not see it.
    let node = Node::without_bpffs();
    node.mount_bpffs();
    let mut manager = Manager::start(&node);
    let state = manager.wait_for("a degraded state", |state| !state.degraded.is_empty());
    assert_eq!(state.degraded.into_iter().collect::<Vec<_>>(), [Degraded::BpffsNotTheHosts]);
    assert!(!node.maps_dir().exists());
    manager.stop();
}

#[test]
fn a_read_only_bpf_file_system_is_a_state_of_its_own_f_d3() {
    if !can_run(&["ip"]) {
        return;
    }
    let node = Node::new();
    node.make_read_only();
    let mut manager = Manager::start(&node);
    let state = manager.wait_for("a degraded state", |state| !state.degraded.is_empty());
    assert_eq!(state.degraded.into_iter().collect::<Vec<_>>(), [Degraded::BpffsNotWritable]);
    manager.stop();
}

#[test]
fn no_connection_fails_while_programs_are_replaced_and_managers_come_and_go_f_e7() {
    if !can_run(&["ip"]) {
        return;
    }
    let node = Node::new();
    fs::create_dir(node.maps_dir()).unwrap();
    let sandbox = node.sandbox();
    sandbox.make_pin_dir();
    Manager::start(&node).wait_until_attached(&sandbox);
    let any = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), 0);
    let proxy = sandbox.serve(any, "proxy");
    scale_down(&sandbox, 80, proxy);
    let (address, done) = (sandbox.ipv4(), AtomicBool::new(false));
    thread::scope(|scope| {
        let client = scope.spawn(|| {
            let mut answers = 0;
            while !done.load(Ordering::Relaxed) {
                assert_eq!(ask(address, 80).unwrap(), "proxy");
                answers += 1;
            }
            answers
        });
        let mut before = programs(&sandbox);
        for round in 0..10 {
            // Told something else each time, so that they are replaced.
            let config = Config { ignore_localhost: round % 2 == 0, ..config(&node) };
            let mut manager = Manager::run(Redirectors::new(config));
            manager.wait_until_attached(&sandbox);
            let after = programs(&sandbox);
            assert!(round == 0 || before[0] != after[0]);
            before = after;
            manager.kill();
        }
        done.store(true, Ordering::Relaxed);
        assert!(client.join().unwrap() > 10);
    });
    assert_eq!(attached_programs(&sandbox), 4);
}

#[test]
fn a_sandbox_that_may_not_be_looked_at_is_not_taken_for_gone() {
    if !can_run(&["ip"]) {
        return;
    }
    let node = Node::new();
    let host_proc = tempfile::tempdir().unwrap();
    // A loop, which cannot be followed.
    let pid = process::id();
    fs::create_dir_all(host_proc.path().join(pid.to_string()).join("ns")).unwrap();
    let namespace = host_proc.path().join(pid.to_string()).join("ns/net");
    symlink(&namespace, &namespace).unwrap();
    fs::create_dir_all(node.maps_dir().join(pid.to_string())).unwrap();
    let host_proc = host_proc.path().to_owned();
    let mut manager = Manager::run(Redirectors::new(Config { host_proc, ..config(&node) }));
    let failed = |state: &State| {
        state.sandboxes.get(&pid).is_some_and(|sandbox| {
            matches!(&sandbox.attachment, Attachment::Failed { error, .. }
                if error.starts_with("cannot enter the network namespace of sandbox "))
        })
    };
    manager.wait_for("an error", failed);
    manager.stop();
}
