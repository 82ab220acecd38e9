//! The shared table and everyone who is told of its changes.

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use futures_util::{Stream, stream};
use tokio::sync::{broadcast, watch};
use zeropod_shim_api::change::{ContainerChange, ContainerKey, ContainerState, Update};

use crate::{Config, health::Health, table::Table, telemetry};

/// Changes kept for the slowest subscriber before it gets a snapshot instead.
const QUEUE: usize = 1024;

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
        Self { config, health: watch::Sender::new(Health::default()), inner: Mutex::new(inner) }
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
                observer(&update);
            }
            if let Some(subscribers) = &inner.changes {
                // Fails when there are none.
                let _ = subscribers.send(update);
            }
        }
        result
    }

    /// Ends every subscription.
    pub(crate) fn close(&self) {
        self.lock().changes = None;
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // An observer that panicked has not harmed the table.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Hub {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hub").field("config", &self.config).finish_non_exhaustive()
    }
}
