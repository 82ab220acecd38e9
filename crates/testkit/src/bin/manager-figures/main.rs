//! `manager-figures`: what a manager costs a node, with every feature on: time
//! from its start to its first metrics page, from an event of a shim to the
//! label that a watch shows, what a scaling costs the API server, and memory
//! and scrapes with 10, 100 and 500 shims of one container each.
//!
//! Build it with `--release`: a debug build is slower than what it measures.

mod latency;
mod scrape;

use std::{
    error::Error,
    fs,
    os::unix::net::UnixListener,
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant},
};

use clap::Parser;
use zeropod_shim_api::names::SHIM_SOCKET_DIR;
use zeropod_testkit::{
    kube::{create_namespace, create_pod, pod, run_pod},
    node::shim::{Identity, Server, Service},
    node_in_a_box::{Child, Kubernetes, NODE, Node, NodeError, report, run_inside, until},
};

use scrape::Scraper;

/// Measures a manager.
#[derive(Debug, Parser)]
#[command(disable_version_flag = true)]
struct Args {
    /// The manager, a release build
    #[arg(long)]
    manager: PathBuf,
}

const NAMESPACE: &str = "figures";
const CONTAINER: &str = "app";
const STARTS: usize = 15;
/// Shims whose events are followed to their labels.
const FOLLOWED: usize = 40;
/// Scrapes in a row: of the whole, and to find the slowest of a hundred.
const SCRAPES: usize = 100;
const MANY_SCRAPES: usize = 500;

type Done = Result<(), Box<dyn Error>>;
type Shim = (Service, Server);

fn main() -> ExitCode {
    let inside = || {
        let Args { manager } = Args::parse();
        let runtime = tokio::runtime::Runtime::new();
        let done =
            runtime.map_err(Into::into).and_then(|runtime| runtime.block_on(measure(&manager)));
        match done {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => report(error.as_ref()),
        }
    };
    run_inside(inside).unwrap_or_else(|error| report(&error))
}

