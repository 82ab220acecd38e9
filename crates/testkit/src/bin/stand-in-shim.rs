//! `stand-in-shim`: one stand-in shim with one pod of one container, as a
//! process of its own. Prints what happens as JSON, one object a line.
//!
//! SIGTERM and SIGINT end it as the end of its pod ends a real shim; SIGKILL
//! leaves what a real shim leaves: socket, pins, sandbox and container.

use std::{
    env,
    error::Error,
    ffi::OsString,
    io::{self, Write},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use clap::{Parser, ValueEnum};
use tokio::signal::unix::{SignalKind, signal};
use zeropod_shim_api::names::{MAPS_DIR, SHIM_SOCKET_DIR};
use zeropod_testkit::{
    node::{
        attach::{HELPER_ARGUMENT, attach},
        sandbox::SandboxConfig,
        stand_in::{
            AttachedBy, ContainerSpec, Happening, Mode, PodConfig, SandboxSource, StandIn,
            StandInConfig,
        },
    },
    tools,
};

/// A stand-in for containerd-shim-zeropod-v2, for tests and the demo.
#[derive(Debug, Parser)]
#[command(disable_version_flag = true)]
struct Args {
    /// Directory of the socket
    #[arg(long, default_value = SHIM_SOCKET_DIR)]
    socket_dir: PathBuf,
    /// Base directory of the pins
    #[arg(long, default_value = MAPS_DIR)]
    maps_dir: PathBuf,
    /// Directory of the checkpoint images
    #[arg(long, default_value = "/var/lib/zeropod/i")]
    images: PathBuf,
    /// Directory of bundles and root file systems
    #[arg(long)]
    work_dir: PathBuf,
    /// Name of the socket without .sock; the container id by default
    #[arg(long)]
    shim_id: Option<String>,
    /// Id of the container, 64 hex digits
    #[arg(long)]
    id: String,
    /// Namespace of the pod
    #[arg(long, default_value = "default")]
    namespace: String,
    /// Name of the pod
    #[arg(long)]
    pod: String,
    /// Name of the container
    #[arg(long)]
    container: String,
    /// Pid of the sandbox; by default one is made
    #[arg(long)]
    sandbox_pid: Option<u32>,
    /// Which of the 16384 subnets a sandbox gets that is made
    #[arg(long)]
    subnet: Option<u16>,
    /// Port that the container listens on; can be repeated
    #[arg(long = "port", required = true)]
    ports: Vec<u16>,
    /// Seconds without a packet until the container is scaled down; 0: never
    #[arg(long, default_value = "60", value_parser = seconds)]
    scaledown: Duration,
    /// Seconds that a woken container may take to listen
    #[arg(long, default_value = "5", value_parser = seconds)]
    connect_timeout: Duration,
    /// Seconds for which a connection is proxied at most
    #[arg(long, default_value = "5", value_parser = seconds)]
    proxy_timeout: Duration,
    /// Seconds between two looks for a redirector, at most
    #[arg(long, default_value = "300", value_parser = seconds)]
    longest_retry: Duration,
    /// How the container is scaled down
    #[arg(long, default_value = "checkpoint")]
    mode: CliMode,
    /// Attach the redirector like shims from 0.12 on, instead of waiting for
    /// the manager
    #[arg(long)]
    attach: bool,
    /// Directory of criu; by default it is taken from the cache
    #[arg(long)]
    criu_dir: Option<PathBuf>,
    /// Program to run in the container, with its arguments
    #[arg(last = true, required = true)]
    program: Vec<String>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum CliMode {
    Checkpoint,
    Kill,
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|error| format!("{error}"))?;
    Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())
}

#[tokio::main(worker_threads = 2)]
async fn main() -> Result<(), Box<dyn Error>> {
    if let Some(result) = attach_if_asked(env::args_os().skip(1)) {
        return result;
    }
    // Before anything that a signal should undo.
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let (config, pod) = configuration(Args::parse())?;
    let stand_in = StandIn::start(config)?;
    let running = async {
        stand_in.run_pod(pod).await?;
        std::future::pending::<Result<(), Box<dyn Error>>>().await
    };
    let result = tokio::select! {
        result = running => result,
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
    };
    stand_in.stop().await?;
    result
}

/// The shim from 0.12 on starts itself again to attach the redirector.
fn attach_if_asked(mut args: impl Iterator<Item = OsString>) -> Option<Result<(), Box<dyn Error>>> {
    args.next().filter(|first| first == HELPER_ARGUMENT)?;
    let pid = args.next().unwrap_or_default();
    let maps_dir = args.next().unwrap_or_else(|| MAPS_DIR.into());
    Some(match pid.to_string_lossy().parse() {
        Ok(pid) => attach(Path::new(&maps_dir), pid).map_err(Into::into),
        Err(error) => Err(format!("sandbox pid {}: {error}", pid.display()).into()),
    })
}

fn configuration(args: Args) -> Result<(StandInConfig, PodConfig), Box<dyn Error>> {
    let Args {
        socket_dir,
        maps_dir,
        images,
        work_dir,
        shim_id,
        id,
        namespace,
        pod,
        container,
        sandbox_pid,
        subnet,
        ports,
        scaledown,
        connect_timeout,
        proxy_timeout,
        longest_retry,
        mode,
        attach,
        criu_dir,
        program,
    } = args;
    let (mode, criu) = match (mode, criu_dir) {
        (CliMode::Kill, _) => (Mode::Kill, None),
        (CliMode::Checkpoint, Some(dir)) => (Mode::Checkpoint, Some(dir)),
        (CliMode::Checkpoint, None) => (Mode::Checkpoint, Some(tools::criu()?)),
    };
    let absolute = |path: &Path| std::path::absolute(path);
    let config = StandInConfig {
        socket_dir: absolute(&socket_dir)?,
        shim_id: shim_id.unwrap_or_else(|| id.clone()),
        maps_dir: absolute(&maps_dir)?,
        images: absolute(&images)?,
        work_dir: absolute(&work_dir)?,
        runc: tools::runc()?,
        criu,
        attached_by: if attach {
            AttachedBy::Shim { helper: env::current_exe()? }
        } else {
            AttachedBy::Manager
        },
        longest_retry,
        observer: Arc::new(print),
    };
    let mut program = program.into_iter();
    let spec = ContainerSpec {
        id,
        name: container,
        program: program.next().unwrap_or_default().into(),
        args: program.collect(),
        ports,
        scaledown,
        mode,
        connect_timeout,
        proxy_timeout,
    };
    let sandbox = match sandbox_pid {
        Some(pid) => SandboxSource::Pid(pid),
        None => SandboxSource::Make(SandboxConfig { index: subnet }),
    };
    Ok((config, PodConfig { namespace, name: pod, sandbox, containers: vec![spec] }))
}

fn print(happening: &Happening) {
    if let Ok(line) = serde_json::to_string(happening) {
        // A reader that is gone is no reason to end.
        let _ = writeln!(io::stdout().lock(), "{line}");
    }
}
