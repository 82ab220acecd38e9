//! The state behind the API and the page, shared by all who feed and read it.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use serde::Serialize;
use tokio::sync::broadcast;
use zeropod_shim_api::{
    change::{ContainerKey, Update},
    id::ContainerRef,
};

use crate::{
    api::{Changed, Degraded, Resources, Status, Totals, now},
    rows::{News, Rows, removed},
};

/// What every container of the node is doing and what is wrong, kept from the
/// updates of the shims' table. Clones share it.
#[derive(Clone)]
pub struct Board(Arc<Shared>);

/// What a container did since the process started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Times it was woken up.
    pub wake_ups: u64,
    /// Checkpoints that failed.
    pub checkpoint_failures: u64,
    /// Restores that failed.
    pub restore_failures: u64,
    /// Time it was scaled down, the present time included.
    pub scaled_down: Duration,
}

struct Shared {
    node: String,
    version: String,
    counts: Box<dyn Fn(&ContainerKey) -> Counts + Send + Sync>,
    inner: Mutex<Inner>,
    messages: broadcast::Sender<Message>,
}

#[derive(Debug, Default)]
struct Inner {
    rows: Rows,
    /// By the part that told.
    degraded: BTreeMap<&'static str, Vec<Degraded>>,
}

/// A message of the stream, as it is sent.
#[derive(Debug, Clone)]
pub(crate) struct Message {
    pub(crate) event: &'static str,
    pub(crate) data: Arc<str>,
}

/// Messages that a client may be behind. A client further behind gets a
/// snapshot instead of what it missed.
const BACKLOG: usize = 256;

impl Board {
    /// An empty board. `node` and `version` are only shown; `counts` is asked
    /// whenever a container is: whoever keeps the metrics already knows, and
    /// both should say the same.
    pub fn new(
        node: impl Into<String>,
        version: impl Into<String>,
        counts: impl Fn(&ContainerKey) -> Counts + Send + Sync + 'static,
    ) -> Self {
        Self(Arc::new(Shared {
            node: node.into(),
            version: version.into(),
            counts: Box::new(counts),
            inner: Mutex::default(),
            messages: broadcast::Sender::new(BACKLOG),
        }))
    }

    /// Takes in one update, after those who count did. All updates of one
    /// client have to come, in order.
    pub fn apply(&self, update: &Update) {
        let mut inner = self.lock();
        let news = inner.rows.apply(update);
        self.tell(&inner, &news);
    }

    /// Notes what pods request less for containers that are scaled down. A
    /// container that is not listed requests everything.
    pub fn set_given_back(&self, given: BTreeMap<ContainerRef, Resources>) {
        let mut inner = self.lock();
        for container in inner.rows.give_back(given) {
            self.tell(&inner, &News::Changed(container));
        }
    }

    /// Notes everything that is wrong with one part of the node component.
    pub fn set_degraded(&self, part: &'static str, degraded: Vec<Degraded>) {
        let mut inner = self.lock();
        let before = inner.degraded.insert(part, degraded);
        if before.as_ref() != inner.degraded.get(part) {
            self.send("degraded", || inner.degraded());
        }
    }

    /// Everything that is wrong.
    pub fn degraded(&self) -> Vec<Degraded> {
        self.lock().degraded()
    }

    /// Everything, as of now.
    pub fn status(&self) -> Status {
        self.0.status(&self.lock())
    }

    /// Everything as of now, and every message from now on.
    pub(crate) fn follow(&self) -> (Message, broadcast::Receiver<Message>) {
        let inner = self.lock();
        let receiver = self.0.messages.subscribe();
        let status = self.0.status(&inner);
        drop(inner);
        (Message::new("snapshot", &status), receiver)
    }

    /// Under the lock, so that messages are in the order of what they tell.
    fn tell(&self, inner: &Inner, news: &News) {
        match news {
            News::None => {}
            News::All => self.send("snapshot", || self.0.status(inner)),
            News::Changed(container) => {
                if let Some(container) = inner.rows.one(container, &self.0.counts) {
                    self.send("change", || Changed { at: now(), container });
                }
            }
            News::Removed(container) => self.send("removed", || removed(container)),
        }
    }

    fn send<T: Serialize>(&self, event: &'static str, what: impl FnOnce() -> T) {
        if self.0.messages.receiver_count() > 0 {
            // Fails only without receivers, who are then not missed.
            let _ = self.0.messages.send(Message::new(event, &what()));
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Board {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Board").field("inner", &self.0.inner).finish_non_exhaustive()
    }
}

impl Shared {
    fn status(&self, inner: &Inner) -> Status {
        let containers = inner.rows.all(&self.counts);
        Status {
            node: self.node.clone(),
            version: self.version.clone(),
            at: now(),
            totals: Totals::of(&containers),
            degraded: inner.degraded(),
            containers,
        }
    }
}

impl Inner {
    fn degraded(&self) -> Vec<Degraded> {
        self.degraded.values().flatten().cloned().collect()
    }
}

impl Message {
    pub(crate) fn new(event: &'static str, what: &impl Serialize) -> Self {
        // Strings, numbers and structs: there is nothing that JSON cannot say.
        let data = serde_json::to_string(what).unwrap_or_default();
        Self { event, data: data.into() }
    }
}
