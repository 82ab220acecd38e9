//! One task per socket: connected to its shim as long as the socket exists.

use std::{
    convert::Infallible,
    error::Error as StdError,
    fmt,
    hash::{BuildHasher, RandomState},
    path::PathBuf,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime},
};

use tokio::{
    sync::Notify,
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};
use zeropod_shim_api::{id::ShimId, status::StatusEvent};

use crate::{
    Error,
    connection::{Connection, Events},
    dead::Refusals,
    health,
    hub::Hub,
    table::{Reconciled, Table},
    telemetry,
};

/// How long a shim whose socket is gone may take to say its last words.
const FAREWELL: Duration = Duration::from_secs(5);

/// How long the first reading may hold up the subscription.
const HEAD_START: Duration = Duration::from_millis(250);

/// Events that a shim keeps while nobody is subscribed; it drops newer ones.
const SHIM_QUEUE: usize = 128;

/// How long an event that contradicts an answer may be under way.
const UNDER_WAY: Duration = Duration::from_millis(250);

/// Follows one shim until its socket is gone (`removed`), then forgets it.
pub(crate) async fn supervise(hub: Arc<Hub>, shim: ShimId, removed: CancellationToken) {
    let task = Supervised {
        path: hub.config.socket_dir.join(shim.file_name()),
        resync_now: Notify::new(),
        complained: AtomicBool::new(false),
        hub,
        shim,
    };
    task.hub.report(&task.shim, |_| ());
    let farewell = async {
        removed.cancelled().await;
        sleep(FAREWELL).await;
    };
    tokio::select! {
        () = task.stay_connected(&removed) => {}
        () = farewell => {}
    }
    task.hub.forget(&task.shim);
    debug!(shim = %task.shim, "shim is gone");
}

struct Supervised {
    hub: Arc<Hub>,
    shim: ShimId,
    path: PathBuf,
    resync_now: Notify,
    /// Whether the log has a message of this shim that was not understood.
    complained: AtomicBool,
}

impl Supervised {
    /// Returns when the connection ends after the socket was removed.
    async fn stay_connected(&self, removed: &CancellationToken) {
        let config = &self.hub.config;
        let mut backoff = config.min_backoff;
        let mut refusals = Refusals::default();
        loop {
            let start = Instant::now();
            let Err(error) = self.connect().await;
            if removed.is_cancelled() {
                return;
            }
            telemetry::connection_error(&error);
            if refusals.note(&error, config) {
                self.hub.update(|table| (table.shim_gone(&self.shim), ()));
                self.connection(health::Connection::Dead);
                refusals.remove(&self.shim, &self.path, config).await;
            } else {
                self.disconnected(&error);
            }
            if start.elapsed() > config.max_backoff {
                backoff = config.min_backoff;
            }
            tokio::select! {
                () = sleep(jittered(backoff)) => {}
                () = removed.cancelled() => return,
            }
            backoff = (backoff * 2).min(config.max_backoff);
        }
    }

    async fn connect(&self) -> Result<Infallible, Error> {
        let connection = Connection::dial(&self.path, self.hub.config.call_deadline).await?;
        let connected = SystemTime::now();
        tokio::select! {
            ended = self.follow(connection.events(), connected) => ended,
            ended = self.ask(&connection) => ended,
        }
    }

    /// Asks for the state before subscribing: whatever waits in the queue is
    /// then known to be older, and nothing is lost meanwhile. A shim that is
    /// slow to answer is subscribed to all the same.
    async fn ask(&self, connection: &Connection) -> Result<Infallible, Error> {
        let mut reading = pin!(self.read(connection));
        let read = timeout(HEAD_START, &mut reading).await;
        connection.subscribe().await?;
        debug!(shim = %self.shim, "subscribed");
        match read {
            Ok(read) => read?,
            Err(_) => reading.await?,
        };
        self.resync(connection).await
    }

    async fn follow(
        &self,
        mut events: Events<'_>,
        connected: SystemTime,
    ) -> Result<Infallible, Error> {
        let mut backlog = 0;
        loop {
            let message = self.understood(events.next().await?);
            let Some(event) = message.and_then(|message| self.understood(message.try_into()))
            else {
                continue;
            };
            self.log(&event);
            backlog += usize::from(event.time.is_some_and(|time| time < connected));
            if backlog == SHIM_QUEUE {
                self.events_lost("overflow");
                self.resync_now.notify_one();
            }
            let now = SystemTime::now();
            self.hub.update(|table| (table.apply(&self.shim, event, now), ()));
            self.hub.room().await;
        }
    }

    async fn resync(&self, connection: &Connection) -> Result<Infallible, Error> {
        let config = &self.hub.config;
        let mut last_read = Instant::now();
        loop {
            let told = tokio::select! {
                () = sleep(jittered(config.resync_interval)) => false,
                () = self.resync_now.notified() => true,
            };
            let Some((mut corrections, unknown)) = self.confirm(connection).await? else {
                continue;
            };
            let read = told
                || unknown
                || last_read.elapsed() >= config.metrics_interval
                || self.hub.read(|table| table.needs_reading(&self.shim));
            if read {
                let Some(corrected) = self.read(connection).await? else { continue };
                corrections += corrected;
                last_read = Instant::now();
            }
            if corrections == 0 && !told {
                self.hub.report(&self.shim, |health| health.events_lost = None);
            }
        }
    }

