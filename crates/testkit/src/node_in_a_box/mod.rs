//! A whole node on one machine: the manager under test, stand-in shims with
//! real sandboxes and real CRIU, and a Kubernetes API, in namespaces of their
//! own ([`run_inside`]).

mod child;
mod http;
mod namespaces;
mod pod;

use std::{
    error::Error,
    io,
    net::{IpAddr, Ipv4Addr},
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use k8s_openapi::api::core::v1::{Event, Node as KubernetesNode, Pod};
use kube::{Api, Client, api::ListParams, api::PostParams};
use serde_json::json;
use thiserror::Error;
use tokio::{process::Command, time::sleep};

pub use self::{
    child::Child,
    http::{Answer, get},
    namespaces::{BoxError, run_inside},
    pod::{CONTAINER, Happenings, PodOptions, ZeroPod, program, wait_for},
};
use crate::{
    chain,
    kube::{ApiError, Cluster, InProcessApi, RealApi},
};

/// Name of the node.
pub const NODE: &str = "node-in-a-box";
/// Where the manager listens for metrics.
pub const METRICS_PORT: u16 = 8080;

/// What goes wrong with a node in a box.
#[derive(Debug, Error)]
pub enum NodeError {
    /// A program cannot be started.
    #[error("cannot start {name}")]
    Start {
        /// The program.
        name: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A program ended early.
    #[error("too early an end of {0}")]
    Ended(String),
    /// The Kubernetes API cannot be started.
    #[error(transparent)]
    Api(#[from] ApiError),
    /// A call of the Kubernetes API failed.
    #[error("the Kubernetes API refused")]
    Kube(#[from] kube::Error),
    /// A request got no answer.
    #[error("no answer from {addr}")]
    Http {
        /// Where it was sent.
        addr: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Something did not happen in time.
    #[error("waited {0:?} for {1}")]
    TooLate(Duration, String),
}

/// Which Kubernetes API a node has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kubernetes {
    /// The stand-in, within this process.
    InProcess,
    /// A real kube-apiserver with etcd.
    Real,
}

/// A node with its API server; the manager is started apart.
pub struct Node {
    api: ApiServer,
    manager: PathBuf,
}

enum ApiServer {
    InProcess(InProcessApi),
    Real(Box<RealApi>),
}

impl Node {
    /// Starts the API server and registers the node. `manager` is the program
    /// under test.
    ///
    /// # Errors
    /// When the API server does not start.
    pub async fn start(kubernetes: Kubernetes, manager: &Path) -> Result<Self, NodeError> {
        let api = match kubernetes {
            Kubernetes::InProcess => ApiServer::InProcess(InProcessApi::start()?),
            Kubernetes::Real => ApiServer::Real(Box::new(RealApi::start()?)),
        };
        let node = Self { api, manager: manager.into() };
        if kubernetes == Kubernetes::Real {
            let object: KubernetesNode =
                serde_json::from_value(json!({ "metadata": { "name": NODE } })).unwrap_or_default();
            Api::all(node.client()).create(&PostParams::default(), &object).await?;
        }
        Ok(node)
    }

    /// A client with every right.
    pub fn client(&self) -> Client {
        self.cluster().client()
    }

    /// The stand-in for an API server, to make it fail and to see what it was
    /// asked.
    pub fn in_process(&self) -> Option<&InProcessApi> {
        match &self.api {
            ApiServer::InProcess(api) => Some(api),
            ApiServer::Real(_) => None,
        }
    }

    fn cluster(&self) -> &dyn Cluster {
        match &self.api {
            ApiServer::InProcess(api) => api,
            ApiServer::Real(api) => api.as_ref(),
        }
    }

    /// Starts the manager with all features on, as its daemon set does, and
    /// waits until it serves metrics.
    ///
    /// # Errors
    /// When it ends, or serves nothing.
    pub async fn start_manager(&self, flags: &[&str]) -> Result<Child, NodeError> {
        let mut command = Command::new(&self.manager);
        command
            .args(["-status-labels", "-status-events", "-in-place-scaling"])
            .args(flags)
            .arg("-kubeconfig")
            .arg(self.cluster().kubeconfig())
            .env("NODE_NAME", NODE)
            .env("POD_IP", "127.0.0.1")
            .env_remove("KUBECONFIG");
        let manager = Child::start("zeropod-manager", &mut command)?;
        until("the manager to serve metrics", async || self.metrics().await.ok()).await?;
        Ok(manager)
    }

    /// The manager's metrics page.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn metrics(&self) -> Result<String, NodeError> {
        let addr = (IpAddr::from(Ipv4Addr::LOCALHOST), METRICS_PORT).into();
        Ok(get(addr, "/metrics").await?.body)
    }

    /// A pod as the API server has it now.
    ///
    /// # Errors
    /// When there is none.
    pub async fn pod(&self, namespace: &str, name: &str) -> Result<Pod, NodeError> {
        Ok(Api::namespaced(self.client(), namespace).get(name).await?)
    }

    /// The zeropod events of a namespace, oldest first.
    ///
    /// # Errors
    /// When the API server refuses.
    pub async fn events(&self, namespace: &str) -> Result<Vec<Event>, NodeError> {
        let events: Api<Event> = Api::namespaced(self.client(), namespace);
        let mut events = events.list(&ListParams::default()).await?.items;
        events.retain(|event| {
            event.reporting_component.as_deref() == Some(zeropod_shim_api::names::EVENT_REPORTER)
        });
        events.sort_by(|a, b| a.event_time.cmp(&b.event_time));
        Ok(events)
    }
}

/// How long anything may take: generous, since machines are slow at times.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Prints why a program ends, with every cause, and returns its exit code.
#[expect(clippy::print_stderr, reason = "the last words of a program")]
pub fn report(error: &(dyn Error + 'static)) -> ExitCode {
    eprintln!("error: {}", chain(error));
    ExitCode::FAILURE
}

/// Asks again and again until there is an answer.
///
/// # Errors
/// After 30 s.
pub async fn until<T>(what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> Result<T, NodeError> {
    let start = tokio::time::Instant::now();
    loop {
        if let Some(answer) = ask().await {
            return Ok(answer);
        }
        if start.elapsed() > PATIENCE {
            return Err(NodeError::TooLate(PATIENCE, what.to_owned()));
        }
        sleep(Duration::from_millis(5)).await;
    }
}
