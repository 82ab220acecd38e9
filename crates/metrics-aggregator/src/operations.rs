//! The checkpoints, or the restores, of one container: each counted once.

use std::{
    collections::VecDeque,
    hash::{DefaultHasher, Hash, Hasher},
    time::SystemTime,
};

use zeropod_shim_api::status::Operation;

use crate::histogram::Durations;

/// Operations known from events that are remembered. A reading tells of the
/// last one before it was taken, and few events overtake its answer.
const EVENTS: usize = 32;
/// Operations known from readings that are remembered. Their events may be
/// anywhere in the shim's queue, but no two readings are taken without a pause.
const READINGS: usize = 8;

/// See the [module documentation](self).
#[derive(Debug, Default)]
pub(crate) struct Operations {
    pub(crate) durations: Durations,
    /// End of the last one.
    pub(crate) last: Option<SystemTime>,
    errors: Errors,
    by_event: Seen<EVENTS>,
    by_reading: Seen<READINGS>,
}

impl Operations {
    /// An event told of an operation. Returns how many are news.
    pub(crate) fn event(&mut self, operation: Operation) -> u64 {
        self.last = self.last.max(Some(operation.ended));
        let news = !self.by_reading.contains(operation) && !self.by_event.contains(operation);
        self.by_event.insert(operation);
        if news {
            self.durations.record(operation.duration);
        }
        u64::from(news)
    }

    /// An answer told of the last operation. One from before `start` was
    /// counted by an earlier process, or its event is still to come. Returns
    /// how many are news.
    pub(crate) fn reading(&mut self, operation: Operation, start: SystemTime) -> u64 {
        self.last = self.last.max(Some(operation.ended));
        let news = operation.ended >= start
            && !self.by_reading.contains(operation)
            && !self.by_event.contains(operation);
        if news {
            self.by_reading.insert(operation);
            self.durations.record(operation.duration);
        }
        u64::from(news)
    }

    /// An event told of a failure. Returns how many failures are news.
    pub(crate) fn failed(&mut self) -> u64 {
        self.errors.count(|errors| errors.by_event += 1)
    }

    /// A reading told of this many failures since the last reading. Returns
    /// how many are news.
    pub(crate) fn failures_read(&mut self, count: u64) -> u64 {
        self.errors.count(|errors| errors.by_reading += count)
    }

    pub(crate) fn errors(&self) -> u64 {
        self.errors.total()
    }
}

/// Failures, of which both events and readings tell. Either can miss some, and
/// neither invents any, so the truth is at least the larger count.
#[derive(Debug, Default)]
struct Errors {
    by_event: u64,
    by_reading: u64,
}

impl Errors {
    fn total(&self) -> u64 {
        self.by_event.max(self.by_reading)
    }

    fn count(&mut self, add: impl FnOnce(&mut Self)) -> u64 {
        let before = self.total();
        add(self);
        self.total() - before
    }
}

/// The last `N` operations, by a hash of end time and duration.
#[derive(Debug, Default)]
struct Seen<const N: usize>(VecDeque<u64>);

impl<const N: usize> Seen<N> {
    fn contains(&self, operation: Operation) -> bool {
        self.0.contains(&fingerprint(operation))
    }

    fn insert(&mut self, operation: Operation) {
        if self.0.len() == N {
            self.0.pop_front();
        }
        self.0.push_back(fingerprint(operation));
    }
}

fn fingerprint(operation: Operation) -> u64 {
    let mut hasher = DefaultHasher::new();
    operation.hash(&mut hasher);
    hasher.finish()
}
