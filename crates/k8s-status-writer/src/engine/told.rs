//! What the engine tells: Events, refusals, pending resizes, and the state of
//! the API server.

use std::time::{Instant, SystemTime};

use zeropod_shim_api::id::PodRef;

use super::{
    Engine, OUTAGE_BACKOFF, Outage,
    reports::{Dropped, Ready},
    work::{Kind, Work},
};
use crate::{
    answer::WriteError,
    event::Report,
    plan::{Refusal, RefusalReason, Writes},
    pod::{Pending, Pod},
    state::{self, Degraded},
};

impl Engine {
    pub(super) fn report(&mut self, pod: &PodRef, report: Report, now: Instant) {
        if let Err(reason) = self.reports.add(pod, report, now) {
            dropped(reason);
        }
        self.look_at_reports(pod, now);
    }

    pub(super) fn look_at_reports(&mut self, pod_ref: &PodRef, now: Instant) {
        let pod = self.pods.get(pod_ref);
        let (next, lost) = self.reports.look(pod_ref, pod, self.synced, now);
        lost.into_iter().for_each(dropped);
        if let Some(next) = next {
            self.timers.set(pod_ref, next);
        }
    }

    pub(super) fn report_done(
        &mut self,
        ready: Ready,
        result: Result<Option<Pod>, WriteError>,
        now: Instant,
    ) {
        match result {
            Ok(_) => {}
            // It certainly was not created.
            Err(WriteError::Unreachable(_) | WriteError::Throttled(_)) => {
                self.reports.put_back(ready);
            }
            // Perhaps it was; its name keeps it from being created twice.
            Err(
                WriteError::Timeout(_)
                | WriteError::Failed(_)
                | WriteError::Conflict
                | WriteError::Exists,
            ) => {
                let pod = ready.pod.clone();
                if let Err(reason) = self.reports.retry(ready, now) {
                    tracing::warn!(%pod, "an event could not be created");
                    dropped(reason);
                }
            }
            // S7: a terminating namespace, a quota or a missing permission
            // must not hold anything else up.
            Err(
                error @ (WriteError::Gone | WriteError::Refused { .. } | WriteError::Forbidden(_)),
            ) => {
                tracing::warn!(pod = %ready.pod, %error, "an event was not created");
                metrics::counter!(state::EVENTS_DROPPED, "reason" => error.result()).increment(1);
            }
        }
    }

    /// Learns from an answer, or from its absence, how the API server is.
    pub(super) fn judge_server(
        &mut self,
        kind: &'static str,
        result: &Result<Option<Pod>, WriteError>,
        now: Instant,
    ) {
        match result {
            Err(WriteError::Unreachable(why)) => {
                let (shortest, longest) = OUTAGE_BACKOFF;
                let outage = self.outage.get_or_insert(Outage { failures: 0, until: now });
                // Requests that went out together fail together.
                if outage.until <= now {
                    let backoff = shortest * 2u32.pow(outage.failures.min(10));
                    outage.until = now + backoff.min(longest);
                    outage.failures += 1;
                }
                self.health.set(Degraded::ApiUnreachable, why);
                return;
            }
            Err(WriteError::Throttled(pause)) => self.bucket.close(now + *pause),
            Err(WriteError::Forbidden(why)) => {
                self.forbidden.insert(kind);
                self.health.set(Degraded::Forbidden, why);
            }
            Ok(_) => {
                self.forbidden.remove(kind);
                if self.forbidden.is_empty() {
                    self.health.clear(Degraded::Forbidden);
                }
            }
            Err(WriteError::Timeout(_)) => return,
            Err(_) => {}
        }
        self.outage = None;
        self.health.clear(Degraded::ApiUnreachable);
    }

    /// Counts and logs that the server refused a write, once for the pod.
    pub(super) fn tell_refusal(
        &mut self,
        pod: &PodRef,
        kind: Kind,
        reason: RefusalReason,
        message: &str,
    ) {
        if kind == Kind::Metadata {
            tracing::warn!(%pod, message, "labels or annotations were refused");
            return;
        }
        let Some(work) = self.works.get_mut(pod) else { return };
        if work.told.insert(Refusal { container: Box::default(), reason }) {
            count(reason);
            tracing::warn!(%pod, reason = reason.as_str(), message, "resize was refused");
        }
    }

    /// Shows resizes that the kubelet has not carried out: as a gauge, and as
    /// an Event when one comes up (K4).
    pub(super) fn show_pending(&mut self, pod_ref: &PodRef, pod: Option<&Pod>, now: Instant) {
        // Only pods whose requests we have recorded are ours to explain.
        let ours = self.config.features.in_place_scaling;
        let ours = pod.filter(|pod| ours && pod.recorded.cpu.is_some());
        let pending = ours.and_then(|pod| pod.pending);
        let Some(work) = self.works.get_mut(pod_ref) else { return };
        let infeasible = pending == Some(Pending::Infeasible);
        if work.retry.as_mut().is_some_and(|retry| !retry.note(infeasible, now)) {
            work.retry = None;
        }
        let before = std::mem::replace(&mut work.pending, pending);
        if before == pending {
            return;
        }
        for (state, change) in [(before, -1.0), (pending, 1.0)] {
            if let Some(state) = state {
                metrics::gauge!(state::PENDING, "reason" => state.as_str()).increment(change);
            }
        }
        let Some(pending) = pending else { return };
        // A try that failed again is no news.
        if infeasible && work.retry.is_some() {
            return;
        }
        tracing::warn!(pod = %pod_ref, reason = pending.as_str(), "a resize is not carried out");
        if self.config.features.events {
            let (reason, message) = match pending {
                Pending::Deferred => (
                    "Resize deferred",
                    "The node has no room for the requests of this pod; the kubelet tries again",
                ),
                Pending::Infeasible => {
                    let message = "The node can never fit the requests of this pod; what a container \
                                   had before it was scaled down is asked for again";
                    ("Resize infeasible", message)
                }
                Pending::Error => ("Resize failed", "The kubelet failed to resize this pod"),
            };
            let time = SystemTime::now();
            let report = Report {
                id: None,
                container: Box::default(),
                warning: true,
                reason,
                message: message.to_owned(),
                first: time,
                last: time,
                count: 1,
            };
            self.report(pod_ref, report, now);
        }
    }
}

/// Counts and logs resizes that are due but not tried, once for the pod.
pub(super) fn tell(pod: &PodRef, work: &mut Work, writes: &Writes) {
    for refusal in &writes.refusals {
        if work.told.insert(refusal.clone()) {
            count(refusal.reason);
            let Refusal { container, reason } = refusal;
            tracing::info!(%pod, %container, reason = reason.as_str(), "requests stay as they are");
        }
    }
}

/// Counts and logs that an infeasible restore is asked for again.
pub(super) fn tell_retry(pod: &PodRef) {
    metrics::counter!(state::RETRIES).increment(1);
    tracing::info!(%pod, "an infeasible resize is asked for again");
}

pub(super) fn dropped(reason: Dropped) {
    metrics::counter!(state::EVENTS_DROPPED, "reason" => reason.as_str()).increment(1);
}

fn count(reason: RefusalReason) {
    metrics::counter!(state::REFUSALS, "reason" => reason.as_str()).increment(1);
}
