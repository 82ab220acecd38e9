//! What a shim says of its containers, decoded and checked.

use std::{
    fmt,
    time::{Duration, SystemTime},
};

use protobuf::MessageField;
use thiserror::Error;

use crate::{
    id::{ContainerId, ContainerRef, InvalidId, PodRef},
    rpc::shim as proto,
};

/// State of a container as its shim reports it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Phase {
    /// Checkpointed or killed; the next connection brings it back.
    ScaledDown,
    /// Its process runs.
    Running,
    /// It is being stopped for good.
    Stopping,
    /// A scale-down failed; the process still runs.
    CheckpointFailed,
    /// A wake-up failed; the shim starts the container afresh.
    RestoreFailed,
}

impl Phase {
    /// Name in labels and logs, as on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ScaledDown => "SCALED_DOWN",
            Self::Running => "RUNNING",
            Self::Stopping => "STOPPING",
            Self::CheckpointFailed => "CHECKPOINT_FAILED",
            Self::RestoreFailed => "RESTORE_FAILED",
        }
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl From<Phase> for proto::ContainerPhase {
    fn from(phase: Phase) -> Self {
        match phase {
            Phase::ScaledDown => Self::SCALED_DOWN,
            Phase::Running => Self::RUNNING,
            Phase::Stopping => Self::STOPPING,
            Phase::CheckpointFailed => Self::CHECKPOINT_FAILED,
            Phase::RestoreFailed => Self::RESTORE_FAILED,
        }
    }
}

/// A message of a shim that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum InvalidStatus {
    /// One of its identifiers is missing or malformed.
    #[error(transparent)]
    Id(#[from] InvalidId),
    /// A phase this version does not know.
    #[error("phase {0} of container {1} is unknown")]
    Phase(i32, ContainerRef),
    /// A time or duration outside what can be represented or makes sense.
    #[error("{what} of container {container} is out of range: {seconds} s {nanos} ns")]
    Time {
        /// The field.
        what: &'static str,
        /// The container.
        container: ContainerRef,
        /// Its whole seconds.
        seconds: i64,
        /// Its nanoseconds.
        nanos: i32,
    },
}

/// One status event, or the answer to `GetStatus`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StatusEvent {
    /// Id of the container in containerd.
    pub id: ContainerId,
    /// Pod and container name.
    pub container: ContainerRef,
    /// What it became.
    pub phase: Phase,
    /// When, by the node's clock. Of failures it can be the time of an earlier
    /// success; of STOPPING it is a left-over. Absent when unset.
    pub time: Option<SystemTime>,
    /// How long the checkpoint or restore took. RUNNING with a duration means
    /// restored, RUNNING without one means started.
    pub duration: Option<Duration>,
    /// Last lines of CRIU's log, of failures only.
    pub log: Vec<String>,
}

impl StatusEvent {
    /// The checkpoint (or kill, where checkpointing is off) that the message
    /// tells of. A failed restore tells of the one before it, again.
    pub fn checkpoint(&self) -> Option<Operation> {
        matches!(self.phase, Phase::ScaledDown | Phase::RestoreFailed)
            .then(|| self.operation())
            .flatten()
    }

    /// The restore that the message tells of. A failed checkpoint tells of the
    /// one before it, again.
    pub fn restore(&self) -> Option<Operation> {
        matches!(self.phase, Phase::Running | Phase::CheckpointFailed)
            .then(|| self.operation())
            .flatten()
    }

    fn operation(&self) -> Option<Operation> {
        let (ended, duration) = self.time.zip(self.duration)?;
        Some(Operation { ended, duration })
    }
}

impl TryFrom<proto::ContainerStatus> for StatusEvent {
    type Error = InvalidStatus;

    fn try_from(message: proto::ContainerStatus) -> Result<Self, InvalidStatus> {
        let proto::ContainerStatus {
            id,
            name,
            pod_name,
            pod_namespace,
            phase,
            event_time,
            event_duration,
            event_log,
            special_fields: _,
        } = message;
        let container = ContainerRef::new(PodRef::new(&pod_namespace, &pod_name)?, &name)?;
        let phase = match phase.enum_value() {
            Ok(proto::ContainerPhase::SCALED_DOWN) => Phase::ScaledDown,
            Ok(proto::ContainerPhase::RUNNING) => Phase::Running,
            Ok(proto::ContainerPhase::STOPPING) => Phase::Stopping,
            Ok(proto::ContainerPhase::CHECKPOINT_FAILED) => Phase::CheckpointFailed,
            Ok(proto::ContainerPhase::RESTORE_FAILED) => Phase::RestoreFailed,
            Err(unknown) => return Err(InvalidStatus::Phase(unknown, container)),
        };
        Ok(Self {
            id: ContainerId::new(&id)?,
            phase,
            time: time("event_time", &container, &event_time)?,
            duration: duration("event_duration", &container, &event_duration)?,
            log: split_log(&event_log),
            container,
        })
    }
}

