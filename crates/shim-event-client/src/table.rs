//! The table: what every container behind every shim is doing now, as far as
//! its events and answers tell. Synchronous and without I/O, so that every
//! order in which news can arrive is a plain test.
//!
//! Two rules decide between news that disagree:
//! - An answer is as old as the moment the question was sent. It overrides
//!   what was true before, not an event of a later time, and an event of an
//!   earlier time no longer changes the phase: a backlog taken after a long
//!   outage cannot move the table back.
//! - A container that was stopped ends at once and stays ended, although its
//!   shim lists it until it is deleted.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::{Duration, SystemTime},
};

use zeropod_shim_api::{
    change::{Cause, ContainerChange, ContainerKey, ContainerState},
    id::{ContainerId, ContainerRef, ShimId},
    status::{MetricsReading, Operation, Phase, StatusEvent},
};

/// Containers kept per shim; a grouped shim has some dozens. Beyond it a shim
/// is talking nonsense.
pub(crate) const MAX_CONTAINERS: usize = 1024;

/// An event this far in the future is dated by its arrival instead.
const CLOCK_TOLERANCE: Duration = Duration::from_secs(1);

/// No answer takes that long.
const CLOCK_SET_BACK: Duration = Duration::from_mins(1);

/// See the [module documentation](self).
#[derive(Debug, Default)]
pub(crate) struct Table {
    shims: BTreeMap<ShimId, Shim>,
}

/// What an answer changed.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Reconciled {
    /// Changes, in the order in which to publish them.
    pub(crate) changes: Vec<ContainerChange>,
    /// How many containers turned out to be in another phase than the events
    /// had told: events were lost.
    pub(crate) corrections: usize,
}

#[derive(Debug, Default)]
struct Shim {
    /// Most shims have one: boxed, since a map makes room for eleven at once.
    containers: BTreeMap<ContainerRef, Box<Entry>>,
    /// Stopped containers that the shim may still list, by id.
    stopped: HashMap<ContainerId, ContainerRef>,
}

#[derive(Debug)]
struct Entry {
    state: ContainerState,
    /// When the phase was last known to be true.
    as_of: Option<SystemTime>,
}

impl Table {
    /// Everything that is true now.
    pub(crate) fn snapshot(&self) -> Vec<(ContainerKey, ContainerState)> {
        self.shims
            .iter()
            .flat_map(|(shim, known)| {
                known
                    .containers
                    .iter()
                    .map(|(container, entry)| (key(shim, container), entry.state.clone()))
            })
            .collect()
    }

    /// Ids to ask a shim about, with those of stopped containers that it may
    /// still have.
    pub(crate) fn ids(&self, shim: &ShimId) -> Vec<ContainerId> {
        let Some(shim) = self.shims.get(shim) else { return Vec::new() };
        let current = shim.containers.values().filter_map(|entry| entry.state.id.clone());
        current.chain(shim.stopped.keys().cloned()).collect()
    }

    /// Whether only `Metrics` can tell the state of some container of a shim:
    /// it has no id, or nothing of the shim is known at all.
    pub(crate) fn needs_reading(&self, shim: &ShimId) -> bool {
        self.shims.get(shim).is_none_or(|shim| {
            shim.containers.is_empty()
                || shim.containers.values().any(|entry| entry.state.id.is_none())
        })
    }

    /// Takes in an event, received at `now`. Returns the changes to publish:
    /// one for most events, none for a repeated stop, and two when the
    /// container replaces an earlier one of the same name.
    pub(crate) fn apply(
        &mut self,
        shim_id: &ShimId,
        event: StatusEvent,
        now: SystemTime,
    ) -> Vec<ContainerChange> {
        let shim = self.shims.entry(shim_id.clone()).or_default();
        let key = key(shim_id, &event.container);
        if event.phase == Phase::Stopping {
            return shim.stop(key, event.id).into_iter().collect();
        }
        let mut changes = Vec::new();
        let current_id = shim.containers.get(&event.container).and_then(|e| e.state.id.clone());
        if let Some(current_id) = current_id.filter(|current| *current != event.id) {
            if shim.stopped.contains_key(&event.id) {
                return changes;
            }
            // Restarted without a stop: a crash sends no event.
            changes.extend(shim.containers.remove(&event.container).map(|entry| {
                shim.remember_stopped(current_id, &event.container);
                removed(key.clone(), entry.state)
            }));
        }
        // A signal other than a final one also sends STOPPING: a later event
        // of the same container proves that it lives on.
        shim.stopped.remove(&event.id);
        if shim.is_full() && !shim.containers.contains_key(&event.container) {
            return changes;
        }
        let entry = shim
            .containers
            .entry(event.container.clone())
            .or_insert_with(|| Entry::unknown().into());
        entry.apply(&event, now);
        changes.push(ContainerChange {
            key,
            state: entry.state.clone(),
            cause: Cause::Event(event),
        });
        changes
    }

