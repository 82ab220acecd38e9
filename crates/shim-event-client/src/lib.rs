//! Follows every zeropod shim of a node and publishes what its containers are
//! doing: [`ShimEvents`] watches the directory of the shims' sockets, keeps
//! one subscription to each shim, and one table of what is true now.
//! Consumers [subscribe](ShimEvents::subscribe) to the table and its changes.
//!
//! A shim's event queue is lossy and shared by all its subscribers, and
//! reading its metrics clears them. So there must be one such client per node,
//! and everyone else is fed from it.

mod connection;
mod dead;
mod directory;
mod frames;
mod health;
mod hub;
mod supervise;
mod table;
mod telemetry;

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use thiserror::Error;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use zeropod_shim_api::{
    change::{ContainerKey, ContainerState, Update},
    names,
};

pub use self::{
    health::{Connection, Degraded, Health, ShimHealth},
    hub::Subscription,
    telemetry::describe_metrics,
};

/// Longest time between two [heartbeats](ShimEvents::heartbeat).
pub const HEARTBEAT: Duration = Duration::from_secs(10);

/// Where the shims are and how patient to be with them.
#[derive(Debug, Clone)]
pub struct Config {
    /// Directory of the shims' sockets; made with its parents if absent.
    pub socket_dir: PathBuf,
    /// How often each shim is asked whether the table is right, although no
    /// event told otherwise.
    pub resync_interval: Duration,
    /// How often at least the metrics of each shim are read, which clears
    /// them, for failures of which no event told.
    pub metrics_interval: Duration,
    /// Longest wait for a connection or for one answer of a shim.
    pub call_deadline: Duration,
    /// Shortest wait before a shim is dialled again.
    pub min_backoff: Duration,
    /// Longest wait before a shim is dialled again.
    pub max_backoff: Duration,
    /// How long a shim refuses connections before it counts as dead. Its
    /// containers are then gone, and its socket is removed if nobody has it.
    pub dead_after: Duration,
    /// List of the unix sockets of the network namespace in which the shims
    /// are, such as `/proc/net/unix`. A socket is removed only if it is not in
    /// this list.
    pub unix_sockets: PathBuf,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            socket_dir: names::SHIM_SOCKET_DIR.into(),
            resync_interval: Duration::from_mins(1),
            metrics_interval: Duration::from_mins(10),
            call_deadline: Duration::from_secs(2),
            min_backoff: Duration::from_millis(100),
            max_backoff: Duration::from_secs(5),
            dead_after: Duration::from_secs(30),
            unix_sockets: PathBuf::from(names::HOST_PROC).join("1/net/unix"),
        }
    }
}

/// The client of all shims of a node. Clones share one table.
#[derive(Debug, Clone)]
pub struct ShimEvents {
    hub: Arc<hub::Hub>,
}

impl ShimEvents {
    /// Prepares a client; [`run`](Self::run) makes it work.
    pub fn new(config: Config) -> Self {
        Self { hub: Arc::new(hub::Hub::new(config)) }
    }

    /// Calls `observer` with every update, in order and before any subscriber
    /// sees it: for those who must not miss one. It holds up everything else,
    /// so it must return at once, and must not call back.
    pub fn observe(&self, observer: impl Fn(&Update) + Send + Sync + 'static) {
        self.hub.observe(Box::new(observer));
    }

    /// Starts a subscription: first a snapshot, then every change since.
    pub fn subscribe(&self) -> Subscription {
        Subscription::new(Arc::clone(&self.hub))
    }

    /// What is true now. A container behind a shim that does not answer may be
    /// missing: see [`health`](Self::health).
    pub fn snapshot(&self) -> Vec<(ContainerKey, ContainerState)> {
        self.hub.snapshot()
    }

    /// The state of every connection.
    pub fn health(&self) -> watch::Receiver<Health> {
        self.hub.health.subscribe()
    }

    /// When the client last turned: no longer than [`HEARTBEAT`] ago, unless it
    /// is stuck or does not run.
    pub fn heartbeat(&self) -> watch::Receiver<Instant> {
        self.hub.heartbeat.subscribe()
    }

    /// Follows the shims until `shutdown`. Whatever fails meanwhile is tried
    /// again and shows in [`health`](Self::health). Call it once.
    pub async fn run(&self, shutdown: CancellationToken) {
        let hub = Arc::clone(&self.hub);
        shutdown.run_until_cancelled(directory::follow(hub)).await;
        self.hub.close();
    }
}

/// Why the client could not do something. It tries again by itself; the error
/// shows in the log and in [`Health`].
#[derive(Debug, Error)]
pub enum Error {
    /// The socket directory cannot be used.
    #[error("cannot {action} {path}")]
    Directory {
        /// What was tried.
        action: &'static str,
        /// The directory.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
    /// The shim cannot be dialled.
    #[error("cannot connect to {path}")]
    Dial {
        /// Its socket.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
    /// The shim did not answer in time.
    #[error("{call} was not answered within {deadline:?}")]
    Deadline {
        /// The method.
        call: &'static str,
        /// The time it had.
        deadline: Duration,
    },
    /// The shim answered with an error.
    #[error("{call} was answered by {code:?}: {message}")]
    Refused {
        /// The method.
        call: &'static str,
        /// Code of the answer.
        code: ttrpc::Code,
        /// Text of the answer.
        message: String,
    },
    /// A message could not be decoded.
    #[error("{call} was not answered in its protocol")]
    Malformed {
        /// The method.
        call: &'static str,
        /// What is wrong with it.
        #[source]
        source: protobuf::Error,
    },
    /// The shim sent something that is not ttrpc.
    #[error("the shim does not speak ttrpc: {0}")]
    Protocol(String),
    /// The connection broke.
    #[error("the connection broke")]
    Broken(#[source] std::io::Error),
    /// The shim ended the event stream.
    #[error("the shim ended the event stream")]
    StreamEnded,
}

impl Error {
    /// Whether the connection cannot be used any more.
    fn ends_connection(&self) -> bool {
        match self {
            Self::Directory { .. }
            | Self::Dial { .. }
            | Self::Protocol(_)
            | Self::Broken(_)
            | Self::StreamEnded => true,
            Self::Deadline { .. } | Self::Refused { .. } | Self::Malformed { .. } => false,
        }
    }
}

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
