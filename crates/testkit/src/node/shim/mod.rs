//! `zeropod.shim.v1.Shim` as a Go shim serves it: one lossy event queue per
//! process, metrics that reading clears, and ttrpc frames as Go's server writes
//! them. No container is needed: tests say what happens.
//!
//! ```no_run
//! # async fn test() -> Result<(), Box<dyn std::error::Error>> {
//! use std::{path::Path, time::Duration};
//! use zeropod_testkit::node::shim::{Identity, Service};
//!
//! let shim = Service::new();
//! let server = shim.serve(Path::new("/run/zeropod/s/0123.sock"))?;
//! shim.create(Identity {
//!     id: "c0ffee".into(),
//!     name: "app".into(),
//!     pod_name: "web".into(),
//!     pod_namespace: "default".into(),
//! });
//! shim.started("c0ffee")?;
//! shim.scaled_down("c0ffee", Duration::from_millis(70))?;
//! server.close()?;
//! # Ok(()) }
//! ```

mod connection;
mod faults;
mod frame;
mod queue;
mod server;
mod state;

use std::{
    io,
    path::Path,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime},
};

use tokio::sync::{broadcast, watch};
use zeropod_shim_api::rpc::shim::ContainerStatus;

pub use self::{
    faults::{Answer, Faults},
    frame::frame,
    queue::QUEUE_CAPACITY,
    server::Server,
    state::Identity,
};
use self::{queue::Queue, state::Event, state::State};
use super::Error;

/// One shim process. Clones are the same process.
#[derive(Debug, Clone)]
pub struct Service {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    queue: Queue<ContainerStatus>,
    faults: watch::Sender<Faults>,
    commands: broadcast::Sender<Command>,
    counters: AtomicCounters,
}

/// What all connections are told to do.
#[derive(Debug, Clone)]
enum Command {
    Close,
    Send(Vec<u8>),
    EndStreams,
    FailStreams(ttrpc::Code, String),
}

/// What clients did to a shim, since it started unless said otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    /// Connections accepted.
    pub connections: usize,
    /// Connections now.
    pub open_connections: usize,
    /// Calls of `Metrics`.
    pub metrics_reads: usize,
    /// Calls of `GetStatus`.
    pub status_reads: usize,
    /// Calls of `SubscribeStatus`.
    pub subscriptions: usize,
    /// Subscriptions now.
    pub open_subscriptions: usize,
    /// Events sent to a subscriber.
    pub delivered: usize,
    /// Events taken for a subscriber whose connection was dead.
    pub lost: usize,
    /// Events dropped because the queue was full.
    pub dropped: usize,
    /// Events in the queue now.
    pub queued: usize,
}

#[derive(Debug, Default)]
struct AtomicCounters {
    connections: AtomicUsize,
    open_connections: AtomicUsize,
    metrics_reads: AtomicUsize,
    status_reads: AtomicUsize,
    subscriptions: AtomicUsize,
    open_subscriptions: AtomicUsize,
    delivered: AtomicUsize,
    lost: AtomicUsize,
    dropped: AtomicUsize,
}

impl Default for Service {
    fn default() -> Self {
        Self::new()
    }
}

impl Service {
    /// A shim without containers, which nobody can reach yet.
    pub fn new() -> Self {
        let shared = Shared {
            state: Mutex::default(),
            queue: Queue::new(),
            faults: watch::Sender::default(),
            commands: broadcast::Sender::new(16),
            counters: AtomicCounters::default(),
        };
        Self { shared: Arc::new(shared) }
    }

    /// Serves on a unix socket, making its directory. Needs a tokio runtime.
    ///
    /// # Errors
    /// When the socket cannot be made, also because it exists.
    pub fn serve(&self, socket: &Path) -> Result<Server, Error> {
        Server::start(socket, Arc::clone(&self.shared))
    }

    /// A container was created. Sends nothing; the container counts as running.
    pub fn create(&self, identity: Identity) {
        self.shared.state().create(identity);
    }

    /// A container was removed. Sends nothing; `Metrics` and `GetStatus` no
    /// longer know it, but [`Service::stopping`] still does.
    pub fn delete(&self, id: &str) {
        self.shared.state().delete(id);
    }

    /// The process was started: RUNNING without a duration.
    ///
    /// # Errors
    /// When the container is unknown; so for all events.
    pub fn started(&self, id: &str) -> Result<(), Error> {
        self.apply(id, Event::Started)
    }

