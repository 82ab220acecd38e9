//! Work in mount and network namespaces of its own, so that a test can mount,
//! pin and make interfaces without anyone noticing.

use std::{panic, path::Path, thread};

use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};

use super::{Error, sandbox};

/// Runs `work` on a thread, and a runtime below it, in namespaces of their own:
/// mounts that nobody else sees, with an empty bpffs on `/sys/fs/bpf`, and a
/// network of just lo. All of it is gone when the last process is.
///
/// # Errors
/// When the kernel refuses, which is likely without root.
///
/// # Panics
/// When `work` does.
pub fn isolated<T: Send>(work: impl AsyncFnOnce() -> T + Send) -> Result<T, Error> {
    thread::scope(|scope| {
        let thread = scope.spawn(|| {
            enter()?;
            // Its threads inherit the namespaces of this one.
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(2)
                .enable_all()
                .build()
                .map_err(Error::io("start", "a runtime"))?;
            Ok(runtime.block_on(work()))
        });
        thread.join().unwrap_or_else(|panicked| panic::resume_unwind(panicked))
    })
}

fn enter() -> Result<(), Error> {
    let flags = CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET;
    let failed = |errno: nix::Error| Error::io("leave", "the namespaces")(errno.into());
    unshare(flags).map_err(failed)?;
    let none = None::<&Path>;
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    let root = Path::new("/");
    mount(none, root, none, private, none)
        .map_err(|errno| Error::io("make private", root)(errno.into()))?;
    let bpf = Path::new("/sys/fs/bpf");
    mount(Some("bpf"), bpf, Some("bpf"), MsFlags::empty(), none)
        .map_err(|errno| Error::io("mount", bpf)(errno.into()))?;
    sandbox::set_up_loopback()
}
