//! Where the API server is, in the order of the Go manager: the flag,
//! KUBECONFIG, the pod's service account, the user's kubeconfig.

use std::{env, path::Path};

use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};
use thiserror::Error;

/// Why there is no client.
#[derive(Debug, Error)]
pub(crate) enum KubernetesError {
    /// A kubeconfig cannot be used.
    #[error("cannot use the kubeconfig")]
    Kubeconfig(#[from] kube::config::KubeconfigError),
    /// The pod's service account cannot be used.
    #[error("cannot use the pod's service account")]
    InCluster(#[from] kube::config::InClusterError),
    /// The client cannot be built from its configuration.
    #[error("cannot set up the Kubernetes client")]
    Client(#[from] kube::Error),
}

/// Builds a client. It does not connect yet.
///
/// # Errors
/// When no configuration is found, or it is not usable.
pub(crate) async fn client(kubeconfig: Option<&Path>) -> Result<Client, KubernetesError> {
    let options = KubeConfigOptions::default();
    let mut config = if let Some(path) = kubeconfig {
        Config::from_custom_kubeconfig(Kubeconfig::read_from(path)?, &options).await?
    } else if env::var_os("KUBECONFIG").is_none()
        && env::var_os("KUBERNETES_SERVICE_HOST").is_some()
    {
        Config::incluster()?
    } else {
        Config::from_kubeconfig(&options).await?
    };
    // The status writer does that, with its own order and limits.
    config.default_retry = false;
    Ok(Client::try_from(config)?)
}
