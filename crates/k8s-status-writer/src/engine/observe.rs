//! Which containers of a pod are known to do what.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Instant,
};

use zeropod_shim_api::{
    id::{ContainerId, PodRef},
    status::Phase,
};

use super::{earlier, table::Table, work::Work};
use crate::{
    config::Config,
    plan::Seen,
    pod::{Pod, Scaled},
};

#[derive(Debug, Default)]
pub(super) struct Observed {
    pub(super) seen: BTreeMap<Box<str>, Seen>,
    /// When time alone will change that.
    pub(super) look_again: Option<Instant>,
}

/// Compares the pod's containers with the shims', by container id: a name
/// alone can be that of an earlier pod (S11). RUNNING comes before the
/// kubelet has reported the id; until it has, nothing is known.
pub(super) fn observe(
    pod_ref: &PodRef,
    pod: &Pod,
    table: &Table,
    work: &mut Work,
    config: &Config,
    now: Instant,
) -> Observed {
    let mut observed = Observed::default();
    // A label can be of a container that the pod no longer lists.
    let names: BTreeSet<&str> = pod
        .containers
        .iter()
        .map(|container| &*container.name)
        .chain(pod.labels.iter().map(|(name, _)| &**name))
        .collect();
    for name in names {
        let id = pod.container(name).and_then(|container| container.id.as_ref());
        let confirmed = id.and_then(|id| table.phase(pod_ref, name, id));
        let seen = if let Some(phase) = confirmed {
            work.stopped.remove(name);
            if let Some(preset) = &mut work.preset {
                preset.containers.remove(name);
            }
            Some(match phase {
                Phase::ScaledDown => Seen::ScaledDown,
                Phase::Stopping => Seen::Stopping,
                // Failures leave the phase as it was, and the process runs.
                Phase::Running | Phase::CheckpointFailed | Phase::RestoreFailed => Seen::Running,
            })
        } else if is_preset(work, name, now) {
            Some(Seen::ScaledDown)
        } else if table.has(pod_ref, name) {
            stopped(work, name, id)
        } else if table.informed {
            absent(pod, name, id, work, config, now, &mut observed.look_again)
        } else {
            None
        };
        if table.has(pod_ref, name) {
            work.absent.remove(name);
        }
        if let Some(seen) = seen {
            observed.seen.insert(name.into(), seen);
        }
    }
    observed
}

fn is_preset(work: &mut Work, name: &str, now: Instant) -> bool {
    if work.preset.as_ref().is_some_and(|preset| preset.until <= now) {
        work.preset = None;
    }
    work.preset.as_ref().is_some_and(|preset| preset.containers.contains(name))
}

/// A container whose run has ended, while the pod still shows that run.
fn stopped(work: &Work, name: &str, id: Option<&ContainerId>) -> Option<Seen> {
    (id.is_some() && work.stopped.get(name) == id).then_some(Seen::Stopping)
}

/// A name of which no shim has a container: gone after a while, if there is
/// anything to clean up.
fn absent(
    pod: &Pod,
    name: &str,
    id: Option<&ContainerId>,
    work: &mut Work,
    config: &Config,
    now: Instant,
    look_again: &mut Option<Instant>,
) -> Option<Seen> {
    let lowered = pod.container(name).is_some_and(|container| {
        Scaled::BOTH.into_iter().any(|resource| {
            let request = container.resources.get(resource);
            request.now.as_ref().is_some_and(|now| resource.is_sentinel(now))
        })
    });
    if !lowered && pod.label(name).is_none() {
        return None;
    }
    let gone = *work.absent.entry(name.into()).or_insert(now) + config.gone_after;
    if gone <= now {
        return Some(Seen::Gone);
    }
    *look_again = earlier(*look_again, Some(gone));
    stopped(work, name, id)
}
