//! Maps and globals, with the geometry of `zeropod-redirector-abi`.
#![expect(unsafe_code, reason = "symbols that the loader finds by name")]

use aya_ebpf::{
    Global,
    btf_maps::{Array, HashMap, LruHashMap},
    macros::btf_map,
};
use zeropod_redirector_abi::{CommName, Connection, comm_name};

/// Application port to proxy port.
#[btf_map(name = "ingress_redirects")]
pub(crate) static INGRESS_REDIRECTS: LruHashMap<u16, u16, 128> = LruHashMap::new();

/// Proxy port to application port.
#[btf_map(name = "egress_redirects")]
pub(crate) static EGRESS_REDIRECTS: LruHashMap<u16, u16, 128> = LruHashMap::new();

/// Application ports whose redirect is off.
#[btf_map(name = "disable_redirect")]
pub(crate) static DISABLE_REDIRECT: LruHashMap<u16, u8, 128> = LruHashMap::new();

/// Client ports of the connections that the proxy serves.
#[btf_map(name = "active_connections")]
pub(crate) static ACTIVE_CONNECTIONS: LruHashMap<u16, u8, 512> = LruHashMap::new();

/// Connections that were sent to a proxy not long ago: ports of client and
/// proxy in one word, where the client's modulo the slots says.
#[btf_map(name = "proxied_clients")]
pub(crate) static PROXIED_CLIENTS: Array<u32, { PROXIED_CLIENTS_SLOTS as usize }> = Array::new();

/// Slots of [`PROXIED_CLIENTS`].
pub(crate) const PROXIED_CLIENTS_SLOTS: u32 = zeropod_redirector_abi::PROXIED_CLIENTS.max_entries;

/// Last activity of an application port, in nanoseconds of `CLOCK_MONOTONIC`.
#[btf_map(name = "socket_tracker")]
pub(crate) static SOCKET_TRACKER: HashMap<u16, u64, 128> = HashMap::new();

/// The kubelet's IPv4 address at key 0.
#[btf_map(name = "kubelet_addrs_v4")]
pub(crate) static KUBELET_ADDRS_V4: LruHashMap<u8, [u8; 4], 1> = LruHashMap::new();

/// The kubelet's IPv6 address at key 0.
#[btf_map(name = "kubelet_addrs_v6")]
pub(crate) static KUBELET_ADDRS_V6: LruHashMap<u8, [u8; 16], 1> = LruHashMap::new();

/// Connections that the kubelet opened, of the whole node.
#[btf_map(name = "kubelet_connections")]
pub(crate) static KUBELET_CONNECTIONS: LruHashMap<Connection, u8, 4096> = LruHashMap::new();

/// What is known from them, at key 0.
#[btf_map(name = "kubelet_watched")]
pub(crate) static KUBELET_WATCHED: HashMap<u8, u8, 1> = HashMap::new();

/// `comm` of the process that probes, in two words as it is compared.
#[unsafe(export_name = "probe_binary_name")]
pub(crate) static PROBE_BINARY_NAME: Global<[u64; 2]> = Global::new(words(comm_name("kubelet")));

/// Whether packets from 127.0.0.1 and `::1` are no activity.
#[unsafe(export_name = "tracker_ignore_localhost")]
pub(crate) static TRACKER_IGNORE_LOCALHOST: Global<u8> = Global::new(1);

/// How the name of the current task is learnt.
#[unsafe(export_name = "task_comm_offset")]
pub(crate) static TASK_COMM_OFFSET: Global<u32> = Global::new(0);

const fn words(name: CommName) -> [u64; 2] {
    let [a, b, c, d, e, f, g, h, rest @ ..] = name;
    [u64::from_ne_bytes([a, b, c, d, e, f, g, h]), u64::from_ne_bytes(rest)]
}

/// `bpf_l4_csum_replace` and `bpf_ktime_get_ns` want a GPL-compatible program.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
