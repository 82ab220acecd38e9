//! The containers of the node: synchronous and without a clock, so that every
//! order of updates is a plain test.

use std::collections::BTreeMap;

use zeropod_shim_api::{
    change::{Cause, ContainerChange, ContainerKey, ContainerState, Update},
    id::{ContainerRef, ShimId},
};

use crate::{
    Counts,
    api::{Container, Removed, Resources, seconds, timestamp},
};

/// See the [module documentation](self).
#[derive(Debug, Default)]
pub(crate) struct Rows {
    /// Behind each name the shims that have such a container, the newest
    /// last: two pods of one name can exist for a moment.
    rows: BTreeMap<ContainerRef, Vec<(ShimId, ContainerState)>>,
    given_back: BTreeMap<ContainerRef, Resources>,
}

/// What an update means for those who watch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum News {
    /// Anything may be different.
    All,
    /// This container is new or different.
    Changed(ContainerRef),
    /// This container is gone.
    Removed(ContainerRef),
    /// Nothing.
    None,
}

impl Rows {
    /// Takes in what happened.
    pub(crate) fn apply(&mut self, update: &Update) -> News {
        match update {
            Update::Snapshot(snapshot) => {
                self.rows.retain(|container, shims| {
                    shims.retain(|(shim, _)| {
                        snapshot
                            .iter()
                            .any(|(key, _)| key.container == *container && key.shim == *shim)
                    });
                    !shims.is_empty()
                });
                for (key, state) in snapshot {
                    self.set(key, state);
                }
                News::All
            }
            Update::Change(change) => self.change(change),
        }
    }

    /// Notes what all containers give back, and returns those that show it
    /// otherwise than before.
    pub(crate) fn give_back(
        &mut self,
        given: BTreeMap<ContainerRef, Resources>,
    ) -> Vec<ContainerRef> {
        let before = std::mem::replace(&mut self.given_back, given);
        let changed =
            |container: &&ContainerRef| before.get(*container) != self.given_back.get(*container);
        self.rows.keys().filter(changed).cloned().collect()
    }

    /// All containers by name.
    pub(crate) fn all(&self, counts: impl Fn(&ContainerKey) -> Counts) -> Vec<Container> {
        self.rows.keys().filter_map(|container| self.one(container, &counts)).collect()
    }

    /// One container.
    pub(crate) fn one(
        &self,
        container: &ContainerRef,
        counts: impl Fn(&ContainerKey) -> Counts,
    ) -> Option<Container> {
        let (shim, state) = self.rows.get(container)?.last()?;
        let key = ContainerKey { shim: shim.clone(), container: container.clone() };
        let given_back = self.given_back.get(container).copied();
        Some(show(container, state, &counts(&key), given_back))
    }

    fn change(&mut self, change: &ContainerChange) -> News {
        let ContainerChange { key, state, cause } = change;
        let container = &key.container;
        if *cause != Cause::Removed {
            self.set(key, state);
            return News::Changed(container.clone());
        }
        let Some(shims) = self.rows.get_mut(container) else { return News::None };
        shims.retain(|(shim, _)| *shim != key.shim);
        if !shims.is_empty() {
            return News::Changed(container.clone());
        }
        self.rows.remove(container);
        News::Removed(container.clone())
    }

    fn set(&mut self, key: &ContainerKey, state: &ContainerState) {
        // Most names have one: none is allocated in advance.
        let shims = self.rows.entry(key.container.clone()).or_insert_with(|| Vec::with_capacity(1));
        match shims.iter_mut().find(|(shim, _)| *shim == key.shim) {
            Some((_, known)) => known.clone_from(state),
            None => shims.push((key.shim.clone(), state.clone())),
        }
    }
}

/// The names of a container in the API.
pub(crate) fn removed(container: &ContainerRef) -> Removed {
    Removed {
        namespace: container.pod.namespace().to_owned(),
        pod: container.pod.name().to_owned(),
        container: container.name().to_owned(),
    }
}

fn show(
    container: &ContainerRef,
    state: &ContainerState,
    counts: &Counts,
    given_back: Option<Resources>,
) -> Container {
    let Removed { namespace, pod, container } = removed(container);
    Container {
        namespace,
        pod,
        container,
        phase: state.phase.as_str().into(),
        since: state.since.map(timestamp),
        last_checkpoint: state.checkpoint.map(Into::into),
        last_restore: state.restore.map(Into::into),
        wake_ups: counts.wake_ups,
        checkpoint_failures: counts.checkpoint_failures,
        restore_failures: counts.restore_failures,
        scaled_down_seconds: seconds(counts.scaled_down),
        gives_back: given_back,
    }
}

#[cfg(test)]
#[path = "rows_tests.rs"]
mod tests;
