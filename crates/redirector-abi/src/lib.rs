//! Names, geometry and globals of the redirector: the two traffic-control
//! programs of a sandbox and the maps that they share with its shim.
//!
//! Every port, key or value, is in host byte order. Addresses are in network
//! byte order. The geometry is that of zeropod 0.12's object: its shims refuse
//! to attach to pinned maps that differ in kind, sizes, entries or flags.
#![no_std]
#![expect(clippy::inline_always, reason = "a BPF program is one function")]

/// Kind of a map, by the name of its kernel type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MapKind {
    /// `BPF_MAP_TYPE_ARRAY` (2).
    Array,
    /// `BPF_MAP_TYPE_HASH` (1).
    Hash,
    /// `BPF_MAP_TYPE_LRU_HASH` (9).
    LruHash,
    /// `BPF_MAP_TYPE_RINGBUF` (27), whose entries are bytes.
    RingBuf,
}

/// What a pinned map must look like. Its flags are always 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MapGeometry {
    /// Name, and file name of its pin.
    pub name: &'static str,
    /// Kernel type.
    pub kind: MapKind,
    /// Bytes of a key.
    pub key_size: u32,
    /// Bytes of a value.
    pub value_size: u32,
    /// Entries at most.
    pub max_entries: u32,
}

const fn map(
    name: &'static str,
    kind: MapKind,
    (key_size, value_size): (u32, u32),
    max_entries: u32,
) -> MapGeometry {
    MapGeometry { name, kind, key_size, value_size, max_entries }
}

/// Ports whose packets go to the shim's proxy: application port (u16) to proxy
/// port (u16). Written by the shim.
pub const INGRESS_REDIRECTS: MapGeometry = map("ingress_redirects", MapKind::LruHash, (2, 2), 128);

/// The way back: proxy port (u16) to application port (u16). Written by the
/// shim.
pub const EGRESS_REDIRECTS: MapGeometry = map("egress_redirects", MapKind::LruHash, (2, 2), 128);

/// Application ports (u16) whose redirect is off because the process runs; the
/// value (u8) means nothing. Written by the shim.
pub const DISABLE_REDIRECT: MapGeometry = map("disable_redirect", MapKind::LruHash, (2, 1), 128);

/// Client ports (u16) whose connections the proxy still serves, although the
/// redirect is off again; the value (u8) means nothing. Written by the shim.
pub const ACTIVE_CONNECTIONS: MapGeometry =
    map("active_connections", MapKind::LruHash, (2, 1), 512);

/// Last activity: application port (u16) to nanoseconds of `CLOCK_MONOTONIC`
/// (u64), 0 for none yet. The shim inserts, the ingress program updates.
pub const SOCKET_TRACKER: MapGeometry = map("socket_tracker", MapKind::Hash, (2, 8), 128);

/// The kubelet's IPv4 address (4 bytes) at key 0 (u8).
pub const KUBELET_ADDRS_V4: MapGeometry = map("kubelet_addrs_v4", MapKind::LruHash, (1, 4), 1);

/// The kubelet's IPv6 address (16 bytes) at key 0 (u8).
pub const KUBELET_ADDRS_V6: MapGeometry = map("kubelet_addrs_v6", MapKind::LruHash, (1, 16), 1);

/// Every map that the programs of a sandbox share with its shim.
pub const MAPS: [MapGeometry; 7] = [
    INGRESS_REDIRECTS,
    EGRESS_REDIRECTS,
    DISABLE_REDIRECT,
    ACTIVE_CONNECTIONS,
    SOCKET_TRACKER,
    KUBELET_ADDRS_V4,
    KUBELET_ADDRS_V6,
];

/// Connections that were sent to a proxy not long ago: the client's port in the
/// high half of a word (u32), the proxy's in the low one, at the index (u32) of
/// the client's port modulo the entries. Of no interest to the shim: it spares
/// the programs a look at sockets and at other maps.
pub const PROXIED_CLIENTS: MapGeometry = map("proxied_clients", MapKind::Array, (4, 4), 1024);

/// Maps that only the programs use.
pub const OWN_MAPS: [MapGeometry; 1] = [PROXIED_CLIENTS];

/// Connections that the kubelet opened, of the whole node: a [`Connection`] to
/// a value (u8) that means nothing.
pub const KUBELET_CONNECTIONS: MapGeometry =
    map("kubelet_connections", MapKind::LruHash, (36, 1), 4096);

