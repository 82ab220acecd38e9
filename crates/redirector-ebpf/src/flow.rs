//! The connection that a segment is of.
#![expect(unsafe_code, reason = "the kernel reads the flow in place")]

use aya_ebpf::{
    bindings::{BPF_F_CURRENT_NETNS, BPF_TCP_LISTEN, BPF_TCP_TIME_WAIT},
    helpers::generated::{bpf_sk_release, bpf_skc_lookup_tcp},
    programs::TcContext,
};
use zeropod_redirector_abi::{Connection, mapped};
use zeropod_redirector_ebpf::{
    InWords,
    packet::{IPV4_SOURCE, IPV6_SOURCE, Packet, Segment},
};

use crate::maps::{KUBELET_ADDRS_V4, KUBELET_ADDRS_V6, KUBELET_CONNECTIONS};

/// What differs between the versions of IP, with addresses of `N` bytes.
pub(crate) trait Ip<const N: usize> {
    /// Offset of the source address in the header; the destination follows.
    const SOURCE_AT: u32;
    /// The loopback address.
    const LOCALHOST: [u8; N];

    /// The kubelet's address, if it is known.
    fn kubelet() -> Option<*const [u8; N]>;

    /// Takes an address for the kubelet's.
    fn learn_kubelet(address: &[u8; N]);

    /// An address as one of IPv6.
    fn mapped(address: [u8; N]) -> [u8; 16];
}

/// IPv4.
pub(crate) struct Ipv4;

impl Ip<4> for Ipv4 {
    const SOURCE_AT: u32 = IPV4_SOURCE;
    const LOCALHOST: [u8; 4] = [127, 0, 0, 1];

    #[inline(always)]
    fn kubelet() -> Option<*const [u8; 4]> {
        KUBELET_ADDRS_V4.get_ptr(0)
    }

    #[inline(always)]
    fn learn_kubelet(address: &[u8; 4]) {
        // Cannot fail: a full LRU map makes room.
        let _cannot_fail = KUBELET_ADDRS_V4.insert(0, address, 0);
    }

    #[inline(always)]
    fn mapped(address: [u8; 4]) -> [u8; 16] {
        mapped(address)
    }
}

/// IPv6.
pub(crate) struct Ipv6;

impl Ip<16> for Ipv6 {
    const SOURCE_AT: u32 = IPV6_SOURCE;
    const LOCALHOST: [u8; 16] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];

    #[inline(always)]
    fn kubelet() -> Option<*const [u8; 16]> {
        KUBELET_ADDRS_V6.get_ptr(0)
    }

    #[inline(always)]
    fn learn_kubelet(address: &[u8; 16]) {
        // Cannot fail: a full LRU map makes room.
        let _cannot_fail = KUBELET_ADDRS_V6.insert(0, address, 0);
    }

    #[inline(always)]
    fn mapped(address: [u8; 16]) -> [u8; 16] {
        address
    }
}

/// Addresses and ports of a segment, laid out as `struct bpf_sock_tuple`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Flow<const N: usize> {
    /// Source address.
    pub(crate) source: [u8; N],
    destination: [u8; N],
    ports: [u16; 2],
}

/// The socket of a connection.
#[derive(Clone, Copy)]
pub(crate) enum Socket {
    /// Not looked for.
    Unknown,
    /// None, but perhaps one that listens.
    None,
    /// Closed, and waiting for late segments.
    Closed,
    /// Open, or about to be.
    Open,
}

impl<const N: usize> Flow<N> {
    #[inline(always)]
    pub(crate) fn of<V: Ip<N>>(packet: &impl Packet, segment: &Segment) -> Option<Self> {
        let at = segment.ip_at + V::SOURCE_AT;
        Some(Self {
            source: packet.bytes(at)?,
            destination: packet.bytes(at + N as u32)?,
            ports: [segment.source.to_be(), segment.destination.to_be()],
        })
    }

    /// Whether it is a connection that the kubelet opened.
    #[inline(always)]
    pub(crate) fn is_kubelets<V: Ip<N>>(&self) -> bool {
        let connection = InWords(Connection {
            source: V::mapped(self.source),
            destination: V::mapped(self.destination),
            source_port: self.ports[0],
            destination_port: self.ports[1],
        });
        KUBELET_CONNECTIONS.get_ptr(&connection.0).is_some()
    }

    /// Looks for the socket of this connection on a port of the pod.
    #[inline(always)]
    pub(crate) fn socket(&self, ctx: &TcContext, port: u16) -> Socket {
        let mut tuple = InWords(Self { ports: [self.ports[0], port.to_be()], ..*self });
        // SAFETY: the tuple is as large as stated; what is found is released.
        unsafe {
            let socket = bpf_skc_lookup_tcp(
                ctx.skb.skb.cast(),
                (&raw mut tuple).cast(),
                size_of::<Self>() as u32,
                BPF_F_CURRENT_NETNS as i64 as u64,
                0,
            );
            if socket.is_null() {
                return Socket::None;
            }
            let state = (*socket).state;
            bpf_sk_release(socket.cast());
            match state {
                BPF_TCP_LISTEN => Socket::None,
                BPF_TCP_TIME_WAIT => Socket::Closed,
                _ => Socket::Open,
            }
        }
    }
}
