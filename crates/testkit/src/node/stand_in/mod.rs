//! A whole shim: the status service, sandboxes, real containers and their
//! activators, behaving to a manager as containerd-shim-zeropod-v2 does.
//!
//! It differs from a real one in what nobody on the node can see: containerd
//! does not start it, its containers are made here, and live migration is not
//! stood in for.

mod happening;
mod lifecycle;

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep};
use zeropod_shim_api::names::{managed_by_shim_dir, sandbox_maps_dir};

pub use self::happening::{Happening, What};
use self::lifecycle::Managed;
use super::{
    Error,
    sandbox::{Addresses, Sandbox, SandboxConfig},
    shim::{Server, Service},
};

/// How a container is scaled down and comes back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// By CRIU: its memory survives.
    Checkpoint,
    /// By killing it and starting it afresh, as with the annotation
    /// `zeropod.ctrox.dev/disable-checkpointing`.
    Kill,
}

/// Who attaches the redirector of a sandbox: the two generations of shims.
#[derive(Debug, Clone)]
pub enum AttachedBy {
    /// The manager, when it sees the sandbox's directory (shims up to 0.11).
    Manager,
    /// The shim (from 0.12 on), which keeps the manager away by a marker.
    Shim {
        /// The helper program, which takes [`HELPER_ARGUMENT`], the sandbox's
        /// pid and the base directory of the pins.
        ///
        /// [`HELPER_ARGUMENT`]: super::attach::HELPER_ARGUMENT
        helper: PathBuf,
    },
}

/// Where a shim keeps things. Every path has to be absolute.
#[derive(Clone)]
pub struct StandInConfig {
    /// Directory of the socket, `/run/zeropod/s` on a node.
    pub socket_dir: PathBuf,
    /// Name of the socket without `.sock`; 64 hex digits on a node.
    pub shim_id: String,
    /// Base directory of the pins, `/sys/fs/bpf/zeropod_maps` on a node.
    pub maps_dir: PathBuf,
    /// Checkpoint images, `/var/lib/zeropod/i` on a node.
    pub images: PathBuf,
    /// Bundles and root file systems.
    pub work_dir: PathBuf,
    /// `runc`.
    pub runc: PathBuf,
    /// Directory of `criu`; needed for [`Mode::Checkpoint`].
    pub criu: Option<PathBuf>,
    /// Who attaches the redirector.
    pub attached_by: AttachedBy,
    /// Longest pause between two looks for a redirector; 5 minutes on a node.
    pub longest_retry: Duration,
    /// Is told what happens, from any thread.
    pub observer: Arc<dyn Fn(&Happening) + Send + Sync>,
}

impl fmt::Debug for StandInConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StandInConfig").field("shim_id", &self.shim_id).finish_non_exhaustive()
    }
}

/// A pod to run.
#[derive(Debug, Clone)]
pub struct PodConfig {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its sandbox.
    pub sandbox: SandboxSource,
    /// Its zeropod containers.
    pub containers: Vec<ContainerSpec>,
}

/// Where a pod's sandbox comes from.
#[derive(Debug, Clone)]
pub enum SandboxSource {
    /// The stand-in makes it.
    Make(SandboxConfig),
    /// It is there, held by this pid, and stays when the shim stops.
    Pid(u32),
}

/// A container to run.
#[derive(Debug, Clone)]
pub struct ContainerSpec {
    /// Id, 64 hex digits on a node.
    pub id: String,
    /// Name within the pod.
    pub name: String,
    /// The program; it is copied into the container with its libraries.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<String>,
    /// Ports that it listens on.
    pub ports: Vec<u16>,
    /// Time without a packet after which it is scaled down; zero for never.
    pub scaledown: Duration,
    /// How it is scaled down.
    pub mode: Mode,
    /// How long it may take to listen once woken.
    pub connect_timeout: Duration,
    /// How long a connection is proxied at most.
    pub proxy_timeout: Duration,
}

/// A running shim. It has to be [stopped](StandIn::stop); dropping it removes
/// its processes and interfaces, but leaves files and pins behind.
#[derive(Debug)]
pub struct StandIn {
    config: StandInConfig,
    service: Service,
    server: Server,
    pods: Mutex<Vec<Arc<Pod>>>,
}

/// A running pod.
#[derive(Debug)]
pub struct Pod {
    name: String,
    sandbox_pid: u32,
    addresses: Option<Addresses>,
    sandbox: Mutex<Option<Sandbox>>,
    containers: Vec<Managed>,
}

impl StandIn {
    /// Serves the socket. There is no container yet, as when containerd has
    /// just started a shim.
    ///
    /// # Errors
    /// When the socket cannot be made.
    pub fn start(config: StandInConfig) -> Result<Self, Error> {
        let service = Service::new();
        let socket = config.socket_dir.join(format!("{}.sock", config.shim_id));
        let server = service.serve(&socket)?;
        (config.observer)(&Happening::now("", "", What::Serving { socket }));
        Ok(Self { config, service, server, pods: Mutex::default() })
    }

