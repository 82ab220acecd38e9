//! The series of one container.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use zeropod_shim_api::{
    change::ContainerState,
    id::ContainerRef,
    status::{MetricsReading, Operation, Phase, StatusEvent},
};

use crate::{
    exposition::{Exposition, Kind, labels},
    operations::Operations,
};

/// See the [module documentation](self).
#[derive(Debug)]
pub(crate) struct Series {
    labels: String,
    running: bool,
    checkpoints: Operations,
    restores: Operations,
    scaled_down: ScaledDown,
    /// Whether the failures that the next reading tells of happened under the
    /// eyes of this process.
    witnessed: bool,
}

/// What this process has counted of a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Totals {
    /// Times that it was brought back after a scale-down.
    pub wake_ups: u64,
    /// Time that it has been scaled down, up to now.
    pub scaled_down: Duration,
    /// Checkpoints that failed.
    pub checkpoint_errors: u64,
    /// Restores that failed.
    pub restore_errors: u64,
}

/// How much of what came was not counted before.
#[derive(Debug, Default)]
pub(crate) struct News {
    pub(crate) checkpoints: u64,
    pub(crate) restores: u64,
    pub(crate) failed_checkpoints: u64,
    pub(crate) failed_restores: u64,
}

#[derive(Debug, Default)]
struct ScaledDown {
    /// Time in past scale-downs.
    total: Duration,
    /// Start of the present one.
    since: Option<SystemTime>,
}

impl Series {
    pub(crate) fn new(container: &ContainerRef) -> Self {
        Self {
            labels: labels([
                ("container", container.name()),
                ("namespace", container.pod.namespace()),
                ("pod", container.pod.name()),
            ]),
            running: false,
            checkpoints: Operations::default(),
            restores: Operations::default(),
            scaled_down: ScaledDown::default(),
            witnessed: false,
        }
    }

    /// Takes in an event. `start` is as in [`Operations::reading`].
    pub(crate) fn event(&mut self, event: &StatusEvent, start: SystemTime) -> News {
        let mut news = News::default();
        let (checkpoint, restore) = (event.checkpoint(), event.restore());
        let created = event.duration.is_none()
            && matches!(event.phase, Phase::Running | Phase::ScaledDown)
            && event.time.is_some_and(|time| time >= start);
        self.witnessed |= created;
        match event.phase {
            Phase::ScaledDown => {
                news.checkpoints = checkpoint.map_or(0, |one| self.checkpoints.event(one));
            }
            Phase::Running => news.restores = restore.map_or(0, |one| self.restores.event(one)),
            // A failure repeats an operation of the other kind, as an answer does.
            Phase::CheckpointFailed => {
                news.failed_checkpoints = self.checkpoints.failed();
                news.restores = restore.map_or(0, |one| self.restores.reading(one, start));
            }
            Phase::RestoreFailed => {
                news.failed_restores = self.restores.failed();
                news.checkpoints = checkpoint.map_or(0, |one| self.checkpoints.reading(one, start));
            }
            Phase::Stopping => {}
        }
        news
    }

    /// Takes in an answer. `start` is as in [`Operations::reading`]. Failures
    /// that may be from before it were counted by an earlier process, or their
    /// events are still to come.
    pub(crate) fn reading(&mut self, reading: &MetricsReading, start: SystemTime) -> News {
        let mut news = self.caught_up(reading.checkpoint, reading.restore, start);
        if self.witnessed {
            news.failed_checkpoints = self.checkpoints.failures_read(reading.checkpoint_errors);
            news.failed_restores = self.restores.failures_read(reading.restore_errors);
        }
        self.witnessed = true;
        news
    }

    /// Takes in the last operations of a container of which changes were
    /// missed.
    pub(crate) fn caught_up(
        &mut self,
        checkpoint: Option<Operation>,
        restore: Option<Operation>,
        start: SystemTime,
    ) -> News {
        News {
            checkpoints: checkpoint.map_or(0, |one| self.checkpoints.reading(one, start)),
            restores: restore.map_or(0, |one| self.restores.reading(one, start)),
            ..News::default()
        }
    }

    pub(crate) fn totals(&self, now: SystemTime) -> Totals {
        Totals {
            wake_ups: self.wake_ups(),
            scaled_down: self.scaled_down.total(now),
            checkpoint_errors: self.checkpoints.errors(),
            restore_errors: self.restores.errors(),
        }
    }

    fn wake_ups(&self) -> u64 {
        self.restores.durations.count()
    }

