//! The real API server, as a process.

use std::{
    env,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::Command,
    sync::{OnceLock, mpsc},
    thread,
    time::Duration,
};

use kube::{
    Client, Config,
    config::{Kubeconfig, KubeconfigError},
};

use super::{
    ApiError, Cluster, assets, install_crypto_provider, io_error, kubelet::create_default_account,
    process::Process, wait,
};
use crate::{apiserver_build, chain};

/// More than the program itself allows, so that its own message comes first.
const START_DEADLINE: Duration = Duration::from_secs(150);

/// A real kube-apiserver with its own etcd on a free port of loopback, with
/// RBAC and the default admission plugins on, all data in a directory that
/// goes with it.
#[derive(Debug)]
pub struct RealApi {
    process: Process,
    kubeconfig: PathBuf,
    config: Config,
}

impl RealApi {
    /// Starts one and waits until it serves: some seconds, and minutes the
    /// first time, while the program is built. Nothing is built if
    /// `KUBEBUILDER_ASSETS` names a directory with `kube-apiserver` and `etcd`.
    ///
    /// # Errors
    /// When it can't be built or started; the message holds the end of its log.
    pub fn start() -> Result<Self, ApiError> {
        Self::start_with(&[])
    }

    /// Starts one with more kube-apiserver flags, such as
    /// `--authorization-mode=AlwaysAllow`; they win over the usual ones.
    ///
    /// # Errors
    /// Like [`RealApi::start`].
    pub fn start_with(flags: &[&str]) -> Result<Self, ApiError> {
        let (process, kubeconfig) = match env::var_os("KUBEBUILDER_ASSETS") {
            Some(assets) => assets::start(Path::new(&assets), flags)?,
            None => built(flags)?,
        };
        let config = config(&kubeconfig)?;
        wait(complete(config.clone())).map_err(io_error("use", &kubeconfig))??;
        Ok(Self { process, kubeconfig, config })
    }

    /// The one server of this test process, started by the first caller and
    /// ended with the process. Tests that share it take names of their own for
    /// namespaces, nodes and whatever else is not in a namespace.
    ///
    /// # Errors
    /// When there is no program and none can be built here, for
    /// [`skip`](crate::skip::skip).
    ///
    /// # Panics
    /// When the program is there and does not serve.
    pub fn shared() -> Result<&'static Self, String> {
        static SHARED: OnceLock<Result<RealApi, ApiError>> = OnceLock::new();
        match SHARED.get_or_init(Self::start) {
            Ok(api) => Ok(api),
            Err(error @ ApiError::Build(_)) => Err(chain(error).replace('\n', "; ")),
            Err(error) => panic!("{}", chain(error)),
        }
    }

    /// The process id of the server.
    pub fn pid(&self) -> u32 {
        self.process.id()
    }
}

impl Cluster for RealApi {
    fn name(&self) -> &'static str {
        "real"
    }

    fn config(&self) -> Config {
        self.config.clone()
    }

    fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }
}

/// Starts the program in `go/kube-apiserver`, which says where its kubeconfig is.
fn built(flags: &[&str]) -> Result<(Process, PathBuf), ApiError> {
    let program = apiserver_build::program()?;
    let (process, stdout) = Process::start(Command::new(program).arg("--").args(flags))?;
    let (send, receive) = mpsc::channel();
    thread::spawn(move || {
        let mut line = String::new();
        // A failure to read leaves a line that names no file.
        let _ = BufReader::new(stdout).read_line(&mut line);
        let _ = send.send(line);
    });
    let line = receive.recv_timeout(START_DEADLINE).map_err(|_| {
        ApiError::NotReady(format!("silent for {START_DEADLINE:?}; {}", process.log()))
    })?;
    let said: serde_json::Value = serde_json::from_str(&line).unwrap_or_default();
    match said["kubeconfig"].as_str() {
        Some(path) => Ok((process, path.into())),
        None => Err(ApiError::NotReady(format!("it ended; {}", process.log()))),
    }
}

/// Makes what pods in the namespace `default` need, and a controller manager would make.
async fn complete(config: Config) -> Result<(), ApiError> {
    create_default_account(&Client::try_from(config)?, "default").await?;
    Ok(())
}

/// What a client needs from the kubeconfig; kube's own reading of one is async.
pub(super) fn config(path: &Path) -> Result<Config, ApiError> {
    install_crypto_provider();
    let wrong =
        |source| ApiError::Kubeconfig { path: path.to_path_buf(), source: Box::new(source) };
    let kubeconfig = Kubeconfig::read_from(path).map_err(wrong)?;
    let cluster =
        kubeconfig.clusters.into_iter().find_map(|named| named.cluster).unwrap_or_default();
    let server = cluster.server.unwrap_or_default();
    let mut config = Config::new(
        server.parse().map_err(|error| wrong(KubeconfigError::ParseClusterUrl(error)))?,
    );
    config.root_cert_file = cluster.certificate_authority.map(PathBuf::from);
    config.auth_info =
        kubeconfig.auth_infos.into_iter().find_map(|named| named.auth_info).unwrap_or_default();
    config.default_retry = false;
    Ok(config)
}
