//! The kubelet and others on its node, which have its address (B5).
#![expect(clippy::unwrap_used, reason = "helpers of tests are tests")]

mod common;

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::{Path, PathBuf},
    process, thread,
};

use common::{
    can_run,
    manager::{Manager, config},
    node::{Node, Sandbox},
    sh,
    shim::{activity, ask, bound},
    skip,
};
use zeropod_ebpf_loader::{Config, Degraded, Redirectors};

/// A sandbox, and a port in it that a process listens on.
fn running(node: &Node) -> (Sandbox, u16) {
    fs::create_dir_all(node.maps_dir()).unwrap();
    let sandbox = node.sandbox();
    sandbox.make_pin_dir();
    let any = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), 0);
    let port = sandbox.serve(any, "application");
    (sandbox, port)
}

/// The addresses of the node as its sandboxes see it.
fn node_addresses(sandbox: &Sandbox) -> (Ipv4Addr, Ipv6Addr) {
    let number = sandbox.number();
    let ipv6 = Ipv6Addr::new(0xfd99, number.into(), 0, 0, 0, 0, 0, 1);
    (Ipv4Addr::new(10, 99, number, 1), ipv6)
}

/// A cgroup of version 2 with this process in it, below the one that it was
/// in, where it is again afterwards.
struct Cgroup {
    before: PathBuf,
    own: PathBuf,
}

impl Cgroup {
    /// `None` if there are no cgroups of version 2.
    fn enter() -> Option<Self> {
        // One for all tests: a process is in one cgroup.
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        let mut mounts = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
        let mount = mounts.find(|mount| mount[2] == "cgroup2")?;
        let groups = fs::read_to_string("/proc/self/cgroup").unwrap();
        let before = groups.lines().find_map(|line| line.strip_prefix("0::/")).unwrap();
        let before = Path::new(mount[1]).join(before);
        let own = before.join(format!("zeropod-test-{}", process::id()));
        fs::create_dir(&own).unwrap();
        let cgroup = Self { before, own };
        fs::write(cgroup.own.join("cgroup.procs"), process::id().to_string()).unwrap();
        Some(cgroup)
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // Sandboxes began in it.
        for process in fs::read_to_string(self.own.join("cgroup.procs")).unwrap().lines() {
            let _ended = fs::write(self.before.join("cgroup.procs"), process);
        }
        fs::remove_dir(&self.own).unwrap();
    }
}

fn redirectors(node: &Node, name: &str, cgroup: &Cgroup) -> Redirectors {
    Redirectors::new(Config { probe_binary_name: name.into(), ..config(node) })
        .kubelet_cgroup(cgroup.own.clone())
}

fn manager(node: &Node, sandbox: &Sandbox, cgroup: &Cgroup) -> Manager {
    let redirectors = redirectors(node, "kubelet", cgroup);
    let (ipv4, ipv6) = node_addresses(sandbox);
    redirectors.kubelet().set_addresses(Some(ipv4), Some(ipv6));
    let mut manager = Manager::run(redirectors);
    manager.wait_until_attached(sandbox);
    manager
}

/// Does something in a process of a name. Like the kubelet's, of several
/// threads.
fn named<T: Send + 'static>(name: &str, work: impl FnOnce() -> T + Send + 'static) -> T {
    thread::Builder::new().name(name.to_owned()).spawn(work).unwrap().join().unwrap()
}

/// Whether a request of a process of a name keeps the port awake.
fn is_activity(sandbox: &Sandbox, name: &str, address: IpAddr, port: u16) -> bool {
    sandbox.map("socket_tracker").insert(port, 0_u64, 0).unwrap();
    assert_eq!(named(name, move || ask(address, port)).unwrap(), "application");
    activity(sandbox, port) != 0
}

/// All in one, since they share the cgroup that the process is in; each on a
/// thread of its own, whose namespaces are its node.
#[test]
fn whose_connections_count_b4_b5_r7() {
    if !can_run(&["ip"]) {
        return;
    }
    let Some(cgroup) = Cgroup::enter() else {
        skip("cgroups of version 2");
        return;
    };
    let parts: [fn(&Cgroup); 7] = [
        without_the_watch_the_address_tells_and_the_state_says_so,
        only_the_kubelets_own_connections_are_probes_b5,
        a_port_that_the_kubelet_had_before_is_not_its_any_more,
        the_kubelets_address_is_learnt_from_its_connections_b4,
        another_name_takes_over_the_watch_r7,
        another_address_of_the_kubelet_is_its_too_b6,
        a_process_of_a_pod_that_calls_itself_the_kubelet_is_not_it,
    ];
    for part in parts {
        thread::scope(|scope| scope.spawn(|| part(&cgroup)).join().unwrap());
    }
}

fn without_the_watch_the_address_tells_and_the_state_says_so(_: &Cgroup) {
    let node = Node::new();
    let (sandbox, port) = running(&node);
    let nowhere = node.maps_dir().join("nowhere");
    let redirectors = Redirectors::new(config(&node)).kubelet_cgroup(nowhere);
    let (ipv4, _) = node_addresses(&sandbox);
    redirectors.kubelet().set_addresses(Some(ipv4), None);
    let mut manager = Manager::run(redirectors);
    manager.wait_until_attached(&sandbox);
    manager.wait_for("the state", |state| state.degraded.contains(&Degraded::KubeletNotWatched));
    for name in ["kubelet", "curl"] {
        assert!(!is_activity(&sandbox, name, sandbox.ipv4(), port), "{name}");
    }
    manager.stop();
}

