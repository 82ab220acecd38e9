//! The requests that write.

use std::{
    sync::atomic::{AtomicU8, Ordering},
    time::Duration,
};

use k8s_openapi::api::core::v1::Event;
use kube::{
    Client, Resource as _,
    api::{Patch, PatchParams, PostParams},
    core::Request,
};
use serde_json::Value;
use tokio::time::timeout;
use zeropod_shim_api::id::PodRef;

use crate::{
    answer::{self, WriteError},
    pod::{Pod, Received},
};

/// Owner of our fields in `metadata.managedFields`.
const FIELD_MANAGER: &str = "zeropod-manager";

/// One request.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Write {
    /// Merge patch of a pod's labels and annotations.
    Metadata(Value),
    /// Strategic merge patch of a pod's requests.
    Resize(Value),
    /// A new Event.
    Event(Box<Event>),
}

/// The way to the API server.
pub(crate) struct Writer {
    client: Client,
    deadline: Duration,
    resize_path: AtomicU8,
}

/// How pods are resized here.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum ResizePath {
    /// Not asked yet.
    Unknown = 0,
    /// By the subresource, since Kubernetes 1.32.
    Subresource = 1,
    /// By a patch of the pod itself, in Kubernetes 1.27 to 1.31.
    Pod = 2,
}

impl Writer {
    pub(crate) fn new(client: Client, deadline: Duration) -> Self {
        Self { client, deadline, resize_path: AtomicU8::new(ResizePath::Unknown as u8) }
    }

    /// Does one write. Returns the pod as it is then; of Events, nothing.
    pub(crate) async fn write(
        &self,
        pod: &PodRef,
        write: &Write,
    ) -> Result<Option<Pod>, WriteError> {
        timeout(self.deadline, self.attempt(pod, write))
            .await
            .unwrap_or(Err(WriteError::Timeout(self.deadline)))
    }

    async fn attempt(&self, pod: &PodRef, write: &Write) -> Result<Option<Pod>, WriteError> {
        let pods = Request::new(Received::url_path(&(), Some(pod.namespace())));
        let params =
            PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
        let request = match write {
            Write::Metadata(body) => pods.patch(pod.name(), &params, &Patch::Merge(body)),
            Write::Resize(body) => {
                let patch = Patch::Strategic(body);
                match self.resize_path().await? {
                    ResizePath::Pod => pods.patch(pod.name(), &params, &patch),
                    ResizePath::Subresource | ResizePath::Unknown => {
                        pods.patch_subresource("resize", pod.name(), &params, &patch)
                    }
                }
            }
            Write::Event(event) => return self.create(pod, event).await.map(|()| None),
        };
        match self.send(request).await {
            Ok(body) => match serde_json::from_slice::<Received>(&body) {
                Ok(received) => Ok(received.into_parts().map(|(_, pod)| pod)),
                Err(error) => Err(WriteError::Failed(format!("answer is not a pod: {error}"))),
            },
            Err(error) => {
                // The server may have been upgraded, or rolled back: ask again.
                let resize = matches!(write, Write::Resize(_));
                if resize && matches!(error, WriteError::Gone | WriteError::Refused { .. }) {
                    self.resize_path.store(ResizePath::Unknown as u8, Ordering::Relaxed);
                }
                Err(error)
            }
        }
    }

    /// Creates an Event. One of the same name is the same Event, created by a
    /// request whose answer was lost.
    async fn create(&self, pod: &PodRef, event: &Event) -> Result<(), WriteError> {
        let events = Request::new(Event::url_path(&(), Some(pod.namespace())));
        let params =
            PostParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PostParams::default() };
        let json = serde_json::to_vec(event)
            .map_err(|error| WriteError::Failed(format!("event is not JSON: {error}")))?;
        match self.send(events.create(&params, json)).await {
            Ok(_) | Err(WriteError::Exists) => Ok(()),
            Err(error) => Err(error),
        }
    }

    async fn send(
        &self,
        request: Result<http::Request<Vec<u8>>, kube::core::request::Error>,
    ) -> Result<Vec<u8>, WriteError> {
        let request = request
            .map_err(|error| WriteError::Failed(format!("request can't be made: {error}")))?;
        let sent = self.client.send(request.map(Into::into)).await;
        answer::body(sent.map_err(answer::error)?).await
    }

    /// Asks the server once whether it has the subresource: from the answer to
    /// a resize alone, a missing subresource can't be told from a missing pod.
    async fn resize_path(&self) -> Result<ResizePath, WriteError> {
        let known = self.resize_path.load(Ordering::Relaxed);
        for path in [ResizePath::Subresource, ResizePath::Pod] {
            if known == path as u8 {
                return Ok(path);
            }
        }
        let list = self.client.list_core_api_resources("v1").await;
        let list = list.map_err(answer::error)?;
        let found = list.resources.iter().any(|resource| resource.name == "pods/resize");
        let path = if found { ResizePath::Subresource } else { ResizePath::Pod };
        self.resize_path.store(path as u8, Ordering::Relaxed);
        Ok(path)
    }
}
