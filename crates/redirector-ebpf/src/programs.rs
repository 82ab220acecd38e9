//! What happens to a packet.
#![expect(unsafe_code, reason = "entry points, and values that live in maps")]

use aya_ebpf::{
    bindings::TC_ACT_UNSPEC,
    helpers::generated::{
        bpf_get_current_comm, bpf_get_current_task, bpf_ktime_get_ns, bpf_probe_read_kernel,
    },
    macros::classifier,
    programs::TcContext,
};
use zeropod_redirector_abi::NO_TASK_COMM;
use zeropod_redirector_ebpf::packet::{
    self, IpVersion, Plain, Purpose, Segment, TCP_CHECKSUM, TCP_DESTINATION, TCP_SOURCE,
};

use crate::{
    flow::{Flow, Ip, Ipv4, Ipv6, Socket},
    maps::{
        ACTIVE_CONNECTIONS, DISABLE_REDIRECT, EGRESS_REDIRECTS, INGRESS_REDIRECTS, KUBELET_WATCHED,
        PROBE_BINARY_NAME, PROXIED_CLIENTS, SOCKET_TRACKER, TASK_COMM_OFFSET,
        TRACKER_IGNORE_LOCALHOST,
    },
    skb::{Copied, Linear},
};

/// Lets the programs of others run after ours: also `TCX_NEXT`.
const NEXT: i32 = TC_ACT_UNSPEC;

/// A tenth of the shortest time after which a container is scaled down, in
/// nanoseconds.
const SHORTLY: u64 = 100_000_000;

/// Packets towards the pod: notes activity, and sends connections of a port
/// whose process is gone to the proxy.
#[classifier]
pub(crate) fn tc_redirect_ingress(ctx: TcContext) -> i32 {
    let Some(segment) = segment(&ctx) else { return NEXT };
    let registered = Registered {
        // SAFETY: a pointer that the lookup gave.
        proxy: INGRESS_REDIRECTS.get_ptr(segment.destination).map_or(0, |proxy| unsafe { *proxy }),
        last_activity: SOCKET_TRACKER.get_ptr_mut(segment.destination),
    };
    // Before anything else: most ports are nobody's.
    if registered.proxy == 0 && registered.last_activity.is_none() {
        return NEXT;
    }
    match segment.ip {
        IpVersion::V4 => to_registered_port::<Ipv4, 4>(&ctx, &segment, &registered),
        IpVersion::V6 => to_registered_port::<Ipv6, 16>(&ctx, &segment, &registered),
    }
    NEXT
}

/// Packets from the pod: gives the proxy's answers the port that the client
/// connected to.
#[classifier]
pub(crate) fn tc_redirect_egress(ctx: TcContext) -> i32 {
    let Some(segment) = segment(&ctx) else { return NEXT };
    let Some(application) = EGRESS_REDIRECTS.get_ptr(segment.source) else { return NEXT };
    // SAFETY: a pointer that the lookup gave.
    let application = unsafe { *application };
    // Entries of proxies that are gone stay. If the port has another proxy by
    // now, this is somebody else's packet.
    if let Some(proxy) = INGRESS_REDIRECTS.get_ptr(application) {
        // SAFETY: as above.
        if unsafe { *proxy } != segment.source {
            return NEXT;
        }
    }
    rewrite(&ctx, &segment, TCP_SOURCE, segment.source, application);
    NEXT
}

#[inline(always)]
fn segment(ctx: &TcContext) -> Option<Segment> {
    match packet::plain(&Linear::of(ctx)) {
        Plain::Tcp(segment) => Some(segment),
        Plain::Other => None,
        Plain::Unclear => packet::any(&Copied(ctx)),
    }
}

/// What is registered for a port.
struct Registered {
    /// Port of the proxy; 0 if there is none.
    proxy: u16,
    last_activity: Option<*mut u64>,
}

#[inline(always)]
fn to_registered_port<V: Ip<N>, const N: usize>(
    ctx: &TcContext,
    segment: &Segment,
    registered: &Registered,
) {
    let Some(flow) = Flow::<N>::of(ctx, segment, V::SOURCE_AT) else { return };
    let mut socket = Socket::Unknown;
    let mut to = segment.destination;
    let proxy = registered.proxy;
    if proxy != 0 {
        if DISABLE_REDIRECT.get_ptr(segment.destination).is_none()
            || ACTIVE_CONNECTIONS.get_ptr(segment.source).is_some()
        {
            to = proxy;
            if matches!(segment.purpose(), Purpose::Open)
                && PROXIED_CLIENTS.get_ptr(segment.source).is_none()
            {
                // Cannot fail: a full LRU map makes room.
                let _cannot_fail = PROXIED_CLIENTS.insert(segment.source, 1, 0);
            }
        } else if !matches!(segment.purpose(), Purpose::Open)
            && PROXIED_CLIENTS.get_ptr(segment.source).is_some()
        {
            // The process runs. A connection that the proxy still serves may
            // have lost its entry: late segments of one that was closed, or
            // another client with the same port was served before (B17).
            socket = flow.socket(ctx, to);
            if matches!(socket, Socket::None) {
                let at_proxy = flow.socket(ctx, proxy);
                if !matches!(at_proxy, Socket::None) {
                    socket = at_proxy;
                    to = proxy;
                }
            }
        }
    }
    if let Some(last_activity) = registered.last_activity {
        note_activity::<V, N>(segment, &flow, last_activity, |flow| match socket {
            Socket::Unknown => flow.socket(ctx, to),
            known => known,
        });
    }
    if to != segment.destination {
        rewrite(ctx, segment, TCP_DESTINATION, segment.destination, to);
    }
}

