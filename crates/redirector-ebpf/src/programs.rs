//! What happens to a packet.
#![expect(unsafe_code, reason = "entry points, and values that live in maps")]

use aya_ebpf::{
    bindings::TC_ACT_UNSPEC,
    helpers::generated::{bpf_get_current_comm, bpf_ktime_get_ns},
    macros::classifier,
    programs::TcContext,
};
use zeropod_redirector_ebpf::packet::{
    self, IPV4_SOURCE, IPV6_SOURCE, IpVersion, Packet, Plain, Segment, TCP_CHECKSUM,
    TCP_DESTINATION, TCP_SOURCE,
};

use crate::{
    maps::{
        ACTIVE_CONNECTIONS, DISABLE_REDIRECT, EGRESS_REDIRECTS, INGRESS_REDIRECTS,
        KUBELET_ADDRS_V4, KUBELET_ADDRS_V6, PROBE_BINARY_NAME, SOCKET_TRACKER,
        TRACKER_IGNORE_LOCALHOST,
    },
    skb::{Copied, Linear},
};

/// Lets the programs of others run after ours: also `TCX_NEXT`.
const NEXT: i32 = TC_ACT_UNSPEC;

/// Packets towards the pod: notes activity, and sends connections of a port
/// whose process is gone to the proxy.
#[classifier]
pub(crate) fn tc_redirect_ingress(ctx: TcContext) -> i32 {
    let Some(segment) = segment(&ctx) else { return NEXT };
    let proxy = INGRESS_REDIRECTS.get_ptr(segment.destination);
    if let Some(last_activity) = SOCKET_TRACKER.get_ptr_mut(segment.destination)
        && is_activity(&ctx, &segment)
    {
        // SAFETY: a pointer that the lookup gave; an aligned 8-byte store is
        // not torn, and of two concurrent ones either will do.
        unsafe { last_activity.write(bpf_ktime_get_ns()) };
    }
    if let Some(proxy) = proxy
        && !goes_to_the_process(&segment)
    {
        // SAFETY: a pointer that the lookup gave.
        let proxy = unsafe { *proxy };
        rewrite(&ctx, &segment, TCP_DESTINATION, segment.destination, proxy);
    }
    NEXT
}

/// Packets from the pod: gives the proxy's answers the port that the client
/// connected to.
#[classifier]
pub(crate) fn tc_redirect_egress(ctx: TcContext) -> i32 {
    if let Some(segment) = segment(&ctx)
        && let Some(application) = EGRESS_REDIRECTS.get_ptr(segment.source)
    {
        // SAFETY: a pointer that the lookup gave.
        let application = unsafe { *application };
        rewrite(&ctx, &segment, TCP_SOURCE, segment.source, application);
    }
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

/// The process runs, and this is not a connection that the proxy still serves.
#[inline(always)]
fn goes_to_the_process(segment: &Segment) -> bool {
    DISABLE_REDIRECT.get_ptr(segment.destination).is_some()
        && ACTIVE_CONNECTIONS.get_ptr(segment.source).is_none()
}

/// Whether the segment keeps the process awake: the kubelet's probes do not,
/// nor does what a pod sends to itself.
#[inline(always)]
fn is_activity(ctx: &TcContext, segment: &Segment) -> bool {
    match segment.ip {
        IpVersion::V4 => {
            let Some(source) = Copied(ctx).bytes::<4>(segment.ip_at + IPV4_SOURCE) else {
                return true;
            };
            if let Some(kubelet) = KUBELET_ADDRS_V4.get_ptr(0) {
                // SAFETY: a pointer that the lookup gave.
                if unsafe { *kubelet } == source {
                    return false;
                }
            } else if is_kubelet_current() {
                // Cannot fail: a full LRU map makes room.
                let _cannot_fail = KUBELET_ADDRS_V4.insert(0, source, 0);
                return false;
            }
            !(source == [127, 0, 0, 1] && ignores_localhost())
        }
        IpVersion::V6 => {
            let Some(source) = Copied(ctx).bytes::<16>(segment.ip_at + IPV6_SOURCE) else {
                return true;
            };
            if let Some(kubelet) = KUBELET_ADDRS_V6.get_ptr(0) {
                // SAFETY: a pointer that the lookup gave.
                if unsafe { *kubelet } == source {
                    return false;
                }
            } else if is_kubelet_current() {
                // As for IPv4.
                let _cannot_fail = KUBELET_ADDRS_V6.insert(0, source, 0);
                return false;
            }
            !(source == [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1] && ignores_localhost())
        }
    }
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
    // SAFETY: the kernel writes 16 bytes, NUL padded.
    let failed = unsafe { bpf_get_current_comm((&raw mut comm).cast(), 16) };
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
