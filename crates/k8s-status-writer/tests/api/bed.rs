//! A namespace, a node name and a running writer for one case.

use std::{
    future::Future,
    time::{Duration, SystemTime},
};

use crate::daemon;
use futures_util::stream;
use k8s_openapi::api::core::v1::{Event, Pod};
use kube::{
    Api, Client,
    api::{ListParams, Patch, PatchParams},
};
use serde_json::{Value, json};
use tokio::{
    sync::mpsc,
    task::JoinHandle,
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;
use zeropod_k8s_status_writer::{Config, Features, StatusWriter};
use zeropod_shim_api::{
    change::{Cause, ContainerChange, ContainerKey, ContainerState, Update},
    id::{ContainerId, ContainerRef, PodRef, ShimId},
    status::{MetricsReading, Phase, StatusEvent},
};
use zeropod_testkit::kube::{Cluster, PodBuilder, create_namespace, create_pod, pod, run_pod};

pub(crate) const ALL: Features = Features { labels: true, events: true, in_place_scaling: true };

/// How long a condition may take on a busy machine.
const DEADLINE: Duration = Duration::from_mins(1);

pub(crate) struct Bed {
    pub(crate) admin: Client,
    /// What the writer uses.
    pub(crate) client: Client,
    pub(crate) namespace: String,
    pub(crate) node: String,
    updates: Option<mpsc::UnboundedSender<Update>>,
    writer: Option<(CancellationToken, JoinHandle<()>)>,
}

impl Bed {
    pub(crate) async fn new(cluster: &dyn Cluster, case: &str) -> Self {
        let admin = cluster.client();
        let namespace: String = case.replace('_', "-").chars().take(63).collect();
        let namespace = namespace.trim_end_matches('-').to_owned();
        create_namespace(&admin, &namespace).await.unwrap();
        let node = format!("node-{namespace}");
        let client = match cluster.name() {
            "real" => daemon::client(cluster, &node).await,
            _ => admin.clone(),
        };
        Self { client, admin, node, namespace, updates: None, writer: None }
    }

    /// A writer with all features on that has been told of no container.
    pub(crate) async fn started(cluster: &dyn Cluster, case: &str) -> Self {
        let mut bed = Self::new(cluster, case).await;
        bed.start(|_| ());
        bed.update(Update::Snapshot(Vec::new()));
        bed
    }

    pub(crate) fn start(&mut self, edit: impl FnOnce(&mut Config)) -> StatusHandles {
        let mut config = Config::new(&self.node);
        config.features = ALL;
        config.reporting_instance = "manager-x".into();
        edit(&mut config);
        let (sender, receiver) = mpsc::unbounded_channel();
        let updates = stream::unfold(receiver, async |mut receiver| {
            receiver.recv().await.map(|update| (update, receiver))
        });
        let writer = StatusWriter::new(self.client.clone(), config);
        let handles = StatusHandles { state: writer.state(), handle: writer.handle() };
        let stop = CancellationToken::new();
        let task = tokio::spawn(writer.run(updates, stop.clone()));
        self.updates = Some(sender);
        self.writer = Some((stop, task));
        handles
    }

    /// Ends the writer in good order.
    pub(crate) async fn stop(&mut self) {
        let (stop, task) = self.writer.take().unwrap();
        stop.cancel();
        task.await.unwrap();
    }

    /// Ends the writer at once, wherever it is.
    pub(crate) async fn kill(&mut self) {
        let (_, task) = self.writer.take().unwrap();
        task.abort();
        let _ = task.await;
    }

    pub(crate) fn pods(&self) -> Api<Pod> {
        Api::namespaced(self.admin.clone(), &self.namespace)
    }

    /// A pod of the node, to be completed.
    pub(crate) fn pod(&self, name: &str) -> PodBuilder {
        pod(&self.namespace, name).on_node(&self.node)
    }

    /// Creates the pod and reports it running with these containers and ids.
    pub(crate) async fn run(&self, pod: PodBuilder, containers: &[(&str, &str)]) -> Pod {
        let pod = create_pod(&self.admin, &pod.build()).await.unwrap();
        run_pod(&self.admin, &pod, containers).await.unwrap()
    }

    /// A running pod with the Burstable container `app`.
    pub(crate) async fn run_app(&self, name: &str, id: &str) -> Pod {
        let requests = [("cpu", "100m"), ("memory", "128Mi")];
        let pod = self.pod(name).container("app", &requests, &[("cpu", "1")]);
        self.run(pod, &[("app", id)]).await
    }

    pub(crate) async fn patch(&self, name: &str, patch: Value) {
        let patch = Patch::Merge(patch);
        self.pods().patch(name, &PatchParams::default(), &patch).await.unwrap();
    }

    pub(crate) async fn patch_status(&self, name: &str, patch: Value) {
        let patch = Patch::Merge(json!({ "status": patch }));
        self.pods().patch_status(name, &PatchParams::default(), &patch).await.unwrap();
    }

    pub(crate) fn update(&self, update: Update) {
        self.updates.as_ref().unwrap().send(update).unwrap();
    }

    pub(crate) fn key(&self, pod: &str, container: &str, id: &str) -> ContainerKey {
        let pod = PodRef::new(&self.namespace, pod).unwrap();
        let shim = ShimId::from_file_name(&format!("{}-{id}.sock", pod.name())).unwrap();
        ContainerKey { shim, container: ContainerRef::new(pod, container).unwrap() }
    }

    /// The shim sends an event: a scaling of `app` that took 120 ms.
    pub(crate) fn event(&self, pod: &str, id: &str, phase: Phase) {
        self.event_of(pod, "app", id, phase, Some(Duration::from_millis(120)));
    }

    pub(crate) fn event_of(
        &self,
        pod: &str,
        container: &str,
        id: &str,
        phase: Phase,
        duration: Option<Duration>,
    ) {
        let key = self.key(pod, container, id);
        let event = StatusEvent {
            id: ContainerId::new(id).unwrap(),
            container: key.container.clone(),
            phase,
            time: Some(SystemTime::now()),
            duration,
            log: Vec::new(),
        };
        self.change(key, id, phase, Cause::Event(event));
    }

    /// The shim was asked.
    pub(crate) fn reading(&self, pod: &str, id: &str, phase: Phase) {
        let key = self.key(pod, "app", id);
        let reading = MetricsReading {
            container: key.container.clone(),
            running: phase == Phase::Running,
            checkpoint: None,
            restore: None,
            checkpoint_errors: 0,
            restore_errors: 0,
        };
        self.change(key, id, phase, Cause::Reading(reading));
    }

    /// The shim no longer has the container.
    pub(crate) fn removed(&self, pod: &str, id: &str, last: Phase) {
        self.change(self.key(pod, "app", id), id, last, Cause::Removed);
    }

    fn change(&self, key: ContainerKey, id: &str, phase: Phase, cause: Cause) {
        let change = ContainerChange { key, state: state(id, phase), cause };
        self.update(Update::Change(Box::new(change)));
    }

    /// Waits until the pod is as it should be.
    #[track_caller]
    pub(crate) fn becomes(&self, name: &str, wanted: Look) -> impl Future<Output = ()> + use<'_> {
        let pods = self.pods();
        let name = name.to_owned();
        eventually(async move || {
            let look = Look::of(&pods.get(&name).await.map_err(|error| error.to_string())?);
            if look == wanted { Ok(()) } else { Err(format!("{look:?}, not {wanted:?}")) }
        })
    }

    /// The Events about a pod, oldest first.
    pub(crate) async fn events(&self, pod: &str) -> Vec<Event> {
        let events = Api::<Event>::namespaced(self.admin.clone(), &self.namespace);
        let mut list = events.list(&ListParams::default()).await.unwrap().items;
        list.retain(|event| event.involved_object.name.as_deref() == Some(pod));
        list.sort_by_key(|event| event.event_time.as_ref().map(|time| time.0));
        list
    }

    /// Waits for that many Events about a pod; returns their messages.
    pub(crate) async fn messages(&self, pod: &str, count: usize) -> Vec<String> {
        eventually(async || {
            let events = self.events(pod).await;
            let messages: Vec<_> = events.into_iter().filter_map(|event| event.message).collect();
            if messages.len() == count { Ok(messages) } else { Err(format!("{messages:?}")) }
        })
        .await
    }
}

