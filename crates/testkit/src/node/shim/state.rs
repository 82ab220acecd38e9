//! What a shim process knows of its containers, and the messages it makes of
//! that. No clock, no queue, no wire.

use std::{
    collections::HashMap,
    mem,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use protobuf::{
    EnumOrUnknown, MessageField,
    well_known_types::{duration::Duration as ProtoDuration, timestamp::Timestamp},
};
use zeropod_shim_api::{
    rpc::shim::{ContainerMetrics, ContainerStatus, MetricsResponse},
    status::Phase,
};

/// Who a container is. Nothing here is checked: faulty shims are stood in for
/// as well.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Identity {
    /// Id in containerd.
    pub id: String,
    /// Name within its pod.
    pub name: String,
    /// Name of the pod.
    pub pod_name: String,
    /// Namespace of the pod.
    pub pod_namespace: String,
}

/// The containers of a shim process, by id.
#[derive(Debug, Default)]
pub(super) struct State {
    containers: HashMap<String, Container>,
}

#[derive(Debug)]
struct Container {
    identity: Identity,
    running: bool,
    checkpoint: Option<Operation>,
    restore: Option<Operation>,
    checkpoint_errors: i64,
    restore_errors: i64,
    /// Only its last STOPPING is still to come.
    deleted: bool,
}

#[derive(Debug, Clone, Copy)]
struct Operation {
    ended: SystemTime,
    took: Duration,
}

/// Something that happens to a container and that its shim tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Event {
    Started,
    CreatedScaledDown,
    ScaledDown(Duration),
    CheckpointFailed(String),
    RestoreFailed(String),
    Restored(Duration),
    Stopping,
}

impl State {
    /// A created container counts as running, even before it starts.
    pub(super) fn create(&mut self, identity: Identity) {
        let container = Container {
            identity,
            running: true,
            checkpoint: None,
            restore: None,
            checkpoint_errors: 0,
            restore_errors: 0,
            deleted: false,
        };
        self.containers.insert(container.identity.id.clone(), container);
    }

    pub(super) fn delete(&mut self, id: &str) {
        if let Some(container) = self.containers.get_mut(id) {
            container.deleted = true;
        }
    }

    /// Of every container that there ever was.
    pub(super) fn ids(&self) -> Vec<String> {
        self.containers.keys().cloned().collect()
    }

    /// Takes note of an event and makes its message. `None` if the container
    /// is unknown.
    pub(super) fn apply(
        &mut self,
        id: &str,
        event: Event,
        now: SystemTime,
    ) -> Option<ContainerStatus> {
        let container = self.containers.get_mut(id)?;
        let mut log = String::new();
        let phase = match event {
            Event::Started => {
                container.running = true;
                // Always without a duration: only a restore has one.
                container.restore = None;
                Phase::Running
            }
            Event::CreatedScaledDown => {
                container.running = false;
                Phase::ScaledDown
            }
            Event::ScaledDown(took) => {
                container.running = false;
                container.checkpoint = Some(Operation { ended: now, took });
                Phase::ScaledDown
            }
            Event::CheckpointFailed(why) => {
                container.checkpoint_errors += 1;
                log = why;
                Phase::CheckpointFailed
            }
            Event::RestoreFailed(why) => {
                container.restore_errors += 1;
                log = why;
                Phase::RestoreFailed
            }
            Event::Restored(took) => {
                container.running = true;
                container.restore = Some(Operation { ended: now, took });
                Phase::Running
            }
            Event::Stopping => Phase::Stopping,
        };
        Some(container.message(phase, log, now))
    }

    /// The answer to `GetStatus`, which clears nothing.
    pub(super) fn status(&self, id: &str, now: SystemTime) -> Option<ContainerStatus> {
        let container = self.containers.get(id).filter(|it| !it.deleted)?;
        Some(container.message(container.phase(), String::new(), now))
    }

    /// The answer to `Metrics`, in random order. Clears all but `running`.
    pub(super) fn read_metrics(&mut self) -> MetricsResponse {
        let known = self.containers.values_mut().filter(|it| !it.deleted);
        let metrics = known.map(Container::read_metrics).collect();
        MetricsResponse { metrics, ..MetricsResponse::default() }
    }
}

impl Container {
    fn phase(&self) -> Phase {
        if self.running { Phase::Running } else { Phase::ScaledDown }
    }

    /// Time and duration are those of an operation as long as no `Metrics`
    /// call has cleared it: so a failure carries those of an earlier success.
    fn message(&self, phase: Phase, event_log: String, now: SystemTime) -> ContainerStatus {
        let source = match phase {
            Phase::Stopping => self.phase(),
            phase => phase,
        };
        let operation = match source {
            Phase::ScaledDown | Phase::RestoreFailed => self.checkpoint,
            Phase::Running | Phase::CheckpointFailed | Phase::Stopping => self.restore,
        };
        let Identity { id, name, pod_name, pod_namespace } = self.identity.clone();
        ContainerStatus {
            id,
            name,
            pod_name,
            pod_namespace,
            phase: EnumOrUnknown::new(phase.into()),
            event_time: MessageField::some(timestamp(operation.map_or(now, |it| it.ended))),
            event_duration: operation.map(|it| duration(it.took)).into(),
            event_log,
            ..ContainerStatus::default()
        }
    }