    /// What is true now. Time scaled down counts from `start`, as every
    /// counter of this process.
    pub(crate) fn state(&mut self, state: &ContainerState, start: SystemTime, now: SystemTime) {
        self.running = state.phase != Phase::ScaledDown;
        let changed = state.since.unwrap_or(now).clamp(start.min(now), now);
        if self.running {
            if let Some(since) = self.scaled_down.since.take() {
                self.scaled_down.total += changed.duration_since(since).unwrap_or_default();
            }
        } else {
            self.scaled_down.since.get_or_insert(changed);
        }
    }
}

impl ScaledDown {
    fn total(&self, now: SystemTime) -> Duration {
        let present = self.since.and_then(|since| now.duration_since(since).ok());
        self.total + present.unwrap_or_default()
    }
}

/// Picks the checkpoints or the restores of a container.
type Of = fn(&Series) -> &Operations;

enum Value {
    Durations(Of),
    Last(Of),
    Errors(Of),
    Running,
    WakeUps,
    ScaledDown,
}

/// A family of series with one member per container.
struct Family {
    name: &'static str,
    help: &'static str,
    value: Value,
}

const CHECKPOINTS: Of = |series| &series.checkpoints;
const RESTORES: Of = |series| &series.restores;

/// The first seven are those of zeropod's own manager.
const FAMILIES: [Family; 9] = [
    Family {
        name: "zeropod_checkpoint_duration_seconds",
        help: "Time that a checkpoint took, without its pre-dump.",
        value: Value::Durations(CHECKPOINTS),
    },
    Family {
        name: "zeropod_restore_duration_seconds",
        help: "Time that a restore took, or a fresh start in its place.",
        value: Value::Durations(RESTORES),
    },
    Family {
        name: "zeropod_last_checkpoint_time",
        help: "When the last checkpoint ended, in nanoseconds since 1970.",
        value: Value::Last(CHECKPOINTS),
    },
    Family {
        name: "zeropod_last_restore_time",
        help: "When the last restore ended, in nanoseconds since 1970.",
        value: Value::Last(RESTORES),
    },
    Family {
        name: "zeropod_running",
        help: "1 while the process of the container runs, 0 while it is scaled down.",
        value: Value::Running,
    },
    Family {
        name: "zeropod_checkpoint_errors_total",
        help: "Checkpoints that failed.",
        value: Value::Errors(CHECKPOINTS),
    },
    Family {
        name: "zeropod_restore_errors_total",
        help: "Restores that failed.",
        value: Value::Errors(RESTORES),
    },
    Family {
        name: "zeropod_wakeups_total",
        help: "Times that the container was brought back after a scale-down.",
        value: Value::WakeUps,
    },
    Family {
        name: "zeropod_scaled_down_seconds_total",
        help: "Time that the container has been scaled down.",
        value: Value::ScaledDown,
    },
];

impl Family {
    fn kind(&self) -> Kind {
        match self.value {
            Value::Durations(_) => Kind::Histogram,
            Value::Last(_) | Value::Running => Kind::Gauge,
            Value::Errors(_) | Value::WakeUps | Value::ScaledDown => Kind::Counter,
        }
    }
}

/// Writes the series of all containers, family by family.
pub(crate) fn render(all: &[&Series], now: SystemTime, to: &mut Exposition) {
    for family in &FAMILIES {
        let name = to.family(family.name, family.kind(), family.help);
        for series in all {
            let labels = &series.labels;
            match family.value {
                Value::Durations(of) => to.histogram(&name, labels, &of(series).durations),
                Value::Last(of) => {
                    if let Some(last) = of(series).last {
                        let since = last.duration_since(UNIX_EPOCH).unwrap_or_default();
                        let nanoseconds = since.as_nanos().try_into().unwrap_or(u64::MAX);
                        to.sample(&name, labels, nanoseconds);
                    }
                }
                Value::Errors(of) => to.sample(&name, labels, of(series).errors()),
                Value::Running => to.sample(&name, labels, u64::from(series.running)),
                Value::WakeUps => to.sample(&name, labels, series.wake_ups()),
                Value::ScaledDown => {
                    to.sample(&name, labels, series.scaled_down.total(now).as_secs_f64());
                }
            }
        }
    }
}

/// Name, kind and help of every family.
pub(crate) fn documentation() -> impl Iterator<Item = (&'static str, Kind, &'static str)> {
    FAMILIES.iter().map(|family| (family.name, family.kind(), family.help))
}
