//! The engine with a server of a few lines and a clock of its own.

mod burst;
mod failures;
mod given_back;
mod identity;
mod lifetime;
mod retries;
mod troubles;

use std::collections::BTreeMap;

use serde_json::{Value, json};
use tokio::sync::watch;
use zeropod_shim_api::{
    change::{Cause, ContainerChange, ContainerKey, ContainerState},
    id::{ContainerId, ContainerRef, ShimId},
    status::{MetricsReading, Phase, StatusEvent},
};

use super::*;
use crate::{config::Features, pod::Received};

const ALL: Features = Features { labels: true, events: true, in_place_scaling: true };

/// An engine, what the server has, and what was asked of it.
struct World {
    engine: Engine,
    now: Instant,
    pods: BTreeMap<PodRef, Value>,
    version: u64,
    log: Vec<String>,
    /// What the server answers instead of doing it.
    refuse: fn(&Write) -> Option<WriteError>,
}

impl World {
    fn new() -> Self {
        Self::with(|_| ())
    }

    fn with(edit: impl FnOnce(&mut Config)) -> Self {
        let now = Instant::now();
        let mut config = Config::new("node-a");
        config.features = ALL;
        edit(&mut config);
        Self {
            engine: Engine::new(config, now),
            now,
            pods: BTreeMap::new(),
            version: 1,
            log: Vec::new(),
            refuse: |_| None,
        }
    }

    /// Empty lists of pods and containers have come.
    fn synced() -> Self {
        let mut world = Self::new();
        world.list();
        world.update(Update::Snapshot(Vec::new()));
        world
    }

    /// A running pod with the container `app` of that id, known to the watch.
    fn pod(&mut self, name: &str, id: &str) -> PodRef {
        self.create(name, name, id);
        self.watch(name)
    }

    /// The same, without the watch telling.
    fn create(&mut self, name: &str, uid: &str, id: &str) {
        self.version += 1;
        let pod = json!({
            "metadata": {
                "name": name, "namespace": "default", "uid": uid, "generation": 1,
                "resourceVersion": self.version.to_string(), "labels": {}, "annotations": {},
            },
            "spec": { "containers": [
                { "name": "app", "resources": { "requests": { "cpu": "100m", "memory": "128Mi" } } },
            ]},
            "status": { "qosClass": "Burstable", "containerStatuses": [{
                "name": "app", "containerID": format!("containerd://{id}"),
                "state": { "running": {} }, "resources": {},
            }]},
        });
        self.pods.insert(pod_ref(name), pod);
    }

    /// The watch tells of the pod as it is now.
    fn watch(&mut self, name: &str) -> PodRef {
        let pod = self.read(name);
        self.engine.on_pod(PodChange::Changed(pod_ref(name), pod), self.now);
        pod_ref(name)
    }

    fn edit(&mut self, name: &str, edit: impl FnOnce(&mut Value)) {
        self.version += 1;
        let pod = self.pods.get_mut(&pod_ref(name)).unwrap();
        edit(pod);
        pod["metadata"]["resourceVersion"] = json!(self.version.to_string());
        self.watch(name);
    }

    fn delete(&mut self, name: &str) {
        self.pods.remove(&pod_ref(name));
        self.engine.on_pod(PodChange::Deleted(pod_ref(name)), self.now);
    }

    fn list(&mut self) {
        self.engine.on_pod(PodChange::ListStarts, self.now);
        for pod in self.pods.keys().cloned().collect::<Vec<_>>() {
            let read = self.read(pod.name());
            self.engine.on_pod(PodChange::Listed(pod, read), self.now);
        }
        self.engine.on_pod(PodChange::ListEnds, self.now);
    }

    fn read(&self, name: &str) -> Pod {
        let json = self.pods[&pod_ref(name)].clone();
        serde_json::from_value::<Received>(json).unwrap().pod
    }

    fn update(&mut self, update: Update) {
        let wall = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        self.engine.on_update(update, self.now, wall);
    }

    fn event(&mut self, pod: &str, id: &str, phase: Phase) {
        self.event_at(pod, id, phase, 0);
    }

    /// An event of a checkpoint or restore that took a second.
    fn event_at(&mut self, pod: &str, id: &str, phase: Phase, number: u64) {
        let container = container(pod);
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(1_600_000_000 + number);
        let event = StatusEvent {
            id: ContainerId::new(id).unwrap(),
            container: container.clone(),
            phase,
            time: Some(time),
            duration: Some(Duration::from_secs(1)),
            log: Vec::new(),
        };
        self.change(pod, id, phase, Cause::Event(event));
    }

