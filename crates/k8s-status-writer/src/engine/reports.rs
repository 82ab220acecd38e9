//! Events on their way to the API server: waiting for their container to be
//! known as part of the pod, held back when a container has too many, or
//! ready to be created.

#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    time::{Duration, Instant},
};

use zeropod_shim_api::id::{ContainerId, PodRef};

use crate::{event::Report, pod::Pod};

/// Events of one container that may go at once, after a quiet time.
const BURST: f64 = 25.0;
/// Time in which one more may go. What is above is summed up in one Event.
const REFILL: Duration = Duration::from_secs(5);
/// Reports kept in all. Further ones of a container are summed up.
const CAPACITY: usize = 4096;
/// Tries of one report that is ready.
const MAX_ATTEMPTS: u32 = 12;
/// Longest time between two of them; all together about four minutes.
const MAX_BACKOFF: Duration = Duration::from_secs(30);

#[derive(Debug)]
pub(super) struct Reports {
    pods: HashMap<PodRef, PodReports>,
    ready: VecDeque<Ready>,
    waiting: usize,
    identity_wait: Duration,
}

/// A report whose pod is known.
#[derive(Debug)]
pub(crate) struct Ready {
    pub(crate) pod: PodRef,
    pub(crate) report: Report,
    attempts: u32,
    not_before: Instant,
}

/// Why a report was dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dropped {
    /// The pod has another container of that name (S11), or the pod is gone.
    NotOfThisPod,
    /// Too many are waiting.
    QueueFull,
    /// It was tried too often.
    Attempts,
}

impl Dropped {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::NotOfThisPod => "not-of-this-pod",
            Self::QueueFull => "queue-full",
            Self::Attempts => "attempts",
        }
    }
}

#[derive(Debug, Default)]
struct PodReports {
    waiting: VecDeque<Waiting>,
    budgets: BTreeMap<Box<str>, Budget>,
}

#[derive(Debug)]
struct Waiting {
    report: Report,
    /// What was known of the pod when it was first looked at.
    first_look: Option<FirstLook>,
}

#[derive(Debug)]
struct FirstLook {
    id: Option<ContainerId>,
    until: Instant,
}

#[derive(Debug)]
struct Budget {
    tokens: f64,
    counted: Instant,
    /// Boxed, since a map makes room for eleven at once and most pods have one.
    held: Option<Box<Report>>,
}

impl Budget {
    fn refill(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.counted).as_secs_f64();
        self.tokens = (self.tokens + passed / REFILL.as_secs_f64()).min(BURST);
        self.counted = now;
    }
}

impl Reports {
    pub(super) fn new(identity_wait: Duration) -> Self {
        Self { pods: HashMap::new(), ready: VecDeque::new(), waiting: 0, identity_wait }
    }

    /// Takes a report, to be looked at by [`Self::look`].
    pub(super) fn add(
        &mut self,
        pod: &PodRef,
        report: Report,
        now: Instant,
    ) -> Result<(), Dropped> {
        let full = self.len() >= CAPACITY;
        if full && !self.pods.contains_key(pod) {
            return Err(Dropped::QueueFull);
        }
        let reports = self.pods.entry(pod.clone()).or_default();
        let budget = reports.budgets.entry(report.container.clone()).or_insert(Budget {
            tokens: BURST,
            counted: now,
            held: None,
        });
        budget.refill(now);
        match &mut budget.held {
            Some(held) => held.absorb(report),
            held if full || budget.tokens < 1.0 => *held = Some(report.into()),
            _ => {
                budget.tokens -= 1.0;
                reports.waiting.push_back(Waiting { report, first_look: None });
                self.waiting += 1;
            }
        }
        Ok(())
    }