pub(crate) struct StatusHandles {
    pub(crate) state: tokio::sync::watch::Receiver<zeropod_k8s_status_writer::State>,
    pub(crate) handle: zeropod_k8s_status_writer::Handle,
}

/// What the writer makes of a pod's first container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Look {
    pub(crate) label: Option<String>,
    pub(crate) cpu: String,
    pub(crate) memory: String,
}

impl Look {
    pub(crate) fn new(label: &str, cpu: &str, memory: &str) -> Self {
        let label = (!label.is_empty()).then(|| label.to_owned());
        Self { label, cpu: cpu.into(), memory: memory.into() }
    }

    pub(crate) fn of(pod: &Pod) -> Self {
        let container = &pod.spec.as_ref().unwrap().containers[0];
        let requests = container.resources.as_ref().and_then(|list| list.requests.clone());
        let request = |name| {
            requests.as_ref().and_then(|list| list.get(name)).map_or(String::new(), |q| q.0.clone())
        };
        let labels = pod.metadata.labels.clone().unwrap_or_default();
        let key = format!("status.zeropod.ctrox.dev/{}", container.name);
        Self { label: labels.get(&key).cloned(), cpu: request("cpu"), memory: request("memory") }
    }
}

pub(crate) fn running() -> Look {
    Look::new("RUNNING", "100m", "128Mi")
}

pub(crate) fn scaled_down() -> Look {
    Look::new("SCALED_DOWN", "1m", "1Ki")
}

pub(crate) fn state(id: &str, phase: Phase) -> ContainerState {
    ContainerState {
        id: ContainerId::new(id).ok(),
        phase,
        since: None,
        checkpoint: None,
        restore: None,
    }
}

/// Waits for a condition, for as long as a busy machine may need.
#[track_caller]
pub(crate) fn eventually<T, F>(mut condition: F) -> impl Future<Output = T>
where
    F: AsyncFnMut() -> Result<T, String>,
{
    let caller = std::panic::Location::caller();
    async move {
        let deadline = Instant::now() + DEADLINE;
        loop {
            match condition().await {
                Ok(value) => return value,
                Err(last) => assert!(Instant::now() < deadline, "at {caller}: {last}"),
            }
            sleep(Duration::from_millis(20)).await;
        }
    }
}
