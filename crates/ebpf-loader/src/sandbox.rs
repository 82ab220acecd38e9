//! One sandbox: brings what is pinned and attached for it to what should be.
//!
//! All of this blocks, and enters the network namespace of the sandbox: it
//! runs on a thread that ends afterwards.

use std::{
    fs, io,
    os::{fd::OwnedFd, unix::fs::MetadataExt as _},
    path::{Path, PathBuf},
};

use nix::sched::{CloneFlags, setns};
use zeropod_redirector_abi::{Direction, EGRESS_PROGRAM, INGRESS_PROGRAM, link_pin_prefix};

use crate::{
    Error, bpf,
    maps::Maps,
    object::{Globals, Identity, Programs},
};

/// Interfaces of a sandbox that its traffic passes: probes and proxied
/// connections come over `lo`, all others over `eth0`.
const INTERFACES: [&str; 2] = ["lo", "eth0"];
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

impl Sandbox {
    /// Attaches whatever is missing, is not ours, or hangs on another device;
    /// leaves alone what is right. Programs of links that exist are replaced
    /// with no packet in between that meets neither.
    pub(crate) fn attach(&self, globals: &Globals, ours: &Identity) -> Result<Change, Error> {
        self.enter()?;
        let mut maps = Maps::open(&self.pins)?;
        let mut hooks = Vec::new();
        for interface in INTERFACES {
            let index = self.interface_index(interface)?;
            for direction in DIRECTIONS {
                hooks.push(Hook { sandbox: self, interface, index, direction });
            }
        }
        let mut wrong = Vec::new();
        for hook in hooks {
            let link = hook.pinned()?;
            if !hook.is_right(link.as_ref(), &maps, ours)? {
                wrong.push((hook, link));
            }
        }
        if wrong.is_empty() && maps.all_pinned() {
            return Ok(Change::None);
        }
        let programs = Programs::load(globals, &maps)?;
        maps.pin(&self.pins)?;
        for (hook, link) in wrong {
            hook.attach(link, &programs)?;
        }
        maps.signal(&self.pins)?;
        Ok(Change::Attached)
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

    fn interface_index(&self, interface: &str) -> Result<u32, Error> {
        nix::net::if_::if_nametoindex(interface).map_err(|errno| Error::NoInterface {
            pid: self.pid,
            interface: interface.to_owned(),
            source: errno.into(),
        })
    }
}

/// What [`Sandbox::attach`] had to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Change {
    /// Nothing: all was right.
    None,
    /// Something was attached or replaced.
    Attached,
}

/// A direction of an interface of a sandbox.
struct Hook<'a> {
    sandbox: &'a Sandbox,
    interface: &'static str,
    index: u32,
    direction: Direction,
}

impl Hook<'_> {
    fn pin(&self) -> PathBuf {
        let prefix = link_pin_prefix(self.direction);
        self.sandbox.pins.join(format!("{prefix}{}", self.interface))
    }

    /// The link that is pinned for this hook.
    fn pinned(&self) -> Result<Option<OwnedFd>, Error> {
        match bpf::open(&self.pin()) {
            Ok(link) => Ok(Some(link)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::io("open", self.pin())(error)),
        }
    }

    /// Whether the link is on this hook's device, rather than on one that is
    /// gone (B11).
    fn is_on_device(&self, link: &OwnedFd) -> Result<bool, Error> {
        let info = bpf::link_info(link).map_err(Error::io("read", self.pin()))?;
        Ok(info
            .is_some_and(|info| info.interface == self.index && info.direction == self.direction))
    }

    /// Whether the link is on this hook, with our program, on these maps.
    fn is_right(
        &self,
        link: Option<&OwnedFd>,
        maps: &Maps,
        ours: &Identity,
    ) -> Result<bool, Error> {
        let Some(link) = link else { return Ok(false) };
        if !self.is_on_device(link)? {
            return Ok(false);
        }
        let failed = || Error::io("read the program of", self.pin());
        let Some(info) = bpf::link_info(link).map_err(failed())? else { return Ok(false) };
        let program = bpf::program_by_id(info.program).map_err(failed())?;
        let program = bpf::program_info(&program).map_err(failed())?;
        ours.is(self.direction, &program, &maps.ids()).map_err(failed())
    }

    fn attach(&self, link: Option<OwnedFd>, programs: &Programs) -> Result<(), Error> {
        let program = programs.program(self.direction);
        let failed = |source| Error::Attach {
            pid: self.sandbox.pid,
            interface: self.interface.to_owned(),
            program: match self.direction {
                Direction::Ingress => INGRESS_PROGRAM,
                Direction::Egress => EGRESS_PROGRAM,
            },
            source,
        };
        let pin = self.pin();
        if let Some(link) = link {
            if self.is_on_device(&link)? {
                return bpf::update_link(link, program).map_err(failed);
            }
            remove(&pin)?;
        }
        let link = bpf::attach_tcx(program, self.index, self.direction).map_err(failed)?;
        bpf::pin(link, &pin).map_err(Error::io("pin", pin))
    }
}

fn remove(pin: &Path) -> Result<(), Error> {
    fs::remove_file(pin).map_err(Error::io("remove", pin))
}
