//! Who is at work while a program runs.
#![expect(unsafe_code, reason = "the kernel writes the name in place")]

use aya_ebpf::helpers::generated::{
    bpf_get_current_comm, bpf_get_current_task, bpf_probe_read_kernel,
};
use zeropod_redirector_abi::NO_TASK_COMM;

/// Whether the current task has this name, in two words. `comm_offset` is the
/// value of the global `task_comm_offset`.
#[inline(always)]
pub(crate) fn is_current(name: [u64; 2], comm_offset: u32) -> bool {
    let mut comm = [0_u64; 2];
    let to = (&raw mut comm).cast();
    // The verifier knows the value, and does not look at the other ways: this
    // kernel may not allow them.
    let failed = match comm_offset {
        NO_TASK_COMM => return false,
        // SAFETY: the kernel writes 16 bytes, NUL padded.
        0 => unsafe { bpf_get_current_comm(to, 16) },
        // SAFETY: as above; it reads safely from wherever it is told to.
        offset => unsafe {
            let comm = bpf_get_current_task() + u64::from(offset);
            bpf_probe_read_kernel(to, 16, comm as *const _)
        },
    };
    failed == 0 && comm == name
}
