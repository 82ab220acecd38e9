//! The stand-in as a process of its own, and what its ends leave behind.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Stdio,
};

use crate::common::{LONG, Manager, PORT, container, count, get, maps_dir};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::{
    io::{AsyncBufReadExt, BufReader, Lines},
    process::{Child, ChildStdout, Command},
    time::timeout,
};
use zeropod_testkit::{
    node::{
        isolated,
        stand_in::{Happening, Mode, What},
    },
    skip, tools,
};

#[test]
fn it_tells_what_happens_and_a_signal_ends_it_cleanly() {
    if !skip::without_root() {
        isolated(clean).unwrap();
    }
}

async fn clean() {
    let dir = tempfile::tempdir().unwrap();
    let _manager = Manager::start();
    let mut shim = Shim::start(dir.path(), "0.5");
    let pid = shim
        .next(|what| match what {
            What::Sandbox { pid, ipv4, .. } => Some((*pid, ipv4.unwrap())),
            _ => None,
        })
        .await;
    shim.next(|what| matches!(what, What::Registered { .. }).then_some(())).await;
    shim.next(|what| matches!(what, What::ScaledDown { .. }).then_some(())).await;
    assert_eq!(count(&get(pid.1, PORT, "test").await), 1);
    shim.signal(Signal::SIGTERM);
    shim.next(|what| matches!(what, What::Stopped).then_some(())).await;
    assert!(timeout(LONG, shim.child.wait()).await.unwrap().unwrap().success());
    assert!(!shim.socket.exists(), "S6: a clean end removes the socket");
    assert!(!maps_dir().join(pid.0.to_string()).exists());
    assert!(!Path::new(&format!("/proc/{}", pid.0)).exists());
}

#[test]
fn sigkill_leaves_socket_pins_sandbox_and_container() {
    if !skip::without_root() {
        isolated(killed).unwrap();
    }
}

async fn killed() {
    let dir = tempfile::tempdir().unwrap();
    let _manager = Manager::start();
    let mut shim = Shim::start(dir.path(), "0");
    let (sandbox, ipv4) = shim
        .next(|what| match what {
            What::Sandbox { pid, ipv4, .. } => Some((*pid, ipv4.unwrap())),
            _ => None,
        })
        .await;
    let container = shim
        .next(|what| match what {
            What::Started { pid } => Some(pid.unwrap()),
            _ => None,
        })
        .await;
    shim.next(|what| matches!(what, What::Registered { .. }).then_some(())).await;
    shim.signal(Signal::SIGKILL);
    timeout(LONG, shim.child.wait()).await.unwrap().unwrap();

    assert!(shim.socket.exists(), "S6");
    assert!(fs::read_dir(maps_dir().join(sandbox.to_string())).unwrap().count() > 0, "H12");
    // The redirect was off, so that the container is still reached.
    assert_eq!(count(&get(ipv4, PORT, "test").await), 1);
    for pid in [container, sandbox] {
        kill(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL).unwrap();
    }
    let delete = tools::runc().unwrap();
    let root = dir.path().join("work").join(&shim.id).join("runc");
    let status = Command::new(delete)
        .arg("--root")
        .arg(root)
        .args(["delete", "--force", &shim.id])
        .status()
        .await
        .unwrap();
    assert!(status.success());
}

struct Shim {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
    socket: PathBuf,
    id: String,
}

impl Shim {
    fn start(dir: &Path, scaledown: &str) -> Self {
        let spec = container(PORT, Mode::Checkpoint);
        let mut child = Command::new(env!("CARGO_BIN_EXE_stand-in-shim"))
            .arg("--socket-dir")
            .arg(dir.join("s"))
            .arg("--images")
            .arg(dir.join("i"))
            .arg("--work-dir")
            .arg(dir.join("work"))
            .arg("--criu-dir")
            .arg(tools::criu().unwrap())
            .args(["--id", &spec.id, "--pod", "web", "--container", "app"])
            .args(["--port", &PORT.to_string(), "--scaledown", scaledown, "--longest-retry", "0.2"])
            .arg("--")
            .arg(spec.program)
            .args(spec.args)
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let socket = dir.join("s").join(format!("{}.sock", spec.id));
        Self { child, lines, socket, id: spec.id }
    }

    /// The next line that `pick` wants.
    async fn next<T>(&mut self, pick: impl Fn(&What) -> Option<T>) -> T {
        let find = async {
            loop {
                let line = self.lines.next_line().await.unwrap().expect("the shim ended");
                let happening: Happening = serde_json::from_str(&line).unwrap();
                if let Some(found) = pick(&happening.what) {
                    return found;
                }
            }
        };
        timeout(LONG, find).await.expect("it never happened")
    }

    fn signal(&self, signal: Signal) {
        let pid = self.child.id().expect("it runs").cast_signed();
        kill(Pid::from_raw(pid), signal).unwrap();
    }
}
