//! Histograms with fixed buckets.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use metrics::HistogramFn;

/// Upper bounds in seconds, with their labels: those of zeropod's manager.
pub(crate) const BOUNDS: [(f64, &str); 15] = [
    (0.025, "0.025"),
    (0.05, "0.05"),
    (0.1, "0.1"),
    (0.2, "0.2"),
    (0.3, "0.3"),
    (0.4, "0.4"),
    (0.5, "0.5"),
    (0.6, "0.6"),
    (0.7, "0.7"),
    (0.8, "0.8"),
    (0.9, "0.9"),
    (1.0, "1"),
    (2.5, "2.5"),
    (5.0, "5"),
    (10.0, "10"),
];

/// One count per bound and one beyond the last.
const BUCKETS: usize = BOUNDS.len() + 1;

/// A histogram that can be rendered.
pub(crate) trait Histogram {
    /// Not cumulated.
    fn counts(&self) -> [u64; BUCKETS];
    fn sum(&self) -> f64;
}

/// Durations of one container, under its lock.
#[derive(Debug, Default)]
pub(crate) struct Durations {
    counts: [u64; BUCKETS],
    sum: Duration,
}

impl Durations {
    pub(crate) fn record(&mut self, duration: Duration) {
        self.counts[bucket(duration.as_secs_f64())] += 1;
        self.sum = self.sum.saturating_add(duration);
    }

    pub(crate) fn count(&self) -> u64 {
        self.counts.iter().sum()
    }
}

impl Histogram for Durations {
    fn counts(&self) -> [u64; BUCKETS] {
        self.counts
    }

    fn sum(&self) -> f64 {
        self.sum.as_secs_f64()
    }
}

/// What the `metrics` facade records into.
#[derive(Debug, Default)]
pub(crate) struct Recorded {
    counts: [AtomicU64; BUCKETS],
    /// Bits of an `f64`.
    sum: AtomicU64,
}

impl Histogram for Recorded {
    fn counts(&self) -> [u64; BUCKETS] {
        std::array::from_fn(|bucket| self.counts[bucket].load(Ordering::Relaxed))
    }

    fn sum(&self) -> f64 {
        f64::from_bits(self.sum.load(Ordering::Relaxed))
    }
}

impl HistogramFn for Recorded {
    fn record(&self, value: f64) {
        self.counts[bucket(value)].fetch_add(1, Ordering::Relaxed);
        let add = |bits| Some((f64::from_bits(bits) + value).to_bits());
        // Cannot fail: `add` always returns a value.
        let _ = self.sum.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add);
    }
}

fn bucket(value: f64) -> usize {
    BOUNDS.iter().position(|(bound, _)| value <= *bound).unwrap_or(BOUNDS.len())
}
