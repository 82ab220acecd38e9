use std::{
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    path::PathBuf,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize};

use super::Mode;

/// Something that a stand-in did or saw, as its program prints it: one JSON
/// object a line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Happening {
    /// When, in milliseconds since the Unix epoch.
    pub unix_ms: u64,
    /// Name of the pod; empty if it is about the whole shim.
    pub pod: String,
    /// Name of the container; empty if it is about the whole pod.
    pub container: String,
    /// What.
    #[serde(flatten)]
    pub what: What,
}

/// What happened. Durations are in milliseconds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum What {
    /// The socket is there.
    Serving {
        /// Its path.
        socket: PathBuf,
    },
    /// There is a sandbox.
    Sandbox {
        /// Its pid.
        pid: u32,
        /// Address of the pod, unless the sandbox was there before.
        ipv4: Option<Ipv4Addr>,
        /// The same, where IPv6 is on.
        ipv6: Option<Ipv6Addr>,
    },
    /// The container runs for the first time.
    Started {
        /// Its pid.
        pid: Option<u32>,
    },
    /// A redirector is attached and knows the ports.
    Registered {
        /// Application ports with their proxy ports.
        ports: Vec<(u16, u16)>,
    },
    /// No packet came for the scale-down duration.
    Idle,
    /// The container was scaled down.
    ScaledDown {
        /// How.
        mode: Mode,
        /// How long that took.
        duration_ms: f64,
    },
    /// A checkpoint failed; from now on the container is killed instead.
    CheckpointFailed {
        /// Why.
        reason: String,
    },
    /// A probe was answered without waking the container.
    Probe {
        /// Where from.
        peer: SocketAddr,
    },
    /// A connection was taken by the activator.
    Connection {
        /// Where from.
        peer: SocketAddr,
    },
    /// The container runs again; new connections go to it directly.
    Restored {
        /// From a checkpoint or afresh.
        mode: Mode,
        /// How long that took.
        duration_ms: f64,
    },
    /// A restore failed; the container is started afresh.
    RestoreFailed {
        /// Why.
        reason: String,
    },
    /// A connection that the activator took has ended.
    Proxied {
        /// Where from.
        peer: SocketAddr,
    },
    /// A connection that the activator took broke.
    ConnectionFailed {
        /// Where from.
        peer: SocketAddr,
        /// Why.
        reason: String,
    },
    /// The container will never be scaled down.
    Unmanaged {
        /// Why.
        reason: String,
    },
    /// The container or, without a name, the shim is going.
    Stopping,
    /// All of it is gone.
    Stopped,
}

impl Happening {
    pub(super) fn now(pod: &str, container: &str, what: What) -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self {
            unix_ms: u64::try_from(since.as_millis()).unwrap_or(u64::MAX),
            pod: pod.into(),
            container: container.into(),
            what,
        }
    }
}

pub(super) fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}