/// Entry of a `Metrics` answer: what happened since the previous read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MetricsReading {
    /// Pod and container name; the protocol carries no id here.
    pub container: ContainerRef,
    /// Whether the process runs. Never cleared by reading.
    pub running: bool,
    /// The last checkpoint since the previous read.
    pub checkpoint: Option<Operation>,
    /// The last restore since the previous read.
    pub restore: Option<Operation>,
    /// Failed checkpoints since the previous read.
    pub checkpoint_errors: u64,
    /// Failed restores since the previous read.
    pub restore_errors: u64,
}

/// A checkpoint or restore that succeeded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Operation {
    /// When it ended, by the node's clock.
    pub ended: SystemTime,
    /// How long it took.
    pub duration: Duration,
}

impl TryFrom<proto::ContainerMetrics> for MetricsReading {
    type Error = InvalidStatus;

    fn try_from(message: proto::ContainerMetrics) -> Result<Self, InvalidStatus> {
        let proto::ContainerMetrics {
            name,
            pod_name,
            pod_namespace,
            last_checkpoint,
            last_restore,
            last_checkpoint_duration,
            last_restore_duration,
            running,
            checkpoint_errors,
            restore_errors,
            special_fields: _,
        } = message;
        let container = ContainerRef::new(PodRef::new(&pod_namespace, &pod_name)?, &name)?;
        let operation = |what, ended: &_, took: &_| {
            let ended = time(what, &container, ended)?;
            let duration = duration(what, &container, took)?;
            Ok::<_, InvalidStatus>(
                ended.zip(duration).map(|(ended, duration)| Operation { ended, duration }),
            )
        };
        Ok(Self {
            running,
            checkpoint: operation("last_checkpoint", &last_checkpoint, &last_checkpoint_duration)?,
            restore: operation("last_restore", &last_restore, &last_restore_duration)?,
            // A negative count cannot be meant; a counter must not go back.
            checkpoint_errors: checkpoint_errors.try_into().unwrap_or(0),
            restore_errors: restore_errors.try_into().unwrap_or(0),
            container,
        })
    }
}

/// Latest second accepted as a time: 2200-01-01. Everything later is garbage.
const MAX_SECONDS: i64 = 7_258_118_400;

fn time(
    what: &'static str,
    container: &ContainerRef,
    field: &MessageField<protobuf::well_known_types::timestamp::Timestamp>,
) -> Result<Option<SystemTime>, InvalidStatus> {
    let Some(field) = field.as_ref() else { return Ok(None) };
    // Go's zero time and the unset timestamp both mean "never".
    if field.seconds <= 0 {
        return Ok(None);
    }
    let parsed = u64::try_from(field.seconds)
        .ok()
        .filter(|_| field.seconds < MAX_SECONDS)
        .zip(u32::try_from(field.nanos).ok().filter(|nanos| *nanos < 1_000_000_000))
        .and_then(|(seconds, nanos)| {
            SystemTime::UNIX_EPOCH.checked_add(Duration::new(seconds, nanos))
        });
    match parsed {
        Some(time) => Ok(Some(time)),
        None => Err(out_of_range(what, container, field.seconds, field.nanos)),
    }
}

/// Longest duration accepted, a day: no checkpoint takes longer.
const MAX_DURATION_SECONDS: i64 = 86_400;

fn duration(
    what: &'static str,
    container: &ContainerRef,
    field: &MessageField<protobuf::well_known_types::duration::Duration>,
) -> Result<Option<Duration>, InvalidStatus> {
    let Some(field) = field.as_ref() else { return Ok(None) };
    let parsed = u64::try_from(field.seconds)
        .ok()
        .filter(|_| field.seconds <= MAX_DURATION_SECONDS)
        .zip(u32::try_from(field.nanos).ok().filter(|nanos| *nanos < 1_000_000_000))
        .map(|(seconds, nanos)| Duration::new(seconds, nanos));
    match parsed {
        Some(duration) => Ok(Some(duration)),
        None => Err(out_of_range(what, container, field.seconds, field.nanos)),
    }
}

