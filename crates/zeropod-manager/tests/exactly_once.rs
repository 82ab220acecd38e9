//! X3, F-H1: every checkpoint, restore and failure counts exactly once, in
//! whatever order events, readings, broken connections and restarts of the
//! manager come, as long as the queue of the shim does not overflow. And the
//! state is right in the end.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{path::Path, time::Duration};

use tokio::{
    task::JoinHandle,
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;
use zeropod_metrics_aggregator::{Aggregator, Format};
use zeropod_shim_api::status::Phase;
use zeropod_shim_event_client::{Config, ShimEvents};
use zeropod_testkit::node::shim::{Identity, Service};

const CONTAINERS: usize = 3;
const STEPS: usize = 300;
const DEADLINE: Duration = Duration::from_secs(30);

/// Checkpoints, restores, failed checkpoints, failed restores.
type Counts = [u64; 4];

/// The metrics of [`Counts`].
const NAMES: [&str; 4] = [
    "zeropod_checkpoint_duration_seconds_count",
    "zeropod_restore_duration_seconds_count",
    "zeropod_checkpoint_errors_total",
    "zeropod_restore_errors_total",
];

#[tokio::test]
async fn everything_counts_once() {
    for seed in 1..=4 {
        run(seed, false).await;
    }
}

#[tokio::test]
async fn everything_counts_once_across_restarts() {
    for seed in 11..=14 {
        run(seed, true).await;
    }
}

async fn run(seed: u64, restarts: bool) {
    let dir = tempfile::tempdir().unwrap();
    let mut node = Node::start(seed, dir.path());
    let mut counted = Counts::default();
    for step in 1..=STEPS {
        node.happen();
        if node.random.below(3) == 0 {
            sleep(Duration::from_micros(node.random.below(8_000))).await;
        }
        node.queue_shorter_than(100).await;
        if restarts && step % 100 == 0 {
            node.settle(counted, seed).await;
            counted = sum(counted, node.counts());
            node.stop_manager().await;
            for _ in 0..node.random.below(20) {
                node.happen();
            }
            node.manager = Manager::start(dir.path());
        }
    }
    node.settle(counted, seed).await;
    node.stop_manager().await;
}

/// A shim and the manager's two parts that count.
struct Node {
    random: Random,
    shim: Service,
    _server: zeropod_testkit::node::shim::Server,
    running: [bool; CONTAINERS],
    happened: Counts,
    manager: Manager,
}

impl Node {
    fn start(seed: u64, dir: &Path) -> Self {
        let shim = Service::new();
        for number in 0..CONTAINERS {
            shim.create(Identity {
                id: id(number),
                name: "app".into(),
                pod_name: format!("web-{number}"),
                pod_namespace: "default".into(),
            });
            shim.started(&id(number)).unwrap();
        }
        Self {
            random: Random(seed),
            _server: shim.serve(&dir.join("abc.sock")).unwrap(),
            shim,
            running: [true; CONTAINERS],
            happened: Counts::default(),
            manager: Manager::start(dir),
        }
    }

    /// Something happens to some container.
    fn happen(&mut self) {
        let number = usize::try_from(self.random.below(3)).unwrap();
        let id = id(number);
        let took = Duration::from_nanos(1 + self.random.below(1_000_000_000));
        let fails = self.random.below(5) == 0;
        let what = match (self.running[number], fails) {
            (true, false) => self.shim.scaled_down(&id, took).map(|()| 0),
            (false, false) => self.shim.restored(&id, took).map(|()| 1),
            (true, true) => self.shim.checkpoint_failed(&id, "no").map(|()| 2),
            (false, true) => self.shim.restore_failed(&id, "no").map(|()| 3),
        };
        self.happened[what.unwrap()] += 1;
        self.running[number] ^= !fails;
    }

    fn counts(&self) -> Counts {
        self.manager.counts()
    }

    async fn queue_shorter_than(&self, length: usize) {
        while self.shim.counters().queued >= length {
            sleep(Duration::from_millis(1)).await;
        }
    }

    /// Waits until the manager has caught up, and looks whether it stays so.
    async fn settle(&self, before: Counts, seed: u64) {
        self.queue_shorter_than(1).await;
        let start = Instant::now();
        while sum(before, self.counts()) != self.happened || self.manager.running() != self.running
        {
            assert!(
                start.elapsed() < DEADLINE,
                "seed {seed}: counted {:?}, happened {:?}; {:?} run, {:?} should; {:?}",
                sum(before, self.counts()),
                self.happened,
                self.manager.running(),
                self.running,
                self.shim.counters(),
            );
            sleep(Duration::from_millis(2)).await;
        }
        let reads = self.shim.counters().metrics_reads;
        while self.shim.counters().metrics_reads < reads + 2 {
            sleep(Duration::from_millis(2)).await;
        }
        assert_eq!(sum(before, self.counts()), self.happened, "seed {seed}, after more readings");
    }

    async fn stop_manager(&mut self) {
        self.manager.shutdown.cancel();
        (&mut self.manager.running_task).await.unwrap();
        // A dead subscriber would take an event along.
        while self.shim.counters().open_connections > 0 {
            sleep(Duration::from_millis(2)).await;
        }
    }
}

struct Manager {
    aggregator: Aggregator,
    events: ShimEvents,
    shutdown: CancellationToken,
    running_task: JoinHandle<()>,
}

impl Manager {
    fn start(dir: &Path) -> Self {
        let aggregator = Aggregator::new();
        let events = ShimEvents::new(Config {
            socket_dir: dir.to_path_buf(),
            resync_interval: Duration::from_millis(20),
            metrics_interval: Duration::from_millis(50),
            min_backoff: Duration::from_millis(5),
            ..Config::default()
        });
        let series = aggregator.clone();
        events.observe(move |update| series.apply(update));
        let shutdown = CancellationToken::new();
        let (client, stop) = (events.clone(), shutdown.clone());
        let running_task = tokio::spawn(async move { client.run(stop).await });
        Self { aggregator, events, shutdown, running_task }
    }

    fn counts(&self) -> Counts {
        let text = self.aggregator.render(Format::Text);
        NAMES.map(|name| {
            let start = format!("{name}{{");
            let values = text.lines().filter(|line| line.starts_with(&start));
            values.map(|line| line.rsplit_once(' ').unwrap().1.parse::<u64>().unwrap()).sum()
        })
    }

    fn running(&self) -> Vec<bool> {
        let table = self.events.snapshot();
        table.into_iter().map(|(_, state)| state.phase == Phase::Running).collect()
    }
}

fn id(number: usize) -> String {
    format!("{number:064x}")
}

fn sum(before: Counts, now: Counts) -> Counts {
    std::array::from_fn(|which| before[which] + now[which])
}

/// Xorshift: the same numbers for the same seed.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}
