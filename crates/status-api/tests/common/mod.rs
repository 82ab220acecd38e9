//! What the tests share: servers on loopback, and updates as the shims'
//! client publishes them.

#![expect(dead_code, reason = "each test file uses its part")]

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex},
    time::{Duration, Instant, SystemTime},
};

use axum::Router;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;
use zeropod_shim_api::{
    change::{Cause, ContainerChange, ContainerKey, ContainerState, Update},
    id::{ContainerId, ContainerRef, PodRef, ShimId},
    status::{Operation, Phase, StatusEvent},
};
use zeropod_status_api::{Board, Counts, Limits, local, serve};

pub(crate) mod webdriver;

/// Any port of loopback.
pub(crate) const ANY: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

/// Generous: the machine may be busy.
pub(crate) const PATIENCE: Duration = Duration::from_mins(1);

/// A board, and whoever counts for it.
#[derive(Clone)]
pub(crate) struct Node {
    pub(crate) board: Board,
    counts: Arc<Mutex<HashMap<ContainerKey, Counts>>>,
}

impl Node {
    pub(crate) fn new() -> Self {
        let counts = Arc::<Mutex<HashMap<ContainerKey, Counts>>>::default();
        let counted = Arc::clone(&counts);
        let board = Board::new("worker-3", "1.2.3", move |key| {
            counted.lock().unwrap().get(key).copied().unwrap_or_default()
        });
        Self { board, counts }
    }

    pub(crate) fn apply(&self, update: &Update) {
        if let Update::Change(change) = update
            && let Cause::Event(event) = &change.cause
        {
            let mut counts = self.counts.lock().unwrap();
            let counts = counts.entry(change.key.clone()).or_default();
            counts.wake_ups += u64::from(event.restore().is_some());
            counts.checkpoint_failures += u64::from(event.phase == Phase::CheckpointFailed);
        }
        self.board.apply(update);
    }

    /// Its API and page, on any port.
    pub(crate) async fn serve(&self) -> Running {
        self.serve_at(ANY).await
    }

    pub(crate) async fn serve_at(&self, addr: SocketAddr) -> Running {
        let board = self.board.clone();
        Running::start(addr, Limits::default(), |shutdown| local(board, shutdown)).await
    }
}

/// A server on a port of loopback.
pub(crate) struct Running {
    pub(crate) addr: SocketAddr,
    pub(crate) shutdown: CancellationToken,
    pub(crate) task: JoinHandle<()>,
}

impl Running {
    pub(crate) async fn start(
        addr: SocketAddr,
        limits: Limits,
        router: impl FnOnce(CancellationToken) -> Router,
    ) -> Self {
        let listener = TcpListener::bind(addr).await.unwrap();
        let addr = listener.local_addr().unwrap();
        let shutdown = CancellationToken::new();
        let router = router(shutdown.clone());
        let task = tokio::spawn(serve("test", listener, router, limits, shutdown.clone()));
        Self { addr, shutdown, task }
    }

    pub(crate) async fn stop(self) {
        self.shutdown.cancel();
        tokio::time::timeout(PATIENCE, self.task).await.expect("the server stops").unwrap();
    }
}

/// Sends a request as it is and reads until the server closes.
pub(crate) async fn raw(addr: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(addr).await.unwrap();
    // A server that refuses may have closed already.
    let _ = stream.write_all(request.as_bytes()).await;
    let mut answer = Vec::new();
    let mut bytes = [0; 4096];
    let all = async {
        while let Ok(read @ 1..) = stream.read(&mut bytes).await {
            answer.extend_from_slice(&bytes[..read]);
        }
    };
    tokio::time::timeout(PATIENCE, all).await.expect("the server closes");
    String::from_utf8_lossy(&answer).into_owned()
}

pub(crate) async fn get(addr: SocketAddr, path: &str) -> String {
    raw(addr, &format!("GET {path} HTTP/1.1\r\nHost: {addr}\r\nConnection: close\r\n\r\n")).await
}

/// Waits until a condition holds.
pub(crate) async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let start = Instant::now();
    while !holds().await {
        assert!(start.elapsed() < PATIENCE, "in vain: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

pub(crate) fn container(pod: &str) -> ContainerRef {
    ContainerRef::new(PodRef::new("default", pod).unwrap(), "app").unwrap()
}

fn key(pod: &str) -> ContainerKey {
    let shim = ShimId::from_file_name(&format!("{pod}.sock")).unwrap();
    ContainerKey { shim, container: container(pod) }
}

fn state(phase: Phase, since: SystemTime) -> ContainerState {
    let id = Some(ContainerId::new("c0ffee").unwrap());
    ContainerState { id, phase, since: Some(since), checkpoint: None, restore: None }
}

/// Containers that run since some time.
pub(crate) fn snapshot<'a>(pods: impl IntoIterator<Item = &'a str>) -> Update {
    let since = SystemTime::now() - Duration::from_mins(5);
    Update::Snapshot(pods.into_iter().map(|pod| (key(pod), state(Phase::Running, since))).collect())
}

pub(crate) fn scaled_down(pod: &str, took: Duration) -> Update {
    event(pod, Phase::ScaledDown, Some(took))
}

pub(crate) fn woken_up(pod: &str, took: Duration) -> Update {
    event(pod, Phase::Running, Some(took))
}

pub(crate) fn failed(pod: &str) -> Update {
    event(pod, Phase::CheckpointFailed, None)
}

fn event(pod: &str, phase: Phase, duration: Option<Duration>) -> Update {
    let now = SystemTime::now();
    let event = StatusEvent {
        id: ContainerId::new("c0ffee").unwrap(),
        container: container(pod),
        phase,
        time: Some(now),
        duration,
        log: vec!["a log line of CRIU".into()],
    };
    let phase = if phase == Phase::ScaledDown { phase } else { Phase::Running };
    let mut state = state(phase, now);
    let before = Operation { ended: now, duration: Duration::from_millis(180) };
    (state.checkpoint, state.restore) = (event.checkpoint().or(Some(before)), event.restore());
    Update::Change(Box::new(ContainerChange { key: key(pod), state, cause: Cause::Event(event) }))
}

pub(crate) fn removed(pod: &str) -> Update {
    let state = state(Phase::Stopping, SystemTime::now());
    Update::Change(Box::new(ContainerChange { key: key(pod), state, cause: Cause::Removed }))
}
