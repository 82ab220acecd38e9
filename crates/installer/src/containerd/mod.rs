//! Asking the running containerd over its socket: the only proof of what it
//! has loaded (F-C3).
//!
//! The messages are written out by hand, with the fields that are used; there
//! are few of them.

#[cfg(feature = "cli")]
mod images;
mod settings;

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    time::Duration,
};

use prost::Message;
use serde::Deserialize;
use tonic::{
    Code, Request, Status,
    client::Grpc,
    codegen::http::uri::PathAndQuery,
    transport::{Channel, Endpoint},
};
use tonic_prost::ProstCodec;

use zeropod_shim_api::names::RUNTIME_CLASS;

use crate::{Error, chain, version::ContainerdVersion};

use settings::CriConfig;
pub use settings::CriSettings;

/// How long a single question may take. containerd answers in milliseconds
/// unless it hangs.
const DEADLINE: Duration = Duration::from_secs(10);

/// A connection to containerd.
#[derive(Debug, Clone)]
pub struct Containerd {
    channel: Channel,
    socket: PathBuf,
    /// How long a question may take.
    limit: Duration,
}

/// A runtime handler as the CRI plugin has it loaded.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Handler {
    /// Path of the shim; empty if it is looked up by the type.
    #[serde(default)]
    pub runtime_path: String,
    /// Type of the runtime.
    #[serde(default)]
    pub runtime_type: String,
    /// Annotations that are passed to the shim.
    #[serde(default, rename = "PodAnnotations", alias = "podAnnotations")]
    pub pod_annotations: Option<Vec<String>>,
    /// Options for the shim.
    #[serde(default)]
    pub options: Option<serde_json::Map<String, serde_json::Value>>,
}

impl Containerd {
    /// Connects to the socket, found at `path` from here.
    ///
    /// # Errors
    /// When nobody listens.
    pub async fn connect(path: &Path) -> Result<Self, Error> {
        Self::connect_for(path, DEADLINE).await
    }

    /// Connects to the socket for questions that take longer.
    ///
    /// # Errors
    /// When nobody listens.
    pub async fn connect_for(path: &Path, limit: Duration) -> Result<Self, Error> {
        let fail = |reason: String| Error::Containerd {
            socket: path.to_path_buf(),
            what: "attention",
            reason,
        };
        let endpoint = Endpoint::from_shared(format!("unix://{}", path.display()))
            .map_err(|error| fail(error.to_string()))?
            .connect_timeout(DEADLINE)
            .timeout(limit);
        let channel = endpoint.connect().await.map_err(|error| fail(chain(&error)))?;
        Ok(Self { channel, socket: path.to_path_buf(), limit })
    }

    /// The version of the daemon.
    ///
    /// # Errors
    /// When it does not answer or the version is not one.
    pub async fn version(&self) -> Result<ContainerdVersion, Error> {
        let response: VersionResponse = self
            .ask("version", "/containerd.services.version.v1.Version/Version", Empty {})
            .await
            .map_err(|status| self.failed("version", &status))?;
        response.version.parse()
    }

    /// Every runtime handler that pods can use now, by name. `None` if the CRI
    /// plugin is not loaded: the daemon runs, but for Kubernetes it is dead.
    ///
    /// # Errors
    /// When the daemon does not answer.
    pub async fn handlers(&self) -> Result<Option<HashMap<String, Handler>>, Error> {
        Ok(self.cri_config().await?.map(|config| config.containerd.runtimes))
    }

    /// What the CRI plugin has loaded, as far as it tells; `None` if it is not
    /// loaded itself.
    ///
    /// # Errors
    /// When the daemon does not answer.
    pub async fn settings(&self) -> Result<Option<CriSettings>, Error> {
        const WHAT: &str = "cgroup driver";
        let Some(config) = self.cri_config().await? else { return Ok(None) };
        let mut settings = CriSettings::from(config);
        match self.ask(WHAT, "/runtime.v1.RuntimeService/RuntimeConfig", Empty {}).await {
            Ok(RuntimeConfigResponse { linux }) => {
                // Zero, and so absent, is systemd.
                settings.systemd_cgroup = Some(linux.unwrap_or_default().cgroup_driver == 0);
            }
            // 1.x has only the option of the runtime.
            Err(status) if status.code() == Code::Unimplemented => {}
            Err(status) => return Err(self.failed(WHAT, &status)),
        }
        Ok(Some(settings))
    }

