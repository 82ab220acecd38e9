//! The shared table and everyone who is told of its changes.

use std::{
    fmt,
    panic::{self, AssertUnwindSafe},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use futures_util::{Stream, stream};
use tokio::{
    sync::{broadcast, watch},
    time::sleep,
};
use tracing::error;
use zeropod_shim_api::{
    change::{ContainerChange, ContainerKey, ContainerState, Update},
    id::ShimId,
};

use crate::{
    Config,
    health::{Health, ShimHealth},
    table::Table,
    telemetry,
};

/// Changes kept for the slowest subscriber before it gets a snapshot instead.
const QUEUE: usize = 1024;

/// Pause for slow subscribers, and how many pauses in a row they get.
const WAIT: Duration = Duration::from_millis(1);
const MAX_WAITS: usize = 250;

/// One consumer's view of the table, by [`crate::ShimEvents::subscribe`].
#[derive(Debug)]
pub struct Subscription {
    hub: Arc<Hub>,
    snapshot: Option<Snapshot>,
    changes: Option<broadcast::Receiver<Update>>,
}

type Snapshot = Vec<(ContainerKey, ContainerState)>;

impl Subscription {
    pub(crate) fn new(hub: Arc<Hub>) -> Self {
        let mut subscription = Self { hub, snapshot: None, changes: None };
        subscription.attach();
        subscription
    }

    /// The next update: a snapshot at first and whenever this consumer has
    /// fallen behind, else a change. `None` when the client has shut down.
    /// Nothing is lost when the future is dropped before it is ready.
    pub async fn next(&mut self) -> Option<Update> {
        loop {
            if let Some(snapshot) = self.snapshot.take() {
                return Some(Update::Snapshot(snapshot));
            }
            match self.changes.as_mut()?.recv().await {
                Ok(update) => return Some(update),
                Err(broadcast::error::RecvError::Closed) => return None,
                Err(broadcast::error::RecvError::Lagged(missed)) => {
                    telemetry::subscriber_lagged(missed);
                    self.attach();
                }
            }
        }
    }

    /// The same as a stream.
    pub fn into_stream(self) -> impl Stream<Item = Update> + Send {
        stream::unfold(self, |mut this| async { this.next().await.map(|update| (update, this)) })
    }

    fn attach(&mut self) {
        let inner = self.hub.lock();
        self.changes = inner.changes.as_ref().map(broadcast::Sender::subscribe);
        self.snapshot = self.changes.is_some().then(|| inner.table.snapshot());
    }
}

type Observer = Box<dyn Fn(&Update) + Send + Sync>;

/// What the tasks share.
pub(crate) struct Hub {
    pub(crate) config: Config,
    pub(crate) health: watch::Sender<Health>,
    /// When the client last turned.
    pub(crate) heartbeat: watch::Sender<Instant>,
    /// Some subscriber takes nothing, so that nobody waits for it.
    stalled: AtomicBool,
    inner: Mutex<Inner>,
}

struct Inner {
    table: Table,
    observers: Vec<Observer>,
    /// `None` once the client has shut down.
    changes: Option<broadcast::Sender<Update>>,
}

impl Hub {
    pub(crate) fn new(config: Config) -> Self {
        let inner = Inner {
            table: Table::default(),
            observers: Vec::new(),
            changes: Some(broadcast::Sender::new(QUEUE)),
        };
        Self {
            config,
            health: watch::Sender::new(Health::default()),
            heartbeat: watch::Sender::new(Instant::now()),
            stalled: AtomicBool::new(false),
            inner: Mutex::new(inner),
        }
    }

    pub(crate) fn observe(&self, observer: Observer) {
        let mut inner = self.lock();
        observer(&Update::Snapshot(inner.table.snapshot()));
        inner.observers.push(observer);
    }

    pub(crate) fn snapshot(&self) -> Snapshot {
        self.lock().table.snapshot()
    }

    /// Looks something up in the table.
    pub(crate) fn read<T>(&self, look: impl FnOnce(&Table) -> T) -> T {
        look(&self.lock().table)
    }

    /// Changes the table and tells everyone, in one step, so that all see the
    /// same order.
    pub(crate) fn update<T>(
        &self,
        change: impl FnOnce(&mut Table) -> (Vec<ContainerChange>, T),
    ) -> T {
        let mut inner = self.lock();
        let (changes, result) = change(&mut inner.table);
        for change in changes {
            let update = Update::Change(Box::new(change));
            for observer in &inner.observers {
                // Its panic must not end the task of a shim.
                if panic::catch_unwind(AssertUnwindSafe(|| observer(&update))).is_err() {
                    error!(?update, "an observer panicked");
                }
            }
            if let Some(subscribers) = &inner.changes {
                // Fails when there are none.
                let _ = subscribers.send(update);
            }
        }
        result
    }

    /// Notes how a shim is doing.
    pub(crate) fn report(&self, shim: &ShimId, change: impl FnOnce(&mut ShimHealth)) {
        self.health.send_if_modified(|health| {
            let old = health.shims.get(shim);
            let mut new = old.cloned().unwrap_or_default();
            change(&mut new);
            let changed = old != Some(&new);
            if changed {
                health.shims.insert(shim.clone(), new);
                telemetry::connections(health);
            }
            changed
        });
    }

    /// Forgets a shim that is gone, with its containers.
    pub(crate) fn forget(&self, shim: &ShimId) {
        self.update(|table| (table.shim_gone(shim), ()));
        self.health.send_modify(|health| {
            health.shims.remove(shim);
            telemetry::connections(health);
        });
    }

    /// Shows that the client turns. It does not while anyone keeps the table.
    pub(crate) fn beat(&self) {
        drop(self.lock());
        self.heartbeat.send_replace(Instant::now());
    }

    /// Waits while some subscriber is about to lose changes, for a moment:
    /// one that does not take any gets a snapshot in the end.
    pub(crate) async fn room(&self) {
        for _ in 0..MAX_WAITS {
            let queued = self.lock().changes.as_ref().map_or(0, broadcast::Sender::len);
            if queued < QUEUE / 2 {
                self.stalled.store(false, Ordering::Relaxed);
                return;
            }
            if self.stalled.load(Ordering::Relaxed) {
                return;
            }
            sleep(WAIT).await;
        }
        self.stalled.store(true, Ordering::Relaxed);
    }

    /// Ends every subscription.
    pub(crate) fn close(&self) {
        self.lock().changes = None;
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Nothing that panics under the lock leaves the table half changed.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Hub {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hub").field("config", &self.config).finish_non_exhaustive()
    }
}
