//! Starts every part of the manager, connects them, and stops them together.

use std::{env, error::Error, fs, io, net::IpAddr, path::Path, time::Duration};

use tokio::{
    net::TcpListener, signal::unix::SignalKind, sync::watch, task::JoinSet, time::timeout,
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use zeropod_ebpf_loader::Redirectors;
use zeropod_k8s_status_writer::{Features, StatusWriter};
use zeropod_metrics_aggregator::Aggregator;
use zeropod_shim_api::names;
use zeropod_shim_event_client::ShimEvents;
use zeropod_status_api::{Board, Limits, Liveness, api::Degraded, local, serve};

use crate::{
    args::{Args, Listen, ListenAddr, Migrations},
    containerd::{self, Containerd},
    control::Control,
    http,
    kubelet::Learner,
    kubernetes::{self, KubernetesError},
    logging::Logs,
    status, telemetry,
};

/// Why the manager cannot go on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RunError {
    /// The async runtime cannot start.
    #[error("cannot start the async runtime")]
    Runtime(#[source] io::Error),
    /// A signal handler cannot be set up.
    #[error("cannot handle signals")]
    Signal(#[source] io::Error),
    /// A server has no place to listen.
    #[error("cannot listen on {flag} {addr}")]
    Listen {
        flag: &'static str,
        addr: ListenAddr,
        #[source]
        source: io::Error,
    },
    /// Another recorder of metrics is in place.
    #[error("cannot record metrics")]
    Recorder(#[source] metrics::SetRecorderError<zeropod_metrics_aggregator::Recorder>),
    /// A setting is missing in the environment.
    #[error("{0} must be set in the environment")]
    Environment(&'static str),
    /// There is no way to the API server.
    #[error(transparent)]
    Kubernetes(#[from] KubernetesError),
    /// A part that has to run until the end did not.
    #[error("the {0} ended")]
    Ended(&'static str),
}

/// How long a part may hold up its thread before it counts as stuck.
const STUCK: Duration = Duration::from_secs(30);

/// How long the parts may take to stop.
const GRACE: Duration = Duration::from_secs(5);

/// Runs the manager until SIGINT or SIGTERM.
///
/// # Errors
/// When a part cannot start, or ends before its time.
pub(crate) async fn run(args: Args, logs: Logs) -> Result<(), RunError> {
    let Args {
        metrics_addr,
        status_addr,
        control_socket,
        node_server_addr,
        debug: _,   // main set up the logs
        version: _, // main answered it
        in_place_scaling,
        status_labels,
        status_events,
        event_log_excerpt,
        kubeconfig,
        probe_binary_name,
        tracker_ignore_localhost,
        replace_shim_programs,
        attach_mechanism,
        migrations,
        command: _, // main took it
    } = args;
    info!(
        version = zeropod_build_info::VERSION,
        revision = zeropod_build_info::REVISION,
        "Starting zeropod-manager"
    );
    let shutdown = CancellationToken::new();
    stop_on_signals(&shutdown)?;

    let aggregator = Aggregator::new();
    metrics::set_global_recorder(aggregator.recorder()).map_err(RunError::Recorder)?;
    telemetry::start();
    let metrics_listener = listen("-metrics-addr", metrics_addr).await?;
    let status_listener = listen("-status-addr", status_addr).await?;
    let board = status::board(node_name(), aggregator.clone());
    say_node_api_is_not_served(&node_server_addr, &migrations);

    let liveness = Liveness::new(STUCK);
    let mut parts = Parts {
        tasks: JoinSet::new(),
        liveness: liveness.clone(),
        board: board.clone(),
        shutdown: shutdown.clone(),
    };
    let redirectors = Redirectors::new(zeropod_ebpf_loader::Config {
        maps_dir: names::MAPS_DIR.into(),
        host_proc: names::HOST_PROC.into(),
        probe_binary_name,
        ignore_localhost: tracker_ignore_localhost,
    });
    let redirectors = redirectors.replace_shim_programs(replace_shim_programs);
    let redirectors = attach_mechanism.into_iter().fold(redirectors, Redirectors::only);
    let learner = learner(&redirectors);
    parts.show("redirectors", redirectors.state(), status::redirectors);
    let sandboxes = redirectors.state();
    parts.start("redirectors", redirectors.run(shutdown.clone()));

    let containerd = Containerd::of_host();
    parts.show("containerd", containerd.seen(), containerd::wrong);
    parts.start("containerd", containerd.run(shutdown.clone()));

    let shims = ShimEvents::new(zeropod_shim_event_client::Config::default());
    let series = aggregator.clone();
    let rows = board.clone();
    shims.observe(move |update| {
        series.apply(update);
        rows.apply(update);
    });
    parts.show("shims", shims.health(), status::shims);
    liveness.listen("shim events", shims.heartbeat());
    let features = Features { labels: status_labels, events: status_events, in_place_scaling };
    if features != Features::default() {
        let writer = status_writer(features, event_log_excerpt, kubeconfig.as_deref()).await?;
        parts.show("writer", writer.state(), status::writer);
        liveness.listen("status writer", writer.heartbeat());
        let given_back = writer.given_back();
        let shown = status::show_given_back(board.clone(), given_back, shutdown.clone());
        parts.start("board", shown);
        let told = status::tell_pods(sandboxes, writer.handle(), shutdown.clone());
        parts.start("sandbox events", told);
        parts.start("status writer", writer.run(shims.subscribe().into_stream(), shutdown.clone()));
    }
    let stop = shutdown.clone();
    parts.start("shim events", async move { shims.run(stop).await });
    if let Some(listener) = metrics_listener {
        let routes = http::routes(aggregator, board.clone(), liveness, learner);
        let served = serve("metrics", listener, routes, Limits::default(), shutdown.clone());
        parts.start("metrics server", served);
    }
    if let Some(listener) = status_listener {
        let routes = local(board, shutdown.clone());
        let served = serve("status", listener, routes, Limits::default(), shutdown.clone());
        parts.start("status server", served);
    }
    match Control::listen(&control_socket) {
        Ok(control) => parts.start("control socket", control.serve(logs, shutdown.clone())),
        // A convenience: the node works without.
        Err(error) => warn!(error = &error as &dyn Error, "The log level cannot be changed"),
    }
    parts.finish().await
}

async fn status_writer(
    features: Features,
    log_excerpt: bool,
    kubeconfig: Option<&Path>,
) -> Result<StatusWriter, RunError> {
    // One provider for the whole process; a second one would make rustls panic
    // at its first connection.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let node_name = env::var("NODE_NAME").map_err(|_| RunError::Environment("NODE_NAME"))?;
    let client = kubernetes::client(kubeconfig).await?;
    let config = zeropod_k8s_status_writer::Config {
        reporting_instance: env::var("HOSTNAME").unwrap_or_default(),
        features,
        log_excerpt,
        ..zeropod_k8s_status_writer::Config::new(node_name)
    };
    Ok(StatusWriter::new(client, config))
}

/// Everything that runs until shutdown.
struct Parts {
    tasks: JoinSet<&'static str>,
    liveness: Liveness,
    board: Board,
    shutdown: CancellationToken,
}

impl Parts {
    fn start(&mut self, name: &'static str, part: impl Future<Output = ()> + Send + 'static) {
        let part = self.liveness.watch(name, part);
        self.tasks.spawn(async move {
            part.await;
            name
        });
    }

    /// Shows what is wrong with a part for as long as it runs.
    fn show<S: Send + Sync + 'static>(
        &mut self,
        part: &'static str,
        state: watch::Receiver<S>,
        wrong: fn(&S) -> Vec<Degraded>,
    ) {
        let shown = status::show(self.board.clone(), part, state, wrong, self.shutdown.clone());
        self.start("board", shown);
    }

    /// Waits for the shutdown and for every part to follow it.
    async fn finish(mut self) -> Result<(), RunError> {
        let ended = tokio::select! {
            () = self.shutdown.cancelled() => None,
            ended = self.tasks.join_next() => ended,
        };
        if !self.shutdown.is_cancelled() {
            self.shutdown.cancel();
            let name = ended.and_then(Result::ok).unwrap_or("part that panicked");
            return Err(RunError::Ended(name));
        }
        info!("Stopping");
        let all = async { while self.tasks.join_next().await.is_some() {} };
        if timeout(GRACE, all).await.is_err() {
            warn!("Some parts took longer than {GRACE:?} to stop");
        }
        Ok(())
    }
}

/// Learns the kubelet's addresses for the redirectors.
fn learner(redirectors: &Redirectors) -> Learner {
    let kubelet = redirectors.kubelet();
    let host_net = Path::new(names::HOST_PROC).join("1/net");
    Learner::new(host_net, move |address| match address {
        IpAddr::V4(v4) => kubelet.set_addresses(Some(v4), None),
        IpAddr::V6(v6) => kubelet.set_addresses(None, Some(v6)),
    })
}

/// Listens, unless the flag is empty.
async fn listen(flag: &'static str, addr: Listen) -> Result<Option<TcpListener>, RunError> {
    let Some(addr) = addr else { return Ok(None) };
    match http::listen(&addr).await {
        Ok(listener) => Ok(Some(listener)),
        Err(source) => Err(RunError::Listen { flag, addr, source }),
    }
}

/// What to call the node on its page: outside of a pod by the machine's name.
fn node_name() -> String {
    let machine = || fs::read_to_string("/proc/sys/kernel/hostname");
    env::var("NODE_NAME").or_else(|_| machine()).unwrap_or_default().trim().to_owned()
}

fn stop_on_signals(shutdown: &CancellationToken) -> Result<(), RunError> {
    let mut signals = Vec::new();
    for kind in [SignalKind::interrupt(), SignalKind::terminate()] {
        signals.push(tokio::signal::unix::signal(kind).map_err(RunError::Signal)?);
    }
    for mut signal in signals {
        let shutdown = shutdown.clone();
        tokio::spawn(async move {
            signal.recv().await;
            shutdown.cancel();
        });
    }
    Ok(())
}

fn say_node_api_is_not_served(addr: &ListenAddr, migrations: &Migrations) {
    let Migrations {
        max_concurrent_reconciles: _,
        pages_transfer_timeout: _,
        migration_servers_timeout: _,
        migration_claim_timeout: _,
        migration_ready_timeout: _,
        auto_gc_migrations: _,
    } = migrations;
    info!(
        port = addr.port,
        "The node API is not served by this version: migrations start containers afresh"
    );
}
