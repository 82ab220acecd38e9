//! A private machine for a program: namespaces of its own for mounts,
//! processes and network, and a root directory that shows the host's files but
//! has its own `/run`, `/sys/fs/bpf`, `/hostproc` and `/var/lib/zeropod`.
//!
//! A node's paths are used as they are, and nothing outside is touched: when
//! the program ends, however it ends, the kernel removes its processes,
//! interfaces, mounts and pins.

use std::{
    env,
    ffi::OsStr,
    fs, io,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use nix::{
    errno::Errno,
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, unshare},
    sys::{
        prctl,
        signal::{SigSet, Signal, kill},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::{Pid, Uid, chdir, pivot_root},
};
use thiserror::Error;

use crate::node::sandbox::set_up_loopback;

/// Which part of the way a process is on; the value is the root directory.
const INIT: &str = "ZEROPOD_BOX_INIT";
const INSIDE: &str = "ZEROPOD_BOX_INSIDE";

/// Directories of the private root that are empty and its own, on a tmpfs.
const OWN: [&str; 6] = ["/hostproc", "/proc", "/run", "/tls", "/var/lib/zeropod", "/opt/zeropod"];

/// Why a private machine could not be made.
#[derive(Debug, Error)]
pub enum BoxError {
    /// The namespaces need root.
    #[error("a node in a box needs root")]
    NotRoot,
    /// A step failed.
    #[error("cannot {step}")]
    Step {
        /// What was tried.
        step: String,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
}

/// Runs `program` on a private machine and returns its exit code. Call it
/// first in `main`: the executable is started anew, as init and as program of
/// the machine, with the same arguments.
///
/// # Errors
/// When the namespaces cannot be made; never for what `program` does.
pub fn run_inside(program: impl FnOnce() -> ExitCode) -> Result<ExitCode, BoxError> {
    if env::var_os(INSIDE).is_some() {
        watched().thread_unblock().map_err(errno("unblock signals"))?;
        return Ok(program());
    }
    if let Some(root) = env::var_os(INIT) {
        return init(Path::new(&root));
    }
    if !Uid::effective().is_root() {
        return Err(BoxError::NotRoot);
    }
    let root = env::temp_dir().join(format!("zeropod-box-{}", std::process::id()));
    fs::create_dir(&root).map_err(step(|| format!("create {}", root.display())))?;
    let exit = unshare(CloneFlags::CLONE_NEWPID)
        .map_err(errno("make a pid namespace"))
        .and_then(|()| supervise(INIT, root.as_os_str()));
    // Only the mount point is left; its mounts went with the namespace.
    fs::remove_dir(&root).map_err(step(|| format!("remove {}", root.display())))?;
    exit
}

/// Process 1 of the machine: makes its root, starts the program, reaps.
fn init(root: &Path) -> Result<ExitCode, BoxError> {
    prctl::set_pdeathsig(Signal::SIGKILL).map_err(errno("tie init to its starter"))?;
    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWIPC)
        .map_err(errno("make mount and network namespaces"))?;
    make_root(root)?;
    set_up_loopback().map_err(|error| BoxError::Step {
        step: "bring lo up".into(),
        source: io::Error::other(error),
    })?;
    supervise(INSIDE, OsStr::new("1"))
}

/// Starts this executable anew with `stage` in its environment, passes SIGINT
/// and SIGTERM on to it, and reaps every child until it ends.
///
/// Without a thread for the signals: after `unshare(CLONE_NEWPID)` a process can
/// start none.
fn supervise(stage: &str, value: &OsStr) -> Result<ExitCode, BoxError> {
    let signals = watched();
    signals.thread_block().map_err(errno("block signals"))?;
    let exe = env::current_exe().map_err(step(|| "find this executable".into()))?;
    let child = Command::new(&exe)
        .args(env::args_os().skip(1))
        .env_remove(INIT)
        .env(stage, value)
        .spawn()
        .map_err(step(|| format!("start {}", exe.display())))?;
    let child = Pid::from_raw(child.id().cast_signed());
    loop {
        match signals.wait().map_err(errno("wait for signals"))? {
            Signal::SIGCHLD => {
                if let Some(code) = reap(child)? {
                    return Ok(code);
                }
            }
            // Fails only when the child is gone, and then SIGCHLD follows.
            signal => drop(kill(child, signal)),
        }
    }
}

/// Signals that [`supervise`] takes; its children start with them blocked.
fn watched() -> SigSet {
    [Signal::SIGINT, Signal::SIGTERM, Signal::SIGCHLD].into_iter().collect()
}

/// Reaps what has ended; returns the exit code of `child` if that has.
fn reap(child: Pid) -> Result<Option<ExitCode>, BoxError> {
    let code = |code| Ok(Some(ExitCode::from(u8::try_from(code).unwrap_or(1))));
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(pid, status)) if pid == child => return code(status),
            Ok(WaitStatus::Signaled(pid, signal, _)) if pid == child => {
                return code(128 + signal as i32);
            }
            Ok(WaitStatus::StillAlive) => return Ok(None),
            Ok(_) => {}
            Err(error) => return Err(errno("wait for the program")(error)),
        }
    }
}