/// What is known from [`KUBELET_CONNECTIONS`], at the key 0 (u8). Nothing: they
/// may not be watched. [`NOT_SEEN_ON_HOST`], [`SEEN_ON_HOST`], or [`SEEN`] where
/// the kernel cannot tell network namespaces apart (u8).
pub const KUBELET_WATCHED: MapGeometry = map("kubelet_watched", MapKind::Hash, (1, 1), 1);

/// No process of the host's network namespace opened a connection yet that has
/// the kubelet's name. It may be wrong.
pub const NOT_SEEN_ON_HOST: u8 = 0;

/// The kubelet opened connections; so may pods have, whose process has its
/// name.
pub const SEEN: u8 = 1;

/// The kubelet opened connections, and only its own are known: no address is
/// needed (B6).
pub const SEEN_ON_HOST: u8 = 2;

/// Maps that all sandboxes of a node share.
pub const NODE_MAPS: [MapGeometry; 2] = [KUBELET_CONNECTIONS, KUBELET_WATCHED];

/// What a redirector with the feature `trace` says, for aya-log, of the whole
/// node.
pub const LOGS: MapGeometry = map("AYA_LOGS", MapKind::RingBuf, (0, 0), 128 * 1024);

/// A TCP connection, as the one who opens it sees it.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Connection {
    /// Source address; an IPv4 address is mapped into IPv6.
    pub source: [u8; 16],
    /// Destination address, likewise.
    pub destination: [u8; 16],
    /// Source port, network byte order.
    pub source_port: u16,
    /// Destination port, network byte order.
    pub destination_port: u16,
}

/// An IPv4 address as an IPv6 address (RFC 4291 section 2.5.5.2).
#[inline(always)]
pub const fn mapped([a, b, c, d]: [u8; 4]) -> [u8; 16] {
    [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d]
}

/// Name of the program that sees connections being opened.
pub const CONNECT_PROGRAM: &str = "record_kubelet_connection";

/// Name of the program for packets towards the pod.
pub const INGRESS_PROGRAM: &str = "tc_redirect_ingress";

/// Name of the program for packets from the pod.
pub const EGRESS_PROGRAM: &str = "tc_redirect_egress";

/// Global: `comm` of the process whose packets are the kubelet's probes, NUL
/// padded ([`CommName`]).
pub const PROBE_BINARY_NAME: &str = "probe_binary_name";

/// Global (u8): 1 when packets from 127.0.0.1 and `::1` are no activity.
pub const TRACKER_IGNORE_LOCALHOST: &str = "tracker_ignore_localhost";

/// Global (u32): how the program learns the name of the current task. 0: by
/// `bpf_get_current_comm`, which classifiers may call since Linux 6.16.
/// [`NO_TASK_COMM`]: not at all. Else from this offset in `struct task_struct`.
pub const TASK_COMM_OFFSET: &str = "task_comm_offset";

/// Global (u64): cookie of the host's network namespace; 0 if it is not known.
pub const HOST_NETNS_COOKIE: &str = "host_netns_cookie";

/// Value of [`TASK_COMM_OFFSET`] when the name cannot be learnt.
pub const NO_TASK_COMM: u32 = u32::MAX;

/// A task's `comm` as the kernel keeps it: at most 15 bytes and a NUL
/// (`TASK_COMM_LEN`).
pub type CommName = [u8; 16];

/// Cuts a process name to what the kernel keeps of it, so that a longer name
/// still matches.
pub const fn comm_name(name: &str) -> CommName {
    let name = name.as_bytes();
    let mut comm = [0; 16];
    let mut at = 0;
    while at < name.len() && at < 15 {
        comm[at] = name[at];
        at += 1;
    }
    comm
}

/// Name of the pin of a TCX link in a sandbox's directory: `tcx_ingress_eth0`.
/// In two parts, since this crate cannot allocate.
pub const fn link_pin_prefix(direction: Direction) -> &'static str {
    match direction {
        Direction::Ingress => "tcx_ingress_",
        Direction::Egress => "tcx_egress_",
    }
}

/// Direction of a packet as seen by the interface in the sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// Towards the pod.
    Ingress,
    /// From the pod.
    Egress,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_names_are_cut_as_the_kernel_cuts_them() {
        assert_eq!(&comm_name("kubelet")[..8], b"kubelet\0");
        assert_eq!(&comm_name("0123456789abcdef"), b"0123456789abcde\0");
    }
}

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
