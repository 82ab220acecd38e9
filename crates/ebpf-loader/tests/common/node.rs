//! A node in namespaces of the calling thread, and sandboxes on it.

use std::{
    fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
};

use aya::{
    Pod,
    maps::{HashMap, Map, MapData},
};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, setns, unshare},
    unistd::gettid,
};

use super::{sh, wait_until};

/// A node: mount and network namespaces of the calling thread alone, with a
/// BPF file system of its own. Vanishes with the thread.
pub(crate) struct Node {
    dir: tempfile::TempDir,
    sandboxes: std::cell::Cell<u8>,
}

impl Node {
    pub(crate) fn new() -> Self {
        let node = Self::without_bpffs();
        node.mount_bpffs();
        // The first process of this node is the calling thread: it has the
        // node's mounts and network.
        let first = format!("/proc/self/task/{}", gettid());
        mount(Some(&*first), "/proc/1", None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
        node
    }

    /// Where the first process has not mounted it, this is not the host's.
    pub(crate) fn mount_bpffs(&self) {
        let none = MsFlags::empty();
        mount(Some("bpf"), self.dir.path(), Some("bpf"), none, None::<&str>).unwrap();
    }

    pub(crate) fn without_bpffs() -> Self {
        unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET).unwrap();
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(None::<&str>, "/", None::<&str>, private, None::<&str>).unwrap();
        sh("ip link set lo up");
        // libbpf makes an underscore of every dot in the path of a pin.
        let dir = tempfile::Builder::new().prefix("zeropod").tempdir().unwrap();
        Self { dir, sandboxes: 0.into() }
    }

    pub(crate) fn make_read_only(&self) {
        let flags = MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
        mount(None::<&str>, self.dir.path(), None::<&str>, flags, None::<&str>).unwrap();
    }

    pub(crate) fn bpffs(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn maps_dir(&self) -> PathBuf {
        self.bpffs().join("zeropod_maps")
    }

    /// A sandbox: a process in a network namespace of its own with lo and a
    /// veth pair, eth0 inside. Its pin directory is not made yet.
    pub(crate) fn sandbox(&self) -> Sandbox {
        self.sandbox_with("eth0")
    }

    /// A sandbox whose interface has another name.
    pub(crate) fn sandbox_with(&self, interface: &str) -> Sandbox {
        let number = self.sandboxes.get() + 1;
        self.sandboxes.set(number);
        let sleep = Command::new("unshare")
            .args(["--net", "sleep", "infinity"])
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let pid = sleep.id();
        let sandbox = Sandbox { sleep, number, pins: self.maps_dir().join(pid.to_string()) };
        let own = fs::metadata("/proc/thread-self/ns/net").unwrap().ino();
        wait_until("the sandbox has a namespace of its own", || {
            fs::metadata(sandbox.namespace()).is_ok_and(|namespace| namespace.ino() != own)
        });
        sh(&format!(
            "ip link add host{number} type veth peer name {interface} netns {pid} &&
             ip addr add 10.99.{number}.1/24 dev host{number} &&
             ip addr add fd99:{number}::1/64 dev host{number} nodad &&
             ip link set host{number} up"
        ));
        sandbox.sh(&format!(
            "ip link set lo up && ip addr add 10.99.{number}.2/24 dev {interface} &&
             ip addr add fd99:{number}::2/64 dev {interface} nodad &&
             ip link set {interface} up && ip route add default via 10.99.{number}.1"
        ));
        sandbox
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _not_mounted = nix::mount::umount(self.dir.path());
    }
}

/// A sandbox, which ends when this is dropped.
pub(crate) struct Sandbox {
    sleep: Child,
    number: u8,
    pub(crate) pins: PathBuf,
}

impl Sandbox {
    pub(crate) fn pid(&self) -> u32 {
        self.sleep.id()
    }

    /// Ends it and waits until its namespace and its interfaces are gone.
    pub(crate) fn end(self) {
        let peer = format!("host{}", self.number);
        drop(self);
        wait_until("the interfaces are gone", || nix::net::if_::if_nametoindex(&*peer).is_err());
    }

    /// Third number of its addresses, and of its interface on the node.
    pub(crate) fn number(&self) -> u8 {
        self.number
    }

    pub(crate) fn ipv4(&self) -> IpAddr {
        Ipv4Addr::new(10, 99, self.number, 2).into()
    }

    pub(crate) fn ipv6(&self) -> IpAddr {
        Ipv6Addr::new(0xfd99, self.number.into(), 0, 0, 0, 0, 0, 2).into()
    }

    /// What a shim up to 0.11 does first.
    pub(crate) fn make_pin_dir(&self) {
        fs::create_dir(&self.pins).unwrap();
    }

    /// Runs a command in its network namespace.
    pub(crate) fn sh(&self, command: &str) -> String {
        sh(&format!("nsenter --net={} sh -ec '{command}'", self.namespace().display()))
    }

    /// Does something in its network namespace. Sockets made there stay there.
    pub(crate) fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let namespace = fs::File::open(self.namespace()).unwrap();
        let inside = move || {
            setns(namespace, CloneFlags::CLONE_NEWNET).unwrap();
            work()
        };
        thread::scope(|scope| scope.spawn(inside).join().unwrap())
    }

    /// A server in the sandbox that greets every client with a text.
    pub(crate) fn serve(&self, address: SocketAddr, text: &'static str) -> u16 {
        let listener = self.inside(|| TcpListener::bind(address)).unwrap();
        let port = listener.local_addr().unwrap().port();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let _client_left = io::Write::write_all(&mut stream.unwrap(), text.as_bytes());
            }
        });
        port
    }

    /// Opens one of its maps as a shim does.
    pub(crate) fn map<K: Pod, V: Pod>(&self, name: &str) -> HashMap<MapData, K, V> {
        open_map(&self.pins.join(name))
    }

    fn namespace(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/ns/net", self.sleep.id()))
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        self.sleep.kill().unwrap();
        self.sleep.wait().unwrap();
    }
}

pub(crate) fn open_map<K: Pod, V: Pod>(path: &Path) -> HashMap<MapData, K, V> {
    let map = Map::from_map_data(MapData::from_pin(path).unwrap()).unwrap();
    HashMap::try_from(map).unwrap()
}
