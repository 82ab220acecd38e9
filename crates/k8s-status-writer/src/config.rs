//! What the writer is told: which node, which features, which limits.

use std::{num::NonZeroU32, time::Duration};

/// What is written. All are off by default, as in zeropod; with all off there
/// is no reason to make a [`StatusWriter`](crate::StatusWriter) at all.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Features {
    /// Label `status.zeropod.ctrox.dev/<container>` with RUNNING or
    /// `SCALED_DOWN`.
    pub labels: bool,
    /// Kubernetes Events for scalings and failures.
    pub events: bool,
    /// Requests of scaled-down containers lowered to 1m and 1Ki, and put back
    /// when they wake up.
    pub in_place_scaling: bool,
}

/// Settings of a [`StatusWriter`](crate::StatusWriter).
#[derive(Debug, Clone)]
pub struct Config {
    /// Name of this node's Node object. Only its pods are watched and written.
    pub node_name: String,
    /// `reportingInstance` of the Events, usually the name of the manager's
    /// pod. Empty: the node name. Cut to 128 characters, which the API allows.
    pub reporting_instance: String,
    /// What to write.
    pub features: Features,
    /// Whether Events of failures carry the end of CRIU's log. It can name
    /// files and addresses of the container, to everyone who may read Events.
    pub log_excerpt: bool,
    /// Most requests in a second, over a longer time; that many may go at
    /// once after a quiet time.
    pub requests_per_second: NonZeroU32,
    /// Requests under way at the same time. Events take half of them at most,
    /// and a quarter is kept for waking up.
    pub concurrency: usize,
    /// Deadline of one request.
    pub request_timeout: Duration,
    /// Shortest time between two label changes, and between two scale-downs,
    /// of one container: a container that flaps costs one of each per
    /// interval. Restoring requests never waits.
    pub flap_interval: Duration,
    /// How long a name must have been without any container before its label
    /// is removed and its requests are restored.
    pub gone_after: Duration,
    /// How long a restore that the kubelet finds infeasible rests before it is
    /// asked for again. Each further time takes twice as long, up to 30 times
    /// this.
    pub infeasible_rest: Duration,
    /// How long an Event waits for its container's id to appear in the pod's
    /// status. The time in which the pods are not known does not count.
    pub identity_wait: Duration,
}

impl Config {
    /// Default settings, with every feature off.
    pub fn new(node_name: impl Into<String>) -> Self {
        const REQUESTS_PER_SECOND: NonZeroU32 = NonZeroU32::MIN.saturating_add(199);
        Self {
            node_name: node_name.into(),
            reporting_instance: String::new(),
            features: Features::default(),
            log_excerpt: false,
            requests_per_second: REQUESTS_PER_SECOND,
            concurrency: 8,
            request_timeout: Duration::from_secs(10),
            flap_interval: Duration::from_secs(1),
            gone_after: Duration::from_secs(30),
            infeasible_rest: Duration::from_mins(1),
            identity_wait: Duration::from_mins(1),
        }
    }
}