    /// The status service, for faults and counters.
    pub fn service(&self) -> &Service {
        &self.service
    }

    /// Path of the socket.
    pub fn socket(&self) -> &Path {
        self.server.socket()
    }

    /// Makes a pod with its containers and starts them. Each activator then
    /// waits for a redirector in the background.
    ///
    /// # Errors
    /// When the sandbox or a container cannot be made.
    pub async fn run_pod(&self, pod: PodConfig) -> Result<Arc<Pod>, Error> {
        let PodConfig { namespace, name, sandbox, containers } = pod;
        let (sandbox_pid, sandbox) = match sandbox {
            SandboxSource::Make(config) => {
                let sandbox = Sandbox::start(&config)?;
                (sandbox.pid(), Some(sandbox))
            }
            SandboxSource::Pid(pid) => (pid, None),
        };
        let addresses = sandbox.as_ref().map(Sandbox::addresses);
        let what = What::Sandbox {
            pid: sandbox_pid,
            ipv4: addresses.map(|it| it.ipv4),
            ipv6: addresses.and_then(|it| it.ipv6),
        };
        (self.config.observer)(&Happening::now(&name, "", what));

        let maps = sandbox_maps_dir(&self.config.maps_dir, sandbox_pid);
        let mut pod = Pod {
            name,
            sandbox_pid,
            addresses,
            sandbox: Mutex::new(sandbox),
            containers: Vec::new(),
        };
        for spec in containers {
            let place = lifecycle::Place {
                namespace: namespace.clone(),
                pod: pod.name.clone(),
                sandbox_pid,
                maps: maps.clone(),
            };
            let managed = Managed::start(&self.config, &self.service, place, spec).await?;
            pod.containers.push(managed);
        }
        let pod = Arc::new(pod);
        self.pods().push(Arc::clone(&pod));
        Ok(pod)
    }

    /// Stops a pod as containerd does: kills and deletes its containers, then
    /// its sandbox with the pins.
    ///
    /// # Errors
    /// When something cannot be removed; the rest is tried nevertheless.
    pub async fn stop_pod(&self, pod: &Arc<Pod>) -> Result<(), Error> {
        self.pods().retain(|other| !Arc::ptr_eq(other, pod));
        let mut result = Ok(());
        for container in &pod.containers {
            result = result.and(container.stop().await);
        }
        for dir in [
            sandbox_maps_dir(&self.config.maps_dir, pod.sandbox_pid),
            managed_by_shim_dir(&self.config.maps_dir, pod.sandbox_pid),
        ] {
            result = result.and(match fs::remove_dir_all(&dir) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    Err(Error::io("remove", &dir)(error))
                }
                _ => Ok(()),
            });
        }
        drop(pod.take_sandbox());
        (self.config.observer)(&Happening::now(&pod.name, "", What::Stopped));
        result
    }

    /// Stops every pod and then the shim, which says STOPPING once more for
    /// every container that it ever had.
    ///
    /// # Errors
    /// When something cannot be removed; the rest is tried nevertheless.
    pub async fn stop(self) -> Result<(), Error> {
        (self.config.observer)(&Happening::now("", "", What::Stopping));
        let pods = self.pods().clone();
        let mut result = Ok(());
        for pod in &pods {
            result = result.and(self.stop_pod(pod).await);
        }
        for id in self.service.ids() {
            result = result.and(self.service.stopping(&id));
        }
        self.delivered().await;
        result = result.and(self.server.close());
        (self.config.observer)(&Happening::now("", "", What::Stopped));
        result
    }

    /// Ends as by `kill -9`: socket, pins, sandboxes and containers stay.
    pub fn crash(self) {
        for pod in self.pods().drain(..) {
            for container in &pod.containers {
                container.abandon();
            }
            if let Some(sandbox) = pod.take_sandbox() {
                sandbox.abandon();
            }
        }
    }

    /// Gives a subscriber a moment to take the last events.
    async fn delivered(&self) {
        let deadline = Instant::now() + Duration::from_secs(1);
        let waiting = || {
            let counters = self.service.counters();
            counters.open_subscriptions > 0 && counters.queued > 0
        };
        while waiting() && Instant::now() < deadline {
            sleep(Duration::from_millis(5)).await;
        }
    }

    fn pods(&self) -> std::sync::MutexGuard<'_, Vec<Arc<Pod>>> {
        self.pods.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pod {
    /// Pid that names its sandbox.
    pub fn sandbox_pid(&self) -> u32 {
        self.sandbox_pid
    }

    /// Addresses of its sandbox, if the stand-in made it.
    pub fn addresses(&self) -> Option<Addresses> {
        self.addresses
    }

    fn take_sandbox(&self) -> Option<Sandbox> {
        self.sandbox.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}
