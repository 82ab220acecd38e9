//! What happens when a connection is opened.
#![expect(unsafe_code, reason = "an entry point, symbols, and memory of the kernel")]

use aya_ebpf::{
    Global,
    bindings::{BPF_SOCK_OPS_TCP_CONNECT_CB, bpf_sock_ops},
    btf_maps::{HashMap, LruHashMap},
    helpers::generated::bpf_get_netns_cookie,
    macros::btf_map,
};
use zeropod_redirector_abi::{Connection, SEEN, SEEN_ON_HOST, mapped};
use zeropod_redirector_ebpf::InWords;

use crate::task;

/// Connections that the kubelet opened.
#[btf_map(name = "kubelet_connections")]
static KUBELET_CONNECTIONS: LruHashMap<Connection, u8, 4096> = LruHashMap::new();

/// Has a key once the kubelet was seen: its name is right then.
#[btf_map(name = "kubelet_watched")]
static KUBELET_WATCHED: HashMap<u8, u8, 1> = HashMap::new();

/// `comm` of the kubelet, in two words as it is compared.
#[unsafe(export_name = "probe_binary_name")]
static PROBE_BINARY_NAME: Global<[u64; 2]> = Global::new([0; 2]);

/// How the name of the current task is learnt.
#[unsafe(export_name = "task_comm_offset")]
static TASK_COMM_OFFSET: Global<u32> = Global::new(0);

/// The network namespace that the kubelet is in; 0 if it is not known.
#[unsafe(export_name = "host_netns_cookie")]
static HOST_NETNS_COOKIE: Global<u64> = Global::new(0);

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

const AF_INET: u32 = 2;
const AF_INET6: u32 = 10;

/// Nothing to say to the kernel about the socket.
const NEXT: i32 = 1;

/// Called for every socket of a cgroup, when its state changes. When it is
/// about to connect, both ends are chosen and nothing is sent yet, and the
/// current task is the one who connects.
#[unsafe(link_section = "sockops")]
#[unsafe(no_mangle)]
extern "C" fn record_kubelet_connection(socket: *const bpf_sock_ops) -> i32 {
    // SAFETY: the kernel calls this with a context of this type.
    let socket = unsafe { &*socket };
    if socket.op == BPF_SOCK_OPS_TCP_CONNECT_CB
        && let Some(InWords(connection)) = &connection(socket)
    {
        let host = HOST_NETNS_COOKIE.load();
        // SAFETY: the context is the one that the kernel gave. Not called where
        // the kernel has no such helper: the verifier knows the value.
        let is_on_host = host == 0
            || unsafe { bpf_get_netns_cookie(core::ptr::from_ref(socket).cast_mut().cast()) }
                == host;
        if is_on_host && task::is_current(PROBE_BINARY_NAME.load(), TASK_COMM_OFFSET.load()) {
            // Cannot fail: a full LRU map makes room, and the other has it.
            let _cannot_fail = KUBELET_CONNECTIONS.insert(connection, 1, 0);
            let seen = if host == 0 { SEEN } else { SEEN_ON_HOST };
            // SAFETY: a pointer that the lookup gave.
            if KUBELET_WATCHED.get_ptr(0).is_none_or(|known| unsafe { *known } != seen) {
                let _cannot_fail = KUBELET_WATCHED.insert(0, seen, 0);
            }
        } else {
            // The kubelet may have had the same ports before.
            let _was_not_there = KUBELET_CONNECTIONS.remove(connection);
        }
    }
    NEXT
}

#[inline(always)]
fn connection(socket: &bpf_sock_ops) -> Option<InWords<Connection>> {
    let (source, destination) = match socket.family {
        AF_INET => {
            (mapped(socket.local_ip4.to_ne_bytes()), mapped(socket.remote_ip4.to_ne_bytes()))
        }
        AF_INET6 => (ipv6(&socket.local_ip6), ipv6(&socket.remote_ip6)),
        _ => return None,
    };
    Some(InWords(Connection {
        source,
        destination,
        // In host byte order, 16 bits.
        source_port: (socket.local_port as u16).to_be(),
        // In network byte order, 32 bits.
        destination_port: (u32::from_be(socket.remote_port) as u16).to_be(),
    }))
}

/// Word by word, as the verifier wants the context to be read.
#[inline(always)]
fn ipv6(words: &[u32; 4]) -> [u8; 16] {
    let mut address = [0; 16];
    for (at, word) in words.iter().enumerate() {
        // SAFETY: a word of the context.
        let word = unsafe { core::ptr::read_volatile(word) };
        address[at * 4..][..4].copy_from_slice(&word.to_ne_bytes());
    }
    address
}
