//! The recorder behind the `metrics` facade.

use std::{
    collections::BTreeMap,
    fmt,
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
    registry: Registry<Key, Fixed>,
    /// Series that were not made, or not made again.
    refused: AtomicU64,
    families: Mutex<BTreeMap<String, Family>>,
}

#[derive(Debug, Default)]
struct Family {
    kind: Kind,
    help: SharedString,
    series: usize,
}

impl Recorder {
    pub(crate) fn new() -> Self {
        let shared = Shared {
            registry: Registry::new(Fixed),
            refused: AtomicU64::new(0),
            families: Mutex::default(),
        };
        let recorder = Self { shared: Arc::new(shared) };
        recorder.describe(
            &KeyName::from(REFUSED),
            Kind::Counter,
            "Recordings that were refused because their metric has too many series.".into(),
        );
        recorder
    }

    pub(crate) fn render(&self, to: &mut Exposition) {
        let mut counters = BTreeMap::new();
        self.shared.registry.visit_counters(|key, counter| {
            insert(&mut counters, key, counter.load(Ordering::Relaxed));
        });
        let mut gauges = BTreeMap::new();
        self.shared.registry.visit_gauges(|key, gauge| {
            insert(&mut gauges, key, f64::from_bits(gauge.load(Ordering::Relaxed)));
        });
        let mut histograms = BTreeMap::new();
        self.shared.registry.visit_histograms(|key, histogram| {
            insert(&mut histograms, key, Arc::clone(histogram));
        });
        let refused = self.shared.refused.load(Ordering::Relaxed);
        counters.insert(REFUSED.to_owned(), BTreeMap::from([(String::new(), refused)]));
        let families = self.families();
        let help = |name: &str| families.get(name).map_or("", |family| &*family.help);
        for (name, series) in &counters {
            let family = to.family(name, Kind::Counter, help(name));
            for (labels, value) in series {
                to.sample(&family, labels, value);
            }
        }
        for (name, series) in &gauges {
            let family = to.family(name, Kind::Gauge, help(name));
            for (labels, value) in series {
                to.sample(&family, labels, Number(*value));
            }
        }
        for (name, series) in &histograms {
            let family = to.family(name, Kind::Histogram, help(name));
            for (labels, histogram) in series {
                to.histogram(&family, labels, &**histogram);
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

    /// Whether a series may be made.
    fn admit(&self, key: &Key) -> bool {
        let mut families = self.families();
        let family = families.entry(key.name().to_owned()).or_default();
        let admitted = family.series < MAX_SERIES;
        if admitted {
            family.series += 1;
        } else {
            self.shared.refused.fetch_add(1, Ordering::Relaxed);
        }
        admitted
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
        let registry = &self.shared.registry;
        if registry.get_counter(key).is_none() && !self.admit(key) {
            return Counter::noop();
        }
        registry.get_or_create_counter(key, |counter| Counter::from_arc(Arc::clone(counter)))
    }

    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
        let registry = &self.shared.registry;
        if registry.get_gauge(key).is_none() && !self.admit(key) {
            return Gauge::noop();
        }
        registry.get_or_create_gauge(key, |gauge| Gauge::from_arc(Arc::clone(gauge)))
    }

    fn register_histogram(&self, key: &Key, _: &Metadata<'_>) -> Histogram {
        let registry = &self.shared.registry;
        if registry.get_histogram(key).is_none() && !self.admit(key) {
            return Histogram::noop();
        }
        registry
            .get_or_create_histogram(key, |histogram| Histogram::from_arc(Arc::clone(histogram)))
    }
}

/// A number as Prometheus writes it.
struct Number(f64);

impl fmt::Display for Number {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_infinite() {
            f.write_str(if self.0 > 0.0 { "+Inf" } else { "-Inf" })
        } else {
            write!(f, "{}", self.0)
        }
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

/// Series by family name and labels.
type Families<T> = BTreeMap<String, BTreeMap<String, T>>;

fn insert<T>(families: &mut Families<T>, key: &Key, value: T) {
    let labels = labels(key.labels().map(|label| (label.key(), label.value())));
    families.entry(key.name().to_owned()).or_default().insert(labels, value);
}
