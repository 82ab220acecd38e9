//! The program `record_kubelet_connection`, one for a node: knows which
//! connections the kubelet opened.
//!
//! When a packet arrives, the task that happens to be current is a matter of
//! luck. When a connection is opened, it is the one who opens it.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

#[cfg(target_arch = "bpf")]
mod program;
#[cfg(target_arch = "bpf")]
mod task;

#[cfg(not(target_arch = "bpf"))]
fn main() {}

/// As in the redirector: never called.
#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
