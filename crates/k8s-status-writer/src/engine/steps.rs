//! The next write to a pod: the most urgent of those that the plan asks for
//! and that may go now.

use std::time::Instant;

use serde_json::Value;
use zeropod_shim_api::id::PodRef;

use super::{
    About, Engine, Job, earlier, observe,
    retry::Retry,
    told::{tell, tell_retry},
    work::{Kind, Queue, Rest, Work},
};
use crate::{
    api::Write,
    plan::{self, Writes},
};

/// The next write to a pod.
enum Step {
    Do(Kind, Box<Writes>),
    Wait(Instant),
    Nothing,
}

impl Engine {
    /// Queues a pod that has something to write, or sets a timer for when it
    /// will have.
    pub(super) fn consider(&mut self, pod: &PodRef, now: Instant) {
        let step = self.step(pod, now);
        let Some(work) = self.works.get_mut(pod) else { return };
        match step {
            // A pod that becomes urgent is queued a second time; what comes
            // later then finds nothing to do.
            Step::Do(Kind::Restore, _) if work.queued < Some(Queue::Urgent) => {
                work.queued = Some(Queue::Urgent);
                self.urgent.push_back(pod.clone());
            }
            Step::Do(..) if work.queued.is_none() => {
                work.queued = Some(Queue::Normal);
                self.normal.push_back(pod.clone());
            }
            Step::Wait(until) => self.timers.set(pod, until),
            Step::Do(..) | Step::Nothing => {}
        }
    }

    /// The next write to a pod, from what is known now.
    fn step(&mut self, pod_ref: &PodRef, now: Instant) -> Step {
        let Some(pod) = self.pods.get(pod_ref) else { return Step::Nothing };
        let Some(work) = self.works.get_mut(pod_ref) else { return Step::Nothing };
        if work.busy {
            return Step::Nothing;
        }
        let observed = observe::observe(pod_ref, pod, &self.table, work, &self.config, now);
        let mut wait = observed.look_again;
        let writes = plan::plan(pod, &observed.seen, self.config.features);
        tell(pod_ref, work, &writes);
        if writes == Writes::default() {
            return wait.map_or(Step::Nothing, Step::Wait);
        }
        if let Some(until) = work.not_before.filter(|until| *until > now) {
            return Step::Wait(until);
        }
        // Whether a write rests because it was refused.
        let rests = |work: &Work, kind, body: Value, wait: &mut Option<Instant>| match work.refusal(
            kind,
            pod.generation,
            &body,
            now,
        ) {
            Rest::No => false,
            Rest::ForGood => true,
            Rest::Until(until) => {
                *wait = earlier(*wait, Some(until));
                true
            }
        };
        if let Some(restore) = &writes.restore {
            let names = restore.containers.iter().map(|container| &container.name);
            let held = work.retry.as_ref().and_then(|retry| retry.held(names, now));
            if held.is_none() && !rests(work, Kind::Restore, restore.patch(&pod.uid), &mut wait) {
                return Step::Do(Kind::Restore, Box::new(writes));
            }
            wait = earlier(wait, held);
        }
        let mut recorded = true;
        if let Some(metadata) = &writes.metadata {
            recorded = metadata.annotations.is_empty();
            if !rests(work, Kind::Metadata, metadata.patch(&pod.uid), &mut wait) {
                let due = work.metadata_due(metadata, now);
                if due <= now {
                    return Step::Do(Kind::Metadata, Box::new(writes));
                }
                return Step::Wait(earlier(wait, Some(due)).unwrap_or(due));
            }
        }
        // Never lowered before it is recorded.
        if let Some(scale_down) = writes.scale_down.as_ref().filter(|_| recorded)
            && !rests(work, Kind::ScaleDown, scale_down.patch(&pod.uid), &mut wait)
        {
            let due = work.scale_down_due(scale_down, now);
            if due <= now {
                return Step::Do(Kind::ScaleDown, Box::new(writes));
            }
            wait = earlier(wait, Some(due));
        }
        if let Some(withdraw) = writes.withdraw.as_ref().filter(|_| recorded)
            && !rests(work, Kind::Withdraw, withdraw.patch(&pod.uid), &mut wait)
        {
            let due = work
                .retry
                .get_or_insert_with(|| Retry::new(self.config.infeasible_rest, now))
                .due();
            if due <= now {
                return Step::Do(Kind::Withdraw, Box::new(writes));
            }
            wait = earlier(wait, Some(due));
        }
        wait.map_or(Step::Nothing, Step::Wait)
    }

    /// Makes the job of a pod that comes out of a queue.
    pub(super) fn start(&mut self, pod_ref: PodRef, now: Instant) -> Option<Job> {
        self.works.get_mut(&pod_ref)?.queued = None;
        let (kind, writes) = match self.step(&pod_ref, now) {
            Step::Do(kind, writes) => (kind, *writes),
            Step::Wait(until) => {
                self.timers.set(&pod_ref, until);
                return None;
            }
            Step::Nothing => return None,
        };
        let pod = self.pods.get(&pod_ref)?;
        let work = self.works.get_mut(&pod_ref)?;
        let again = now + self.config.flap_interval;
        let (body, write): (_, fn(Value) -> Write) = match kind {
            Kind::Restore => {
                if let Some(retry) = &mut work.retry {
                    retry.restored(now);
                }
                (writes.restore?.patch(&pod.uid), Write::Resize)
            }
            Kind::Metadata => {
                let metadata = writes.metadata?;
                work.starts(kind, metadata.labels.keys(), again, now);
                (metadata.patch(&pod.uid), Write::Metadata)
            }
            Kind::ScaleDown => {
                let scale_down = writes.scale_down?;
                let names = scale_down.containers.iter().map(|container| &container.name);
                work.starts(kind, names, again, now);
                (scale_down.patch(&pod.uid), Write::Resize)
            }
            Kind::Withdraw => {
                let withdraw = writes.withdraw?;
                let names = withdraw.containers.iter().map(|container| container.name.clone());
                if let Some(retry) = &mut work.retry {
                    retry.withdrawn(names.collect(), now);
                }
                tell_retry(&pod_ref);
                (withdraw.patch(&pod.uid), Write::Resize)
            }
        };
        work.busy = true;
        let (uid, generation) = (pod.uid.clone(), pod.generation);
        let about = About::Pod { uid, generation, kind, body: body.clone() };
        Some(Job { pod: pod_ref, write: write(body), about })
    }
}
