//! `node-in-a-box`: the demo. A manager and a pod on a node of their own, from
//! the first request over scaling down to the request that wakes it, told as
//! it happens.

use std::{
    collections::BTreeSet,
    error::Error,
    path::{Path, PathBuf},
    pin::pin,
    process::ExitCode,
    sync::Arc,
    time::{Duration, Instant},
};

use clap::Parser;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::{broadcast::error::RecvError, watch},
    time::{sleep, timeout},
};
use zeropod_shim_api::names::STATUS_LABEL_PREFIX;
use zeropod_testkit::{
    kube::create_namespace,
    node::stand_in::{Mode, What},
    node_in_a_box::{
        CONTAINER, Child, Happenings, Kubernetes, METRICS_PORT, Node, NodeError, PATIENCE,
        PodOptions, ZeroPod, get, report, run_inside, until, wait_for,
    },
    tools,
};

/// Shows zeropod's main job on one machine.
#[derive(Debug, Parser)]
#[command(disable_version_flag = true)]
struct Args {
    /// The manager
    #[arg(long)]
    manager: PathBuf,
    /// Use a real kube-apiserver
    #[arg(long)]
    kubernetes: bool,
    /// Leave the node running at the end
    #[arg(long)]
    keep: bool,
}

const NAMESPACE: &str = "demo";
const POD: &str = "hello";
const SCALEDOWN: Duration = Duration::from_secs(2);

fn main() -> ExitCode {
    match run_inside(|| inside(Args::parse())) {
        Ok(code) => code,
        Err(error) => report(&error),
    }
}

fn inside(args: Args) -> ExitCode {
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => return report(&error),
    };
    runtime.block_on(demo(args)).unwrap_or_else(|error| report(error.as_ref()))
}

async fn demo(args: Args) -> Result<ExitCode, Box<dyn Error>> {
    let Args { manager, kubernetes, keep } = args;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let interrupted = async {
        tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {} }
        say("interrupted");
        ExitCode::from(130)
    };
    let mut interrupted = pin!(interrupted);
    let clock = Clock(Instant::now());
    let (criu, mode) = match tools::criu() {
        Ok(dir) => (Some(dir), "checkpoint: CRIU keeps the memory of the process"),
        Err(_) => (None, "kill: no CRIU that works here, the process starts afresh"),
    };
    clock.tell("demo", mode);
    let checkpoint = criu.is_some();

    let (node, daemon, pod) = tokio::select! {
        started = start(clock, kubernetes, &manager, criu) => started?,
        code = &mut interrupted => return Ok(code),
    };
    let told = tokio::select! {
        told = story(clock, &node, &pod, checkpoint) => told,
        code = &mut interrupted => Ok(code),
    };
    if keep && matches!(told, Ok(ExitCode::SUCCESS)) {
        keep_running(&pod);
        interrupted.await;
    }
    // The namespaces take everything with them, except control groups.
    pod.stop(&node).await?;
    daemon.stop().await;
    told
}

/// A node with a manager and a pod that runs.
async fn start(
    clock: Clock,
    kubernetes: bool,
    manager: &Path,
    criu: Option<PathBuf>,
) -> Result<(Arc<Node>, Child, ZeroPod), Box<dyn Error>> {
    let api = if kubernetes { Kubernetes::Real } else { Kubernetes::InProcess };
    let node = Arc::new(Node::start(api, manager).await?);
    clock.tell(
        "api",
        if kubernetes { "kube-apiserver is ready" } else { "in-process API is ready" },
    );
    create_namespace(&node.client(), NAMESPACE).await?;
    let mut daemon = node.start_manager(&[]).await?;
    let mut log = daemon.take_lines();
    tokio::spawn(async move { while log.recv().await.is_some() {} });
    clock.tell("manager", &format!("pid {}, serves /metrics", daemon.pid()));

    let options = PodOptions { namespace: NAMESPACE, name: POD, scaledown: SCALEDOWN, criu };
    let pod = ZeroPod::start(&node, options).await?;
    clock.tell("pod", &format!("{NAMESPACE}/{POD} runs at {}", pod.address));
    Ok((node, daemon, pod))
}