/// Notes that the segment keeps the process awake, unless it does not. The
/// kubelet's probes do not, nor does what a pod sends to itself. Neither does
/// a reset, nor a segment that is of meaning to no connection, such as a FIN
/// that is repeated after the proxy closed its side: each would count as long
/// as it is answered by a reset.
#[inline(always)]
fn note_activity<V: Ip<N>, const N: usize>(
    segment: &Segment,
    flow: &Flow<N>,
    last_activity: *mut u64,
    socket: impl Fn(&Flow<N>) -> Socket,
) {
    let purpose = segment.purpose();
    if matches!(purpose, Purpose::Reset) {
        return;
    }
    if is_probe::<V, N>(flow) {
        return;
    }
    if flow.source == V::LOCALHOST && ignores_localhost() {
        return;
    }
    // SAFETY: always possible.
    let now = unsafe { bpf_ktime_get_ns() };
    if matches!(purpose, Purpose::Control) {
        // SAFETY: a pointer that the lookup gave; aligned, so not torn.
        let last = unsafe { last_activity.read_volatile() };
        // Streams of acknowledgements do not pay for the look at the socket.
        if now - last < SHORTLY || !matches!(socket(flow), Socket::Open) {
            return;
        }
    }
    // SAFETY: as above; of two concurrent stores either will do.
    unsafe { last_activity.write_volatile(now) };
}

/// Whether the segment is the kubelet's: by its address and, if it is known
/// which connections the kubelet opened, by its connection. The node has the
/// same address, and other processes (B5).
#[inline(always)]
fn is_probe<V: Ip<N>, const N: usize>(flow: &Flow<N>) -> bool {
    let is_watched = || KUBELET_WATCHED.get_ptr(0).is_some();
    if let Some(kubelet) = V::kubelet() {
        // SAFETY: a pointer that the lookup gave.
        let is_address = unsafe { *kubelet } == flow.source;
        return is_address && (!is_watched() || flow.is_kubelets::<V>());
    }
    let is_kubelet = if is_watched() { flow.is_kubelets::<V>() } else { is_kubelet_current() };
    if is_kubelet {
        V::learn_kubelet(&flow.source);
    }
    is_kubelet
}

#[inline(always)]
fn ignores_localhost() -> bool {
    TRACKER_IGNORE_LOCALHOST.load() != 0
}

/// Whether the task that happens to be current is the kubelet. It is when the
/// packet was sent on this CPU by the kubelet's own system call, and by bad
/// luck: a fallback for as long as nobody told its address.
#[inline(always)]
fn is_kubelet_current() -> bool {
    let mut comm = [0_u64; 2];
    let to = (&raw mut comm).cast();
    // The verifier knows the value, and does not look at the other ways: this
    // kernel may not allow them.
    let failed = match TASK_COMM_OFFSET.load() {
        NO_TASK_COMM => return false,
        // SAFETY: the kernel writes 16 bytes, NUL padded.
        0 => unsafe { bpf_get_current_comm(to, 16) },
        // SAFETY: as above; it reads safely from wherever it is told to.
        offset => unsafe {
            let comm = bpf_get_current_task() + u64::from(offset);
            bpf_probe_read_kernel(to, 16, comm as *const _)
        },
    };
    failed == 0 && comm == PROBE_BINARY_NAME.load()
}

/// Replaces a port and corrects the checksum, whatever state that is in: the
/// helper knows whether the field holds a sum or is still to be filled in by
/// the device.
#[inline(always)]
fn rewrite(ctx: &TcContext, segment: &Segment, port_at: u32, from: u16, to: u16) {
    let [from, to] = [from.to_be(), to.to_be()];
    let checksum_at = (segment.tcp_at + TCP_CHECKSUM) as usize;
    let port_at = (segment.tcp_at + port_at) as usize;
    // The checksum lies behind the ports: if it can be written, so can they.
    if ctx.l4_csum_replace(checksum_at, from.into(), to.into(), 2).is_ok() {
        let _cannot_fail = ctx.store(port_at, &to, 0);
    }
}
