//! One task per socket: connected to its shim as long as the socket exists.

use std::{
    convert::Infallible,
    hash::{BuildHasher, RandomState},
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

use tokio::{sync::Notify, time::sleep};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};
use zeropod_shim_api::{
    id::ShimId,
    status::{InvalidStatus, MetricsReading, StatusEvent},
};

use crate::{
    Error,
    connection::{Connection, Events},
    health::ShimHealth,
    hub::Hub,
    table::Reconciled,
    telemetry,
};

/// How long a shim whose socket is gone may take to say its last words.
const FAREWELL: Duration = Duration::from_secs(5);

/// Follows one shim until its socket is gone (`removed`), then forgets it.
pub(crate) async fn supervise(hub: Arc<Hub>, shim: ShimId, removed: CancellationToken) {
    let task = Supervised {
        path: hub.config.socket_dir.join(shim.file_name()),
        resync_now: Notify::new(),
        hub,
        shim,
    };
    task.report(ShimHealth::Connecting);
    tokio::select! {
        () = task.stay_connected(&removed) => {}
        () = async {
            removed.cancelled().await;
            sleep(FAREWELL).await;
        } => {}
    }
    task.hub.update(|table| (table.shim_gone(&task.shim), ()));
    task.hub.health.send_modify(|health| {
        health.shims.remove(&task.shim);
    });
    debug!(shim = %task.shim, "shim is gone");
}

struct Supervised {
    hub: Arc<Hub>,
    shim: ShimId,
    path: PathBuf,
    resync_now: Notify,
}

impl Supervised {
    /// Returns when the connection ends after the socket was removed.
    async fn stay_connected(&self, removed: &CancellationToken) {
        let mut backoff = Backoff::new(&self.hub.config);
        loop {
            let error = match self.connect().await {
                Ok((connection, events)) => {
                    backoff = Backoff::new(&self.hub.config);
                    let Err(error) = self.serve(&connection, events).await;
                    error
                }
                Err(error) => error,
            };
            if removed.is_cancelled() {
                return;
            }
            telemetry::connection_error(step(&error));
            warn!(shim = %self.shim, error = &error as &dyn std::error::Error, "not connected");
            self.report(ShimHealth::Disconnected(chain(&error)));
            tokio::select! {
                () = sleep(backoff.next()) => {}
                () = removed.cancelled() => return,
            }
        }
    }

    /// Asks for the state before subscribing: whatever waits in the queue is
    /// then known to be older, and nothing is lost meanwhile.
    async fn connect(&self) -> Result<(Connection, Events), Error> {
        let connection = Connection::dial(&self.path, self.hub.config.call_deadline).await?;
        self.read(&connection).await;
        let events = connection.subscribe().await?;
        Ok((connection, events))
    }

    async fn serve(&self, connection: &Connection, events: Events) -> Result<Infallible, Error> {
        tokio::select! {
            result = self.follow(events) => result,
            never = self.resync(connection) => match never {},
        }
    }

    async fn follow(&self, mut events: Events) -> Result<Infallible, Error> {
        loop {
            let message = events
                .recv()
                .await
                .map_err(|source| Error::Call { call: "SubscribeStatus", source })?
                .ok_or(Error::StreamEnded)?;
            match StatusEvent::try_from(message) {
                Ok(event) => {
                    telemetry::event(event.phase);
                    let now = SystemTime::now();
                    self.hub.update(|table| (table.apply(&self.shim, event, now), ()));
                }
                Err(error) => self.ignore(&error),
            }
        }
    }

    async fn resync(&self, connection: &Connection) -> Infallible {
        loop {
            tokio::select! {
                () = sleep(jittered(self.hub.config.resync_interval)) => {}
                () = self.resync_now.notified() => {}
            }
            if self.confirm(connection).await {
                self.read(connection).await;
            }
        }
    }

    /// Asks after every container whose id is known, which clears nothing.
    /// Returns whether `Metrics` has to tell more.
    async fn confirm(&self, connection: &Connection) -> bool {
        let mut read = self.hub.read(|table| table.needs_reading(&self.shim));
        for id in self.hub.read(|table| table.ids(&self.shim)) {
            let asked = SystemTime::now();
            let status = match connection.status(&id).await {
                Ok(status) => status,
                Err(error) => {
                    self.unresponsive(&error);
                    return false;
                }
            };
            self.report(ShimHealth::Connected);
            let status = match status.map(StatusEvent::try_from).transpose() {
                Ok(status) => status,
                Err(error) => {
                    self.ignore(&error);
                    continue;
                }
            };
            read |= status.is_none();
            self.reconcile(|table| table.answer(&self.shim, &id, asked, status));
        }
        read
    }

    async fn read(&self, connection: &Connection) {
        let asked = SystemTime::now();
        match connection.metrics().await {
            Ok(metrics) => {
                self.report(ShimHealth::Connected);
                let readings = metrics
                    .into_iter()
                    .filter_map(|entry| {
                        MetricsReading::try_from(entry).map_err(|error| self.ignore(&error)).ok()
                    })
                    .collect();
                self.reconcile(|table| table.reconcile(&self.shim, asked, readings));
            }
            Err(error) => self.unresponsive(&error),
        }
    }

    fn reconcile(&self, change: impl FnOnce(&mut crate::table::Table) -> Reconciled) {
        let corrections = self.hub.update(|table| {
            let Reconciled { changes, corrections } = change(table);
            (changes, corrections)
        });
        if corrections > 0 {
            telemetry::corrections(corrections);
            warn!(shim = %self.shim, corrections, "events were lost; the state is corrected");
        }
    }

    fn unresponsive(&self, error: &Error) {
        telemetry::connection_error(step(error));
        warn!(shim = %self.shim, error = error as &dyn std::error::Error, "shim does not answer");
        self.report(ShimHealth::Unresponsive(chain(error)));
    }

    fn ignore(&self, error: &InvalidStatus) {
        telemetry::invalid_message();
        warn!(shim = %self.shim, %error, "message is ignored");
    }

    fn report(&self, state: ShimHealth) {
        self.hub.health.send_if_modified(|health| {
            let known = health.shims.get(&self.shim) == Some(&state);
            if !known {
                health.shims.insert(self.shim.clone(), state);
            }
            !known
        });
    }
}

/// Waits that double from the shortest to the longest.
struct Backoff {
    next: Duration,
    max: Duration,
}

impl Backoff {
    fn new(config: &crate::Config) -> Self {
        Self { next: config.min_backoff, max: config.max_backoff }
    }

    fn next(&mut self) -> Duration {
        let wait = self.next;
        self.next = (wait * 2).min(self.max);
        jittered(wait)
    }
}

/// Up to a tenth longer, so that many shims are not dialled in step.
fn jittered(wait: Duration) -> Duration {
    let random = RandomState::new().hash_one(()) % 1024;
    wait + wait / 10 * u32::try_from(random).unwrap_or(0) / 1024
}

/// Name of the step that failed, for the metric.
fn step(error: &Error) -> &'static str {
    match error {
        Error::Directory { .. } => "directory",
        Error::Dial { .. } => "dial",
        Error::Deadline { .. } => "deadline",
        Error::Call { .. } => "call",
        Error::StreamEnded => "stream",
    }
}

/// An error with its causes, in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        line.push_str(": ");
        line.push_str(&error.to_string());
        source = error.source();
    }
    line
}