    /// Takes in the answer to `Metrics` of one shim, asked at `asked`. It lists
    /// every container that the shim has.
    pub(crate) fn reconcile(
        &mut self,
        shim_id: &ShimId,
        asked: SystemTime,
        readings: Vec<MetricsReading>,
    ) -> Reconciled {
        let shim = self.shims.entry(shim_id.clone()).or_default();
        let listed: BTreeSet<ContainerRef> =
            readings.iter().map(|reading| reading.container.clone()).collect();
        let mut done = Reconciled::default();

        let gone: Vec<ContainerRef> = shim
            .containers
            .iter()
            .filter(|(name, entry)| !listed.contains(*name) && entry.older_than(asked))
            .map(|(name, _)| name.clone())
            .collect();
        for name in gone {
            // A crash sends no event, so that none needs to be lost.
            if let Some(entry) = shim.containers.remove(&name) {
                done.changes.push(removed(key(shim_id, &name), entry.state));
            }
        }
        shim.stopped.retain(|_, name| listed.contains(name));

        for reading in readings {
            let known = shim.containers.contains_key(&reading.container);
            if !known && (shim.is_stopped(&reading.container) || shim.is_full()) {
                continue;
            }
            let entry = shim
                .containers
                .entry(reading.container.clone())
                .or_insert_with(|| Entry::unknown().into());
            let phase = if reading.running { Phase::Running } else { Phase::ScaledDown };
            let corrected = entry.settle(phase, &reading, asked);
            done.corrections += usize::from(corrected && known);
            if corrected || !known || tells_more(&reading) {
                done.changes.push(ContainerChange {
                    key: key(shim_id, &reading.container),
                    state: entry.state.clone(),
                    cause: Cause::Reading(reading),
                });
            }
        }
        done
    }

    /// Takes in the answer to `GetStatus` for one container, asked at `asked`.
    /// `None`: the shim does not know the id, so that a container of the same
    /// name has to be asked for by `Metrics`.
    pub(crate) fn answer(
        &mut self,
        shim_id: &ShimId,
        id: &ContainerId,
        asked: SystemTime,
        status: Option<StatusEvent>,
    ) -> Reconciled {
        let mut done = Reconciled::default();
        let Some(shim) = self.shims.get_mut(shim_id) else { return done };
        let Some(status) = status else {
            shim.stopped.remove(id);
            let name = shim
                .containers
                .iter()
                .find(|(_, entry)| entry.state.id.as_ref() == Some(id) && entry.older_than(asked))
                .map(|(name, _)| name.clone());
            if let Some((name, entry)) = name.and_then(|name| shim.containers.remove_entry(&name)) {
                done.changes.push(removed(key(shim_id, &name), entry.state));
            }
            return done;
        };
        let Some(entry) = shim.containers.get_mut(&status.container) else { return done };
        if entry.state.id.as_ref() != Some(id) || status.id != *id {
            return done;
        }
        let Some(phase) = answered_phase(&status) else { return done };
        let reading = MetricsReading {
            running: phase == Phase::Running,
            checkpoint: status.checkpoint(),
            restore: status.restore(),
            checkpoint_errors: 0,
            restore_errors: 0,
            container: status.container,
        };
        if entry.settle(phase, &reading, asked) {
            done.corrections += 1;
            done.changes.push(ContainerChange {
                key: key(shim_id, &reading.container),
                state: entry.state.clone(),
                cause: Cause::Reading(reading),
            });
        }
        done
    }

    /// Whether an answer to `GetStatus` says what the table says. If not, an
    /// event may be under way.
    pub(crate) fn agrees(&self, shim: &ShimId, status: &StatusEvent) -> bool {
        let entry = self.shims.get(shim).and_then(|shim| shim.containers.get(&status.container));
        entry.is_none_or(|entry| {
            answered_phase(status).is_none_or(|phase| phase == entry.state.phase)
        })
    }

    /// Forgets a shim that is gone, with all its containers.
    pub(crate) fn shim_gone(&mut self, shim_id: &ShimId) -> Vec<ContainerChange> {
        let Some(shim) = self.shims.remove(shim_id) else { return Vec::new() };
        shim.containers
            .into_iter()
            .map(|(name, entry)| removed(key(shim_id, &name), entry.state))
            .collect()
    }
}

