//! The programs `tc_redirect_ingress` and `tc_redirect_egress`.
//!
//! On any target but BPF this is an empty program, so that the workspace can
//! be built and checked as a whole.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

#[cfg(target_arch = "bpf")]
mod flow;
#[cfg(target_arch = "bpf")]
mod maps;
#[cfg(target_arch = "bpf")]
mod programs;
#[cfg(target_arch = "bpf")]
mod skb;
#[cfg(target_arch = "bpf")]
mod task;

/// Says what happens to a packet, with the feature `trace`.
#[cfg(all(target_arch = "bpf", feature = "trace"))]
macro_rules! trace {
    ($($line:tt)*) => {
        aya_log_ebpf::debug!($($line)*)
    };
}
#[cfg(all(target_arch = "bpf", not(feature = "trace")))]
macro_rules! trace {
    ($ctx:expr, $($line:tt)*) => {
        let _ = $ctx;
    };
}
#[cfg(target_arch = "bpf")]
pub(crate) use trace;

#[cfg(not(target_arch = "bpf"))]
fn main() {}

/// Panics do not compile to BPF; whatever could panic is a bug that the
/// verifier reports.
#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
