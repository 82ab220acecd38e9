//! What happens to a packet.
#![expect(unsafe_code, reason = "entry points, and values that live in maps")]

use aya_ebpf::{
    bindings::TC_ACT_UNSPEC, helpers::generated::bpf_ktime_get_ns, macros::classifier,
    programs::TcContext,
};
use zeropod_redirector_abi::{NOT_SEEN_ON_HOST, SEEN, SEEN_ON_HOST};
use zeropod_redirector_ebpf::packet::{
    self, IpVersion, Packet, Plain, Purpose, Segment, TCP_CHECKSUM, TCP_DESTINATION, TCP_SOURCE,
};

use crate::{
    flow::{Flow, Ip, Ipv4, Ipv6, Socket},
    maps::{
        ACTIVE_CONNECTIONS, DISABLE_REDIRECT, EGRESS_REDIRECTS, INGRESS_REDIRECTS, KUBELET_WATCHED,
        PROBE_BINARY_NAME, PROXIED_CLIENTS, PROXIED_CLIENTS_SLOTS, SOCKET_TRACKER,
        TASK_COMM_OFFSET, TRACKER_IGNORE_LOCALHOST,
    },
    skb::{Copied, Linear},
    task, trace,
};

/// Lets the programs of others run after ours: also `TCX_NEXT`.
const NEXT: i32 = TC_ACT_UNSPEC;

/// How exact the last activity needs to be, in nanoseconds: a container is
/// scaled down seconds after it.
const JUST_NOW: u64 = 1_000_000;
/// The same for segments that only acknowledge, whose sockets would have to be
/// looked for.
const SHORTLY: u64 = 100_000_000;

/// Packets towards the pod: notes activity, and sends connections of a port
/// whose process is gone to the proxy.
#[classifier]
pub(crate) fn tc_redirect_ingress(ctx: TcContext) -> i32 {
    let linear = Linear::of(&ctx);
    match packet::plain(&linear) {
        Plain::Tcp(segment) => ingress(&ctx, &linear, &segment),
        Plain::Other => {}
        Plain::Unclear => {
            let copied = Copied(&ctx);
            if let Some(segment) = packet::any(&copied) {
                ingress(&ctx, &copied, &segment);
            }
        }
    }
    NEXT
}

/// Packets from the pod: gives the proxy's answers the port that the client
/// connected to.
#[classifier]
pub(crate) fn tc_redirect_egress(ctx: TcContext) -> i32 {
    let segment = match packet::plain(&Linear::of(&ctx)) {
        Plain::Tcp(segment) => segment,
        Plain::Other => return NEXT,
        Plain::Unclear => match packet::any(&Copied(&ctx)) {
            Some(segment) => segment,
            None => return NEXT,
        },
    };
    let Some(application) = EGRESS_REDIRECTS.get_ptr(segment.source) else { return NEXT };
    // SAFETY: a pointer that the lookup gave.
    let application = unsafe { *application };
    // Entries of proxies that are gone stay. If the port has another proxy by
    // now, this is somebody else's packet.
    if !was_proxied(segment.destination, segment.source)
        && let Some(proxy) = INGRESS_REDIRECTS.get_ptr(application)
    {
        // SAFETY: as above.
        if unsafe { *proxy } != segment.source {
            return NEXT;
        }
    }
    trace!(
        &ctx,
        "to port {}: from proxy {}, as {}", segment.destination, segment.source, application
    );
    rewrite(&ctx, &segment, TCP_SOURCE, segment.source, application);
    NEXT
}

#[inline(always)]
fn ingress(ctx: &TcContext, packet: &impl Packet, segment: &Segment) {
    // Before anything else: most ports are nobody's. A shim tracks a port
    // before it does anything else with it, in a map that throws nothing out.
    let Some(last_activity) = SOCKET_TRACKER.get_ptr_mut(segment.destination) else { return };
    match segment.ip {
        IpVersion::V4 => to_tracked_port::<Ipv4, 4>(ctx, packet, segment, last_activity),
        IpVersion::V6 => to_tracked_port::<Ipv6, 16>(ctx, packet, segment, last_activity),
    }
}