    /// Looks at the reports of a pod again: what is known of the pod has
    /// changed, or time has passed. Returns when to look next, and what was
    /// dropped.
    pub(super) fn look(
        &mut self,
        pod_ref: &PodRef,
        pod: Option<&Pod>,
        synced: bool,
        now: Instant,
    ) -> (Option<Instant>, Vec<Dropped>) {
        let Some(reports) = self.pods.get_mut(pod_ref) else { return (None, Vec::new()) };
        let mut next: Option<Instant> = None;
        let mut wake = |at: Instant| next = Some(next.map_or(at, |next| next.min(at)));
        let mut dropped = Vec::new();

        let room = self.waiting + self.ready.len() < CAPACITY;
        for budget in reports.budgets.values_mut() {
            budget.refill(now);
            if budget.held.is_some() {
                if budget.tokens >= 1.0 && room {
                    budget.tokens -= 1.0;
                    reports.waiting.extend(
                        budget.held.take().map(|held| Waiting { report: *held, first_look: None }),
                    );
                    self.waiting += 1;
                } else {
                    let missing = (1.0 - budget.tokens).max(0.05);
                    wake(now + REFILL.mul_f64(missing));
                }
            }
        }
        reports.budgets.retain(|_, budget| budget.held.is_some() || budget.tokens < BURST);
        // A budget that fills up again is forgotten then.
        if !reports.budgets.is_empty() {
            wake(now + REFILL * 30);
        }

        for mut waiting in std::mem::take(&mut reports.waiting) {
            match waiting.look(pod, synced, self.identity_wait, now) {
                Look::Of(report) => {
                    self.waiting -= 1;
                    let pod = pod_ref.clone();
                    self.ready.push_back(Ready { pod, report, attempts: 0, not_before: now });
                }
                Look::Wait(until) => {
                    until.into_iter().for_each(&mut wake);
                    reports.waiting.push_back(waiting);
                }
                Look::Drop => {
                    self.waiting -= 1;
                    dropped.push(Dropped::NotOfThisPod);
                }
            }
        }
        if reports.waiting.is_empty() && reports.budgets.is_empty() {
            self.pods.remove(pod_ref);
        }
        (next, dropped)
    }

    /// Pods that have reports.
    pub(super) fn pods(&self) -> Vec<PodRef> {
        self.pods.keys().cloned().collect()
    }

    /// The next report to be created, or when there is one.
    pub(super) fn pop(&mut self, now: Instant) -> Result<Ready, Option<Instant>> {
        match self.ready.iter().position(|ready| ready.not_before <= now) {
            Some(at) => self.ready.remove(at).ok_or(None),
            None => Err(self.ready.iter().map(|ready| ready.not_before).min()),
        }
    }

    /// Keeps a report that could not be sent.
    pub(super) fn put_back(&mut self, ready: Ready) {
        self.ready.push_front(ready);
    }

    /// Keeps a report that failed, to be tried again later, but not for ever.
    pub(super) fn retry(&mut self, mut ready: Ready, now: Instant) -> Result<(), Dropped> {
        ready.attempts += 1;
        if ready.attempts >= MAX_ATTEMPTS {
            return Err(Dropped::Attempts);
        }
        let backoff = Duration::from_millis(250) * 2u32.pow(ready.attempts);
        ready.not_before = now + backoff.min(MAX_BACKOFF);
        self.ready.push_back(ready);
        Ok(())
    }

    /// Reports that are waiting or ready.
    pub(super) fn len(&self) -> usize {
        self.waiting + self.ready.len()
    }
}

enum Look {
    Of(Report),
    Wait(Option<Instant>),
    Drop,
}

impl Waiting {
    /// Whether the report is about the pod as it is known now.
    fn look(
        &mut self,
        pod: Option<&Pod>,
        synced: bool,
        identity_wait: Duration,
        now: Instant,
    ) -> Look {
        let container = pod.and_then(|pod| pod.container(&self.report.container));
        let current = container.and_then(|container| container.id.as_ref());
        let previous = container.and_then(|container| container.previous_id.as_ref());
        let id = self.report.id.as_ref();
        // A report without an id is about the pod itself, made from its state.
        let same = match id {
            Some(_) => id == current || id == previous,
            None => pod.is_some(),
        };
        if same {
            return Look::Of(self.report.clone());
        }
        if !synced {
            return Look::Wait(None);
        }
        // The kubelet writes the id of a container some time after it started,
        // so another id than the report's can be the one before or after it.
        // Only one that comes later decides.
        let first = self
            .first_look
            .get_or_insert_with(|| FirstLook { id: current.cloned(), until: now + identity_wait });
        if (current.is_some() && current != first.id.as_ref()) || now >= first.until {
            Look::Drop
        } else {
            Look::Wait(Some(first.until))
        }
    }
}
