//! What the shims' containers do, as the updates tell it, by pod and name.

use std::collections::HashMap;

use zeropod_shim_api::{
    change::{Cause, ContainerKey, ContainerState, Update},
    id::{ContainerId, ContainerRef, PodRef, ShimId},
    status::{Phase, StatusEvent},
};

#[derive(Debug, Default)]
pub(super) struct Table {
    pods: HashMap<PodRef, Vec<Entry>>,
    /// The first snapshot has come; before, a missing entry means nothing.
    pub(super) informed: bool,
}

/// One container behind one shim. Two shims can have one of the same name,
/// when a pod is replaced by one of the same name.
#[derive(Debug)]
struct Entry {
    name: Box<str>,
    shim: ShimId,
    id: Option<ContainerId>,
    phase: Phase,
}

/// What an update leads to.
#[derive(Debug, Default)]
pub(super) struct Applied {
    /// Pods about which something changed.
    pub(super) pods: Vec<PodRef>,
    /// An event to be told.
    pub(super) event: Option<StatusEvent>,
    /// A container that its shim no longer has.
    pub(super) removed: Option<(ContainerRef, ContainerId)>,
}

impl Table {
    pub(super) fn apply(&mut self, update: Update) -> Applied {
        let change = match update {
            Update::Snapshot(entries) => return self.replace(entries),
            Update::Change(change) => *change,
        };
        let mut applied =
            Applied { pods: vec![change.key.container.pod.clone()], ..Applied::default() };
        match change.cause {
            Cause::Event(event) => {
                applied.event = Some(event);
                self.insert(change.key, &change.state);
            }
            Cause::Reading(_) => self.insert(change.key, &change.state),
            Cause::Removed => {
                self.remove(&change.key);
                applied.removed = change.state.id.map(|id| (change.key.container, id));
            }
        }
        applied
    }

    /// Whether any shim has a container of that pod and name.
    pub(super) fn has(&self, pod: &PodRef, name: &str) -> bool {
        self.pods.get(pod).is_some_and(|entries| entries.iter().any(|entry| *entry.name == *name))
    }

    /// What the container with exactly this id does (S11).
    pub(super) fn phase(&self, pod: &PodRef, name: &str, id: &ContainerId) -> Option<Phase> {
        let same = |entry: &&Entry| *entry.name == *name && entry.id.as_ref() == Some(id);
        self.pods.get(pod)?.iter().find(same).map(|entry| entry.phase)
    }

    /// The snapshot is everything: what it does not list is gone.
    fn replace(&mut self, entries: Vec<(ContainerKey, ContainerState)>) -> Applied {
        let mut pods: Vec<_> = self.pods.drain().map(|(pod, _)| pod).collect();
        for (key, state) in entries {
            pods.push(key.container.pod.clone());
            self.insert(key, &state);
        }
        self.informed = true;
        pods.sort_unstable();
        pods.dedup();
        Applied { pods, ..Applied::default() }
    }

    fn insert(&mut self, key: ContainerKey, state: &ContainerState) {
        let name = key.container.name().into();
        let entry = Entry { name, shim: key.shim, id: state.id.clone(), phase: state.phase };
        // Most pods have one: none is allocated in advance.
        let entries = self.pods.entry(key.container.pod).or_insert_with(|| Vec::with_capacity(1));
        let same = |known: &&mut Entry| known.name == entry.name && known.shim == entry.shim;
        match entries.iter_mut().find(same) {
            Some(known) => *known = entry,
            None => entries.push(entry),
        }
    }

    fn remove(&mut self, key: &ContainerKey) {
        let Some(entries) = self.pods.get_mut(&key.container.pod) else { return };
        entries.retain(|entry| entry.shim != key.shim || *entry.name != *key.container.name());
        if entries.is_empty() {
            self.pods.remove(&key.container.pod);
        }
    }
}
