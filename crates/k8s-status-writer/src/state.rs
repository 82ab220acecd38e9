//! How the writer itself is doing, for readiness probes and for people.

use std::{collections::BTreeSet, fmt, time::Duration};

use metrics::{describe_counter, describe_gauge};
use tokio::sync::watch;

/// Something that keeps the writer from keeping pods right. Each has a name
/// for probes, metrics and logs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Degraded {
    /// The pods of the node have not been listed yet. Nothing is lost
    /// meanwhile: writes and Events wait.
    PodsNotSynced,
    /// Watching the pods fails; it is tried again.
    PodsWatchFailing,
    /// The API server can't be reached; it is tried again.
    ApiUnreachable,
    /// The API server refuses writes for want of permission.
    Forbidden,
}

impl Degraded {
    /// Every degraded state there is.
    pub const ALL: [Self; 4] =
        [Self::PodsNotSynced, Self::PodsWatchFailing, Self::ApiUnreachable, Self::Forbidden];

    /// Its name, such as `api-unreachable`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::PodsNotSynced => "pods-not-synced",
            Self::PodsWatchFailing => "pods-watch-failing",
            Self::ApiUnreachable => "api-unreachable",
            Self::Forbidden => "forbidden",
        }
    }
}

impl fmt::Display for Degraded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// State of the writer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct State {
    /// What is wrong. Empty when all is well.
    pub degraded: BTreeSet<Degraded>,
}

impl State {
    /// Whether pods are being kept right.
    pub fn ready(&self) -> bool {
        self.degraded.is_empty()
    }
}

/// The sending side: sets and clears states, and says so once.
#[derive(Debug)]
pub(crate) struct Health {
    state: watch::Sender<State>,
}

impl Health {
    /// Of a writer that starts: it knows no pods yet, which is nothing to warn
    /// of until it lasts.
    pub(crate) fn starting() -> Self {
        let degraded = BTreeSet::from([Degraded::PodsNotSynced]);
        for state in Degraded::ALL {
            gauge(state, degraded.contains(&state));
        }
        Self { state: watch::Sender::new(State { degraded }) }
    }

    /// Warns of a start that has lasted for so long.
    pub(crate) fn start_lasts(&self, time: Duration) {
        if self.state.borrow().degraded.contains(&Degraded::PodsNotSynced) {
            let state = Degraded::PodsNotSynced.as_str();
            tracing::warn!(state, ?time, "pod status writes are degraded");
        }
    }

    pub(crate) fn subscribe(&self) -> watch::Receiver<State> {
        self.state.subscribe()
    }

    pub(crate) fn set(&self, degraded: Degraded, why: impl fmt::Display) {
        if self.state.send_if_modified(|state| state.degraded.insert(degraded)) {
            gauge(degraded, true);
            tracing::warn!(state = degraded.as_str(), %why, "pod status writes are degraded");
        }
    }

    pub(crate) fn clear(&self, degraded: Degraded) {
        if self.state.send_if_modified(|state| state.degraded.remove(&degraded)) {
            gauge(degraded, false);
            let state = degraded.as_str();
            if degraded == Degraded::PodsNotSynced {
                tracing::info!("the pods of the node are known");
            } else {
                tracing::info!(state, "pod status writes have recovered");
            }
        }
    }
}

fn gauge(degraded: Degraded, on: bool) {
    metrics::gauge!(DEGRADED, "state" => degraded.as_str()).set(f64::from(u8::from(on)));
}

/// Requests to the API server. Labels `kind` (metadata, resize, event) and
/// `result` (ok, conflict, gone, refused, throttled, forbidden, timeout,
/// unreachable, error).
pub(crate) const WRITES: &str = "zeropod_pod_writes_total";
/// Resizes that were due but not done, once per container and reason.
pub(crate) const REFUSALS: &str = "zeropod_resize_refusals_total";
/// Infeasible resizes that were asked for again.
pub(crate) const RETRIES: &str = "zeropod_resize_retries_total";
/// Pods whose resize the kubelet has not carried out, by `reason`.
pub(crate) const PENDING: &str = "zeropod_resize_pending_pods";
/// Events that were not created, by `reason`.
pub(crate) const EVENTS_DROPPED: &str = "zeropod_status_events_dropped_total";
/// 1 for each degraded `state` the writer is in.
pub(crate) const DEGRADED: &str = "zeropod_status_writer_degraded";
/// Cores that scaled-down containers give back.
pub(crate) const GIVEN_BACK_CPU: &str = "zeropod_requests_given_back_cpu_cores";
/// Bytes that scaled-down containers give back.
pub(crate) const GIVEN_BACK_MEMORY: &str = "zeropod_requests_given_back_memory_bytes";

/// Gives the metrics their help texts.
pub(crate) fn describe() {
    describe_counter!(WRITES, "Requests that write to pods or create Events, by their result");
    describe_counter!(REFUSALS, "In-place resizes that were due but can't be done, by reason");
    describe_counter!(
        RETRIES,
        "Restores that the kubelet found infeasible and that were asked for again"
    );
    describe_gauge!(PENDING, "Pods whose in-place resize the kubelet has not carried out");
    describe_counter!(EVENTS_DROPPED, "Status Events that were not created, by reason");
    describe_gauge!(
        GIVEN_BACK_CPU,
        "Cores that the pods of the node request less for their scaled-down containers"
    );
    describe_gauge!(
        GIVEN_BACK_MEMORY,
        "Bytes that the pods of the node request less for their scaled-down containers"
    );
    describe_gauge!(DEGRADED, "Whether the status writer is in this degraded state");
}
