//! A container of which tests tell news.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::{Duration, SystemTime};

use zeropod_shim_api::{
    change::{Cause, ContainerChange, ContainerKey, ContainerState, Update},
    id::{ContainerId, ContainerRef, PodRef, ShimId},
    status::{MetricsReading, Operation, Phase, StatusEvent},
};

pub(crate) struct Container {
    pub(crate) key: ContainerKey,
    pub(crate) state: ContainerState,
}

impl Container {
    pub(crate) fn new(shim: &str, pod: &str) -> Self {
        let pod = PodRef::new("default", pod).unwrap();
        let container = ContainerRef::new(pod, "app").unwrap();
        let state = ContainerState {
            id: Some(ContainerId::new("c0ffee").unwrap()),
            phase: Phase::Running,
            since: None,
            checkpoint: None,
            restore: None,
        };
        Self { key: ContainerKey { shim: ShimId::from_file_name(shim).unwrap(), container }, state }
    }

    pub(crate) fn change(&self, cause: Cause) -> Update {
        let (key, state) = (self.key.clone(), self.state.clone());
        Update::Change(Box::new(ContainerChange { key, state, cause }))
    }

    pub(crate) fn event(&mut self, phase: Phase, operation: Option<Operation>) -> Update {
        if matches!(phase, Phase::Running | Phase::ScaledDown) {
            self.state.phase = phase;
        }
        self.change(Cause::Event(StatusEvent {
            id: self.state.id.clone().unwrap(),
            container: self.key.container.clone(),
            phase,
            time: Some(operation.map_or_else(SystemTime::now, |operation| operation.ended)),
            duration: operation.map(|operation| operation.duration),
            log: Vec::new(),
        }))
    }

    pub(crate) fn reading(&self, reading: MetricsReading) -> Update {
        self.change(Cause::Reading(reading))
    }

    pub(crate) fn nothing_new(&self) -> MetricsReading {
        MetricsReading {
            container: self.key.container.clone(),
            running: self.state.phase == Phase::Running,
            checkpoint: None,
            restore: None,
            checkpoint_errors: 0,
            restore_errors: 0,
        }
    }
}

pub(crate) fn operation(millis: u64) -> Operation {
    Operation { ended: SystemTime::now(), duration: Duration::from_millis(millis) }
}
