//! The requests, and what their answers mean.

use std::{
    sync::atomic::{AtomicU8, Ordering},
    time::Duration,
};

use k8s_openapi::api::core::v1::Event;
use kube::{
    Api, Client,
    api::{Patch, PatchParams, PostParams},
    core::Status,
};
use serde_json::Value;
use thiserror::Error;
use tokio::time::timeout;
use zeropod_shim_api::id::PodRef;

use crate::{
    plan::RefusalReason,
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

/// Why a write was not done. The message does not repeat the source.
#[derive(Debug, Error)]
pub(crate) enum WriteError {
    /// The pod is gone, or another one has its name.
    #[error("the pod is gone")]
    Gone,
    /// Someone else wrote at the same time.
    #[error("conflict with another write")]
    Conflict,
    /// The server has too much to do.
    #[error("throttled by the API server for {0:?}")]
    Throttled(Duration),
    /// The server will say the same the next time.
    #[error("refused by the API server ({}): {message}", reason.as_str())]
    Refused {
        /// What its rule is about.
        reason: RefusalReason,
        /// Its words.
        message: String,
    },
    /// We may not.
    #[error("not allowed: {0}")]
    Forbidden(String),
    /// It did not answer in time.
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    /// It did not answer at all, or only that it can't serve now.
    #[error("API server unreachable: {0}")]
    Unreachable(String),
    /// It answered with an error of its own.
    #[error("API server failed: {0}")]
    Failed(String),
}

impl WriteError {
    /// The value of the label `result` of the writes metric.
    pub(crate) fn result(&self) -> &'static str {
        match self {
            Self::Gone => "gone",
            Self::Conflict => "conflict",
            Self::Throttled(_) => "throttled",
            Self::Refused { .. } => "refused",
            Self::Forbidden(_) => "forbidden",
            Self::Timeout(_) => "timeout",
            Self::Unreachable(_) => "unreachable",
            Self::Failed(_) => "error",
        }
    }
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
        let pods = Api::<Received>::namespaced(self.client.clone(), pod.namespace());
        let params =
            PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
        let received = match write {
            Write::Metadata(body) => pods.patch(pod.name(), &params, &Patch::Merge(body)).await,
            Write::Resize(body) => {
                let patch = Patch::Strategic(body);
                match self.resize_path().await? {
                    ResizePath::Pod => pods.patch(pod.name(), &params, &patch).await,
                    ResizePath::Subresource | ResizePath::Unknown => {
                        pods.patch_subresource("resize", pod.name(), &params, &patch).await
                    }
                }
            }
            Write::Event(event) => {
                let events = Api::<Event>::namespaced(self.client.clone(), pod.namespace());
                let params = PostParams {
                    field_manager: Some(FIELD_MANAGER.to_owned()),
                    ..PostParams::default()
                };
                return match events.create(&params, event).await {
                    Ok(_) => Ok(None),
                    // It is there: an answer was lost before.
                    Err(kube::Error::Api(status)) if status.is_already_exists() => Ok(None),
                    Err(error) => Err(classify(error)),
                };
            }
        };
        let error = match received {
            Ok(received) => return Ok(received.into_parts().map(|(_, pod)| pod)),
            Err(error) => classify(error),
        };
        // The server may have been upgraded, or rolled back: ask it again.
        if matches!(
            (write, &error),
            (Write::Resize(_), WriteError::Gone | WriteError::Refused { .. })
        ) {
            self.resize_path.store(ResizePath::Unknown as u8, Ordering::Relaxed);
        }
        Err(error)
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
        let list = self.client.list_core_api_resources("v1").await.map_err(classify)?;
        let found = list.resources.iter().any(|resource| resource.name == "pods/resize");
        let path = if found { ResizePath::Subresource } else { ResizePath::Pod };
        self.resize_path.store(path as u8, Ordering::Relaxed);
        Ok(path)
    }
}

fn classify(error: kube::Error) -> WriteError {
    let status = match error {
        kube::Error::Api(status) => status,
        // The body is not a Status, or not the object: something in between
        // the server and us answered.
        kube::Error::SerdeError(error) => return WriteError::Failed(error.to_string()),
        other => return WriteError::Unreachable(chain(&other)),
    };
    let message = status.message.clone();
    match status.code {
        404 | 410 => WriteError::Gone,
        409 => WriteError::Conflict,
        429 => WriteError::Throttled(retry_after(&status)),
        503 => WriteError::Unreachable(message),
        403 => forbidden(message),
        // The kubelet has not reported the resources of a container that has
        // just been started. It will, without another generation.
        422 if message.contains("without support for resize") => WriteError::Failed(message),
        // The uid in our patches is the pod's own: another pod has its name.
        422 if message.contains("metadata.uid") => WriteError::Gone,
        400 | 405..=428 => WriteError::Refused { reason: RefusalReason::Invalid, message },
        401 => WriteError::Forbidden(message),
        code => WriteError::Failed(format!("{code} {message}")),
    }
}

/// A missing permission, a quota, a `LimitRange` and an admission rule all
/// answer 403; only their words differ.
fn forbidden(message: String) -> WriteError {
    let refused = |reason, message| WriteError::Refused { reason, message };
    if message.contains(" cannot patch resource ") || message.contains(" cannot create resource ") {
        WriteError::Forbidden(message)
    } else if message.contains("exceeded quota") {
        refused(RefusalReason::Quota, message)
    } else if message.contains(" usage per ") {
        refused(RefusalReason::LimitRange, message)
    } else {
        refused(RefusalReason::Admission, message)
    }
}

/// What the server asks for, within reason.
fn retry_after(status: &Status) -> Duration {
    let seconds = status.details.as_ref().map_or(1, |details| details.retry_after_seconds);
    Duration::from_secs(seconds.clamp(1, 60).into())
}

/// The error with its causes. `kube` says only the outermost.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}
