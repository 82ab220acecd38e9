//! The writer's one task: everything that happens goes to the engine, and the
//! writes that it asks for are carried out, some at a time.

use std::{
    collections::{BTreeMap, BTreeSet},
    future::pending,
    pin::pin,
    sync::Arc,
    time::{Instant, SystemTime},
};

use futures_util::{Stream, StreamExt as _, future::BoxFuture, stream::FuturesUnordered};
use kube::{
    Api, Client,
    runtime::{WatchStreamExt as _, utils::Backoff, watcher},
};
use thiserror::Error;
use tokio::{
    sync::{mpsc, watch},
    time::{Duration, interval, sleep, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;
use zeropod_shim_api::{
    change::Update,
    id::{ContainerRef, PodRef},
};

use crate::{
    answer::WriteError,
    api::Writer,
    config::Config,
    engine::{Engine, Job, Next, PodChange, Trouble},
    given_back::GivenBack,
    pod::{Pod, Received},
    state::{Degraded, State},
};

/// Longest time between two [heartbeats](StatusWriter::heartbeat).
pub const HEARTBEAT: Duration = Duration::from_secs(10);
/// Presets that may wait for the task.
const HANDLE_QUEUE: usize = 64;
/// Pods per page of a list: what a page holds is in memory at once.
const PAGE_SIZE: u32 = 50;
/// How long the list of the pods may take before it is worth a warning.
const SYNC_WITHIN: Duration = Duration::from_secs(10);
/// How long the writer may take to write what is left when it is told to stop.
const STOP_WITHIN: Duration = Duration::from_secs(2);

/// Keeps labels and requests of the node's pods as their containers are, and
/// creates Events for what happens to them.
pub struct StatusWriter {
    client: Client,
    config: Config,
    engine: Engine,
    handle: Handle,
    presets: mpsc::Receiver<Presetting>,
    heartbeat: watch::Sender<Instant>,
}

/// Talks to a running [`StatusWriter`].
#[derive(Debug, Clone)]
pub struct Handle {
    presets: mpsc::Sender<Presetting>,
    troubles: Arc<watch::Sender<Vec<Trouble>>>,
}

/// Why a [`Handle`] could not be used.
#[derive(Debug, Error)]
pub enum Error {
    /// The writer has stopped.
    #[error("the status writer has stopped")]
    Stopped,
}

#[derive(Debug)]
struct Presetting {
    pod: PodRef,
    containers: BTreeSet<Box<str>>,
}

impl Handle {
    /// Says everything that is wrong with pods of this node now. Each trouble
    /// becomes one Warning Event on its pod, also when it is said again, and
    /// one pod has no more Events than the usual rate allows.
    pub fn set_troubles(&self, troubles: Vec<Trouble>) {
        self.troubles.send_if_modified(|before| {
            let changed = *before != troubles;
            *before = troubles;
            changed
        });
    }

    /// Labels and scales down the migrated containers of a pod that has
    /// claimed an offline migration, before they start scaled down; other
    /// containers of the pod are left alone (K7). Returns once the writer
    /// knows; it then writes until it succeeds (K6), or for ten minutes.
    ///
    /// # Errors
    /// When the writer has stopped.
    pub async fn preset_scaled_down(
        &self,
        pod: PodRef,
        containers: impl IntoIterator<Item = &str>,
    ) -> Result<(), Error> {
        let containers = containers.into_iter().map(Into::into).collect();
        self.presets.send(Presetting { pod, containers }).await.map_err(|_| Error::Stopped)
    }
}

impl StatusWriter {
    /// A writer that uses `client`, which needs these permissions: pods
    /// (list, watch, patch), pods/resize (patch), events (create).
    ///
    /// Build the client with `default_retry` off: the writer retries by
    /// itself, and only so can it let urgent writes go first.
    pub fn new(client: Client, config: Config) -> Self {
        let (sender, presets) = mpsc::channel(HANDLE_QUEUE);
        let engine = Engine::new(config.clone(), Instant::now());
        let heartbeat = watch::Sender::new(Instant::now());
        let handle = Handle { presets: sender, troubles: Arc::new(watch::Sender::default()) };
        Self { client, config, engine, handle, presets, heartbeat }
    }

    /// How the writer is doing, now and from now on.
    pub fn state(&self) -> watch::Receiver<State> {
        self.engine.health().subscribe()
    }

    /// When the writer last turned: no longer than [`HEARTBEAT`] ago, unless it
    /// is stuck or does not run.
    pub fn heartbeat(&self) -> watch::Receiver<Instant> {
        self.heartbeat.subscribe()
    }

    /// What the pods request less for their scaled-down containers, now and
    /// from now on. A container that gives back nothing is not listed.
    pub fn given_back(&self) -> watch::Receiver<BTreeMap<ContainerRef, GivenBack>> {
        self.engine.given_back().subscribe()
    }

    /// A handle that works while the writer runs.
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Works until it is shut down or the updates end. What is left to write
    /// then gets two seconds.
    pub async fn run(self, updates: impl Stream<Item = Update>, shutdown: CancellationToken) {
        let Self { client, config, mut engine, handle, mut presets, heartbeat } = self;
        let mut troubles = handle.troubles.subscribe();
        troubles.mark_changed();
        let mut updates = pin!(updates.fuse());
        let mut pods = pin!(watch_pods(&client, &config.node_name));
        let writer = Arc::new(Writer::new(client, config.request_timeout));
        let mut running = FuturesUnordered::new();
        let mut beats = interval(HEARTBEAT);
        let (mut start, mut starting) = (pin!(sleep(SYNC_WITHIN)), true);
        loop {
            let wake = start_writes(&mut engine, &writer, &mut running);
            tokio::select! {
                // Answers first: they make room. Then what the shims tell,
                // which must never have to wait for the API server.
                biased;
                () = shutdown.cancelled() => break,
                _ = beats.tick() => drop(heartbeat.send_replace(Instant::now())),
                Some((job, result)) = running.next() => {
                    engine.on_done(*job, result, Instant::now());
                }
                update = updates.next() => match update {
                    Some(update) => engine.on_update(update, Instant::now(), SystemTime::now()),
                    None => break,
                },
                Some(change) = pods.next() => match change {
                    Ok(event) => {
                        engine.health().clear(Degraded::PodsWatchFailing);
                        if let Some(change) = pod_change(event) {
                            engine.on_pod(change, Instant::now());
                        }
                    }
                    Err(error) => engine.health().set(Degraded::PodsWatchFailing, error),
                },
                Some(Presetting { pod, containers }) = presets.recv() => {
                    engine.preset(&pod, containers, Instant::now());
                }
                Ok(()) = troubles.changed() => {
                    let now = troubles.borrow_and_update().clone();
                    engine.on_troubles(now, Instant::now());
                }
                () = &mut start, if starting => {
                    starting = false;
                    engine.health().start_lasts(SYNC_WITHIN);
                }
                () = until(wake) => {}
            }
        }
        let drained = timeout(STOP_WITHIN, async {
            loop {
                start_writes(&mut engine, &writer, &mut running);
                let Some((job, result)) = running.next().await else { break };
                engine.on_done(*job, result, Instant::now());
            }
        });
        if drained.await.is_err() {
            tracing::warn!("stopped before everything was written");
        }
    }
}

type Answer = (Box<Job>, Result<Option<Pod>, WriteError>);

/// Starts the writes that may go now; returns when to look again.
fn start_writes(
    engine: &mut Engine,
    writer: &Arc<Writer>,
    running: &mut FuturesUnordered<BoxFuture<'static, Answer>>,
) -> Option<Instant> {
    loop {
        match engine.next(Instant::now()) {
            Next::Job(job) => {
                let writer = Arc::clone(writer);
                running.push(Box::pin(async move {
                    let result = writer.write(&job.pod, &job.write).await;
                    (job, result)
                }));
            }
            Next::Idle(wake) => return wake,
        }
    }
}

async fn until(wake: Option<Instant>) {
    match wake {
        Some(wake) => sleep_until(wake.into()).await,
        None => pending().await,
    }
}

/// One watch, limited to this node. It starts over by itself, with a backoff.
fn watch_pods(
    client: &Client,
    node_name: &str,
) -> impl Stream<Item = watcher::Result<watcher::Event<Received>>> + use<> {
    let config = watcher::Config::default()
        .fields(&format!("spec.nodeName={node_name}"))
        .page_size(PAGE_SIZE);
    watcher(Api::<Received>::all(client.clone()), config).backoff(Impatient::default())
}

/// The usual backoff of watches, which goes up to 30 seconds, cut to five: a
/// node's pods should be right soon after an API server is back.
#[derive(Default)]
struct Impatient(watcher::DefaultBackoff);

impl Iterator for Impatient {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        self.0.next().map(|wait| wait.min(Duration::from_secs(5)))
    }
}

impl Backoff for Impatient {
    fn reset(&mut self) {
        self.0.reset();
    }
}

fn pod_change(event: watcher::Event<Received>) -> Option<PodChange> {
    let with = |make: fn(PodRef, Pod) -> PodChange, received: Received| {
        received.into_parts().map(|(pod_ref, pod)| make(pod_ref, pod))
    };
    match event {
        watcher::Event::Init => Some(PodChange::ListStarts),
        watcher::Event::InitApply(received) => with(PodChange::Listed, received),
        watcher::Event::InitDone => Some(PodChange::ListEnds),
        watcher::Event::Apply(received) => with(PodChange::Changed, received),
        watcher::Event::Delete(received) => with(|pod, _| PodChange::Deleted(pod), received),
    }
}