    /// Asks after every container whose id is known, which clears nothing.
    /// Returns how many were corrected, and whether the shim did not know
    /// some; `None` when it does not answer.
    async fn confirm(&self, connection: &Connection) -> Result<Option<(usize, bool)>, Error> {
        let mut doubtful = Vec::new();
        let mut unknown = false;
        let mut corrections = 0;
        let agrees = |status: &StatusEvent| self.hub.read(|table| table.agrees(&self.shim, status));
        for id in self.hub.read(|table| table.ids(&self.shim)) {
            let asked = SystemTime::now();
            let Some(status) = self.answered(connection.status(&id).await)? else {
                return Ok(None);
            };
            match status.map(|status| self.understood(status.try_into())) {
                Some(None) => {}
                Some(Some(status)) if !agrees(&status) => doubtful.push(id),
                status => {
                    unknown |= status.is_none();
                    let status = status.flatten();
                    corrections +=
                        self.reconcile(|table| table.answer(&self.shim, &id, asked, status));
                }
            }
        }
        if !doubtful.is_empty() {
            sleep(UNDER_WAY).await;
        }
        for id in doubtful {
            let asked = SystemTime::now();
            let Some(status) = self.answered(connection.status(&id).await)? else {
                return Ok(None);
            };
            let status = status.and_then(|status| self.understood(status.try_into()));
            if status.is_some() {
                corrections += self.reconcile(|table| table.answer(&self.shim, &id, asked, status));
            }
        }
        Ok(Some((corrections, unknown)))
    }

    /// Reads the metrics of every container. Returns how many containers were
    /// corrected, or `None` without an answer.
    async fn read(&self, connection: &Connection) -> Result<Option<usize>, Error> {
        let asked = SystemTime::now();
        let Some(metrics) = self.answered(connection.metrics().await)? else { return Ok(None) };
        let readings =
            metrics.into_iter().filter_map(|entry| self.understood(entry.try_into())).collect();
        Ok(Some(self.reconcile(|table| table.reconcile(&self.shim, asked, readings))))
    }

    /// Takes note of how a call went. A missing or bad answer is not the end
    /// of the connection: its events still come.
    fn answered<T>(&self, answer: Result<T, Error>) -> Result<Option<T>, Error> {
        match answer {
            Ok(answer) => {
                self.connection(health::Connection::Connected);
                Ok(Some(answer))
            }
            Err(error) if error.ends_connection() => Err(error),
            Err(error) => {
                self.unresponsive(&error);
                Ok(None)
            }
        }
    }

    fn reconcile(&self, change: impl FnOnce(&mut Table) -> Reconciled) -> usize {
        let corrections = self.hub.update(|table| {
            let Reconciled { changes, corrections } = change(table);
            (changes, corrections)
        });
        if corrections > 0 {
            telemetry::corrections(corrections);
            self.events_lost("correction");
        }
        corrections
    }

    fn events_lost(&self, reason: &'static str) {
        telemetry::gap(reason);
        warn!(shim = %self.shim, reason, "events were lost");
        self.hub.report(&self.shim, |health| health.events_lost = Some(SystemTime::now()));
    }

    fn unresponsive(&self, error: &Error) {
        telemetry::connection_error(error);
        let error = chain(error);
        self.hub.report(&self.shim, |health| {
            if !matches!(health.connection, health::Connection::Unresponsive(_)) {
                warn!(shim = %self.shim, error, "shim does not answer");
            }
            health.connection = health::Connection::Unresponsive(error);
        });
    }

    fn disconnected(&self, error: &Error) {
        let error = chain(error);
        self.hub.report(&self.shim, |health| {
            if matches!(health.connection, health::Connection::Disconnected(_)) {
                debug!(shim = %self.shim, error, "still disconnected");
            } else {
                warn!(shim = %self.shim, error, "disconnected");
            }
            health.connection = health::Connection::Disconnected(error);
        });
    }

    fn connection(&self, state: health::Connection) {
        self.hub.report(&self.shim, |health| health.connection = state);
    }

    /// Counts a message that was not understood, and says so once.
    fn understood<T, E: fmt::Display>(&self, message: Result<T, E>) -> Option<T> {
        let error = match message {
            Ok(message) => return Some(message),
            Err(error) => error,
        };
        telemetry::invalid_message();
        if self.complained.swap(true, Ordering::Relaxed) {
            debug!(shim = %self.shim, %error, "message is ignored");
        } else {
            warn!(shim = %self.shim, %error, "message is ignored; more are only counted");
        }
        None
    }

    fn log(&self, event: &StatusEvent) {
        telemetry::event(event.phase);
        let StatusEvent { id, container, phase, time: _, duration, log } = event;
        info!(%container, %phase, ?duration, "container changed");
        if !log.is_empty() {
            debug!(%container, %id, shim = %self.shim, ?log, "what CRIU said");
        }
    }
}

/// Up to a tenth longer, so that many shims are not dialled in step.
fn jittered(wait: Duration) -> Duration {
    let random = RandomState::new().hash_one(()) % 1024;
    wait + wait / 10 * u32::try_from(random).unwrap_or(0) / 1024
}

/// An error with its causes, in one line.
pub(crate) fn chain(error: &dyn StdError) -> String {
    let mut line = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        line.push_str(": ");
        line.push_str(&error.to_string());
        source = error.source();
    }
    line
}
