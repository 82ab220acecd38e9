//! Access to the packet in an skb.
#![expect(unsafe_code, reason = "packet pointers, checked as the verifier demands")]

use core::mem::MaybeUninit;

use aya_ebpf::{helpers::generated::bpf_skb_load_bytes, programs::TcContext};
use zeropod_redirector_ebpf::packet::Packet;

/// The linear part of a packet, read in place: fast, at fixed offsets.
pub(crate) struct Linear {
    data: usize,
    end: usize,
}

impl Linear {
    #[inline(always)]
    pub(crate) fn of(ctx: &TcContext) -> Self {
        Self { data: ctx.data(), end: ctx.data_end() }
    }
}

/// No header that is read at a fixed offset is behind this.
const MAX_OFFSET: u32 = 0xff;

impl Packet for Linear {
    #[inline(always)]
    fn bytes<const N: usize>(&self, at: u32) -> Option<[u8; N]> {
        // The verifier wants a bound that it can see.
        if at > MAX_OFFSET {
            return None;
        }
        let start = self.data + at as usize;
        if start + N > self.end {
            return None;
        }
        // SAFETY: the N bytes lie before `data_end`, and bytes have no
        // alignment.
        Some(unsafe { *(start as *const [u8; N]) })
    }
}

/// A packet read through the kernel, also where it is not linear.
pub(crate) struct Copied<'a>(pub(crate) &'a TcContext);

impl Packet for Copied<'_> {
    #[inline(always)]
    fn bytes<const N: usize>(&self, at: u32) -> Option<[u8; N]> {
        let mut bytes = MaybeUninit::<[u8; N]>::uninit();
        // SAFETY: the kernel writes N bytes or fails.
        let failed = unsafe {
            bpf_skb_load_bytes(self.0.skb.skb.cast(), at, bytes.as_mut_ptr().cast(), N as u32)
        };
        // SAFETY: the kernel wrote them.
        (failed == 0).then(|| unsafe { bytes.assume_init() })
    }
}
