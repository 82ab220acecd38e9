//! One sandbox: brings what is pinned and attached for it to what should be.
//!
//! All of this blocks, and enters the network namespace of the sandbox: it
//! runs on a thread that ends afterwards.

use std::{
    borrow::Cow,
    collections::HashMap,
    fs,
    os::{fd::OwnedFd, unix::fs::MetadataExt as _},
    path::PathBuf,
    sync::{Mutex, OnceLock, PoisonError},
    time::Duration,
};

use nix::{
    sched::{CloneFlags, setns},
    sys::resource::{RLIM_INFINITY, Resource, setrlimit},
};
use tracing::info;
use zeropod_redirector_abi::Direction;

use crate::{
    Error, ManagedBy, Mechanism,
    hook::Hook,
    interfaces::interfaces,
    kubelet_watch::KubeletWatch,
    maps::Maps,
    object::{Comm, Globals, Identity, Programs},
    repair::{KubeletAddresses, forget_before, restore_redirects},
    sandbox_id::SandboxId,
};

const DIRECTIONS: [Direction; 2] = [Direction::Ingress, Direction::Egress];

/// How long the directory of a sandbox that its shim attaches must be
/// unchanged before what is missing there is taken for forgotten: the shim
/// fails when a pin of its own exists already.
const SETTLED: Duration = Duration::from_secs(30);

/// A sandbox and where to find it.
#[derive(Debug, Clone)]
pub(crate) struct Sandbox {
    /// Process whose network namespace it is.
    pub(crate) pid: u32,
    /// Who attaches it first.
    pub(crate) managed_by: ManagedBy,
    /// Directory of its pins.
    pub(crate) pins: PathBuf,
    /// The host's `/proc`.
    pub(crate) host_proc: PathBuf,
    /// The kubelet's addresses.
    pub(crate) kubelet: KubeletAddresses,
}

/// What does not depend on the sandbox.
#[derive(Debug, Default)]
pub(crate) struct Attacher {
    /// The redirector.
    pub(crate) object: Cow<'static, [u8]>,
    /// Directory of the pins of all sandboxes.
    pub(crate) maps_dir: PathBuf,
    /// The cgroup whose sockets are watched for the kubelet's.
    pub(crate) cgroup: PathBuf,
    /// Cookie of the host's network namespace, or 0 if it is not known.
    pub(crate) host_netns: u64,
    /// Name of the process that probes, where no shim says otherwise.
    pub(crate) probe_binary_name: String,
    /// Whether packets from localhost are no activity, where no shim says
    /// otherwise.
    pub(crate) ignore_localhost: bool,
    /// The only mechanism to attach by.
    pub(crate) only: Option<Mechanism>,
    /// Whether programs that a shim attached are replaced by ours.
    pub(crate) replace_shim_programs: bool,
    /// Known from the first sandbox on: nothing is loaded before that.
    pub(crate) comm: OnceLock<Comm>,
    pub(crate) watch: OnceLock<KubeletWatch>,
    /// As above. Shims may have told their programs something else, each the
    /// same.
    pub(crate) identities: Mutex<HashMap<Globals, Identity>>,
    /// Hands on what the programs say.
    #[cfg(feature = "trace")]
    pub(crate) log: OnceLock<crate::trace::Log>,
}

/// What [`Attacher::attach`] came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Its shim is not done with it.
    Pending,
    /// It is attached.
    Attached {
        /// How: by clsact if one of its interfaces is.
        mechanism: Mechanism,
        /// Whether anything had to be done.
        changed: bool,
    },
}