async fn measure(manager: &Path) -> Done {
    starts(manager).await?;
    for kubernetes in [Kubernetes::InProcess, Kubernetes::Real] {
        let node = match Node::start(kubernetes, manager).await {
            Ok(node) => node,
            Err(error) if kubernetes == Kubernetes::Real => {
                say(&format!("event to label, kube-apiserver: cannot be started: {error}"));
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        create_namespace(&node.client(), NAMESPACE).await?;
        let (manager, mut shims) = (start(&node).await?, Vec::new());
        more_shims(&node, &mut shims, FOLLOWED).await?;
        latency::measure(&node, &shims).await?;
        manager.stop().await;
    }
    sizes(manager).await
}

async fn starts(manager: &Path) -> Done {
    let node = Node::start(Kubernetes::InProcess, manager).await?;
    let mut starts = Vec::new();
    for _ in 0..STARTS {
        let start = Instant::now();
        let manager = node.start_manager(&[]).await?;
        starts.push(start.elapsed());
        manager.stop().await;
    }
    say(&format!("start to first /metrics, median of {STARTS}: {:.1?}", median(&mut starts)));
    Ok(())
}

/// Memory and scrapes with more and more shims, at last with a hung one.
async fn sizes(manager: &Path) -> Done {
    let node = Node::start(Kubernetes::InProcess, manager).await?;
    create_namespace(&node.client(), NAMESPACE).await?;
    let manager = start(&node).await?;
    say(&format!("idle: {}", memory(manager.pid())?));
    let mut shims: Vec<Shim> = Vec::new();
    for target in [10, 100, 500] {
        more_shims(&node, &mut shims, target).await?;
        for (number, (shim, _)) in shims.iter().enumerate() {
            shim.scaled_down(&id(number), Duration::from_millis(200))?;
            shim.restored(&id(number), Duration::from_millis(90))?;
        }
        until("every restore to be counted", async || {
            let page = node.metrics().await.ok()?;
            let count = |line: &&str| line.starts_with("zeropod_wakeups_total{");
            (page.lines().filter(count).filter(|line| !line.ends_with(" 0")).count() == target)
                .then_some(())
        })
        .await?;
        let mut scraper = Scraper::connect()?;
        let plain = scraper.times(SCRAPES, "identity")?;
        let gzip = scraper.times(SCRAPES, "gzip")?;
        say(&format!("{target} shims: scrape {plain}; gzip {gzip}; {}", memory(manager.pid())?));
    }
    let mut scraper = Scraper::connect()?;
    let without = scraper.times(MANY_SCRAPES, "identity")?;
    // It takes connections, which the kernel does, and answers nothing.
    let _hung = UnixListener::bind(Path::new(SHIM_SOCKET_DIR).join("hung.sock"))?;
    until("the hung shim to be noticed", async || {
        let page = node.metrics().await.ok()?;
        page.contains("zeropod_shim_connections{state=\"unresponsive\"} 1").then_some(())
    })
    .await?;
    let with = scraper.times(MANY_SCRAPES, "identity")?;
    say(&format!("500 shims, {MANY_SCRAPES} scrapes: {without}; with one more, hung: {with}"));
    manager.stop().await;
    Ok(())
}

async fn start(node: &Node) -> Result<Child, Box<dyn Error>> {
    let mut manager = node.start_manager(&[]).await?;
    let mut log = manager.take_lines();
    tokio::spawn(async move { while log.recv().await.is_some() {} });
    Ok(manager)
}

/// Adds shims until there are that many, all known to the manager.
async fn more_shims(node: &Node, shims: &mut Vec<Shim>, target: usize) -> Done {
    while shims.len() < target {
        shims.push(start_shim(node, shims.len()).await?);
    }
    until(&format!("{target} containers to be known"), async || {
        let page = node.metrics().await.ok()?;
        let running = page.lines().filter(|line| line.starts_with("zeropod_running{"));
        (running.count() == target).then_some(())
    })
    .await?;
    Ok(())
}

/// A shim with a running container, and the pod that it belongs to.
async fn start_shim(node: &Node, number: usize) -> Result<Shim, Box<dyn Error>> {
    let name = pod_name(number);
    let object = pod(NAMESPACE, &name)
        .on_node(NODE)
        .container(CONTAINER, &[("cpu", "100m"), ("memory", "64Mi")], &[])
        .build();
    let object = create_pod(&node.client(), &object).await?;
    run_pod(&node.client(), &object, &[(CONTAINER, &id(number))]).await?;
    let shim = Service::new();
    let socket = PathBuf::from(SHIM_SOCKET_DIR).join(format!("{}.sock", id(number)));
    // A second node finds those of the first.
    if socket.exists() {
        fs::remove_file(&socket)?;
    }
    let server = shim.serve(&socket)?;
    shim.create(Identity {
        id: id(number),
        name: CONTAINER.into(),
        pod_name: name,
        pod_namespace: NAMESPACE.into(),
    });
    shim.started(&id(number))?;
    Ok((shim, server))
}

/// As long as those of deployments are.
fn pod_name(number: usize) -> String {
    format!("web-{number}-5d9c7b5b6-x7k2p")
}

fn id(number: usize) -> String {
    format!("{number:064x}")
}

fn median(times: &mut [Duration]) -> Duration {
    times.sort_unstable();
    times.get(times.len() / 2).copied().unwrap_or_default()
}

/// Resident memory of a process, and how much of it is its own and not of
/// files (`VmRSS` and `RssAnon` of proc(5)).
fn memory(pid: u32) -> Result<String, NodeError> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))
        .map_err(|source| NodeError::Start { name: "a look at the manager", source })?;
    let mebibytes = |field: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(field))?;
        let kibibytes: u32 = line.trim().strip_suffix(" kB")?.parse().ok()?;
        Some(f64::from(kibibytes) / 1024.0)
    };
    let [resident, own] = ["VmRSS:", "RssAnon:"].map(|field| mebibytes(field).unwrap_or_default());
    Ok(format!("resident {resident:.1} MiB, of it {own:.1} anonymous"))
}

#[expect(clippy::print_stdout, reason = "it is what the program is for")]
fn say(line: &str) {
    println!("{line}");
}