#[inline(always)]
fn to_tracked_port<V: Ip<N>, const N: usize>(
    ctx: &TcContext,
    packet: &impl Packet,
    segment: &Segment,
    last_activity: *mut u64,
) {
    let mut socket = Socket::Unknown;
    let mut to = segment.destination;
    if let Some(proxy) = INGRESS_REDIRECTS.get_ptr(to) {
        // SAFETY: a pointer that the lookup gave.
        let proxy = unsafe { *proxy };
        if DISABLE_REDIRECT.get_ptr(segment.destination).is_none()
            || ACTIVE_CONNECTIONS.get_ptr(segment.source).is_some()
        {
            to = proxy;
            if matches!(segment.purpose(), Purpose::Open) {
                remember_proxied(segment.source, proxy);
            }
        } else if !matches!(segment.purpose(), Purpose::Open) && was_proxied(segment.source, proxy)
        {
            // The process runs. A connection that the proxy still serves may
            // have lost its entry: late segments of one that was closed, or
            // another client with the same port was served before (B17).
            let Some(flow) = Flow::of::<V>(packet, segment) else { return };
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
    note_activity::<V, N>(ctx, packet, segment, last_activity, |flow| match socket {
        Socket::Unknown => flow.socket(ctx, to),
        known => known,
    });
    if to != segment.destination {
        trace!(ctx, "from port {} to {}: to proxy {}", segment.source, segment.destination, to);
        rewrite(ctx, segment, TCP_DESTINATION, segment.destination, to);
    }
}

/// Remembers that a connection from this client port was sent to this proxy.
#[inline(always)]
fn remember_proxied(client: u16, proxy: u16) {
    if let Some(slot) = PROXIED_CLIENTS.get_ptr_mut(slot(client)) {
        // SAFETY: a pointer that the lookup gave; aligned, so not torn.
        unsafe { slot.write_volatile(proxied(client, proxy)) };
    }
}

/// Whether a connection from this client port was sent to this proxy not long
/// ago.
#[inline(always)]
fn was_proxied(client: u16, proxy: u16) -> bool {
    PROXIED_CLIENTS
        .get_ptr(slot(client))
        // SAFETY: as above.
        .is_some_and(|slot| unsafe { slot.read_volatile() } == proxied(client, proxy))
}

#[inline(always)]
fn slot(client: u16) -> u32 {
    u32::from(client) % PROXIED_CLIENTS_SLOTS
}

#[inline(always)]
fn proxied(client: u16, proxy: u16) -> u32 {
    u32::from(client) << 16 | u32::from(proxy)
}

/// Notes that the segment keeps the process awake, unless it does not. The
/// kubelet's probes do not, nor does what a pod sends to itself. Neither does
/// a reset, nor a segment that is of meaning to no connection, such as a FIN
/// that is repeated after the proxy closed its side: each would count as long
/// as it is answered by a reset.
#[inline(always)]
fn note_activity<V: Ip<N>, const N: usize>(
    ctx: &TcContext,
    packet: &impl Packet,
    segment: &Segment,
    last_activity: *mut u64,
    socket: impl Fn(&Flow<N>) -> Socket,
) {
    let purpose = segment.purpose();
    if matches!(purpose, Purpose::Reset) {
        return;
    }
    // SAFETY: always possible.
    let now = unsafe { bpf_ktime_get_ns() };
    // SAFETY: a pointer that the lookup gave; aligned, so not torn.
    let since = now.wrapping_sub(unsafe { last_activity.read_volatile() });
    // What comes in streams does not pay for a closer look each time.
    if since < JUST_NOW || matches!(purpose, Purpose::Control) && since < SHORTLY {
        return;
    }
    let Some(flow) = Flow::of::<V>(packet, segment) else { return };
    if matches!(purpose, Purpose::Control) && !matches!(socket(&flow), Socket::Open) {
        return;
    }
    if is_probe::<V, N>(&flow) || flow.source == V::LOCALHOST && ignores_localhost() {
        return;
    }
    trace!(ctx, "from port {} to {}: activity", segment.source, segment.destination);
    // SAFETY: as above; of two concurrent stores either will do.
    unsafe { last_activity.write_volatile(now) };
}

/// Whether the segment is the kubelet's: by its connection where it is known
/// which ones the kubelet opened; the node's other processes have its address
/// (B5), and it may have several (B6). Where pods may have opened some of them
/// in its name, by its address too. Where nothing is known, by its address alone.
#[inline(always)]
fn is_probe<V: Ip<N>, const N: usize>(flow: &Flow<N>) -> bool {
    // SAFETY: a pointer that the lookup gave.
    let watched = KUBELET_WATCHED.get_ptr(0).map(|watched| unsafe { *watched });
    if let Some(kubelet) = V::kubelet() {
        // SAFETY: as above.
        let is_address = unsafe { *kubelet } == flow.source;
        return match watched {
            Some(SEEN_ON_HOST) => flow.is_kubelets::<V>(),
            Some(SEEN) => is_address && flow.is_kubelets::<V>(),
            _ => is_address,
        };
    }
    let is_kubelet = match watched {
        Some(NOT_SEEN_ON_HOST) => false,
        Some(_) => flow.is_kubelets::<V>(),
        None => is_kubelet_current(),
    };
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
    task::is_current(PROBE_BINARY_NAME.load(), TASK_COMM_OFFSET.load())
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