impl Shim {
    /// Ends the container `id`, if it is the one known by its name.
    fn stop(&mut self, key: ContainerKey, id: ContainerId) -> Option<ContainerChange> {
        let name = key.container.clone();
        let is_current = self
            .containers
            .get(&name)
            .is_some_and(|entry| entry.state.id.as_ref().is_none_or(|current| *current == id));
        self.remember_stopped(id, &name);
        let mut entry = is_current.then(|| self.containers.remove(&name)).flatten()?;
        entry.state.phase = Phase::Stopping;
        Some(removed(key, entry.state))
    }

    fn remember_stopped(&mut self, id: ContainerId, name: &ContainerRef) {
        if self.stopped.len() < MAX_CONTAINERS {
            self.stopped.insert(id, name.clone());
        }
    }

    fn is_stopped(&self, name: &ContainerRef) -> bool {
        self.stopped.values().any(|stopped| stopped == name)
    }

    fn is_full(&self) -> bool {
        self.containers.len() >= MAX_CONTAINERS
    }
}

impl Entry {
    fn unknown() -> Self {
        let state = ContainerState {
            id: None,
            phase: Phase::Running,
            since: None,
            checkpoint: None,
            restore: None,
        };
        Self { state, as_of: None }
    }

    /// Whether an answer asked for at `asked` is newer than what is known.
    /// Known from the far future means that the clock was set back.
    fn older_than(&self, asked: SystemTime) -> bool {
        self.as_of.is_none_or(|as_of| as_of < asked || as_of > asked + CLOCK_SET_BACK)
    }

    fn apply(&mut self, event: &StatusEvent, now: SystemTime) {
        self.state.id = Some(event.id.clone());
        self.learn_operations(event.checkpoint(), event.restore());
        let phase = match event.phase {
            Phase::Running | Phase::ScaledDown => event.phase,
            // A failure tells the phase only of a container not known yet, and
            // its time is that of an earlier success.
            Phase::CheckpointFailed if self.as_of.is_none() => Phase::Running,
            Phase::RestoreFailed if self.as_of.is_none() => Phase::ScaledDown,
            Phase::Stopping | Phase::CheckpointFailed | Phase::RestoreFailed => return,
        };
        if event.phase != phase {
            self.state.phase = phase;
            return;
        }
        let time = event.time.filter(|time| *time <= now + CLOCK_TOLERANCE).unwrap_or(now);
        // A clock that was set back must not freeze the phase.
        let as_of = self.as_of.filter(|as_of| *as_of <= now + CLOCK_TOLERANCE);
        if as_of.is_some_and(|as_of| time < as_of) {
            // Part of a backlog, and an answer told more. Its time is still
            // the best known, as long as it agrees.
            if phase == self.state.phase {
                self.state.since = self.state.since.max(Some(time));
            } else if self.state.since.is_some_and(|since| since < time) {
                self.state.since = None;
            }
            return;
        }
        self.state.phase = phase;
        self.state.since = Some(time);
        self.as_of = Some(time);
    }

    /// Takes in an answer. Returns whether the phase was another one.
    fn settle(&mut self, phase: Phase, reading: &MetricsReading, asked: SystemTime) -> bool {
        self.learn_operations(reading.checkpoint, reading.restore);
        if !self.older_than(asked) {
            return false;
        }
        self.as_of = Some(asked);
        if phase == self.state.phase {
            return false;
        }
        self.state.phase = phase;
        self.state.since = match phase {
            Phase::ScaledDown => reading.checkpoint,
            _ => reading.restore,
        }
        .map(|operation| operation.ended);
        true
    }

    fn learn_operations(&mut self, checkpoint: Option<Operation>, restore: Option<Operation>) {
        let newer = |old: Option<Operation>, new: Option<Operation>| {
            old.into_iter().chain(new).max_by_key(|operation| operation.ended)
        };
        self.state.checkpoint = newer(self.state.checkpoint, checkpoint);
        self.state.restore = newer(self.state.restore, restore);
    }
}

/// Phase that an answer to `GetStatus` proves.
fn answered_phase(status: &StatusEvent) -> Option<Phase> {
    match status.phase {
        Phase::Running | Phase::CheckpointFailed => Some(Phase::Running),
        Phase::ScaledDown => Some(Phase::ScaledDown),
        // Neither tells whether a process runs.
        Phase::Stopping | Phase::RestoreFailed => None,
    }
}

fn key(shim: &ShimId, container: &ContainerRef) -> ContainerKey {
    ContainerKey { shim: shim.clone(), container: container.clone() }
}

fn removed(key: ContainerKey, state: ContainerState) -> ContainerChange {
    ContainerChange { key, state, cause: Cause::Removed }
}

/// Whether a reading brings something beside the phase.
fn tells_more(reading: &MetricsReading) -> bool {
    reading.checkpoint.is_some()
        || reading.restore.is_some()
        || reading.checkpoint_errors > 0
        || reading.restore_errors > 0
}

#[cfg(test)]
mod tests;