fn make_root(root: &Path) -> Result<(), BoxError> {
    let here = env::current_dir().map_err(step(|| "find the working directory".into()))?;
    let none = None::<&Path>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)
        .map_err(errno("make mounts private"))?;
    mount(Some("tmpfs"), root, Some("tmpfs"), MsFlags::empty(), Some("mode=755"))
        .map_err(errno("mount the root"))?;
    mirror(Path::new("/"), root, root)?;

    let inside = |path: &str| root.join(path.trim_start_matches('/'));
    for (kind, path) in [("proc", "/proc"), ("bpf", "/sys/fs/bpf")] {
        mount(Some(kind), &inside(path), Some(kind), MsFlags::empty(), none)
            .map_err(errno(&format!("mount {path}")))?;
    }
    mount(Some(&inside("/proc")), &inside("/hostproc"), none, MsFlags::MS_BIND, none)
        .map_err(errno("bind /hostproc"))?;

    let old = inside("/run/old-root");
    fs::create_dir_all(&old).map_err(step(|| "create the old root's place".into()))?;
    pivot_root(root, &old).map_err(errno("change the root"))?;
    chdir(&here).map_err(errno("go back to the working directory"))?;
    umount2("/run/old-root", MntFlags::MNT_DETACH).map_err(errno("leave the old root"))?;
    fs::remove_dir("/run/old-root").map_err(step(|| "remove the old root's place".into()))
}

/// Shows every entry of `from` in `to`, except what is the machine's own.
fn mirror(from: &Path, to: &Path, root: &Path) -> Result<(), BoxError> {
    let reading = || format!("read {}", from.display());
    for entry in fs::read_dir(from).map_err(step(reading))? {
        let entry = entry.map_err(step(reading))?;
        let (path, kind) = (entry.path(), entry.file_type().map_err(step(reading))?);
        if path == root || OWN.iter().any(|own| path == Path::new(own)) {
            continue;
        }
        let target = to.join(entry.file_name());
        let failed = || format!("show {} in the private root", path.display());
        if kind.is_symlink() {
            let link = fs::read_link(&path).map_err(step(failed))?;
            symlink(link, &target).map_err(step(failed))?;
        } else if kind.is_dir() {
            fs::create_dir(&target).map_err(step(failed))?;
            if OWN.iter().any(|own| Path::new(own).starts_with(&path)) {
                mirror(&path, &target, root)?;
            } else {
                bind(&path, &target)?;
            }
        } else if kind.is_file() {
            fs::write(&target, "").map_err(step(failed))?;
            bind(&path, &target)?;
        }
    }
    for own in OWN.map(PathBuf::from) {
        if own.parent() == Some(from) {
            let target = to.join(own.file_name().unwrap_or_default());
            fs::create_dir(&target).map_err(step(|| format!("create {}", own.display())))?;
        }
    }
    Ok(())
}

fn bind(from: &Path, to: &Path) -> Result<(), BoxError> {
    let none = None::<&Path>;
    mount(Some(from), to, none, MsFlags::MS_BIND | MsFlags::MS_REC, none)
        .map_err(errno(&format!("bind {}", from.display())))
}

fn step(what: impl FnOnce() -> String) -> impl FnOnce(io::Error) -> BoxError {
    move |source| BoxError::Step { step: what(), source }
}

fn errno(what: &str) -> impl FnOnce(Errno) -> BoxError {
    move |errno| BoxError::Step { step: what.into(), source: errno.into() }
}
