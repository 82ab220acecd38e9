//! Keeps every pod right: takes what the shims' containers do and what the
//! pods look like, and says which write comes next. Synchronous; it is told
//! the time and never waits.
//!
//! Of one pod, one write is under way at a time. Only its most urgent write is
//! made, from what is known at that moment; its answer shows what remains. So
//! changes that come meanwhile coalesce, and a write never acts on an outdated
//! plan.

mod bucket;
mod observe;
mod reports;
mod retry;
mod slots;
mod steps;
mod table;
mod timers;
mod told;
mod trouble;
mod work;

#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeSet, HashMap, HashSet, VecDeque},
    time::{Duration, Instant, SystemTime},
};

use serde_json::Value;
use zeropod_shim_api::{change::Update, id::PodRef};

use crate::{
    answer::WriteError,
    api::Write,
    config::Config,
    event::{Report, Reporter},
    given_back::Ledger,
    pod::{Pending, Pod},
    state::{self, Degraded, Health},
};
use bucket::Bucket;
use reports::{Dropped, Ready, Reports};
use slots::Slots;
use table::Table;
use timers::Timers;
use told::dropped;
pub use trouble::Trouble;
use trouble::Troubles;
use work::{Kind, Preset, Work};

/// Longest time for which a preset holds without its containers appearing.
const PRESET_FOR: Duration = Duration::from_mins(10);
/// Shortest and longest time between two tries while the server is away.
const OUTAGE_BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

pub(crate) struct Engine {
    config: Config,
    reporter: Reporter,
    health: Health,
    given_back: Ledger,
    table: Table,
    pods: HashMap<PodRef, Pod>,
    /// All pods of the node are known.
    synced: bool,
    /// Pods seen in the list that is coming in.
    listed: HashSet<PodRef>,
    /// Boxed, since a map has up to twice the room that it needs.
    works: HashMap<PodRef, Box<Work>>,
    /// Pods with requests to restore.
    urgent: VecDeque<PodRef>,
    /// Pods with anything else to write.
    normal: VecDeque<PodRef>,
    timers: Timers,
    reports: Reports,
    troubles: Troubles,
    bucket: Bucket,
    slots: Slots,
    outage: Option<Outage>,
    /// Kinds of writes that we may not do.
    forbidden: BTreeSet<&'static str>,
}

/// The server doesn't answer: one request at a time finds out whether it does.
struct Outage {
    failures: u32,
    until: Instant,
}

/// A write to carry out.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) pod: PodRef,
    pub(crate) write: Write,
    about: About,
}

#[derive(Debug)]
enum About {
    Pod { uid: Box<str>, generation: i64, kind: Kind, body: Value },
    Report(Box<Ready>),
}

/// What is next.
#[derive(Debug)]
pub(crate) enum Next {
    Job(Box<Job>),
    /// Nothing until then, or until something happens.
    Idle(Option<Instant>),
}

/// What the watch tells of the pods.
#[derive(Debug)]
pub(crate) enum PodChange {
    ListStarts,
    Listed(PodRef, Pod),
    ListEnds,
    Changed(PodRef, Pod),
    Deleted(PodRef),
}

impl Engine {
    pub(crate) fn new(config: Config, now: Instant) -> Self {
        state::describe();
        let health = Health::starting();
        for pending in Pending::ALL {
            metrics::gauge!(state::PENDING, "reason" => pending.as_str()).set(0);
        }
        let slots = Slots::new(config.concurrency);
        Self {
            reporter: Reporter::new(&config.reporting_instance, &config.node_name),
            bucket: Bucket::new(config.requests_per_second, now),
            reports: Reports::new(config.identity_wait),
            troubles: Troubles::new(),
            config,
            health,
            given_back: Ledger::new(),
            table: Table::default(),
            pods: HashMap::new(),
            synced: false,
            listed: HashSet::new(),
            works: HashMap::new(),
            urgent: VecDeque::new(),
            normal: VecDeque::new(),
            timers: Timers::default(),
            slots,
            outage: None,
            forbidden: BTreeSet::new(),
        }
    }