    async fn cri_config(&self) -> Result<Option<CriConfig>, Error> {
        const WHAT: &str = "runtime handlers";
        let response: StatusResponse = match self
            .ask(WHAT, "/runtime.v1.RuntimeService/Status", StatusRequest { verbose: true })
            .await
        {
            Ok(response) => response,
            Err(status) if status.code() == Code::Unimplemented => return Ok(None),
            Err(status) => return Err(self.failed(WHAT, &status)),
        };
        let config = response.info.get("config").map_or("{}", String::as_str);
        serde_json::from_str(config).map(Some).map_err(|error| Error::Containerd {
            socket: self.socket.clone(),
            what: WHAT,
            reason: format!("its configuration is not the expected JSON: {error}"),
        })
    }

    /// The pods that use our handler, as `namespace/name`.
    ///
    /// # Errors
    /// When the daemon does not answer, or its CRI plugin is not loaded.
    pub async fn sandboxes(&self) -> Result<Vec<String>, Error> {
        const WHAT: &str = "pods";
        let response: ListPodSandboxResponse = self
            .ask(WHAT, "/runtime.v1.RuntimeService/ListPodSandbox", Empty {})
            .await
            .map_err(|status| self.failed(WHAT, &status))?;
        let ours = response
            .items
            .into_iter()
            .filter(|sandbox| sandbox.runtime_handler == RUNTIME_CLASS)
            .map(|sandbox| sandbox.metadata.unwrap_or_default())
            .map(|metadata| format!("{}/{}", metadata.namespace, metadata.name));
        Ok(ours.collect())
    }

    async fn ask<Q, A>(
        &self,
        what: &'static str,
        method: &'static str,
        query: Q,
    ) -> Result<A, Status>
    where
        Q: Message + 'static,
        A: Message + Default + 'static,
    {
        let mut grpc = Grpc::new(self.channel.clone());
        let ask = async {
            grpc.ready()
                .await
                .map_err(|error| Status::unavailable(format!("{what}: {}", chain(&error))))?;
            let codec = ProstCodec::<Q, A>::default();
            let path = PathAndQuery::from_static(method);
            Ok(grpc.unary(Request::new(query), path, codec).await?.into_inner())
        };
        match tokio::time::timeout(self.limit, ask).await {
            Ok(answer) => answer,
            Err(_) => Err(Status::deadline_exceeded(format!("no answer in {:?}", self.limit))),
        }
    }

    fn failed(&self, what: &'static str, status: &Status) -> Error {
        Error::Containerd {
            socket: self.socket.clone(),
            what,
            reason: format!("{:?}: {}", status.code(), status.message()),
        }
    }
}

#[derive(Clone, PartialEq, Message)]
struct Empty {}

/// `containerd.services.version.v1.VersionResponse`.
#[derive(Clone, PartialEq, Message)]
struct VersionResponse {
    #[prost(string, tag = "1")]
    version: String,
}

/// `runtime.v1.StatusRequest`.
#[derive(Clone, PartialEq, Message)]
struct StatusRequest {
    #[prost(bool, tag = "1")]
    verbose: bool,
}

/// `runtime.v1.StatusResponse`.
#[derive(Clone, PartialEq, Message)]
struct StatusResponse {
    /// JSON of the plugin's own making, by topic.
    #[prost(map = "string, string", tag = "2")]
    info: HashMap<String, String>,
}

/// `runtime.v1.ListPodSandboxResponse`.
#[derive(Clone, PartialEq, Message)]
struct ListPodSandboxResponse {
    #[prost(message, repeated, tag = "1")]
    items: Vec<PodSandbox>,
}

/// `runtime.v1.PodSandbox`.
#[derive(Clone, PartialEq, Message)]
struct PodSandbox {
    #[prost(message, optional, tag = "2")]
    metadata: Option<PodSandboxMetadata>,
    #[prost(string, tag = "7")]
    runtime_handler: String,
}

/// `runtime.v1.PodSandboxMetadata`.
#[derive(Clone, PartialEq, Message)]
struct PodSandboxMetadata {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "3")]
    namespace: String,
}

/// `runtime.v1.RuntimeConfigResponse`.
#[derive(Clone, PartialEq, Message)]
struct RuntimeConfigResponse {
    #[prost(message, optional, tag = "1")]
    linux: Option<LinuxRuntimeConfiguration>,
}

/// `runtime.v1.LinuxRuntimeConfiguration`.
#[derive(Clone, PartialEq, Message)]
struct LinuxRuntimeConfiguration {
    #[prost(int32, tag = "1")]
    cgroup_driver: i32,
}