fn only_the_kubelets_own_connections_are_probes_b5(cgroup: &Cgroup) {
    let node = Node::new();
    let (sandbox, port) = running(&node);
    let manager = manager(&node, &sandbox, cgroup);
    let (ipv4, ipv6) = (sandbox.ipv4(), sandbox.ipv6());
    // For as long as the kubelet was not seen its name may be wrong: then only
    // the address tells, and others with it do not count.
    assert!(!is_activity(&sandbox, "curl", ipv4, port));
    for address in [ipv4, ipv6, ipv4] {
        assert!(!is_activity(&sandbox, "kubelet", address, port), "{address}");
        assert!(is_activity(&sandbox, "curl", address, port), "{address}");
    }
    // The watch outlives the manager.
    manager.stop();
    assert!(!is_activity(&sandbox, "kubelet", ipv4, port));
    assert!(is_activity(&sandbox, "curl", ipv4, port));
    let manager = self::manager(&node, &sandbox, cgroup);
    assert!(!is_activity(&sandbox, "kubelet", ipv6, port));
    assert!(is_activity(&sandbox, "curl", ipv6, port));
    assert_eq!(manager.now().degraded.len(), 0);
    manager.stop();
}

fn a_port_that_the_kubelet_had_before_is_not_its_any_more(cgroup: &Cgroup) {
    let node = Node::new();
    let (sandbox, _) = running(&node);
    let manager = manager(&node, &sandbox, cgroup);
    let (ipv4, _) = node_addresses(&sandbox);
    // Nobody listens there: both are refused, with nothing left of them.
    let to = SocketAddr::new(sandbox.ipv4(), 9);
    for (name, counts) in [("kubelet", false), ("curl", true), ("kubelet", false)] {
        sandbox.map("socket_tracker").insert(9_u16, 0_u64, 0).unwrap();
        assert!(named(name, move || bound(ipv4, 45001, to)).is_err());
        assert_eq!(activity(&sandbox, 9) != 0, counts, "{name}");
    }
    manager.stop();
}

fn the_kubelets_address_is_learnt_from_its_connections_b4(cgroup: &Cgroup) {
    let node = Node::new();
    let (sandbox, port) = running(&node);
    let mut manager = Manager::run(redirectors(&node, "kubelet", cgroup));
    manager.wait_until_attached(&sandbox);
    let (ipv4, ipv6) = node_addresses(&sandbox);
    for address in [sandbox.ipv4(), sandbox.ipv6()] {
        assert!(!is_activity(&sandbox, "kubelet", address, port));
        assert!(is_activity(&sandbox, "curl", address, port));
    }
    let known = sandbox.map::<u8, [u8; 4]>("kubelet_addrs_v4").get(&0, 0).unwrap();
    assert_eq!(known, ipv4.octets());
    let known = sandbox.map::<u8, [u8; 16]>("kubelet_addrs_v6").get(&0, 0).unwrap();
    assert_eq!(known, ipv6.octets());
    manager.stop();
}

fn another_address_of_the_kubelet_is_its_too_b6(cgroup: &Cgroup) {
    let node = Node::new();
    let (sandbox, port) = running(&node);
    let redirectors = redirectors(&node, "kubelet", cgroup);
    // The one that it probed the manager from.
    redirectors.kubelet().set_addresses(Some(Ipv4Addr::new(203, 0, 113, 1)), None);
    let mut manager = Manager::run(redirectors);
    manager.wait_until_attached(&sandbox);
    for address in [sandbox.ipv4(), sandbox.ipv6()] {
        assert!(!is_activity(&sandbox, "kubelet", address, port));
        assert!(is_activity(&sandbox, "curl", address, port));
    }
    manager.stop();
}

fn a_process_of_a_pod_that_calls_itself_the_kubelet_is_not_it(cgroup: &Cgroup) {
    let node = Node::new();
    let (sandbox, port) = running(&node);
    let pod = node.sandbox();
    pod.sh(&format!("ip -6 route add default via fd99:{}::1", pod.number()));
    sandbox.sh(&format!("ip -6 route add default via fd99:{}::1", sandbox.number()));
    sh("for file in ipv4/conf/all/forwarding ipv6/conf/all/forwarding
        do echo 1 > /proc/sys/net/$file; done");
    // As long as no address is known, whoever probes first has it.
    let mut manager = Manager::run(redirectors(&node, "kubelet", cgroup));
    manager.wait_until_attached(&sandbox);
    for address in [sandbox.ipv4(), sandbox.ipv6()] {
        for _ in 0..2 {
            sandbox.map("socket_tracker").insert(port, 0_u64, 0).unwrap();
            let ask = || named("kubelet", move || ask(address, port)).unwrap();
            assert_eq!(pod.inside(ask), "application");
            assert_ne!(activity(&sandbox, port), 0, "{address}");
            // The kubelet itself is still known.
            assert!(!is_activity(&sandbox, "kubelet", address, port), "{address}");
        }
    }
    manager.stop();
}

fn another_name_takes_over_the_watch_r7(cgroup: &Cgroup) {
    let node = Node::new();
    let (sandbox, port) = running(&node);
    manager(&node, &sandbox, cgroup).stop();
    let redirectors = redirectors(&node, "k3s-server", cgroup);
    let (ipv4, ipv6) = node_addresses(&sandbox);
    redirectors.kubelet().set_addresses(Some(ipv4), Some(ipv6));
    let mut manager = Manager::run(redirectors);
    manager.wait_until_attached(&sandbox);
    assert!(!is_activity(&sandbox, "k3s-server", sandbox.ipv4(), port));
    assert!(is_activity(&sandbox, "kubelet", sandbox.ipv4(), port));
    manager.stop();
}
