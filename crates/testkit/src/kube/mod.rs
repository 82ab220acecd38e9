//! A Kubernetes API for tests: [`RealApi`], a real kube-apiserver with etcd,
//! and [`InProcessApi`], which starts in milliseconds, records what it was
//! asked and fails on command. A test written against [`Cluster`] runs on both;
//! `tests/kube_conformance.rs` keeps the second like the first.
//!
//! There is no kubelet, scheduler or controller manager: tests make pods that
//! are bound to a node ([`pod`]) and play the kubelet ([`run_pod`],
//! [`act_on_resize`]).
//!
//! Both servers run outside of the caller's async runtime, so `start` works in
//! plain and in async code, and they end when the value is dropped.

mod assets;
mod in_process;
mod kubelet;
mod manifests;
mod pods;
mod process;
mod real;

use std::{
    io,
    path::{Path, PathBuf},
    thread,
};

use kube::{Client, Config, config::KubeconfigError};
use thiserror::Error;

pub use self::{
    in_process::{Fault, InProcessApi, On, Request},
    kubelet::{act_on_resize, create_namespace, create_pod, delete_pod, run_pod},
    manifests::{
        apply_manifests, dry_run_manifests, helm_template, kustomize, parse_manifests,
        service_account_config,
    },
    pods::{PodBuilder, pod},
    real::RealApi,
};

/// A running API server.
pub trait Cluster: Send + Sync {
    /// What to call it in a test's output.
    fn name(&self) -> &'static str;

    /// How to reach it as an administrator. Retries are off, so that a test sees each answer.
    fn config(&self) -> Config;

    /// A file by which another process reaches it as an administrator.
    fn kubeconfig(&self) -> &Path;

    /// A client for an administrator.
    ///
    /// # Panics
    /// Outside of a tokio runtime: a client keeps its connections there.
    fn client(&self) -> Client {
        #[expect(
            clippy::expect_used,
            reason = "tests have nobody to hand this to, and config() made the input"
        )]
        Client::try_from(self.config()).expect("a client from a config of our own")
    }
}

/// Why there is no API server.
#[derive(Debug, Error)]
pub enum ApiError {
    /// The program could not be had.
    #[error("no kube-apiserver to start")]
    Build(#[from] crate::cache::CacheError),
    /// A file or process could not be handled.
    #[error("cannot {action} {path}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The process ended or stayed silent instead of serving.
    #[error("kube-apiserver did not start: {0}")]
    NotReady(String),
    /// The file by which to reach it is not usable.
    #[error("cannot use {path}")]
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: Box<KubeconfigError>,
    },
    /// Manifests can't be read.
    #[error("cannot use manifests: {0}")]
    Manifest(String),
    /// The API does not take an object.
    #[error("the API refused {what}")]
    Refused {
        /// Kind and name.
        what: String,
        /// What it said.
        #[source]
        source: Box<kube::Error>,
    },
    /// The API answered a request of the test bed with an error.
    #[error("the API refused a request of the test bed")]
    Api(#[from] kube::Error),
}

fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ApiError {
    move |source| ApiError::Io { action, path: path.to_path_buf(), source }
}

/// Clients want one, even where they use none.
fn install_crypto_provider() {
    // Fails if there is one already, which is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
}

/// Waits for a future, also inside of a runtime, on a thread with one of its own.
fn wait<T: Send>(future: impl Future<Output = T> + Send) -> io::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let waited = thread::scope(|scope| scope.spawn(move || runtime.block_on(future)).join());
    waited.map_err(|_| io::Error::other("panicked"))
}