impl Attacher {
    /// Attaches whatever is missing, is not ours, or hangs on another device;
    /// leaves alone what is right. Programs that are attached are replaced
    /// with no packet in between that meets neither, and stay if that fails.
    pub(crate) fn attach(&self, sandbox: &Sandbox) -> Result<Outcome, Error> {
        sandbox.enter()?;
        let mut maps = match sandbox.managed_by {
            ManagedBy::Manager => Maps::open(&sandbox.pins)?,
            ManagedBy::Shim => match Maps::open_of_shim(&sandbox.pins)? {
                Some(maps) => maps,
                None => return Ok(Outcome::Pending),
            },
        };
        maps = maps.with_those_of(&self.watch()?.maps)?;
        sandbox.identify(&maps)?;
        sandbox.kubelet.tell(&maps, &sandbox.pins)?;
        let restored = restore_redirects(&maps)?;
        if restored > 0 {
            info!(sandbox = sandbox.pid, ports = restored, "put back redirects that were lost");
        }
        let interfaces = interfaces(sandbox.pid)?;
        let hooks = sandbox.hooks(&interfaces)?;
        let globals = self.globals_of(sandbox, &hooks)?;
        let ours = self.identity(&globals)?;
        #[cfg(feature = "trace")]
        self.read_log(&globals, &maps)?;

        let mut mechanism = Mechanism::Tcx;
        let mut wrong = Vec::new();
        for (hook, link) in hooks {
            let right = match hook.right(link.as_ref(), &maps, &ours, self.only)? {
                None if sandbox.managed_by == ManagedBy::Shim && !self.replace_shim_programs => {
                    hook.taken(link.as_ref())?
                }
                right => right,
            };
            match right {
                Some(by) => mechanism = mechanism.max(by),
                None => wrong.push((hook, link)),
            }
        }
        if wrong.iter().any(|(_, link)| link.is_none()) && !sandbox.is_settled()? {
            return Ok(Outcome::Pending);
        }
        if wrong.is_empty() && maps.all_pinned() {
            return Ok(Outcome::Attached { mechanism, changed: false });
        }
        let programs = Programs::load(&self.object, &globals, &maps)?;
        maps.pin(&sandbox.pins)?;
        let mut failed = None;
        for (hook, link) in wrong {
            match hook.attach(link.as_ref(), &programs, self.only) {
                Ok(by) => mechanism = mechanism.max(by),
                // The other interfaces get theirs all the same (B1).
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        if let Some(error) = failed {
            return Err(error);
        }
        maps.signal(&sandbox.pins)?;
        Ok(Outcome::Attached { mechanism, changed: true })
    }

    /// What the programs on a sandbox are to be told: what its shim told its
    /// own, which ours stand for.
    fn globals_of(
        &self,
        sandbox: &Sandbox,
        hooks: &[(Hook<'_>, Option<OwnedFd>)],
    ) -> Result<Globals, Error> {
        let comm = self.comm()?;
        if sandbox.managed_by == ManagedBy::Shim {
            for (hook, link) in hooks {
                if let Some(link) = link
                    && hook.direction == Direction::Ingress
                    && let Some(globals) = hook.globals(link, comm)?
                {
                    return Ok(globals);
                }
            }
        }
        Ok(Globals {
            probe_binary_name: self.probe_binary_name.clone(),
            ignore_localhost: self.ignore_localhost,
            comm,
        })
    }

    /// Why the kubelet's connections are not watched, if it was tried.
    pub(crate) fn watch_failure(&self) -> Option<&Error> {
        self.watch.get()?.failure.as_ref()
    }

    /// Begins to hand on what the programs say, if they say something.
    #[cfg(feature = "trace")]
    fn read_log(&self, globals: &Globals, maps: &Maps) -> Result<(), Error> {
        if self.is_traced() && self.log.get().is_none() {
            let programs = Programs::load(&self.object, globals, maps)?;
            let log = crate::trace::Log::of(programs.program(Direction::Ingress))?;
            let _another_thread_was_faster = self.log.set(log);
        }
        Ok(())
    }

    /// Whether the redirector is not the one that is built in.
    fn is_traced(&self) -> bool {
        matches!(self.object, Cow::Owned(_))
    }

    fn watch(&self) -> Result<&KubeletWatch, Error> {
        let comm = self.comm()?;
        let _one_at_a_time = self.identities.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(watch) = self.watch.get() {
            return Ok(watch);
        }
        let Self { maps_dir, cgroup, probe_binary_name, .. } = self;
        let traced = self.is_traced();
        let watch = KubeletWatch::start(
            maps_dir,
            cgroup,
            probe_binary_name,
            comm,
            self.host_netns,
            traced,
        )?;
        Ok(self.watch.get_or_init(|| watch))
    }

    fn comm(&self) -> Result<Comm, Error> {
        if let Some(comm) = self.comm.get() {
            return Ok(*comm);
        }
        // Kernels before 5.11 count maps and programs as locked memory. Where
        // it may not be raised, there is perhaps enough.
        let _refused = setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY);
        let comm = Comm::detect(&self.object, &Maps::unpinned()?)?;
        Ok(*self.comm.get_or_init(|| comm))
    }

    fn identity(&self, globals: &Globals) -> Result<Identity, Error> {
        // Poisoned means that a thread panicked before it could write.
        let mut identities = self.identities.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(identity) = identities.get(globals) {
            return Ok(identity.clone());
        }
        let identity = Identity::ours(&self.object, globals)?;
        identities.insert(globals.clone(), identity.clone());
        Ok(identity)
    }
}

impl Sandbox {
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
        let Self { pid, pins, host_proc, .. } = self;
        let failed = || |source| Error::Identity { pid: *pid, pins: pins.clone(), source };
        let id = SandboxId::of(host_proc, *pid).map_err(failed())?;
        let recorded = SandboxId::recorded(pins);
        if recorded == Some(id) {
            return Ok(());
        }
        if recorded.is_some() {
            let forgotten = forget_before(maps, id.start().map_err(failed())?)?;
            info!(sandbox = pid, ports = forgotten, "removed what an earlier sandbox left");
        }
        id.record(pins).map_err(failed())
    }

    /// Every direction of every interface, with the link that is pinned for it.
    fn hooks<'a>(
        &'a self,
        interfaces: &'a [(String, u32)],
    ) -> Result<Vec<(Hook<'a>, Option<OwnedFd>)>, Error> {
        let mut hooks = Vec::new();
        for (interface, index) in interfaces {
            for direction in DIRECTIONS {
                let Self { pid, pins, .. } = self;
                let hook = Hook { pid: *pid, pins, interface, index: *index, direction };
                let link = hook.pinned()?;
                hooks.push((hook, link));
            }
        }
        Ok(hooks)
    }

    /// Whether nobody else is at work in the directory.
    fn is_settled(&self) -> Result<bool, Error> {
        if self.managed_by == ManagedBy::Manager {
            return Ok(true);
        }
        let changed = fs::metadata(&self.pins).and_then(|dir| dir.modified());
        let changed = changed.map_err(Error::io("read", &self.pins))?;
        // A clock that was set back settles nothing, but not for ever.
        Ok(changed.elapsed().is_ok_and(|since| since >= SETTLED))
    }
}