fn out_of_range(
    what: &'static str,
    container: &ContainerRef,
    seconds: i64,
    nanos: i32,
) -> InvalidStatus {
    InvalidStatus::Time { what, container: container.clone(), seconds, nanos }
}

/// Lines kept of a CRIU log; the shim sends up to 21.
const MAX_LOG_LINES: usize = 21;
/// Characters kept of each line.
const MAX_LOG_LINE: usize = 512;

/// Shims separate the lines by a newline when CRIU's log is long, and by a
/// backslash and an `n` when it is short.
fn split_log(log: &str) -> Vec<String> {
    log.split('\n')
        .flat_map(|line| line.split("\\n"))
        .map(str::trim_end)
        .filter(|line| !line.is_empty())
        .take(MAX_LOG_LINES)
        .map(|line| line.chars().take(MAX_LOG_LINE).collect())
        .collect()
}

/// The request of a subscription: field 1 is set, so that the payload is
/// `0a 00` and not empty, which old ttrpc servers need.
pub fn subscribe_request() -> proto::SubscribeStatusRequest {
    proto::SubscribeStatusRequest {
        empty: MessageField::some(protobuf::well_known_types::empty::Empty::new()),
        ..proto::SubscribeStatusRequest::default()
    }
}

/// The request of a `Metrics` read, with field 1 set as in
/// [`subscribe_request`].
pub fn metrics_request() -> proto::MetricsRequest {
    proto::MetricsRequest {
        empty: MessageField::some(protobuf::well_known_types::empty::Empty::new()),
        ..proto::MetricsRequest::default()
    }
}

#[cfg(test)]
mod tests {
    use protobuf::{EnumOrUnknown, Message as _};

    use super::*;

    fn message() -> proto::ContainerStatus {
        proto::ContainerStatus {
            id: "c0ffee".into(),
            name: "app".into(),
            pod_name: "web".into(),
            pod_namespace: "default".into(),
            ..proto::ContainerStatus::default()
        }
    }

    #[test]
    fn requests_are_never_empty() {
        assert_eq!(subscribe_request().write_to_bytes().unwrap(), [0x0a, 0x00]);
        assert_eq!(metrics_request().write_to_bytes().unwrap(), [0x0a, 0x00]);
    }

    #[test]
    fn an_absent_phase_is_scaled_down_but_an_empty_message_is_nothing() {
        let event = StatusEvent::try_from(message()).unwrap();
        assert_eq!(event.phase, Phase::ScaledDown);
        assert_eq!((event.time, event.duration), (None, None));
        StatusEvent::try_from(proto::ContainerStatus::default()).unwrap_err();
    }

    #[test]
    fn unknown_phases_and_absurd_times_are_errors() {
        let mut unknown = message();
        unknown.phase = EnumOrUnknown::from_i32(99);
        assert_eq!(
            StatusEvent::try_from(unknown).unwrap_err().to_string(),
            "phase 99 of container default/web/app is unknown"
        );
        for (seconds, nanos) in [(i64::MAX, 0), (MAX_SECONDS, 0), (1, -1), (1, 1_000_000_000)] {
            let mut absurd = message();
            let time = absurd.event_time.mut_or_insert_default();
            (time.seconds, time.nanos) = (seconds, nanos);
            assert!(
                matches!(StatusEvent::try_from(absurd), Err(InvalidStatus::Time { .. })),
                "{seconds} {nanos}"
            );
        }
        for seconds in [-1, i64::MAX] {
            let mut absurd = message();
            absurd.event_duration.mut_or_insert_default().seconds = seconds;
            StatusEvent::try_from(absurd).unwrap_err();
        }
    }

    #[test]
    fn both_log_separators_split() {
        assert_eq!(split_log("a\\nb\nc\n"), ["a", "b", "c"]);
        assert_eq!(split_log(""), [""; 0]);
        assert_eq!(split_log(&"x\n".repeat(100)).len(), MAX_LOG_LINES);
        assert_eq!(split_log(&"x".repeat(9_999))[0].len(), MAX_LOG_LINE);
    }

    #[test]
    fn phases_keep_their_wire_names() {
        for phase in [
            Phase::ScaledDown,
            Phase::Running,
            Phase::Stopping,
            Phase::CheckpointFailed,
            Phase::RestoreFailed,
        ] {
            let wire = proto::ContainerPhase::from(phase);
            assert_eq!(phase.as_str(), format!("{wire:?}"));
        }
    }
}
