//! A shim over a real socket, and waiting for what the client makes of it.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use std::{
    path::Path,
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};

use async_trait::async_trait;
use protobuf::{
    MessageField,
    well_known_types::{duration, timestamp::Timestamp},
};
use tokio::sync::{Notify, mpsc};
use ttrpc::asynchronous::{Server, ServerStreamSender, TtrpcContext, transport::Listener};
use zeropod_shim_api::{
    change::Update,
    id::{ContainerRef, PodRef},
    rpc::{
        shim::{
            ContainerMetrics, ContainerPhase, ContainerRequest, ContainerStatus, MetricsRequest,
            MetricsResponse, SubscribeStatusRequest,
        },
        shim_ttrpc::{Shim, create_shim},
    },
};
use zeropod_shim_event_client::{Config, Subscription};

#[derive(Clone)]
pub(crate) struct Service {
    events: mpsc::Sender<ContainerStatus>,
    queue: Arc<tokio::sync::Mutex<mpsc::Receiver<ContainerStatus>>>,
    pub(crate) metrics: Arc<Mutex<Vec<ContainerMetrics>>>,
    pub(crate) statuses: Arc<Mutex<Vec<ContainerStatus>>>,
    closed: Arc<Notify>,
}

impl Service {
    pub(crate) fn new() -> Self {
        let (events, queue) = mpsc::channel(128);
        Self {
            events,
            queue: Arc::new(tokio::sync::Mutex::new(queue)),
            metrics: Arc::default(),
            statuses: Arc::default(),
            closed: Arc::default(),
        }
    }

    pub(crate) async fn serve(&self, path: &Path) -> Server {
        let mut server = Server::new()
            .add_listener(Listener::bind(format!("unix://{}", path.display())).unwrap())
            .register_service(create_shim(Arc::new(self.clone())));
        server.start().await.unwrap();
        server
    }

    pub(crate) fn emit(&self, event: ContainerStatus) {
        // A full queue drops the newest.
        let _ = self.events.try_send(event);
    }

    /// Ends the streams as if the connections had broken.
    pub(crate) fn end_streams(&self) {
        self.closed.notify_waiters();
    }
}

#[async_trait]
impl Shim for Service {
    async fn metrics(&self, _: &TtrpcContext, _: MetricsRequest) -> ttrpc::Result<MetricsResponse> {
        let mut metrics = self.metrics.lock().unwrap();
        let answer = metrics.clone();
        for entry in metrics.iter_mut() {
            *entry = ContainerMetrics {
                name: entry.name.clone(),
                pod_name: entry.pod_name.clone(),
                pod_namespace: entry.pod_namespace.clone(),
                running: entry.running,
                ..ContainerMetrics::default()
            };
        }
        Ok(MetricsResponse { metrics: answer, ..MetricsResponse::default() })
    }

    async fn get_status(
        &self,
        _: &TtrpcContext,
        request: ContainerRequest,
    ) -> ttrpc::Result<ContainerStatus> {
        let statuses = self.statuses.lock().unwrap();
        statuses.iter().find(|status| status.id == request.id).cloned().ok_or_else(|| {
            ttrpc::Error::RpcStatus(ttrpc::get_status(ttrpc::Code::UNKNOWN, "no such container"))
        })
    }

    async fn subscribe_status(
        &self,
        _: &TtrpcContext,
        request: SubscribeStatusRequest,
        stream: ServerStreamSender<ContainerStatus>,
    ) -> ttrpc::Result<()> {
        assert!(request.empty.is_some(), "old ttrpc servers need a payload");
        loop {
            let event = tokio::select! {
                event = async { self.queue.lock().await.recv().await } => event.unwrap(),
                () = self.closed.notified() => return Ok(()),
            };
            stream.send(&event).await?;
        }
    }
}

pub(crate) fn container() -> ContainerRef {
    ContainerRef::new(PodRef::new("default", "web-0").unwrap(), "app").unwrap()
}

/// An event of the container of [`container`], now.
pub(crate) fn event(id: &str, phase: ContainerPhase, took: Option<Duration>) -> ContainerStatus {
    ContainerStatus {
        id: id.into(),
        name: "app".into(),
        pod_name: "web-0".into(),
        pod_namespace: "default".into(),
        phase: phase.into(),
        event_time: MessageField::some(timestamp(SystemTime::now())),
        event_duration: MessageField(took.map(|took| Box::new(duration(took)))),
        ..ContainerStatus::default()
    }
}

pub(crate) fn metrics(running: bool) -> ContainerMetrics {
    ContainerMetrics {
        name: "app".into(),
        pod_name: "web-0".into(),
        pod_namespace: "default".into(),
        running,
        ..ContainerMetrics::default()
    }
}

fn timestamp(time: SystemTime) -> Timestamp {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap();
    Timestamp {
        seconds: since.as_secs().try_into().unwrap(),
        nanos: since.subsec_nanos().try_into().unwrap(),
        ..Timestamp::default()
    }
}

fn duration(took: Duration) -> duration::Duration {
    duration::Duration {
        seconds: took.as_secs().try_into().unwrap(),
        nanos: took.subsec_nanos().try_into().unwrap(),
        ..duration::Duration::default()
    }
}

pub(crate) fn config(socket_dir: &Path) -> Config {
    Config {
        socket_dir: socket_dir.to_path_buf(),
        resync_interval: Duration::from_millis(200),
        ..Config::default()
    }
}

/// The next update, or a failed test.
pub(crate) async fn next(subscription: &mut Subscription) -> Update {
    tokio::time::timeout(Duration::from_secs(20), subscription.next())
        .await
        .expect("no update within 20 s")
        .expect("the subscription ended")
}