    fn read_metrics(&mut self) -> ContainerMetrics {
        let (checkpoint, restore) = (self.checkpoint.take(), self.restore.take());
        ContainerMetrics {
            name: self.identity.name.clone(),
            pod_name: self.identity.pod_name.clone(),
            pod_namespace: self.identity.pod_namespace.clone(),
            last_checkpoint: checkpoint.map(|it| timestamp(it.ended)).into(),
            last_checkpoint_duration: checkpoint.map(|it| duration(it.took)).into(),
            last_restore: restore.map(|it| timestamp(it.ended)).into(),
            last_restore_duration: restore.map(|it| duration(it.took)).into(),
            running: self.running,
            checkpoint_errors: mem::take(&mut self.checkpoint_errors),
            restore_errors: mem::take(&mut self.restore_errors),
            ..ContainerMetrics::default()
        }
    }
}

fn timestamp(time: SystemTime) -> Timestamp {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp {
        seconds: since.as_secs().cast_signed(),
        nanos: since.subsec_nanos().cast_signed(),
        ..Timestamp::default()
    }
}

fn duration(duration: Duration) -> ProtoDuration {
    ProtoDuration {
        seconds: duration.as_secs().cast_signed(),
        nanos: duration.subsec_nanos().cast_signed(),
        ..ProtoDuration::default()
    }
}

#[cfg(test)]
mod tests {
    use zeropod_shim_api::status::{MetricsReading, StatusEvent};

    use super::*;

    const TOOK: Duration = Duration::from_millis(70);

    fn state() -> State {
        let mut state = State::default();
        state.create(Identity {
            id: "c0ffee".into(),
            name: "app".into(),
            pod_name: "web".into(),
            pod_namespace: "default".into(),
        });
        state
    }

    fn at(second: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(second)
    }

    /// Phase, time and duration of the message.
    fn apply(
        state: &mut State,
        event: Event,
        second: u64,
    ) -> (Phase, Option<SystemTime>, Option<Duration>) {
        let message = state.apply("c0ffee", event, at(second)).unwrap();
        let event = StatusEvent::try_from(message).unwrap();
        (event.phase, event.time, event.duration)
    }

    fn metrics(state: &mut State) -> MetricsReading {
        MetricsReading::try_from(state.read_metrics().metrics.pop().unwrap()).unwrap()
    }

    #[test]
    fn running_with_a_duration_means_restored() {
        let mut state = state();
        assert!(metrics(&mut state).running, "from create on");
        assert_eq!(apply(&mut state, Event::Started, 1), (Phase::Running, Some(at(1)), None));
        let down = apply(&mut state, Event::ScaledDown(TOOK), 2);
        assert_eq!(down, (Phase::ScaledDown, Some(at(2)), Some(TOOK)));
        let up = apply(&mut state, Event::Restored(TOOK * 2), 3);
        assert_eq!(up, (Phase::Running, Some(at(3)), Some(TOOK * 2)));
    }

    #[test]
    fn failures_and_stops_carry_left_overs_until_a_read_clears_them() {
        let mut state = state();
        apply(&mut state, Event::Started, 1);
        apply(&mut state, Event::ScaledDown(TOOK), 2);
        let failed = apply(&mut state, Event::RestoreFailed("log".into()), 3);
        assert_eq!(failed, (Phase::RestoreFailed, Some(at(2)), Some(TOOK)));
        apply(&mut state, Event::Restored(TOOK), 4);
        let failed = apply(&mut state, Event::CheckpointFailed(String::new()), 5);
        assert_eq!(failed, (Phase::CheckpointFailed, Some(at(4)), Some(TOOK)));
        let stopping = apply(&mut state, Event::Stopping, 6);
        assert_eq!(stopping, (Phase::Stopping, Some(at(4)), Some(TOOK)));

        metrics(&mut state);
        let failed = apply(&mut state, Event::CheckpointFailed(String::new()), 7);
        assert_eq!(failed, (Phase::CheckpointFailed, Some(at(7)), None));
        let stopping = apply(&mut state, Event::Stopping, 8);
        assert_eq!(stopping, (Phase::Stopping, Some(at(8)), None));
    }

    #[test]
    fn a_read_clears_all_but_running() {
        let mut state = state();
        apply(&mut state, Event::ScaledDown(TOOK * 9), 1);
        apply(&mut state, Event::Restored(TOOK), 2);
        // Only the last of each is kept.
        apply(&mut state, Event::ScaledDown(TOOK), 3);
        apply(&mut state, Event::RestoreFailed(String::new()), 4);
        let first = metrics(&mut state);
        assert!(!first.running);
        assert_eq!(first.checkpoint.unwrap().duration, TOOK);
        assert_eq!(first.restore.unwrap().ended, at(2));
        assert_eq!((first.checkpoint_errors, first.restore_errors), (0, 1));
        let second = metrics(&mut state);
        assert_eq!((second.running, second.checkpoint, second.restore), (false, None, None));
        assert_eq!(second.restore_errors, 0);
    }

    #[test]
    fn get_status_tells_running_or_scaled_down_and_clears_nothing() {
        let mut state = state();
        let phase = |state: &State| {
            StatusEvent::try_from(state.status("c0ffee", at(9)).unwrap()).unwrap().phase
        };
        apply(&mut state, Event::CheckpointFailed(String::new()), 1);
        assert_eq!(phase(&state), Phase::Running);
        apply(&mut state, Event::ScaledDown(TOOK), 2);
        assert_eq!(phase(&state), Phase::ScaledDown);
        assert!(metrics(&mut state).checkpoint.is_some());
        assert_eq!(state.status("other", at(9)), None);
        state.delete("c0ffee");
        assert_eq!(state.status("c0ffee", at(9)), None);
    }
}