    pub(crate) fn health(&self) -> &Health {
        &self.health
    }

    pub(crate) fn given_back(&self) -> &Ledger {
        &self.given_back
    }

    /// Takes what the shims tell. Never more than a moment's work.
    pub(crate) fn on_update(&mut self, update: Update, now: Instant, wall: SystemTime) {
        let first = !self.table.informed;
        let applied = self.table.apply(update);
        if let Some((container, id)) = applied.removed
            && self.pods.contains_key(&container.pod)
        {
            let work = self.works.entry(container.pod.clone()).or_default();
            work.stopped.insert(container.name().into(), id);
        }
        if let Some(event) = applied.event
            && self.config.features.events
            && let Some(report) = Report::of(&event, self.config.log_excerpt, wall)
        {
            self.report(&event.container.pod, report, now);
        }
        let pods = if first && self.table.informed {
            self.pods.keys().cloned().collect()
        } else {
            applied.pods
        };
        for pod in pods {
            self.consider(&pod, now);
        }
    }

    /// Takes what the API server tells of the pods.
    pub(crate) fn on_pod(&mut self, change: PodChange, now: Instant) {
        match change {
            PodChange::ListStarts => self.listed.clear(),
            PodChange::Listed(pod_ref, pod) => {
                self.listed.insert(pod_ref.clone());
                self.store(&pod_ref, pod, now);
            }
            PodChange::ListEnds => {
                self.synced = true;
                let listed = std::mem::take(&mut self.listed);
                let gone: Vec<_> =
                    self.pods.keys().filter(|pod| !listed.contains(*pod)).cloned().collect();
                for pod in gone {
                    self.forget(&pod, now);
                }
                for pod in self.reports.pods() {
                    self.look_at_reports(&pod, now);
                }
                self.health.clear(Degraded::PodsNotSynced);
            }
            PodChange::Changed(pod_ref, pod) => {
                // The answer to a write can overtake the watch.
                if !self.pods.get(&pod_ref).is_some_and(|known| known.is_newer_than(&pod)) {
                    self.store(&pod_ref, pod, now);
                }
            }
            PodChange::Deleted(pod) => self.forget(&pod, now),
        }
    }

    /// Labels and scales down the named containers of a pod that will start
    /// scaled down, before their shim tells of them.
    pub(crate) fn preset(&mut self, pod: &PodRef, containers: BTreeSet<Box<str>>, now: Instant) {
        let until = now + PRESET_FOR;
        let work = self.works.entry(pod.clone()).or_default();
        work.preset = Some(Preset { containers, until });
        self.timers.set(pod, until);
        self.consider(pod, now);
    }

    /// The next write, if there is one and it may go now.
    pub(crate) fn next(&mut self, now: Instant) -> Next {
        self.fire_timers(now);
        let timer = self.timers.next();
        let probing = self.outage.is_some() && !self.slots.none_taken();
        if probing || !self.slots.free_for_restore() {
            return Next::Idle(timer);
        }
        let mut open = self.bucket.next(now);
        if let Some(outage) = &self.outage {
            open = open.max(outage.until);
        }
        if open > now {
            let waiting = self.urgent.len() + self.normal.len() + self.reports.len() > 0;
            return Next::Idle(earlier(timer, waiting.then_some(open)));
        }
        while let Some(pod) = self.pop_pod() {
            if let Some(job) = self.start(pod, now) {
                return Next::Job(Box::new(self.count(job, now)));
            }
        }
        if !self.slots.free_for_event() {
            return Next::Idle(self.timers.next());
        }
        let open = self.bucket.next_event(now);
        if open > now {
            let waiting = self.reports.len() > 0;
            return Next::Idle(earlier(self.timers.next(), waiting.then_some(open)));
        }
        match self.reports.pop(now) {
            Ok(ready) => {
                if let Some(pod) = self.pods.get(&ready.pod) {
                    let event = ready.report.object(&ready.pod, pod, &self.reporter);
                    let job = Job {
                        pod: ready.pod.clone(),
                        write: Write::Event(Box::new(event)),
                        about: About::Report(Box::new(ready)),
                    };
                    Next::Job(Box::new(self.count(job, now)))
                } else {
                    dropped(Dropped::NotOfThisPod);
                    Next::Idle(Some(now))
                }
            }
            // A timer may have been set since.
            Err(ready_at) => Next::Idle(earlier(self.timers.next(), ready_at)),
        }
    }