/// The main job, as it happens.
async fn story(
    clock: Clock,
    node: &Arc<Node>,
    pod: &ZeroPod,
    checkpoint: bool,
) -> Result<ExitCode, Box<dyn Error>> {
    tokio::spawn(show_happenings(clock, pod.happenings()));
    let (sender, mut seen) = watch::channel(Shown::default());
    tokio::spawn(show_kubernetes(clock, Arc::clone(node), sender));

    let mut scaling = pod.happenings();
    let before = request(clock, pod).await?;
    wait_for(&mut scaling, "scaling down", |what| {
        matches!(what, What::ScaledDown { .. }).then_some(())
    })
    .await?;
    pod_shows(&mut seen, "SCALED_DOWN", ["1m", "1Ki"]).await?;

    clock.tell("client", "connects to a server that is not running");
    let woken = request(clock, pod).await?;
    pod_shows(&mut seen, "RUNNING", ["100m", "64Mi"]).await?;
    let direct = request(clock, pod).await?;
    let events = until("two events", async || {
        let events = node.events(NAMESPACE).await.ok()?;
        (events.len() >= 2).then_some(events.len())
    })
    .await?;
    show_metrics(&node.metrics().await?);

    let survived = count(&woken.body) == count(&before.body).map(|count| count + 1);
    if checkpoint && !survived {
        return Err(
            format!("the counter did not survive: {} then {}", before.body, woken.body).into()
        );
    }
    say("");
    say(&format!(
        "OK: {} scale-down; the request that woke the server was answered in {:.0} ms ({}), the next in {:.1} ms; label SCALED_DOWN then RUNNING; requests 1m/1Ki and back; {events} events",
        if checkpoint { "checkpoint" } else { "kill" },
        woken.took.as_secs_f64() * 1e3,
        if survived { "its counter survived" } else { "started afresh" },
        direct.took.as_secs_f64() * 1e3,
    ));
    Ok(ExitCode::SUCCESS)
}

async fn request(
    clock: Clock,
    pod: &ZeroPod,
) -> Result<zeropod_testkit::node_in_a_box::Answer, NodeError> {
    let answer = get(pod.address, "/").await?;
    let took = answer.took.as_secs_f64() * 1e3;
    clock.tell("client", &format!("answered in {took:.1} ms: {}", answer.body.trim()));
    Ok(answer)
}

/// The `N` of `count=N` in an answer of the counter server.
fn count(body: &str) -> Option<u64> {
    body.split_whitespace().find_map(|word| word.strip_prefix("count=")?.parse().ok())
}

/// Waits until label and requests are as they should be, and were told.
async fn pod_shows(
    seen: &mut watch::Receiver<Shown>,
    label: &str,
    [cpu, memory]: [&str; 2],
) -> Result<(), Box<dyn Error>> {
    let wanted = Shown { label: label.into(), cpu: cpu.into(), memory: memory.into() };
    let found = timeout(PATIENCE, seen.wait_for(|shown| *shown == wanted)).await;
    match found {
        Ok(_) => Ok(()),
        Err(_) => Err(format!("the pod did not show {label}, {cpu} and {memory}").into()),
    }
}

/// What one looks at in a pod.
#[derive(Clone, Default, PartialEq, Eq)]
struct Shown {
    label: String,
    cpu: String,
    memory: String,
}

async fn shown(node: &Node) -> Option<Shown> {
    let pod = node.pod(NAMESPACE, POD).await.ok()?;
    let labels = pod.metadata.labels.unwrap_or_default();
    let container = pod.spec?.containers.into_iter().next()?;
    let requests = container.resources?.requests?;
    let request = |name: &str| requests.get(name).map(|it| it.0.clone()).unwrap_or_default();
    Some(Shown {
        label: labels
            .get(&format!("{STATUS_LABEL_PREFIX}{CONTAINER}"))
            .cloned()
            .unwrap_or_default(),
        cpu: request("cpu"),
        memory: request("memory"),
    })
}

