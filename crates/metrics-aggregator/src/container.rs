//! The series of one container.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use zeropod_shim_api::{
    change::ContainerState,
    id::ContainerRef,
    status::{MetricsReading, Phase, StatusEvent},
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
        }
    }

    pub(crate) fn event(&mut self, event: &StatusEvent, start: SystemTime) {
        let checkpoint = event.checkpoint();
        let restore = event.restore();
        match event.phase {
            Phase::ScaledDown => checkpoint.map(|operation| self.checkpoints.event(operation)),
            Phase::Running => restore.map(|operation| self.restores.event(operation)),
            // A failure repeats an operation of the other kind, as an answer does.
            Phase::CheckpointFailed => {
                self.checkpoints.failed();
                restore.map(|operation| self.restores.reading(operation, start))
            }
            Phase::RestoreFailed => {
                self.restores.failed();
                checkpoint.map(|operation| self.checkpoints.reading(operation, start))
            }
            Phase::Stopping => None,
        };
    }

    pub(crate) fn reading(&mut self, reading: &MetricsReading, start: SystemTime) {
        if let Some(operation) = reading.checkpoint {
            self.checkpoints.reading(operation, start);
        }
        if let Some(operation) = reading.restore {
            self.restores.reading(operation, start);
        }
        self.checkpoints.failures_read(reading.checkpoint_errors);
        self.restores.failures_read(reading.restore_errors);
    }

    /// Some changes were missed, and this is what they led to.
    pub(crate) fn caught_up(&mut self, state: &ContainerState, start: SystemTime) {
        if let Some(operation) = state.checkpoint {
            self.checkpoints.reading(operation, start);
        }
        if let Some(operation) = state.restore {
            self.restores.reading(operation, start);
        }
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

/// Writes the series of all containers, family by family.
pub(crate) fn render(all: &[&Series], now: SystemTime, to: &mut Exposition) {
    let families: [(&str, &str, Of); 2] = [
        ("zeropod_checkpoint_duration_seconds", "Time the last steps of a checkpoint took.", |s| {
            &s.checkpoints
        }),
        ("zeropod_restore_duration_seconds", "Time a restore took.", |s| &s.restores),
    ];
    for (name, help, operations) in families {
        let name = to.family(name, Kind::Histogram, help);
        for series in all {
            let durations = &operations(series).durations;
            to.histogram(&name, &series.labels, durations.counts(), durations.sum());
        }
    }
    let families: [(&str, &str, Of); 2] = [
        (
            "zeropod_last_checkpoint_time",
            "When the last checkpoint ended, in nanoseconds since 1970.",
            |s| &s.checkpoints,
        ),
        (
            "zeropod_last_restore_time",
            "When the last restore ended, in nanoseconds since 1970.",
            |s| &s.restores,
        ),
    ];
    for (name, help, operations) in families {
        let name = to.family(name, Kind::Gauge, help);
        for series in all {
            if let Some(last) = operations(series).last {
                let nanos = last.duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
                to.sample(&name, &series.labels, nanos);
            }
        }
    }
    let name = to.family(
        "zeropod_running",
        Kind::Gauge,
        "1 while the container's process runs, 0 while it is scaled down.",
    );
    for series in all {
        to.sample(&name, &series.labels, u8::from(series.running));
    }
    let families: [(&str, &str, Of); 2] = [
        ("zeropod_checkpoint_errors_total", "Checkpoints that failed.", |s| &s.checkpoints),
        ("zeropod_restore_errors_total", "Restores that failed.", |s| &s.restores),
    ];
    for (name, help, operations) in families {
        let name = to.family(name, Kind::Counter, help);
        for series in all {
            to.sample(&name, &series.labels, operations(series).errors());
        }
    }
    let name = to.family(
        "zeropod_scaled_down_seconds_total",
        Kind::Counter,
        "Time the container has been scaled down.",
    );
    for series in all {
        to.sample(&name, &series.labels, series.scaled_down.total(now).as_secs_f64());
    }
}
