//! The recorder behind the `metrics` facade.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use metrics::{Counter, Gauge, Histogram, Key, KeyName, Metadata, SharedString, Unit};
use metrics_util::registry::{Registry, Storage};

use crate::{
    exposition::{Exposition, Kind, labels},
    histogram::Recorded,
};

/// Series of one name kept at most. Labels take few values by design; beyond
/// that, somebody made a label of something unbounded.
const MAX_SERIES: usize = 256;

const REFUSED: &str = "zeropod_metrics_refused_total";

/// Takes what the process records through the `metrics` facade. Clones share
/// their series. Histograms have the buckets of zeropod's durations.
#[derive(Debug, Clone)]
pub struct Recorder {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    /// Finds a series by its key, at every recording.
    registry: Registry<Key, Fixed>,
    /// The same series in the order of an exposition.
    families: Mutex<BTreeMap<String, Family>>,
    /// Series that were not made, or not made again.
    refused: Arc<AtomicU64>,
}

#[derive(Debug, Default)]
struct Family {
    kind: Kind,
    help: SharedString,
    /// By their labels, as they are written.
    series: BTreeMap<String, Series>,
}

#[derive(Debug, Clone)]
enum Series {
    Counter(Arc<AtomicU64>),
    /// Bits of an `f64`.
    Gauge(Arc<AtomicU64>),
    Histogram(Arc<Recorded>),
}

impl Recorder {
    pub(crate) fn new() -> Self {
        let refused = Arc::new(AtomicU64::new(0));
        let family = Family {
            kind: Kind::Counter,
            help: "Recordings that were refused because their metric has too many series.".into(),
            series: BTreeMap::from([(String::new(), Series::Counter(Arc::clone(&refused)))]),
        };
        let shared = Shared {
            registry: Registry::new(Fixed),
            families: BTreeMap::from([(REFUSED.to_owned(), family)]).into(),
            refused,
        };
        Self { shared: Arc::new(shared) }
    }

    pub(crate) fn render(&self, to: &mut Exposition) {
        let families = self.families();
        for (name, family) in families.iter().filter(|(_, family)| !family.series.is_empty()) {
            let Family { kind, help, series } = family;
            let family = to.family(name, *kind, help);
            for (labels, series) in series {
                match series {
                    Series::Counter(count) => {
                        to.sample(&family, labels, count.load(Ordering::Relaxed));
                    }
                    Series::Gauge(bits) => {
                        to.sample(&family, labels, f64::from_bits(bits.load(Ordering::Relaxed)));
                    }
                    Series::Histogram(histogram) => to.histogram(&family, labels, &**histogram),
                }
            }
        }
    }

    /// Name, kind and help of every family that was described.
    pub(crate) fn documentation(&self) -> Vec<(String, Kind, String)> {
        let families = self.families();
        families
            .iter()
            .filter(|(_, family)| !family.help.is_empty())
            .map(|(name, family)| (name.clone(), family.kind, family.help.to_string()))
            .collect()
    }

    fn describe(&self, name: &KeyName, kind: Kind, help: SharedString) {
        let mut families = self.families();
        let family = families.entry(name.as_str().to_owned()).or_default();
        (family.kind, family.help) = (kind, help);
    }

    /// Makes a series, unless its metric has too many or is of another kind.
    fn make<T>(
        &self,
        key: &Key,
        make: impl FnOnce(&Registry<Key, Fixed>) -> Arc<T>,
        (kind, series): (Kind, fn(Arc<T>) -> Series),
    ) -> Option<Arc<T>> {
        let mut families = self.families();
        let family = families.entry(key.name().to_owned()).or_default();
        if family.series.is_empty() {
            family.kind = kind;
        }
        if family.series.len() >= MAX_SERIES || family.kind != kind {
            self.shared.refused.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        let handle = make(&self.shared.registry);
        let labels = labels(key.labels().map(|label| (label.key(), label.value())));
        family.series.insert(labels, series(Arc::clone(&handle)));
        Some(handle)
    }

    fn families(&self) -> MutexGuard<'_, BTreeMap<String, Family>> {
        self.shared.families.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl metrics::Recorder for Recorder {
    fn describe_counter(&self, name: KeyName, _: Option<Unit>, help: SharedString) {
        self.describe(&name, Kind::Counter, help);
    }

    fn describe_gauge(&self, name: KeyName, _: Option<Unit>, help: SharedString) {
        self.describe(&name, Kind::Gauge, help);
    }

    fn describe_histogram(&self, name: KeyName, _: Option<Unit>, help: SharedString) {
        self.describe(&name, Kind::Histogram, help);
    }

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        let known = self.shared.registry.get_counter(key);
        let counter = known.or_else(|| {
            self.make(
                key,
                |all| all.get_or_create_counter(key, Arc::clone),
                (Kind::Counter, Series::Counter),
            )
        });
        counter.map_or_else(Counter::noop, Counter::from_arc)
    }

    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
        let known = self.shared.registry.get_gauge(key);
        let gauge = known.or_else(|| {
            self.make(
                key,
                |all| all.get_or_create_gauge(key, Arc::clone),
                (Kind::Gauge, Series::Gauge),
            )
        });
        gauge.map_or_else(Gauge::noop, Gauge::from_arc)
    }

    fn register_histogram(&self, key: &Key, _: &Metadata<'_>) -> Histogram {
        let known = self.shared.registry.get_histogram(key);
        let histogram = known.or_else(|| {
            self.make(
                key,
                |all| all.get_or_create_histogram(key, Arc::clone),
                (Kind::Histogram, Series::Histogram),
            )
        });
        histogram.map_or_else(Histogram::noop, Histogram::from_arc)
    }
}

/// How the registry keeps values.
#[derive(Debug)]
struct Fixed;

impl Storage<Key> for Fixed {
    type Counter = Arc<AtomicU64>;
    type Gauge = Arc<AtomicU64>;
    type Histogram = Arc<Recorded>;

    fn counter(&self, _: &Key) -> Self::Counter {
        Arc::default()
    }

    fn gauge(&self, _: &Key) -> Self::Gauge {
        Arc::default()
    }

    fn histogram(&self, _: &Key) -> Self::Histogram {
        Arc::default()
    }
}