async fn show_kubernetes(clock: Clock, node: Arc<Node>, seen: watch::Sender<Shown>) {
    let mut last = Shown::default();
    let mut told = BTreeSet::new();
    loop {
        if let Some(now) = shown(&node).await {
            if now.label != last.label {
                clock.tell("label", &format!("{STATUS_LABEL_PREFIX}{CONTAINER}: {}", now.label));
            }
            if (&now.cpu, &now.memory) != (&last.cpu, &last.memory) {
                clock.tell("requests", &format!("cpu {}, memory {}", now.cpu, now.memory));
            }
            seen.send_replace(now.clone());
            last = now;
        }
        for event in node.events(NAMESPACE).await.unwrap_or_default() {
            let text = format!(
                "{}: {}",
                event.reason.unwrap_or_default(),
                event.message.unwrap_or_default()
            );
            if told.insert(event.metadata.name) {
                clock.tell("event", &text);
            }
        }
        sleep(Duration::from_millis(20)).await;
    }
}

async fn show_happenings(clock: Clock, mut happenings: Happenings) {
    loop {
        let happening = match happenings.recv().await {
            Ok(happening) => happening,
            Err(RecvError::Lagged(_)) => continue,
            Err(RecvError::Closed) => return,
        };
        let how = |mode| match mode {
            Mode::Checkpoint => "checkpoint",
            Mode::Kill => "kill",
        };
        let text = match happening.what {
            What::Registered { ports } => format!("redirector attached, ports {ports:?}"),
            What::Idle => "idle".into(),
            What::ScaledDown { mode, duration_ms } => {
                format!("scaled down by {} in {duration_ms:.0} ms", how(mode))
            }
            What::Connection { peer } => format!("{peer} redirected to the activator"),
            What::Restored { mode, duration_ms } => {
                format!("back by {} in {duration_ms:.0} ms", how(mode))
            }
            What::Proxied { peer } => format!("{peer} proxied to its end"),
            What::CheckpointFailed { reason } => format!("checkpoint failed: {reason}"),
            What::RestoreFailed { reason } => format!("restore failed: {reason}"),
            What::ConnectionFailed { peer, reason } => format!("{peer} failed: {reason}"),
            What::Unmanaged { reason } => format!("will not be scaled down: {reason}"),
            _ => continue,
        };
        clock.tell("shim", &text);
    }
}

fn show_metrics(page: &str) {
    say("");
    for line in page.lines() {
        let seven = line.starts_with("zeropod_") && line.contains(POD) && !line.contains("_bucket");
        if seven {
            say(&format!("    {line}"));
        }
    }
}

fn keep_running(pod: &ZeroPod) {
    // The program's own pid, as seen from outside, is not known inside.
    say("");
    say("The node keeps running in its own namespaces; Ctrl-C ends it. From another terminal:");
    say("    BOX=$(pgrep -f -n 'node-in-a-box --manager')");
    for command in [
        format!("curl http://{}/", pod.address),
        format!("curl http://127.0.0.1:{METRICS_PORT}/metrics"),
        format!(
            "bpftool map dump pinned /sys/fs/bpf/zeropod_maps/{}/ingress_redirects",
            pod.sandbox_pid
        ),
    ] {
        say(&format!("    sudo nsenter -t $BOX -m -n -p {command}"));
    }
}

/// Time since the start, for the lines of the story.
#[derive(Clone, Copy)]
struct Clock(Instant);

impl Clock {
    fn tell(self, who: &str, what: &str) {
        say(&format!("{:8.3} s  {who:<9} {what}", self.0.elapsed().as_secs_f64()));
    }
}

#[expect(clippy::print_stdout, reason = "it is what the demo is for")]
fn say(line: &str) {
    println!("{line}");
}
