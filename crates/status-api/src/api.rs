//! The types of the JSON API. Fields are only ever added: readers must ignore
//! the ones they do not know. Times are UTC in RFC 3339 with milliseconds.

use std::{
    borrow::Cow,
    time::{Duration, SystemTime},
};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// Everything, as of one moment: the answer of `/api/v1/containers` and the
/// stream's `snapshot`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// The node's name.
    pub node: String,
    /// Version of the node component.
    pub version: String,
    /// When all of this was true, by the node's clock.
    pub at: Timestamp,
    /// Sums over `containers`.
    pub totals: Totals,
    /// What is wrong; empty when all is well.
    pub degraded: Vec<Degraded>,
    /// Every zeropod container of the node, by namespace, pod and name.
    pub containers: Vec<Container>,
}

/// A container. Counts are since the node component started.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Container {
    /// Namespace of its pod.
    pub namespace: String,
    /// Name of its pod.
    pub pod: String,
    /// Its name within the pod.
    pub container: String,
    /// `RUNNING`, `SCALED_DOWN` or `STOPPING`.
    pub phase: Cow<'static, str>,
    /// Since when, where known.
    pub since: Option<Timestamp>,
    /// The last checkpoint that succeeded.
    pub last_checkpoint: Option<Operation>,
    /// The last restore that succeeded.
    pub last_restore: Option<Operation>,
    /// Times it was woken up.
    pub wake_ups: u64,
    /// Checkpoints that failed.
    pub checkpoint_failures: u64,
    /// Restores that failed.
    pub restore_failures: u64,
    /// Seconds it was scaled down, the present time included.
    pub scaled_down_seconds: f64,
    /// What its pod requests less while it is scaled down; null while it
    /// requests all of it, or the node component does not resize pods.
    pub gives_back: Option<Resources>,
}

/// A checkpoint or restore.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Operation {
    /// When it ended.
    pub ended: Timestamp,
    /// How long it took.
    pub seconds: f64,
}

/// Resource requests.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Resources {
    /// CPU, in cores.
    pub cpu_cores: f64,
    /// Memory, in bytes.
    pub memory_bytes: u64,
}

/// Sums over the containers of the node.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Totals {
    /// Containers.
    pub containers: u64,
    /// Those whose process runs.
    pub running: u64,
    /// Those scaled down.
    pub scaled_down: u64,
    /// Times one was woken up.
    pub wake_ups: u64,
    /// Checkpoints that failed.
    pub checkpoint_failures: u64,
    /// Restores that failed.
    pub restore_failures: u64,
    /// Seconds scaled down.
    pub scaled_down_seconds: f64,
    /// What they give back.
    pub gives_back: Resources,
}

/// Something that is wrong with the node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Degraded {
    /// Its stable name, such as `shim-disconnected`.
    pub name: Cow<'static, str>,
    /// What and why, for people.
    pub detail: String,
    /// Whether the node cannot do its job: `/readyz` then answers 503.
    pub unready: bool,
}

/// The stream's `change`: a container that is new or different.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Changed {
    /// When this was true.
    pub at: Timestamp,
    /// All of it.
    pub container: Container,
}

/// The stream's `removed`: a container that is gone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Removed {
    /// Namespace of its pod.
    pub namespace: String,
    /// Name of its pod.
    pub pod: String,
    /// Its name within the pod.
    pub container: String,
}

/// The stream's `beat`: nothing happened, and the connection lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Beat {
    /// The node's clock.
    pub at: Timestamp,
}

impl From<zeropod_shim_api::status::Operation> for Operation {
    fn from(operation: zeropod_shim_api::status::Operation) -> Self {
        Self { ended: timestamp(operation.ended), seconds: seconds(operation.duration) }
    }
}

impl Totals {
    pub(crate) fn of(containers: &[Container]) -> Self {
        let mut totals = Self::default();
        for container in containers {
            totals.containers += 1;
            totals.running += u64::from(container.phase == "RUNNING");
            totals.scaled_down += u64::from(container.phase == "SCALED_DOWN");
            totals.wake_ups += container.wake_ups;
            totals.checkpoint_failures += container.checkpoint_failures;
            totals.restore_failures += container.restore_failures;
            totals.scaled_down_seconds += container.scaled_down_seconds;
            let given = container.gives_back.unwrap_or_default();
            totals.gives_back.cpu_cores += given.cpu_cores;
            totals.gives_back.memory_bytes += given.memory_bytes;
        }
        totals.scaled_down_seconds = round_to_millis(totals.scaled_down_seconds);
        totals.gives_back.cpu_cores = round_to_millis(totals.gives_back.cpu_cores);
        totals
    }
}

/// The node's clock.
pub(crate) fn now() -> Timestamp {
    timestamp(SystemTime::now())
}

/// A time of the node's clock, in whole milliseconds. Times that no calendar
/// has become the closest that it has.
pub(crate) fn timestamp(time: SystemTime) -> Timestamp {
    let exact = Timestamp::try_from(time).unwrap_or(Timestamp::MAX);
    Timestamp::from_millisecond(exact.as_millisecond()).unwrap_or(exact)
}

pub(crate) fn seconds(duration: Duration) -> f64 {
    round_to_millis(duration.as_secs_f64())
}

fn round_to_millis(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}
