//! An API server in process: namespaces, pods with `status` and `resize`,
//! events and what else goes with them, all in memory.
//!
//! It answers like Kubernetes 1.34 as far as zeropod's programs and tests can
//! tell; what it does not know (apply patches, JSON patches, sets in label
//! selectors, other groups) it refuses.

mod call;
mod events;
mod faults;
mod http;
mod limits;
mod patch;
mod pods;
mod quantity;
mod refusal;
mod resize;
mod resources;
mod selector;
mod store;
mod watch;

use std::{
    fs, io,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
    sync::{Arc, atomic::Ordering},
    thread::{self, JoinHandle},
};

use axum::Router;
use kube::Config;
use serde_json::json;
use tempfile::TempDir;
use tokio::sync::oneshot;

pub use self::faults::{Fault, On, Request};
use self::http::Server;
use super::{ApiError, Cluster, install_crypto_provider, io_error};

/// An API server in process, on a free port of loopback.
#[derive(Debug)]
pub struct InProcessApi {
    server: Arc<Server>,
    address: SocketAddr,
    kubeconfig: PathBuf,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
    /// Goes with the server.
    _dir: TempDir,
}

impl InProcessApi {
    /// Starts one, on a thread of its own.
    ///
    /// # Errors
    /// When there is no port, thread or temporary directory.
    pub fn start() -> Result<Self, ApiError> {
        install_crypto_provider();
        let failed = |action| io_error(action, Path::new("in-process API server"));
        let dir = tempfile::tempdir().map_err(failed("make a directory for the"))?;
        let listener =
            TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(failed("listen for the"))?;
        listener.set_nonblocking(true).map_err(failed("listen for the"))?;
        let address = listener.local_addr().map_err(failed("listen for the"))?;
        let kubeconfig = dir.path().join("kubeconfig");
        fs::write(&kubeconfig, kubeconfig_for(address)).map_err(io_error("write", &kubeconfig))?;

        let server = Arc::new(Server::new());
        let (stop, stopped) = oneshot::channel();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(failed("make a runtime for the"))?;
        let router = Router::new().fallback(http::handle).with_state(Arc::clone(&server));
        let thread = thread::Builder::new()
            .name("kube-api".into())
            .spawn(move || {
                runtime.block_on(async {
                    tokio::select! {
                        // An error here shows as refused connections.
                        _ = serve(listener, router) => {}
                        _ = stopped => {}
                    }
                });
                // Also ends what hangs on order of a test.
                runtime.shutdown_background();
            })
            .map_err(failed("make a thread for the"))?;
        Ok(Self { server, address, kubeconfig, stop: Some(stop), thread: Some(thread), _dir: dir })
    }

    /// All requests so far, the last 100,000 at most, in the order they came.
    pub fn requests(&self) -> Vec<Request> {
        self.server.journal().requests()
    }

    /// Those of [`InProcessApi::requests`] that can change something.
    pub fn writes(&self) -> Vec<Request> {
        self.requests().into_iter().filter(Request::is_write).collect()
    }

    /// Empties the list of requests.
    pub fn forget_requests(&self) {
        self.server.journal().forget();
    }

    /// Whether pods have the subresource `resize`, as from Kubernetes 1.32 on.
    /// Without it, an update of a pod may change the resources of containers.
    pub fn serve_resize(&self, served: bool) {
        self.server.resize_served.store(served, Ordering::SeqCst);
    }

    /// Makes the next `times` requests that match go wrong; `usize::MAX` is all.
    /// Of several faults for one request, the oldest counts.
    pub fn inject(&self, on: On, times: usize, fault: Fault) {
        self.server.journal().inject(on, times, fault);
    }

    /// Forgets the faults that have not happened yet.
    pub fn clear_faults(&self) {
        self.server.journal().clear_faults();
    }

    /// Breaks the connections of all open watches.
    pub fn cut_watches(&self) {
        self.server.signal.send_modify(|signal| signal.cuts += 1);
    }

    /// Makes every version so far too old to watch from: open watches end, and
    /// new ones begin, with an `ERROR` event 410 `Expired`.
    pub fn expire_history(&self) {
        self.server.store().forget_history();
        self.server.signal.send_modify(|signal| signal.changes += 1);
    }
}

impl Cluster for InProcessApi {
    fn name(&self) -> &'static str {
        "in-process"
    }

    fn config(&self) -> Config {
        #[expect(clippy::expect_used, reason = "an address and a port make a URL")]
        let mut config = Config::new(format!("http://{}", self.address).parse().expect("a URL"));
        config.default_retry = false;
        config
    }

    fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }
}

impl Drop for InProcessApi {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A panic of the server has been printed already.
            let _ = thread.join();
        }
    }
}

async fn serve(listener: TcpListener, router: Router) -> io::Result<()> {
    axum::serve(tokio::net::TcpListener::from_std(listener)?, router).await
}

/// JSON is YAML, too.
fn kubeconfig_for(address: SocketAddr) -> String {
    json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "test", "cluster": {"server": format!("http://{address}")}}],
        "users": [{"name": "admin", "user": {}}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "admin"}}],
        "current-context": "test",
    })
    .to_string()
}
