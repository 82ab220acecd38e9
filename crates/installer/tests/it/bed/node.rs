//! A booted node: Debian with systemd and containerd in a container of
//! systemd-nspawn, whose changes are gone when it is dropped.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use zeropod_installer::containerd::{Containerd, Handler};

use super::cgroup::Cgroup;

/// Longest wait for anything a node does.
const PATIENCE: Duration = Duration::from_mins(2);

pub(crate) struct Node {
    nspawn: Child,
    /// Its PID 1, as seen from here.
    pub(crate) init: u32,
    assets: tempfile::TempDir,
    /// Goes last, when nobody is in it.
    _cgroup: Cgroup,
}

impl Node {
    /// Boots a root directory and waits for its containerd. `binds` are files
    /// and directories to mount over the root's own, writable.
    pub(crate) fn boot(root: &Path, binds: &[(PathBuf, &str)]) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let machine = format!("zeropod-{}-{number}", std::process::id());
        let binds = binds.iter().map(|(from, to)| format!("--bind={}:{to}", from.display()));
        let cgroup = Cgroup::create(&machine);
        let nspawn = cgroup
            .command("systemd-nspawn")
            .env("SYSTEMD_NSPAWN_UNIFIED_HIERARCHY", "1")
            // CRIU cannot read filters while it is below one itself.
            .env("SYSTEMD_SECCOMP", "0")
            .arg("--directory")
            .arg(root)
            .args(["--boot", "--volatile=overlay", "--register=no", "--keep-unit"])
            .args(["--capability=all", "--private-network", "--console=pipe"])
            .arg(format!("--machine={machine}"))
            .args(binds)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let pid = nspawn.id();
        let mut node = Self { nspawn, init: 0, assets: assets(), _cgroup: cgroup };
        let children = format!("/proc/{pid}/task/{pid}/children");
        node.init = wait_for("systemd-nspawn to start PID 1", || {
            // Its first child only makes the second one, which stays.
            let child = fs::read_to_string(&children).ok()?;
            let child = child.split_whitespace().next()?;
            let started = Path::new(&format!("/proc/{child}/root/run/systemd/private")).exists();
            if started { child.parse().ok() } else { None }
        });
        let node = node;
        wait_for("containerd to answer", || node.handlers());
        node
    }

    /// A path of the node, as seen from here.
    pub(crate) fn path(&self, path: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{path}", self.init))
    }

    pub(crate) fn read(&self, path: &str) -> String {
        fs::read_to_string(self.path(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
    }

    /// What a pod with the host's files mounted would run.
    pub(crate) fn installer(&self, args: &[&str]) -> Outcome {
        self.installer_under(&[], args)
    }

    /// The same below another program.
    pub(crate) fn installer_under(&self, wrapper: &[&str], args: &[&str]) -> Outcome {
        // systemd tells its peer by the process id, so it must see the process.
        let output = Command::new("nsenter")
            .args(["--target", &self.init.to_string(), "--pid", "--"])
            .args(wrapper)
            .arg(env!("CARGO_BIN_EXE_zeropod-installer"))
            .arg(format!("-host-root=/proc/{}/root", self.init))
            .arg(format!("-assets={}", self.assets.path().display()))
            .args(args)
            .output()
            .unwrap();
        Outcome::new(&output)
    }

    /// Runs a command in the node.
    pub(crate) fn run(&self, command: &[&str]) -> Outcome {
        let output = Command::new("nsenter")
            .args(["--target", &self.init.to_string(), "--all", "--wd=/", "--"])
            .args(command)
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .output()
            .unwrap();
        Outcome::new(&output)
    }

    /// The file of the image that becomes `bin/criu` on the node.
    pub(crate) fn criu_asset(&self) -> PathBuf {
        self.assets.path().join("bin/criu")
    }

    /// The file of the image that becomes the shim on the node.
    pub(crate) fn shim_asset(&self) -> PathBuf {
        self.assets.path().join("bin/containerd-shim-zeropod-v2")
    }

    /// What the CRI plugin serves; `None` while it does not answer.
    pub(crate) fn handlers(&self) -> Option<std::collections::HashMap<String, Handler>> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let socket = self.path("/run/containerd/containerd.sock");
            Containerd::connect(&socket).await.ok()?.handlers().await.ok()?
        })
    }

    /// Every start of containerd has another one.
    pub(crate) fn containerd_start(&self) -> String {
        let show = ["systemctl", "show", "-p", "MainPID,ExecMainStartTimestampMonotonic"];
        self.run(&[&show[..], &["containerd.service"]].concat()).stdout
    }

    /// Files below some directories with content, mode and inode.
    pub(crate) fn snapshot(&self, dirs: &[&str]) -> BTreeMap<PathBuf, Vec<u8>> {
        let mut files = BTreeMap::new();
        for dir in dirs {
            collect(&self.path(dir), Path::new(dir), &mut files);
        }
        files
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Ok(init) = i32::try_from(self.init)
            && init > 1
        {
            let _ = kill(Pid::from_raw(init), Signal::SIGKILL);
        }
        let _ = self.nspawn.kill();
        let _ = self.nspawn.wait();
    }
}

/// What became of a program.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// Its exit code; `None` if a signal ended it.
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Outcome {
    fn new(output: &Output) -> Self {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Self {
            code: output.status.code(),
            stdout: text(&output.stdout),
            stderr: text(&output.stderr),
        }
    }

    /// Fails unless it exited with 0, and returns what it printed.
    pub(crate) fn ok(self) -> String {
        assert_eq!(self.code, Some(0), "{self:?}");
        self.stdout
    }

    /// Fails unless it exited with 1, and returns what it complained of.
    pub(crate) fn refused(self) -> String {
        assert_eq!(self.code, Some(1), "{self:?}");
        self.stderr
    }
}

/// Waits until something is there.
pub(crate) fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(start.elapsed() < PATIENCE, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// An image of the installer: stand-ins that are programs, and a library.
fn assets() -> tempfile::TempDir {
    let assets = tempfile::tempdir().unwrap();
    for (path, from) in
        [("bin/containerd-shim-zeropod-v2", "/bin/true"), ("bin/criu", "/bin/false")]
    {
        let path = assets.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::copy(from, path).unwrap();
    }
    fs::create_dir(assets.path().join("lib")).unwrap();
    fs::write(assets.path().join("lib/libexample.so.1"), "a library").unwrap();
    assets
}

fn collect(real: &Path, path: &Path, files: &mut BTreeMap<PathBuf, Vec<u8>>) {
    let Ok(entries) = fs::read_dir(real) else { return };
    for entry in entries {
        let entry = entry.unwrap();
        let path = path.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            collect(&entry.path(), &path, files);
        } else if entry.file_type().unwrap().is_file() {
            files.insert(path, fs::read(entry.path()).unwrap());
        }
    }
}
