//! What a scrape costs: time, size and memory at 10, 100 and 500 containers.
//!
//! `cargo run --release --example figures` prints a row per size; with the
//! argument `text` or `openmetrics` it prints one exposition instead.

use std::{
    env, fs,
    time::{Duration, Instant, SystemTime},
};

use zeropod_metrics_aggregator::{Aggregator, Format};
use zeropod_shim_api::{
    change::{Cause, ContainerChange, ContainerKey, ContainerState, Update},
    id::{ContainerId, ContainerRef, InvalidId, PodRef, ShimId},
    status::{Operation, Phase, StatusEvent},
};

const SCRAPES: usize = 100;

#[expect(clippy::print_stdout, reason = "it is what the program is for")]
fn main() -> Result<(), InvalidId> {
    match env::args().nth(1).as_deref() {
        Some("text") => print!("{}", node(10)?.render(Format::Text)),
        Some("openmetrics") => print!("{}", node(10)?.render(Format::OpenMetrics)),
        _ => {
            println!("containers  bytes     median     p99        gzip bytes  median     RSS");
            for containers in [10, 100, 500] {
                let node = node(containers)?;
                let (bytes, median, p99) = scrape(&node, None);
                let (gzip_bytes, gzip_median, _) = scrape(&node, Some("gzip"));
                println!(
                    "{containers:<11} {bytes:<9} {median:<10.1?} {p99:<10.1?} {gzip_bytes:<11} \
                     {gzip_median:<10.1?} {}",
                    resident()
                );
            }
        }
    }
    Ok(())
}

/// An aggregator that has seen a scale-down and a wake-up of every container.
fn node(containers: usize) -> Result<Aggregator, InvalidId> {
    let aggregator = Aggregator::new();
    for number in 0..containers {
        let pod = PodRef::new("default", &format!("web-{number:03}-5d9c7b5b6-x7k2p"))?;
        let container = ContainerRef::new(pod, "app")?;
        let id = ContainerId::new(&format!("{number:064x}"))?;
        let shim = format!("{number:064x}.sock");
        let Some(shim) = ShimId::from_file_name(&shim) else { continue };
        let operation = Operation { ended: SystemTime::now(), duration: Duration::from_millis(70) };
        for phase in [Phase::ScaledDown, Phase::Running] {
            let state = ContainerState {
                id: Some(id.clone()),
                phase,
                since: Some(operation.ended),
                checkpoint: Some(operation),
                restore: None,
            };
            let event = StatusEvent {
                id: id.clone(),
                container: container.clone(),
                phase,
                time: Some(operation.ended),
                duration: Some(operation.duration),
                log: Vec::new(),
            };
            let key = ContainerKey { shim: shim.clone(), container: container.clone() };
            let change = ContainerChange { key, state, cause: Cause::Event(event) };
            aggregator.apply(&Update::Change(Box::new(change)));
        }
    }
    Ok(aggregator)
}

/// Size of the body, and median and 99th percentile of the time it takes.
fn scrape(node: &Aggregator, accept_encoding: Option<&str>) -> (usize, Duration, Duration) {
    let mut bytes = 0;
    let mut times: Vec<Duration> = (0..SCRAPES)
        .map(|_| {
            let start = Instant::now();
            bytes = node.respond(None, accept_encoding).body.len();
            start.elapsed()
        })
        .collect();
    times.sort_unstable();
    (bytes, times[SCRAPES / 2], times[SCRAPES - 1])
}

fn resident() -> String {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.unwrap_or_default().trim().to_owned()
}
