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
    rows: BTreeMap<ContainerRef, Vec<(ShimId, Row)>>,
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

    /// Notes what a container gives back. Unknown containers are ignored.
    pub(crate) fn gives_back(
        &mut self,
        container: &ContainerRef,
        given: Option<Resources>,
    ) -> News {
        match self.rows.get_mut(container).and_then(|shims| shims.last_mut()) {
            Some((_, row)) if row.gives_back != given => {
                row.gives_back = given;
                News::Changed(container.clone())
            }
            _ => News::None,
        }
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
        let (shim, row) = self.rows.get(container)?.last()?;
        let key = ContainerKey { shim: shim.clone(), container: container.clone() };
        Some(row.show(container, &counts(&key)))
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
        let shims = self.rows.entry(key.container.clone()).or_default();
        match shims.iter_mut().find(|(shim, _)| *shim == key.shim) {
            Some((_, row)) => row.set(state),
            None => shims.push((key.shim.clone(), Row { state: state.clone(), gives_back: None })),
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

#[derive(Debug)]
struct Row {
    state: ContainerState,
    gives_back: Option<Resources>,
}

impl Row {
    fn set(&mut self, state: &ContainerState) {
        let new_id = state.id.is_some() && self.state.id.is_some() && state.id != self.state.id;
        if new_id {
            // Another container of the same name: nothing was given back for it.
            self.gives_back = None;
        }
        self.state = state.clone();
    }

    fn show(&self, container: &ContainerRef, counts: &Counts) -> Container {
        let Removed { namespace, pod, container } = removed(container);
        Container {
            namespace,
            pod,
            container,
            phase: self.state.phase.as_str().into(),
            since: self.state.since.map(timestamp),
            last_checkpoint: self.state.checkpoint.map(Into::into),
            last_restore: self.state.restore.map(Into::into),
            wake_ups: counts.wake_ups,
            checkpoint_failures: counts.checkpoint_failures,
            restore_failures: counts.restore_failures,
            scaled_down_seconds: seconds(counts.scaled_down),
            gives_back: self.gives_back,
        }
    }
}

#[cfg(test)]
#[path = "rows_tests.rs"]
mod tests;
