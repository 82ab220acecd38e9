//! One sandbox: brings what is pinned and attached for it to what should be.
//!
//! All of this blocks, and enters the network namespace of the sandbox: it
//! runs on a thread that ends afterwards.

use std::{fs, os::unix::fs::MetadataExt as _, path::PathBuf};

use nix::sched::{CloneFlags, setns};
use tracing::info;
use zeropod_redirector_abi::Direction;

use crate::{
    Error, Mechanism,
    hook::Hook,
    interfaces::interfaces,
    maps::Maps,
    object::{Globals, Identity, Programs},
    sandbox_id::SandboxId,
};

const DIRECTIONS: [Direction; 2] = [Direction::Ingress, Direction::Egress];

/// A sandbox and where to find it.
#[derive(Debug, Clone)]
pub(crate) struct Sandbox {
    /// Process whose network namespace it is.
    pub(crate) pid: u32,
    /// Directory of its pins.
    pub(crate) pins: PathBuf,
    /// The host's `/proc`.
    pub(crate) host_proc: PathBuf,
}

/// What [`Sandbox::attach`] came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Attached {
    /// How it is attached: by clsact if one of its interfaces is.
    pub(crate) mechanism: Mechanism,
    /// Whether anything had to be done.
    pub(crate) changed: bool,
}

impl Sandbox {
    /// Attaches whatever is missing, is not ours, or hangs on another device;
    /// leaves alone what is right. Programs that are attached are replaced
    /// with no packet in between that meets neither.
    pub(crate) fn attach(
        &self,
        globals: &Globals,
        ours: &Identity,
        only: Option<Mechanism>,
    ) -> Result<Attached, Error> {
        self.enter()?;
        let mut maps = Maps::open(&self.pins)?;
        self.identify(&maps)?;
        let interfaces = interfaces(self.pid)?;
        let mut mechanism = Mechanism::Tcx;
        let mut wrong = Vec::new();
        for (interface, index) in &interfaces {
            for direction in DIRECTIONS {
                let Self { pid, pins, .. } = self;
                let hook = Hook { pid: *pid, pins, interface, index: *index, direction };
                let link = hook.pinned()?;
                match hook.right(link.as_ref(), &maps, ours, only)? {
                    Some(by) => mechanism = mechanism.max(by),
                    None => wrong.push((hook, link)),
                }
            }
        }
        if wrong.is_empty() && maps.all_pinned() {
            return Ok(Attached { mechanism, changed: false });
        }
        let programs = Programs::load(globals, &maps)?;
        maps.pin(&self.pins)?;
        for (hook, link) in wrong {
            mechanism = mechanism.max(hook.attach(link.as_ref(), &programs, only)?);
        }
        maps.signal(&self.pins)?;
        Ok(Attached { mechanism, changed: true })
    }

    /// Moves the calling thread into the sandbox's network namespace.
    fn enter(&self) -> Result<(), Error> {
        let Self { pid, host_proc, .. } = self;
        let namespace = |pid: u32| host_proc.join(pid.to_string()).join("ns/net");
        let failed = |source| Error::Namespace { pid: *pid, source };
        let opened = fs::File::open(namespace(*pid)).map_err(failed)?;
        let inode = opened.metadata().map_err(failed)?.ino();
        // Where even root may not look at the first process (nested
        // containers), nothing can be said about it.
        if fs::metadata(namespace(1)).is_ok_and(|of_the_host| of_the_host.ino() == inode) {
            return Err(Error::HostNetwork { pid: *pid });
        }
        setns(opened, CloneFlags::CLONE_NEWNET).map_err(|errno| failed(errno.into()))
    }

    /// Records which sandbox this is. If the pins are those of an earlier one
    /// with the same pid, its traces are removed from the maps; the maps stay,
    /// since the shim may have opened them already.
    fn identify(&self, maps: &Maps) -> Result<(), Error> {
        let Self { pid, pins, host_proc } = self;
        let failed = || |source| Error::Identity { pid: *pid, pins: pins.clone(), source };
        let id = SandboxId::of(host_proc, *pid).map_err(failed())?;
        let recorded = SandboxId::recorded(pins);
        if recorded == Some(id) {
            return Ok(());
        }
        if recorded.is_some() {
            let forgotten = maps.forget_before(id.start().map_err(failed())?)?;
            info!(sandbox = pid, ports = forgotten, "removed what an earlier sandbox left");
        }
        id.record(pins).map_err(failed())
    }
}