    fn reading(&mut self, pod: &str, id: &str, phase: Phase) {
        let reading = MetricsReading {
            container: container(pod),
            running: phase == Phase::Running,
            checkpoint: None,
            restore: None,
            checkpoint_errors: 0,
            restore_errors: 0,
        };
        self.change(pod, id, phase, Cause::Reading(reading));
    }

    fn change(&mut self, pod: &str, id: &str, phase: Phase, cause: Cause) {
        let state = state(id, phase);
        let key = key(pod, id);
        self.update(Update::Change(Box::new(ContainerChange { key, state, cause })));
    }

    /// Carries out every write that may go now, one after the other.
    fn run(&mut self) {
        while let Some(job) = self.next() {
            self.answer(job);
        }
    }

    fn next(&mut self) -> Option<Job> {
        match self.engine.next(self.now) {
            Next::Job(job) => Some(*job),
            Next::Idle(wake) if wake.is_some_and(|wake| wake <= self.now) => self.next(),
            Next::Idle(_) => None,
        }
    }

    /// Lets time pass, doing what becomes due on the way.
    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        self.run();
        while let Next::Idle(Some(wake)) = self.engine.next(self.now)
            && wake <= end
        {
            self.now = self.now.max(wake);
            self.run();
        }
        self.now = end;
        self.run();
    }

    fn answer(&mut self, job: Job) {
        let result = match (self.refuse)(&job.write) {
            Some(error) => Err(error),
            None => Ok(self.apply(&job)),
        };
        let failed = result.as_ref().err().map_or(String::new(), |e| format!(" {}", e.result()));
        self.log.push(format!("{}{failed}", describe(&job)));
        self.engine.on_done(job, result, self.now);
    }

    fn apply(&mut self, job: &Job) -> Option<Pod> {
        self.version += 1;
        let pod = self.pods.get_mut(&job.pod);
        match &job.write {
            Write::Event(_) => return None,
            Write::Metadata(body) => {
                let pod = pod?;
                for field in ["labels", "annotations"] {
                    let Some(changes) = body["metadata"][field].as_object() else { continue };
                    let target = pod["metadata"][field].as_object_mut().unwrap();
                    for (key, value) in changes {
                        match value {
                            Value::Null => target.remove(key),
                            value => target.insert(key.clone(), value.clone()),
                        };
                    }
                }
            }
            Write::Resize(body) => {
                let requests = &body["spec"]["containers"][0]["resources"]["requests"];
                let target = &mut pod?["spec"]["containers"][0]["resources"]["requests"];
                for (name, quantity) in requests.as_object().unwrap() {
                    target[name] = quantity.clone();
                }
            }
        }
        let pod = self.pods.get_mut(&job.pod)?;
        pod["metadata"]["resourceVersion"] = json!(self.version.to_string());
        Some(self.read(job.pod.name()))
    }

    /// What was asked since the last call.
    fn asked(&mut self) -> Vec<String> {
        std::mem::take(&mut self.log)
    }

    fn label(&self, name: &str) -> &Value {
        &self.pods[&pod_ref(name)]["metadata"]["labels"]["status.zeropod.ctrox.dev/app"]
    }

    fn cpu(&self, name: &str) -> &Value {
        &self.pods[&pod_ref(name)]["spec"]["containers"][0]["resources"]["requests"]["cpu"]
    }
}

fn pod_ref(name: &str) -> PodRef {
    PodRef::new("default", name).unwrap()
}

fn container(pod: &str) -> ContainerRef {
    ContainerRef::new(pod_ref(pod), "app").unwrap()
}

/// Each container has a shim of its own here.
fn key(pod: &str, id: &str) -> ContainerKey {
    let shim = ShimId::from_file_name(&format!("{pod}-{id}.sock")).unwrap();
    ContainerKey { shim, container: container(pod) }
}

fn state(id: &str, phase: Phase) -> ContainerState {
    ContainerState {
        id: ContainerId::new(id).ok(),
        phase,
        since: None,
        checkpoint: None,
        restore: None,
    }
}

/// Such as `web label SCALED_DOWN` or `web cpu 1m`.
fn describe(job: &Job) -> String {
    let pod = job.pod.name();
    match &job.write {
        Write::Metadata(body) => {
            let label = &body["metadata"]["labels"]["status.zeropod.ctrox.dev/app"];
            format!("{pod} label {}", label.as_str().unwrap_or("none"))
        }
        Write::Resize(body) => {
            let requests = &body["spec"]["containers"][0]["resources"]["requests"];
            format!("{pod} cpu {}", requests["cpu"].as_str().unwrap_or("none"))
        }
        Write::Event(event) => {
            let count = event.count.map_or(String::new(), |count| format!(" x{count}"));
            format!("{pod} event {}{count}", event.reason.as_deref().unwrap_or("none"))
        }
    }
}
