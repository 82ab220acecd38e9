//! Turns container changes into Prometheus series, and holds every other
//! series of the process: [`Aggregator`] takes in the updates of the shims'
//! table, its [`Recorder`] whatever the crates record through the `metrics`
//! facade, and both are rendered from memory.
//!
//! The seven series of zeropod's own manager keep their names, labels, buckets
//! and units. They count every checkpoint and restore exactly once, although
//! an event and a reading may both tell of it, and end with the container.

mod container;
mod exposition;
mod histogram;
mod negotiate;
mod operations;
mod outcomes;
mod process;
mod recorder;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::SystemTime,
};

use zeropod_shim_api::{
    change::{Cause, ContainerKey, ContainerState, Update},
    id::{ContainerRef, ShimId},
};

use self::{container::Series, exposition::Exposition, outcomes::Outcomes};
pub use self::{container::Totals, exposition::Format, negotiate::Response, recorder::Recorder};

/// All series of the process. Clones share them.
#[derive(Debug, Clone)]
pub struct Aggregator {
    containers: Arc<Mutex<Containers>>,
    recorder: Recorder,
    /// Of the last exposition, so that the next need not grow.
    last_length: Arc<AtomicUsize>,
}

#[derive(Debug)]
struct Containers {
    /// Operations that ended before are the business of an earlier process,
    /// unless an event tells of them.
    start: SystemTime,
    /// Behind each name the shims that have such a container, the newest last.
    series: BTreeMap<ContainerRef, Vec<(ShimId, Series)>>,
    outcomes: Outcomes,
}

impl Aggregator {
    /// Starts to count.
    pub fn new() -> Self {
        let recorder = Recorder::new();
        let containers = Containers {
            start: SystemTime::now(),
            series: BTreeMap::new(),
            outcomes: Outcomes::new(&recorder),
        };
        Self { containers: Arc::new(Mutex::new(containers)), recorder, last_length: Arc::default() }
    }

    /// Takes in one update. All updates of one client have to come, in order.
    pub fn apply(&self, update: &Update) {
        self.lock().apply(update, SystemTime::now());
    }

    /// The recorder to install with `metrics::set_global_recorder`.
    pub fn recorder(&self) -> Recorder {
        self.recorder.clone()
    }

    /// Every series, in a format of Prometheus.
    pub fn render(&self, format: Format) -> String {
        let capacity = self.last_length.load(Ordering::Relaxed);
        let mut exposition = Exposition::new(format, capacity + capacity / 64);
        let start = {
            let containers = self.lock();
            // Two pods of one name can exist for a moment, but not in one exposition.
            let newest: Vec<&Series> = containers
                .series
                .values()
                .filter_map(|shims| shims.last())
                .map(|(_, series)| series)
                .collect();
            container::render(&newest, SystemTime::now(), &mut exposition);
            containers.start
        };
        self.recorder.render(&mut exposition);
        process::render(start, &mut exposition);
        let text = exposition.finish();
        self.last_length.store(text.len(), Ordering::Relaxed);
        text
    }

    /// Answers a scrape in the format and encoding that its `Accept` and
    /// `Accept-Encoding` headers ask for.
    pub fn respond(&self, accept: Option<&str>, accept_encoding: Option<&str>) -> Response {
        negotiate::respond(accept, accept_encoding, |format| self.render(format))
    }

    /// What has been counted of a container.
    pub fn totals(&self, key: &ContainerKey) -> Option<Totals> {
        let containers = self.lock();
        let shims = containers.series.get(&key.container)?;
        let (_, series) = shims.iter().find(|(shim, _)| *shim == key.shim)?;
        Some(series.totals(SystemTime::now()))
    }

    /// A table in Markdown of every metric that is described by now: name,
    /// type and meaning.
    pub fn documentation(&self) -> String {
        let own = container::documentation().chain(process::documentation());
        let own = own.map(|(name, kind, help)| (name.to_owned(), kind, help.to_owned()));
        let all: BTreeSet<_> = own.chain(self.recorder.documentation()).collect();
        let mut table = String::from("| Metric | Type | Meaning |\n| --- | --- | --- |\n");
        for (name, kind, help) in all {
            // Writing to a string cannot fail.
            let _ = writeln!(table, "| `{name}` | {} | {help} |", kind.as_str());
        }
        table
    }

    fn lock(&self) -> MutexGuard<'_, Containers> {
        self.containers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for Aggregator {
    fn default() -> Self {
        Self::new()
    }
}

impl Containers {
    fn apply(&mut self, update: &Update, now: SystemTime) {
        match update {
            Update::Snapshot(snapshot) => self.reset(snapshot, now),
            Update::Change(change) => match &change.cause {
                Cause::Event(event) => {
                    let start = self.start;
                    let series = self.series(&change.key);
                    let news = series.event(event, start);
                    series.state(&change.state, start, now);
                    self.outcomes.count(&news);
                }
                Cause::Reading(reading) => {
                    let start = self.start;
                    let series = self.series(&change.key);
                    let news = series.reading(reading, start);
                    series.state(&change.state, start, now);
                    self.outcomes.count(&news);
                }
                Cause::Removed => self.remove(&change.key),
            },
        }
    }

    fn reset(&mut self, snapshot: &[(ContainerKey, ContainerState)], now: SystemTime) {
        self.series.retain(|container, shims| {
            shims.retain(|(shim, _)| {
                snapshot.iter().any(|(key, _)| key.container == *container && key.shim == *shim)
            });
            !shims.is_empty()
        });
        for (key, state) in snapshot {
            let start = self.start;
            let series = self.series(key);
            let news = series.caught_up(state.checkpoint, state.restore, start);
            series.state(state, start, now);
            self.outcomes.count(&news);
        }
    }

    fn series(&mut self, key: &ContainerKey) -> &mut Series {
        // Most names have one: none is allocated in advance.
        let shims =
            self.series.entry(key.container.clone()).or_insert_with(|| Vec::with_capacity(1));
        let place = shims.iter().position(|(shim, _)| *shim == key.shim).unwrap_or_else(|| {
            shims.push((key.shim.clone(), Series::new(&key.container)));
            shims.len() - 1
        });
        &mut shims[place].1
    }

    fn remove(&mut self, key: &ContainerKey) {
        if let Some(shims) = self.series.get_mut(&key.container) {
            shims.retain(|(shim, _)| *shim != key.shim);
            if shims.is_empty() {
                self.series.remove(&key.container);
            }
        }
    }
}

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
