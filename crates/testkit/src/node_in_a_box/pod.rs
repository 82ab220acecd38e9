//! A pod with a zeropod container on the node: its object in the API, and the
//! process of its stand-in shim, which makes sandbox and container.

use std::{
    env,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::{
    process::Command,
    sync::{broadcast, mpsc},
    time::timeout,
};

use super::{Child, NODE, Node, NodeError, PATIENCE};
use crate::{
    kube::{create_pod, delete_pod, pod, run_pod},
    node::stand_in::{Happening, What},
};

/// What pod to make.
#[derive(Debug, Clone)]
pub struct PodOptions {
    /// Namespace; it must exist.
    pub namespace: &'static str,
    /// Name of the pod, and unique number of its sandbox's subnet.
    pub name: &'static str,
    /// Idle time after which it is scaled down.
    pub scaledown: Duration,
    /// Directory of a working `criu`. Without one the container is killed and
    /// started afresh.
    pub criu: Option<PathBuf>,
}

/// Name of the container and the port of its server.
pub const CONTAINER: &str = "counter";
const PORT: u16 = 80;

/// A pod that runs.
pub struct ZeroPod {
    /// Where its server listens: the address of the sandbox's eth0.
    pub address: SocketAddr,
    /// Process id of the sandbox's pause process.
    pub sandbox_pid: u32,
    shim: Child,
    happenings: broadcast::Sender<Happening>,
    namespace: &'static str,
    name: &'static str,
}

/// Receives what the shim of a pod tells.
pub type Happenings = broadcast::Receiver<Happening>;

impl ZeroPod {
    /// Creates the pod, starts its shim, and acts as the kubelet once the
    /// container runs.
    ///
    /// # Errors
    /// When any part of that fails.
    pub async fn start(node: &Node, options: PodOptions) -> Result<Self, NodeError> {
        let PodOptions { namespace, name, scaledown, criu } = options;
        let object = pod(namespace, name)
            .on_node(NODE)
            .container(CONTAINER, &[("cpu", "100m"), ("memory", "64Mi")], &[])
            .build();
        let object = create_pod(&node.client(), &object).await?;

        let id = container_id(name);
        let mut command = Command::new(program("stand-in-shim")?);
        command
            .args(["--namespace", namespace, "--pod", name, "--container", CONTAINER, "--id", &id])
            .args(["--port", &PORT.to_string(), "--longest-retry", "1"])
            .args(["--scaledown", &scaledown.as_secs_f64().to_string()])
            .args(["--work-dir", &format!("/run/stand-in/{name}")]);
        match criu {
            Some(dir) => command.args(["--mode", "checkpoint", "--criu-dir"]).arg(dir),
            None => command.args(["--mode", "kill"]),
        };
        command.arg("--").arg(program("counter-server")?).arg(PORT.to_string());
        let mut shim = Child::start("stand-in-shim", &mut command)?;
        let (happenings, mut started) = broadcast::channel(256);
        tokio::spawn(tell(shim.take_lines(), happenings.clone()));
        let sandbox = wait_for(&mut started, "a sandbox", |what| match what {
            What::Sandbox { pid, ipv4: Some(ip), .. } => Some((*pid, *ip)),
            _ => None,
        });
        let (sandbox_pid, ip) = sandbox.await?;
        let pod = Self {
            address: SocketAddr::from((ip, PORT)),
            sandbox_pid,
            shim,
            happenings,
            namespace,
            name,
        };
        wait_for(&mut started, "a started container", |what| {
            matches!(what, What::Started { .. }).then_some(())
        })
        .await?;
        run_pod(&node.client(), &object, &[(CONTAINER, &id)]).await?;
        Ok(pod)
    }

    /// What the shim tells from now on.
    pub fn happenings(&self) -> Happenings {
        self.happenings.subscribe()
    }

    /// Ends shim, container and sandbox, and deletes the pod.
    ///
    /// # Errors
    /// When the API server refuses.
    pub async fn stop(self, node: &Node) -> Result<(), NodeError> {
        self.shim.stop().await;
        Ok(delete_pod(&node.client(), self.namespace, self.name).await?)
    }
}

/// Waits until a shim tells a certain thing; `name` is for the error.
///
/// # Errors
/// When the shim ends, or does not tell it in time.
pub async fn wait_for<T>(
    happenings: &mut Happenings,
    name: &str,
    is_it: impl Fn(&What) -> Option<T>,
) -> Result<T, NodeError> {
    let found = async {
        loop {
            match happenings.recv().await {
                Ok(happening) => {
                    if let Some(found) = is_it(&happening.what) {
                        return Ok(found);
                    }
                }
                Err(broadcast::error::RecvError::Lagged(_)) => {}
                Err(broadcast::error::RecvError::Closed) => {
                    return Err(NodeError::Ended(format!("the shim, before {name}")));
                }
            }
        }
    };
    timeout(PATIENCE, found)
        .await
        .unwrap_or_else(|_| Err(NodeError::TooLate(PATIENCE, name.into())))
}

/// Passes on what the shim prints. Lines that are nothing of the kind, such as
/// a panic of its runtime, are for the eyes of whoever runs it.
#[expect(clippy::print_stderr, reason = "output of a program that broke")]
async fn tell(mut lines: mpsc::Receiver<String>, happenings: broadcast::Sender<Happening>) {
    while let Some(line) = lines.recv().await {
        match serde_json::from_str(&line) {
            // Fails when nobody listens.
            Ok(happening) => drop(happenings.send(happening)),
            Err(_) => eprintln!("stand-in-shim: {line}"),
        }
    }
}

/// An id like containerd's: 64 hex digits, the same for the same pod.
fn container_id(pod: &str) -> String {
    let mut hasher = DefaultHasher::new();
    pod.hash(&mut hasher);
    format!("{:064x}", hasher.finish())
}

/// Finds a program of this workspace beside the one that runs, or beside the
/// directory of that: `target/debug` of `target/debug/deps`.
///
/// # Errors
/// When it has not been built.
pub fn program(name: &'static str) -> Result<PathBuf, NodeError> {
    let failed = |source| NodeError::Start { name, source };
    let exe = env::current_exe().map_err(failed)?;
    let near = exe.ancestors().skip(1).take(2).map(|dir: &Path| dir.join(name));
    near.into_iter().find(|path| path.is_file()).ok_or_else(|| {
        failed(io::Error::new(
            io::ErrorKind::NotFound,
            "it is not built; `cargo xtask test` and `cargo xtask demo` build it",
        ))
    })
}
