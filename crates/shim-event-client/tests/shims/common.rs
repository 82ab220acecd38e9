//! A client that follows stand-in shims, and waiting for what it makes of
//! them.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};

use metrics_util::debugging::{DebugValue, DebuggingRecorder, Snapshotter};
use tempfile::TempDir;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::{CancellationToken, DropGuard};
use zeropod_shim_api::{
    change::{Cause, ContainerChange, ContainerKey, ContainerState, Update},
    id::ShimId,
    rpc::shim::ContainerStatus,
    status::{Phase, StatusEvent},
};
use zeropod_shim_event_client::{Config, Health, ShimEvents, Subscription};
use zeropod_testkit::node::shim::{Identity, Service};

/// Longest wait for anything; reached only by a test that fails.
const DEADLINE: Duration = Duration::from_secs(30);

/// A running client with a socket directory of its own.
pub(crate) struct Client {
    pub(crate) events: ShimEvents,
    pub(crate) changes: Arc<Mutex<Vec<ContainerChange>>>,
    dir: TempDir,
    _shutdown: DropGuard,
}

impl Client {
    pub(crate) fn start(configure: impl FnOnce(&mut Config)) -> Self {
        Self::start_in(tempfile::tempdir().unwrap(), configure)
    }

    /// Starts in a directory in which shims may be already.
    pub(crate) fn start_in(dir: TempDir, configure: impl FnOnce(&mut Config)) -> Self {
        let mut config = Config {
            socket_dir: dir.path().join("s"),
            resync_interval: Duration::from_millis(100),
            call_deadline: Duration::from_millis(500),
            min_backoff: Duration::from_millis(10),
            max_backoff: Duration::from_millis(100),
            ..Config::default()
        };
        configure(&mut config);
        let events = ShimEvents::new(config);
        let changes = Arc::new(Mutex::new(Vec::new()));
        events.observe({
            let changes = Arc::clone(&changes);
            move |update| {
                if let Update::Change(change) = update {
                    changes.lock().unwrap().push((**change).clone());
                }
            }
        });
        let shutdown = CancellationToken::new();
        let running = events.clone();
        let token = shutdown.clone();
        tokio::spawn(async move { running.run(token).await });
        Self { events, changes, dir, _shutdown: shutdown.drop_guard() }
    }

    pub(crate) fn socket_dir(&self) -> PathBuf {
        self.dir.path().join("s")
    }

    pub(crate) fn socket(&self, shim: &str) -> PathBuf {
        self.socket_dir().join(format!("{shim}.sock"))
    }

    /// Waits until the table is as the test wants it.
    pub(crate) async fn until(
        &self,
        mut wanted: impl FnMut(&[(ContainerKey, ContainerState)]) -> bool,
    ) {
        until("the table", || self.events.snapshot(), |table| wanted(table)).await;
    }

    /// Waits until the only container is in a phase.
    pub(crate) async fn until_phase(&self, phase: Phase) {
        self.until(|table| table.len() == 1 && table[0].1.phase == phase).await;
    }

    /// Waits until the health is as the test wants it.
    pub(crate) async fn healthy(&self, mut wanted: impl FnMut(&Health) -> bool) {
        until("the health", || self.events.health().borrow().clone(), |now| wanted(now)).await;
    }

    /// Every event that was published, in order.
    pub(crate) fn published(&self) -> Vec<StatusEvent> {
        let changes = self.changes.lock().unwrap();
        changes
            .iter()
            .filter_map(|change| match &change.cause {
                Cause::Event(event) => Some(event.clone()),
                Cause::Reading(_) | Cause::Removed => None,
            })
            .collect()
    }
}

/// Polls until something is as wanted.
pub(crate) async fn until<T: std::fmt::Debug>(
    what: &str,
    mut get: impl FnMut() -> T,
    mut wanted: impl FnMut(&T) -> bool,
) {
    let start = Instant::now();
    loop {
        let now = get();
        if wanted(&now) {
            return;
        }
        assert!(start.elapsed() < DEADLINE, "{what} stays {now:#?}");
        sleep(Duration::from_millis(2)).await;
    }
}

/// The next update, or a failed test.
pub(crate) async fn next(subscription: &mut Subscription) -> Update {
    match timeout(DEADLINE, subscription.next()).await {
        Ok(Some(update)) => update,
        other => panic!("no update: {other:?}"),
    }
}

/// The next change, or a failed test.
pub(crate) async fn change(subscription: &mut Subscription) -> ContainerChange {
    match next(subscription).await {
        Update::Change(change) => *change,
        Update::Snapshot(snapshot) => panic!("unexpected snapshot {snapshot:?}"),
    }
}

pub(crate) fn shim_id(shim: &str) -> ShimId {
    ShimId::from_file_name(&format!("{shim}.sock")).unwrap()
}

pub(crate) fn identity(pod: &str, id: &str) -> Identity {
    Identity {
        id: id.into(),
        name: "app".into(),
        pod_name: pod.into(),
        pod_namespace: "default".into(),
    }
}

/// A message of the container of [`identity`] with nothing else in it.
pub(crate) fn message(pod: &str, id: &str) -> ContainerStatus {
    let Identity { id, name, pod_name, pod_namespace } = identity(pod, id);
    ContainerStatus { id, name, pod_name, pod_namespace, ..ContainerStatus::default() }
}

/// A shim with one container that runs.
pub(crate) fn shim_with(pod: &str, id: &str) -> Service {
    let shim = Service::new();
    shim.create(identity(pod, id));
    shim.started(id).unwrap();
    shim
}

/// Counts what this thread records through the `metrics` facade.
pub(crate) struct Recorded {
    snapshotter: Snapshotter,
    counters: Mutex<HashMap<String, u64>>,
    gauges: Mutex<HashMap<String, f64>>,
    _guard: metrics::LocalRecorderGuard<'static>,
}

impl Recorded {
    /// Lasts as long as the test's runtime stays on this thread.
    pub(crate) fn start() -> Self {
        // The guard borrows the recorder; a test process ends soon.
        let recorder: &'static DebuggingRecorder = Box::leak(Box::default());
        Self {
            snapshotter: recorder.snapshotter(),
            counters: Mutex::default(),
            gauges: Mutex::default(),
            _guard: metrics::set_default_local_recorder(recorder),
        }
    }

    /// Sum of a counter over its labels.
    pub(crate) fn counter(&self, name: &str) -> u64 {
        self.take();
        let counters = self.counters.lock().unwrap();
        counters.iter().filter(|(key, _)| key.starts_with(name)).map(|(_, value)| value).sum()
    }

    /// Value of a gauge whose only label has this value, if it was set since
    /// anything was asked for.
    pub(crate) fn gauge(&self, name: &str, label: &str) -> Option<f64> {
        self.take();
        self.gauges.lock().unwrap().get(&format!("{name} {label}")).copied()
    }

    fn take(&self) {
        // A snapshot resets everything.
        for (key, _, _, value) in self.snapshotter.snapshot().into_vec() {
            let key = key.key();
            let mut name = key.name().to_owned();
            for label in key.labels() {
                name = format!("{name} {}", label.value());
            }
            match value {
                DebugValue::Counter(count) => {
                    *self.counters.lock().unwrap().entry(name).or_default() += count;
                }
                DebugValue::Gauge(value) => {
                    self.gauges.lock().unwrap().insert(name, value.0);
                }
                DebugValue::Histogram(_) => {}
            }
        }
    }
}