    /// The container was created for a migration, without a process:
    /// `SCALED_DOWN` without a duration.
    pub fn created_scaled_down(&self, id: &str) -> Result<(), Error> {
        self.apply(id, Event::CreatedScaledDown)
    }

    /// The process was checkpointed or killed: `SCALED_DOWN`.
    pub fn scaled_down(&self, id: &str, took: Duration) -> Result<(), Error> {
        self.apply(id, Event::ScaledDown(took))
    }

    /// A checkpoint failed and the process runs on: `CHECKPOINT_FAILED`.
    pub fn checkpoint_failed(&self, id: &str, log: &str) -> Result<(), Error> {
        self.apply(id, Event::CheckpointFailed(log.into()))
    }

    /// A restore failed: `RESTORE_FAILED`.
    pub fn restore_failed(&self, id: &str, log: &str) -> Result<(), Error> {
        self.apply(id, Event::RestoreFailed(log.into()))
    }

    /// The process was restored or, after a kill or a failure, started afresh:
    /// RUNNING with a duration.
    pub fn restored(&self, id: &str, took: Duration) -> Result<(), Error> {
        self.apply(id, Event::Restored(took))
    }

    /// The container is being stopped: STOPPING. A shim sends it twice or more.
    pub fn stopping(&self, id: &str) -> Result<(), Error> {
        self.apply(id, Event::Stopping)
    }

    /// Ids of every container that it ever had.
    pub fn ids(&self) -> Vec<String> {
        self.shared.state().ids()
    }

    /// Puts any message into the queue, whether it makes sense or not; false
    /// if the queue was full.
    pub fn emit(&self, message: ContainerStatus) -> bool {
        let queued = self.shared.queue.push(message);
        if !queued {
            self.shared.counters.dropped.fetch_add(1, Ordering::Relaxed);
        }
        queued
    }

    /// What clients did so far.
    pub fn counters(&self) -> Counters {
        let counters = &self.shared.counters;
        let get = |counter: &AtomicUsize| counter.load(Ordering::Relaxed);
        Counters {
            connections: get(&counters.connections),
            open_connections: get(&counters.open_connections),
            metrics_reads: get(&counters.metrics_reads),
            status_reads: get(&counters.status_reads),
            subscriptions: get(&counters.subscriptions),
            open_subscriptions: get(&counters.open_subscriptions),
            delivered: get(&counters.delivered),
            lost: get(&counters.lost),
            dropped: get(&counters.dropped),
            queued: self.shared.queue.len(),
        }
    }

    /// From now on answers as `faults` say; `Faults::default()` heals.
    pub fn set_faults(&self, faults: Faults) {
        self.shared.faults.send_replace(faults);
    }

    /// Cuts every connection. New ones are accepted.
    pub fn close_connections(&self) {
        self.command(Command::Close);
    }

    /// Ends every subscription cleanly, as at a deadline.
    pub fn end_streams(&self) {
        self.command(Command::EndStreams);
    }

    /// Ends every subscription with an error.
    pub fn fail_streams(&self, code: ttrpc::Code, message: &str) {
        self.command(Command::FailStreams(code, message.into()));
    }

    /// Sends any bytes on every connection, such as a [`frame`] that nobody
    /// asked for or no frame at all.
    pub fn send_raw(&self, bytes: Vec<u8>) {
        self.command(Command::Send(bytes));
    }

    fn apply(&self, id: &str, event: Event) -> Result<(), Error> {
        let message = self.shared.state().apply(id, event, SystemTime::now());
        let message = message.ok_or_else(|| Error::Invalid {
            what: "container id",
            value: id.into(),
            reason: "this shim has no such container".into(),
        })?;
        // A full queue loses the event, as a real shim does.
        self.emit(message);
        Ok(())
    }

    fn command(&self, command: Command) {
        // Fails only when there is no connection to tell.
        let _ = self.shared.commands.send(command);
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Keeps a count of what is open.
struct Open<'a>(&'a AtomicUsize);

impl<'a> Open<'a> {
    fn count(counter: &'a AtomicUsize) -> Self {
        counter.fetch_add(1, Ordering::Relaxed);
        Self(counter)
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What a connection ends with; nobody looks at it.
type Done = io::Result<()>;
