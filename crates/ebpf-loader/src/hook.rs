//! One direction of one interface of a sandbox, and the program on it.

use std::{
    fs, io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use tracing::debug;
use zeropod_redirector_abi::{Direction, EGRESS_PROGRAM, INGRESS_PROGRAM, link_pin_prefix};

use crate::{
    Error, Mechanism, bpf, clsact,
    error::chain,
    maps::Maps,
    object::{Comm, Globals, Identity, Programs},
};

/// A direction of an interface of the calling thread's network namespace.
pub(crate) struct Hook<'a> {
    /// Process of the sandbox.
    pub(crate) pid: u32,
    /// Directory of the sandbox's pins.
    pub(crate) pins: &'a Path,
    /// Name of the interface.
    pub(crate) interface: &'a str,
    /// Index of the interface.
    pub(crate) index: u32,
    /// Direction of the packets.
    pub(crate) direction: Direction,
}

impl Hook<'_> {
    /// The link that is pinned for this hook.
    pub(crate) fn pinned(&self) -> Result<Option<OwnedFd>, Error> {
        match bpf::open(&self.pin()) {
            Ok(link) => Ok(Some(link)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::io("open", self.pin())(error)),
        }
    }

    /// How our program is on this hook, if it is there, on these maps, and
    /// neither on a device that is gone (B11) nor by another mechanism than
    /// the one asked for.
    pub(crate) fn right(
        &self,
        link: Option<&OwnedFd>,
        maps: &Maps,
        ours: &Identity,
        only: Option<Mechanism>,
    ) -> Result<Option<Mechanism>, Error> {
        let is_ours = |program: u32| {
            let program = bpf::program_by_id(program)?;
            ours.is(self.direction, &bpf::program_info(&program)?, &maps.ids())
        };
        let failed = || Error::io("examine", self.pin());
        if only != Some(Mechanism::Clsact)
            && let Some(link) = link
            && let Some(info) = self.on_device(link)?
            && is_ours(info.program).map_err(failed())?
        {
            return Ok(Some(Mechanism::Tcx));
        }
        if only != Some(Mechanism::Tcx)
            && link.is_none()
            && let Some(program) = clsact::attached(self.index, self.direction).map_err(failed())?
            && is_ours(program).map_err(failed())?
        {
            return Ok(Some(Mechanism::Clsact));
        }
        Ok(None)
    }

    /// How a redirector is on this hook, whoever's it is.
    pub(crate) fn taken(&self, link: Option<&OwnedFd>) -> Result<Option<Mechanism>, Error> {
        if let Some(link) = link
            && self.on_device(link)?.is_some()
        {
            return Ok(Some(Mechanism::Tcx));
        }
        let taken = clsact::is_taken(self.program(), self.index, self.direction);
        let taken = taken.map_err(Error::io("examine", self.pin()))?;
        Ok(taken.then_some(Mechanism::Clsact))
    }

    /// What the program behind a link was told, if it is a redirector.
    pub(crate) fn globals(&self, link: &OwnedFd, comm: Comm) -> Result<Option<Globals>, Error> {
        let read = || {
            let Some(info) = bpf::link_info(link)? else { return Ok(None) };
            let program = bpf::program_by_id(info.program)?;
            Globals::of(&bpf::program_info(&program)?, comm)
        };
        read().map_err(Error::io("examine", self.pin()))
    }

    /// Puts our program on this hook, in the place of what is there.
    pub(crate) fn attach(
        &self,
        link: Option<&OwnedFd>,
        programs: &Programs,
        only: Option<Mechanism>,
    ) -> Result<Mechanism, Error> {
        let by_tcx = match only {
            Some(Mechanism::Clsact) => None,
            _ => Some(self.attach_tcx(link, programs)),
        };
        match by_tcx {
            Some(Ok(())) => {
                // What a kernel or an option of before left. Fails where there
                // is no clsact, which is as good.
                if let Err(error) = clsact::detach(self.program(), self.index, self.direction) {
                    debug!(sandbox = self.pid, %error, "no filters to remove");
                }
                Ok(Mechanism::Tcx)
            }
            Some(Err(error)) if only == Some(Mechanism::Tcx) => Err(error),
            before => {
                let by_tcx = before.and_then(Result::err);
                self.attach_clsact(programs, by_tcx.as_ref())?;
                if link.is_some() {
                    let pin = self.pin();
                    fs::remove_file(&pin).map_err(Error::io("remove", pin))?;
                }
                Ok(Mechanism::Clsact)
            }
        }
    }

    fn attach_tcx(&self, link: Option<&OwnedFd>, programs: &Programs) -> Result<(), Error> {
        let program = programs.program(self.direction);
        let failed = |source| self.failed(Mechanism::Tcx, None, source);
        if let Some(link) = link
            && self.on_device(link)?.is_some()
        {
            return bpf::update_link(link, program).map_err(failed);
        }
        let link = bpf::attach_tcx(program, self.index, self.direction).map_err(failed)?;
        pin_over(link, &self.pin())
    }

    fn attach_clsact(&self, programs: &Programs, by_tcx: Option<&Error>) -> Result<(), Error> {
        let program = programs.program(self.direction);
        clsact::attach(program, self.program(), self.index, self.direction)
            .map_err(|source| self.failed(Mechanism::Clsact, by_tcx, source))
    }

    /// What the link is, if it is on this hook's device.
    fn on_device(&self, link: &OwnedFd) -> Result<Option<bpf::LinkInfo>, Error> {
        let info = bpf::link_info(link).map_err(Error::io("examine", self.pin()))?;
        let here = (self.index, self.direction);
        Ok(info.filter(|info| (info.interface, info.direction) == here))
    }

    /// Where the link is pinned. bpffs takes no dots, as in `eth0.100`.
    fn pin(&self) -> PathBuf {
        let prefix = link_pin_prefix(self.direction);
        self.pins.join(format!("{prefix}{}", self.interface.replace('.', "_")))
    }

    fn program(&self) -> &'static str {
        match self.direction {
            Direction::Ingress => INGRESS_PROGRAM,
            Direction::Egress => EGRESS_PROGRAM,
        }
    }

    fn failed(&self, by: Mechanism, before: Option<&Error>, source: io::Error) -> Error {
        Error::Attach {
            pid: self.pid,
            interface: self.interface.to_owned(),
            program: self.program(),
            mechanism: by,
            before: before.map(|error| format!(" (before that: {})", chain(error))),
            source,
        }
    }
}

/// Pins an object in the place of what is pinned at `path`, so that at any
/// time one of them is.
pub(crate) fn pin_over(object: OwnedFd, path: &Path) -> Result<(), Error> {
    let mut draft = path.as_os_str().to_owned();
    draft.push("_new");
    let draft = PathBuf::from(draft);
    match fs::remove_file(&draft) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(Error::io("remove", draft)(error));
        }
        _ => {}
    }
    bpf::pin(object, &draft).map_err(Error::io("pin", &draft))?;
    fs::rename(&draft, path).map_err(Error::io("rename a pin to", path))
}
