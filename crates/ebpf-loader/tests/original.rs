//! The shim of zeropod 0.12 itself, which attaches its own programs, and what
//! becomes of them.
#![expect(clippy::unwrap_used, reason = "helpers of tests are tests")]

mod common;

use std::{
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    path::{Path, PathBuf},
    process::Command,
};

use common::{
    can_run,
    manager::{Manager, config},
    node::{Node, Sandbox},
    packet::{ACK, Tcp},
    sh,
    shim::{activity, ask, attached_programs, map_ids, programs, scale_down},
    skip,
    wire::send,
};
use zeropod_ebpf_loader::{Attachment, ManagedBy, Mechanism, Redirectors, SandboxState};
use zeropod_testkit::tools;

/// What a shim does for each container: its helper makes and pins what is not
/// there.
fn attach_as_the_shim_does(shim: &Path, sandbox: &Sandbox) {
    let pid = sandbox.pid().to_string();
    let helper = Command::new(shim).args(["-zeropod-attach-activator", &pid]).output().unwrap();
    assert!(helper.status.success(), "{helper:?}");
}

/// A node with a sandbox of such a shim, or nothing where that cannot be had.
fn original() -> Option<(PathBuf, Node, Sandbox)> {
    if !can_run(&["ip"]) {
        return None;
    }
    let shim = match tools::zeropod_shim() {
        Ok(shim) => shim,
        Err(error) => {
            skip(&format!("the shim of zeropod 0.12: {error:?}"));
            return None;
        }
    };
    let node = Node::new();
    // It knows no other place.
    sh(&format!("mount --bind {} /sys/fs/bpf", node.bpffs().display()));
    let sandbox = node.sandbox();
    attach_as_the_shim_does(&shim, &sandbox);
    Some((shim, node, sandbox))
}

#[test]
fn the_original_programs_are_replaced_behind_their_links_f_e7() {
    let Some((shim, node, sandbox)) = original() else { return };
    let (originals, maps) = (programs(&sandbox), map_ids(&sandbox));
    let any = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), 0);
    let proxy = sandbox.serve(any, "proxy");
    scale_down(&sandbox, 80, proxy);
    for address in [sandbox.ipv4(), sandbox.ipv6()] {
        assert_eq!(ask(address, 80).unwrap(), "proxy");
    }

    let by_shim = SandboxState {
        managed_by: ManagedBy::Shim,
        attachment: Attachment::Attached(Mechanism::Tcx),
    };
    let pid = sandbox.pid();
    let attached = |manager: &mut Manager| {
        manager.wait_for("the sandbox", |state| state.sandboxes.get(&pid) == Some(&by_shim));
    };
    // If that is wanted, they stay.
    let mut manager = Manager::run(Redirectors::new(config(&node)).replace_shim_programs(false));
    attached(&mut manager);
    assert_eq!(programs(&sandbox), originals);
    manager.stop();

    let mut manager = Manager::start(&node);
    attached(&mut manager);
    let ours = programs(&sandbox);
    assert!(originals.iter().zip(&ours).all(|(original, ours)| original != ours));
    assert_eq!(map_ids(&sandbox), maps, "the shim has them open");
    assert_eq!(attached_programs(&sandbox), 4);
    for address in [sandbox.ipv4(), sandbox.ipv6()] {
        assert_eq!(ask(address, 80).unwrap(), "proxy");
    }
    manager.stop();
    // The next container of the sandbox: the shim takes what is pinned.
    attach_as_the_shim_does(&shim, &sandbox);
    assert_eq!((programs(&sandbox), map_ids(&sandbox)), (ours, maps));
    assert_eq!(ask(sandbox.ipv4(), 80).unwrap(), "proxy");
}

/// Late FINs of a connection that the proxy served count as activity with the
/// original, and a container is scaled down late.
#[test]
fn what_the_original_counts_as_activity_and_ours_does_not() {
    let Some((_, node, sandbox)) = original() else { return };
    // Nobody listens there, and nobody knows the connection.
    let counts = || {
        sandbox.map("socket_tracker").insert(9_u16, 0_u64, 0).unwrap();
        let client = Ipv4Addr::new(10, 99, sandbox.number(), 1).into();
        let late = Tcp { flags: ACK, ..Tcp::syn((client, 40000), (sandbox.ipv4(), 9)) };
        send(&sandbox, &late);
        // What is sent after it shows that it arrived.
        assert!(ask(sandbox.ipv4(), 10).is_err());
        activity(&sandbox, 9) != 0
    };
    assert!(counts());
    let mut manager = Manager::start(&node);
    let pid = sandbox.pid();
    manager.wait_for("the sandbox", |state| {
        matches!(
            state.sandboxes.get(&pid).map(|one| &one.attachment),
            Some(Attachment::Attached(_))
        )
    });
    assert!(!counts());
    manager.stop();
}
