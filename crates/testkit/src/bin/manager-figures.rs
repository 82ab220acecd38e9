//! `manager-figures`: what a manager costs a node, with every feature on:
//! time from its start to its first metrics page, and resident memory when
//! idle and with 10, 100 and 500 shims of one container each.

use std::{
    error::Error,
    fs,
    path::PathBuf,
    process::ExitCode,
    time::{Duration, Instant},
};

use clap::Parser;
use tokio::time::sleep;
use zeropod_shim_api::names::{SHIM_SOCKET_DIR, STATUS_LABEL_PREFIX};
use zeropod_testkit::{
    kube::{create_namespace, create_pod, pod, run_pod},
    node::shim::{Identity, Server, Service},
    node_in_a_box::{Kubernetes, NODE, Node, NodeError, PATIENCE, report, run_inside, until},
};

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
const SCRAPES: usize = 100;

fn main() -> ExitCode {
    let inside = || {
        let Args { manager } = Args::parse();
        let runtime = tokio::runtime::Runtime::new();
        let done =
            runtime.map_err(Into::into).and_then(|runtime| runtime.block_on(measure(manager)));
        match done {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => report(error.as_ref()),
        }
    };
    run_inside(inside).unwrap_or_else(|error| report(&error))
}

async fn measure(manager: PathBuf) -> Result<(), Box<dyn Error>> {
    let node = Node::start(Kubernetes::InProcess, &manager).await?;
    create_namespace(&node.client(), NAMESPACE).await?;

    let mut starts = Vec::new();
    for _ in 0..STARTS {
        let start = Instant::now();
        let manager = node.start_manager(&[]).await?;
        starts.push(start.elapsed());
        manager.stop().await;
    }
    starts.sort_unstable();
    say(&format!("start to first /metrics, median of {STARTS}: {:.1?}", starts[STARTS / 2]));

    let mut manager = node.start_manager(&[]).await?;
    let mut log = manager.take_lines();
    tokio::spawn(async move { while log.recv().await.is_some() {} });
    say(&format!("resident, idle: {}", resident(manager.pid())?));

    let mut shims: Vec<(Service, Server)> = Vec::new();
    for target in [10, 100, 500] {
        while shims.len() < target {
            shims.push(start_shim(&node, shims.len()).await?);
        }
        let known = format!("{target} containers to be known");
        until(&known, async || {
            let page = node.metrics().await.ok()?;
            let running = page.lines().filter(|line| line.starts_with("zeropod_running{"));
            (running.count() == target).then_some(())
        })
        .await?;
        if target == 10 {
            latency(&node, &shims).await?;
        }
        for (number, (shim, _)) in shims.iter().enumerate() {
            shim.scaled_down(&id(number), Duration::from_millis(200))?;
            shim.restored(&id(number), Duration::from_millis(90))?;
        }
        let mut scrapes = Vec::new();
        for _ in 0..SCRAPES {
            let start = Instant::now();
            node.metrics().await?;
            scrapes.push(start.elapsed());
        }
        scrapes.sort_unstable();
        say(&format!(
            "{target} shims: resident after {SCRAPES} scrapes {}, scrape median {:.2?}, p99 {:.2?}",
            resident(manager.pid())?,
            scrapes[SCRAPES / 2],
            scrapes[SCRAPES * 99 / 100],
        ));
    }
    manager.stop().await;
    Ok(())
}

/// From a shim's event to its label in the API, on an idle manager, and what
/// that costs the API server.
async fn latency(node: &Node, shims: &[(Service, Server)]) -> Result<(), Box<dyn Error>> {
    // A label of a container changes once a second at most.
    sleep(Duration::from_secs(2)).await;
    let api = node.in_process().ok_or("the API is not in process")?;
    api.forget_requests();
    let mut latencies = Vec::new();
    for (number, (shim, _)) in shims.iter().enumerate() {
        let label = format!("{STATUS_LABEL_PREFIX}{CONTAINER}");
        let start = Instant::now();
        shim.scaled_down(&id(number), Duration::from_millis(200))?;
        loop {
            let pod = node.pod(NAMESPACE, &format!("pod-{number}")).await?;
            let labels = pod.metadata.labels.unwrap_or_default();
            if labels.get(&label).is_some_and(|phase| phase == "SCALED_DOWN") {
                break;
            }
            if start.elapsed() > PATIENCE {
                return Err(format!("pod-{number} never showed its label").into());
            }
        }
        latencies.push(start.elapsed());
        sleep(Duration::from_millis(300)).await;
    }
    latencies.sort_unstable();
    let writes = api.writes().len();
    say(&format!(
        "event to label: median {:.1?}, worst {:.1?}; {writes} API writes for {} scalings",
        latencies[latencies.len() / 2],
        latencies[latencies.len() - 1],
        shims.len(),
    ));
    Ok(())
}

/// A shim with a running container, and the pod that it belongs to.
async fn start_shim(node: &Node, number: usize) -> Result<(Service, Server), Box<dyn Error>> {
    let name = format!("pod-{number}");
    let object = pod(NAMESPACE, &name)
        .on_node(NODE)
        .container(CONTAINER, &[("cpu", "100m"), ("memory", "64Mi")], &[])
        .build();
    let object = create_pod(&node.client(), &object).await?;
    run_pod(&node.client(), &object, &[(CONTAINER, &id(number))]).await?;
    let shim = Service::new();
    let server =
        shim.serve(&PathBuf::from(SHIM_SOCKET_DIR).join(format!("{}.sock", id(number))))?;
    shim.create(Identity {
        id: id(number),
        name: CONTAINER.into(),
        pod_name: name,
        pod_namespace: NAMESPACE.into(),
    });
    shim.started(&id(number))?;
    Ok((shim, server))
}

fn id(number: usize) -> String {
    format!("{number:064x}")
}

/// Resident memory of a process (`VmRSS` of proc(5)).
fn resident(pid: u32) -> Result<String, NodeError> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))
        .map_err(|source| NodeError::Start { name: "a look at the manager", source })?;
    let kib = status
        .lines()
        .find_map(|line| {
            line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB")?.parse::<u32>().ok()
        })
        .unwrap_or_default();
    Ok(format!("{:.1} MiB", f64::from(kib) / 1024.0))
}

#[expect(clippy::print_stdout, reason = "it is what the program is for")]
fn say(line: &str) {
    println!("{line}");
}
