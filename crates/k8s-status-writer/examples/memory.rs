//! Measures what the writer costs a node with many pods: resident memory
//! before and after it knows them and has written to each.
//!
//! `cargo run --release --example memory -- 500`
//!
//! The API server is a process of its own, so that its memory doesn't count.
#![expect(clippy::print_stdout, reason = "a program that prints figures")]

use std::{
    collections::BTreeMap,
    error::Error,
    fs,
    io::{self, BufRead as _, BufReader, Read as _},
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use futures_util::{StreamExt as _, stream};
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Client, Config as ClientConfig,
    api::{ListParams, PostParams},
    config::{KubeConfigOptions, Kubeconfig},
};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use zeropod_k8s_status_writer::{Config, Features, StatusWriter};
use zeropod_shim_api::{
    change::{ContainerKey, ContainerState, Update},
    id::{ContainerId, ContainerRef, PodRef, ShimId},
    status::Phase,
};
use zeropod_testkit::kube::{Cluster as _, InProcessApi};

const NODE: &str = "node-a";

fn main() -> Result<(), Box<dyn Error>> {
    let count: usize = std::env::args().nth(1).map_or(Ok(500), |text| text.parse())?;
    if std::env::var_os("SERVE").is_some() {
        return serve(count);
    }
    let mut server = Command::new(std::env::current_exe()?)
        .arg(count.to_string())
        .env("SERVE", "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut kubeconfig = String::new();
    BufReader::new(server.stdout.take().ok_or("no output")?).read_line(&mut kubeconfig)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let measured = runtime.block_on(measure(kubeconfig.trim(), count));
    // It ends with its input.
    drop(server.stdin.take());
    server.wait()?;
    measured
}

/// Serves the pods until its input ends.
fn serve(count: usize) -> Result<(), Box<dyn Error>> {
    let api = InProcessApi::start()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        for number in 0..count {
            create(&api.client(), number).await?;
        }
        Ok::<_, Box<dyn Error>>(())
    })?;
    println!("{}", api.kubeconfig().display());
    io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}

async fn measure(kubeconfig: &str, count: usize) -> Result<(), Box<dyn Error>> {
    let config = Kubeconfig::read_from(Path::new(kubeconfig))?;
    let config =
        ClientConfig::from_custom_kubeconfig(config, &KubeConfigOptions::default()).await?;
    let client = Client::try_from(config)?;
    // The client's own buffers are not what is measured.
    let pods = Api::<Pod>::namespaced(client.clone(), "default");
    pods.list(&ListParams::default().limit(1)).await?;

    let mut settings = Config::new(NODE);
    settings.features = Features { labels: true, events: true, in_place_scaling: true };
    let writer = StatusWriter::new(client.clone(), settings);
    let before = resident()?;
    let snapshot = (0..count).map(known).collect::<Result<_, _>>()?;
    let updates = stream::iter([Update::Snapshot(snapshot)]).chain(stream::pending());
    let stop = CancellationToken::new();
    let running = tokio::spawn(writer.run(updates, stop.clone()));
    while written(&client).await? < count {
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let after = resident()?;
    stop.cancel();
    running.await?;
    let each = after.saturating_sub(before) * 1024 / count;
    println!("{count} pods: {before} KiB before, {after} KiB after, {each} bytes each");
    Ok(())
}

/// How many pods are labelled, asked in a way that costs this process little.
async fn written(client: &Client) -> Result<usize, Box<dyn Error>> {
    let labelled = ListParams::default().labels("status.zeropod.ctrox.dev/app").limit(1);
    let pods = Api::<Pod>::namespaced(client.clone(), "default").list_metadata(&labelled).await?;
    let left = pods.metadata.remaining_item_count.unwrap_or(0);
    Ok(pods.items.len() + usize::try_from(left)?)
}

fn known(number: usize) -> Result<(ContainerKey, ContainerState), Box<dyn Error>> {
    let shim = format!("{number:064x}.sock");
    let pod = PodRef::new("default", &name(number))?;
    let key = ContainerKey {
        shim: ShimId::from_file_name(&shim).ok_or("no shim id")?,
        container: ContainerRef::new(pod, "app")?,
    };
    let state = ContainerState {
        id: Some(ContainerId::new(&id(number))?),
        phase: Phase::ScaledDown,
        since: None,
        checkpoint: None,
        restore: None,
    };
    Ok((key, state))
}

fn name(number: usize) -> String {
    format!("some-deployment-5d8f7c9b64-{number:05}")
}

fn id(number: usize) -> String {
    format!("{number:064x}")
}

/// A pod of the size that real ones have: about 8 KiB of JSON.
async fn create(client: &Client, number: usize) -> Result<(), Box<dyn Error>> {
    let pods = Api::<Pod>::namespaced(client.clone(), "default");
    let many = |what: &str, count: usize| -> BTreeMap<String, String> {
        (0..count)
            .map(|at| (format!("example.com/{what}-{at}"), format!("some value of {what} {at}")))
            .collect()
    };
    let env: Vec<Value> = (0..40)
        .map(|at| json!({ "name": format!("SETTING_{at}"), "value": "x".repeat(60) }))
        .collect();
    let volumes: Vec<Value> = (0..6)
        .map(|at| json!({ "name": format!("volume-{at}"), "emptyDir": { "sizeLimit": "1Gi" } }))
        .collect();
    let pod: Pod = serde_json::from_value(json!({
        "metadata": {
            "name": name(number), "namespace": "default",
            "labels": many("label", 10).into_keys().map(|key| (key, "v")).collect::<BTreeMap<_, _>>(),
            "annotations": many("annotation", 12),
        },
        "spec": {
            "nodeName": NODE,
            "volumes": volumes,
            "containers": [
                { "name": "app", "image": "registry.example.com/team/app:1.2.3", "env": env,
                  "resources": { "requests": { "cpu": "100m", "memory": "128Mi" } } },
                { "name": "side", "image": "registry.example.com/team/side:1.2.3", "env": env,
                  "resources": { "requests": { "cpu": "50m", "memory": "64Mi" } } },
            ],
        },
    }))?;
    let pod = pods.create(&PostParams::default(), &pod).await?;
    let containers = [("app", &*id(number)), ("side", "0123456789abcdef")];
    zeropod_testkit::kube::run_pod(client, &pod, &containers).await?;
    Ok(())
}

/// Resident memory of this process in KiB.
fn resident() -> Result<usize, Box<dyn Error>> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).ok_or("no VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}