    /// Takes the answer to a write.
    pub(crate) fn on_done(
        &mut self,
        job: Job,
        result: Result<Option<Pod>, WriteError>,
        now: Instant,
    ) {
        self.slots.give_back(matches!(job.write, Write::Event(_)));
        let kind = match &job.write {
            Write::Metadata(_) => "metadata",
            Write::Resize(_) => "resize",
            Write::Event(_) => "event",
        };
        let label = result.as_ref().map_or_else(WriteError::result, |_| "ok");
        metrics::counter!(state::WRITES, "kind" => kind, "result" => label).increment(1);
        if let Err(error) = &result {
            tracing::debug!(pod = %job.pod, kind, %error, "write failed");
        }
        self.judge_server(kind, &result, now);
        match job.about {
            About::Report(ready) => self.report_done(*ready, result, now),
            About::Pod { uid, generation, kind, body } => {
                // Otherwise the pod is gone or was replaced meanwhile, and its
                // work begun anew.
                if let Some(work) = self.works.get_mut(&job.pod)
                    && work.uid == uid
                {
                    work.busy = false;
                    match result {
                        Ok(pod) => {
                            work.succeeded();
                            if let Some(pod) = pod {
                                self.on_pod(PodChange::Changed(job.pod.clone(), pod), now);
                            }
                        }
                        Err(WriteError::Unreachable(_) | WriteError::Throttled(_)) => {}
                        Err(WriteError::Refused { reason, message }) => {
                            work.refused(kind, generation, body, now);
                            self.tell_refusal(&job.pod, kind, reason, &message);
                        }
                        Err(_) => work.failed(now),
                    }
                }
                self.consider(&job.pod, now);
            }
        }
    }

    fn store(&mut self, pod_ref: &PodRef, mut pod: Pod, now: Instant) {
        if let Some(older) = self.pods.get(pod_ref) {
            pod.remember(older);
        }
        self.works.entry(pod_ref.clone()).or_default().renew(&pod.uid);
        self.show_pending(pod_ref, Some(&pod), now);
        self.given_back.note(pod_ref, Some(&pod));
        self.pods.insert(pod_ref.clone(), pod);
        self.consider(pod_ref, now);
        self.tell_trouble(pod_ref, now);
        self.look_at_reports(pod_ref, now);
    }

    fn forget(&mut self, pod: &PodRef, now: Instant) {
        self.show_pending(pod, None, now);
        self.given_back.note(pod, None);
        self.pods.remove(pod);
        self.works.remove(pod);
        self.look_at_reports(pod, now);
    }

    fn pop_pod(&mut self) -> Option<PodRef> {
        let urgent = self.urgent.pop_front();
        urgent.or_else(|| self.slots.free_for_pod().then(|| self.normal.pop_front()).flatten())
    }

    fn count(&mut self, job: Job, now: Instant) -> Job {
        self.bucket.take(now);
        self.slots.take(matches!(job.write, Write::Event(_)));
        job
    }

    fn fire_timers(&mut self, now: Instant) {
        while let Some(pod) = self.timers.pop(now) {
            // A preset whose pod never came.
            if !self.pods.contains_key(&pod)
                && self.works.get(&pod).is_some_and(|work| work.expired(now))
            {
                self.works.remove(&pod);
            }
            self.consider(&pod, now);
            self.look_at_reports(&pod, now);
        }
    }
}

fn earlier(a: Option<Instant>, b: Option<Instant>) -> Option<Instant> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}
