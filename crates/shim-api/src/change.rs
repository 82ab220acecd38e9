//! What the node component knows of a container, and how that changes: the
//! words between the one reader of the shims and everyone who acts on it.

use std::time::SystemTime;

use crate::{
    id::{ContainerId, ContainerRef, ShimId},
    status::{MetricsReading, Operation, Phase, StatusEvent},
};

/// A container behind one shim. Two shims can name the same container for a
/// moment, when a pod is replaced by one of the same name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ContainerKey {
    /// The shim that told of it.
    pub shim: ShimId,
    /// Pod and container name.
    pub container: ContainerRef,
}

/// What is true of a container now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerState {
    /// Its id, once an event has told it. Without an id the state may belong
    /// to a pod that no longer exists: it feeds metrics but writes to no pod.
    pub id: Option<ContainerId>,
    /// Running or scaled down, or on the way out. Failures leave it as it is:
    /// see [`Phase::CheckpointFailed`].
    pub phase: Phase,
    /// Since when, as far as known.
    pub since: Option<SystemTime>,
    /// The last checkpoint seen.
    pub checkpoint: Option<Operation>,
    /// The last restore seen.
    pub restore: Option<Operation>,
}

/// A change of one container, with its cause.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerChange {
    /// Which container.
    pub key: ContainerKey,
    /// What is true after the change. Of a removed container: what was true
    /// last.
    pub state: ContainerState,
    /// How it is known.
    pub cause: Cause,
}

/// How a change came to be known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cause {
    /// The shim sent an event.
    Event(StatusEvent),
    /// The shim was asked, because events may have been missed.
    Reading(MetricsReading),
    /// The shim no longer has the container, or is gone itself.
    Removed,
}

/// What a consumer of the table receives: first a snapshot, then changes. A
/// consumer that lags behind gets a new snapshot instead of what it missed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Update {
    /// Everything that is true now. What it does not list is gone.
    Snapshot(Vec<(ContainerKey, ContainerState)>),
    /// One change since.
    Change(Box<ContainerChange>),
}
