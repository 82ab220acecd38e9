//! What following many shims costs: memory, time until all are connected, and
//! time from an event to its change, with one shim that answers nothing.
//!
//! `cargo run --release --example many_shims 500`. The shims are stand-ins in
//! a process of their own, so that the memory is that of the client alone.

use std::{
    env,
    error::Error,
    fs,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::mpsc,
    time::{Duration, SystemTime},
};

use tokio_util::sync::CancellationToken;
use zeropod_shim_api::change::{Cause, Update};
use zeropod_shim_event_client::{Config, Connection, ShimEvents};
use zeropod_testkit::node::shim::{Answer, Faults, Identity, Service};

type Done = Result<(), Box<dyn Error>>;

/// Scale-downs and wake-ups of every shim.
const ROUNDS: usize = 5;

#[tokio::main(worker_threads = 2)]
async fn main() -> Done {
    let arguments: Vec<String> = env::args().skip(1).collect();
    match arguments.as_slice() {
        [follow, dir, shims] if follow == "follow" => client(dir.into(), shims.parse()?).await,
        [shims] => serve(shims.parse()?).await,
        _ => Err("usage: many_shims SHIMS".into()),
    }
}

/// The shims, and a client in a process of its own.
#[expect(clippy::print_stdout, reason = "it is what the program is for")]
async fn serve(shims: usize) -> Done {
    let dir = tempfile::tempdir()?;
    let mut servers = Vec::new();
    for number in 0..shims {
        let id = format!("{number:064x}");
        let shim = Service::new();
        shim.create(Identity {
            id: id.clone(),
            name: "app".into(),
            pod_name: format!("web-{number}"),
            pod_namespace: "default".into(),
        });
        shim.started(&id)?;
        if number == 0 {
            let silent =
                Faults { metrics: Answer::Never, get_status: Answer::Never, ..Faults::default() };
            shim.set_faults(silent);
        }
        let server = shim.serve(&dir.path().join(format!("{id}.sock")))?;
        servers.push((shim, id, server));
    }
    let mut client = Command::new(env::current_exe()?)
        .arg("follow")
        .arg(dir.path())
        .arg(shims.to_string())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut output = BufReader::new(client.stdout.take().ok_or("no output")?);
    let mut line = String::new();
    output.read_line(&mut line)?;
    print!("{line}");
    for _ in 0..ROUNDS {
        for (shim, id, _) in &servers {
            shim.scaled_down(id, Duration::from_millis(70))?;
            shim.restored(id, Duration::from_millis(40))?;
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
    line.clear();
    output.read_line(&mut line)?;
    print!("{line}");
    client.wait()?;
    Ok(())
}

#[expect(clippy::print_stdout, reason = "it is what the program is for")]
async fn client(socket_dir: PathBuf, shims: usize) -> Done {
    let alone = resident();
    let start = SystemTime::now();
    let events = ShimEvents::new(Config { socket_dir, ..Config::default() });
    let (sender, delays) = mpsc::channel();
    events.observe(move |update| {
        if let Update::Change(change) = update
            && let Cause::Event(event) = &change.cause
            && event.duration.is_some()
        {
            let delay = event.time.and_then(|time| time.elapsed().ok()).unwrap_or_default();
            // Fails when enough has been seen.
            let _ = sender.send(delay);
        }
    });
    let mut health = events.health();
    tokio::spawn(async move { events.run(CancellationToken::new()).await });
    health
        .wait_for(|health| {
            let connected =
                health.shims.values().filter(|shim| shim.connection == Connection::Connected);
            connected.count() + 1 >= shims
        })
        .await?;
    println!(
        "{shims} shims: connected after {:.1?}, resident {alone} before, {} after",
        start.elapsed()?,
        resident()
    );
    let mut seen = Vec::new();
    while seen.len() < 2 * ROUNDS * shims {
        while let Ok(delay) = delays.try_recv() {
            seen.push(delay);
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    seen.sort_unstable();
    let (median, p99) = (seen[seen.len() / 2], seen[seen.len() * 99 / 100]);
    println!(
        "{shims} shims: event to change median {median:.1?}, p99 {p99:.1?}, resident {}",
        resident()
    );
    Ok(())
}

fn resident() -> String {
    let status = fs::read_to_string(Path::new("/proc/self/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.unwrap_or_default().trim().to_owned()
}
