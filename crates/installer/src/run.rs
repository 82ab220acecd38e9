//! From the command line to an exit code.

use std::{
    fmt::Write as _,
    io::{self, Write as _},
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant},
};

use crate::{
    Error,
    bpffs::{self, BPF_FS},
    ca, chain,
    cli::{Args, Command, Format},
    criu_image,
    distribution::{Distribution, Layout},
    doctor::{self, Check, Status},
    facts::Facts,
    files::Runtime,
    host::HostRoot,
    install::{Installation, uninstall},
    node::{Known, Node},
    plan::{Options, Plan, undo},
    report::{self, Reported, reported},
    state::{self, Lock},
};

/// Exit code of a dry run that found something to do.
pub const WORK_TO_DO: u8 = 2;

/// Does what the command line says, printing to standard output.
///
/// The calls to systemd block; nothing else runs beside them.
///
/// # Errors
/// Everything that keeps the node from being looked at or configured.
pub async fn run(args: Args) -> Result<ExitCode, Error> {
    let Args {
        criu_image,
        criu_pull,
        runtime,
        host_opt_path,
        uninstall: uninstalls,
        timeout,
        version,
        probe_binary_name,
        tracker_ignore_localhost,
        dry_run,
        force,
        assets,
        tls_dir,
        host_root,
        containerd_config,
        containerd_socket,
        containerd_version,
        systemd_cgroup,
        command,
    } = args;
    if version {
        print(&format!("{}\n", zeropod_build_info::long("zeropod-installer")))?;
        return Ok(ExitCode::SUCCESS);
    }
    if command == Some(Command::PrepareBpfFs) {
        let mounted = bpffs::prepare(Path::new(BPF_FS))?;
        print(&format!("{BPF_FS}: {}\n", if mounted { "mounted" } else { "is there" }))?;
        return Ok(ExitCode::SUCCESS);
    }
    let deadline = Instant::now() + timeout;
    let host = HostRoot::new(host_root.unwrap_or_else(default_host_root));
    let known = Known {
        distribution: runtime,
        config: containerd_config,
        socket: containerd_socket,
        version: containerd_version,
        // After a restart of ours that killed the last run, it takes a while.
        patience: if dry_run || command.is_some() {
            Duration::ZERO
        } else {
            Duration::from_secs(20)
        },
    };
    let options = Options { host_opt_path, systemd_cgroup };
    if let Some(Command::Doctor { output }) = command {
        return examine(host, &known, &options, output, deadline).await;
    }
    // A dry run touches nothing, not even a lock file.
    let _lock = if dry_run { None } else { Some(Lock::take(&host, timeout)?) };
    let work = async {
        let mut node = Node::look(host, &known, deadline).await?;
        if uninstalls {
            if dry_run {
                let plan = undo(&node.facts)?;
                print(
                    &(describe(&node.facts) + &conclusion(&plan, &[], None) + &plan.to_string()),
                )?;
                return Ok(exit_code(plan.is_empty()));
            }
            let report = uninstall(&mut node, force, deadline).await?;
            print(&(report.lines.join("\n") + "\n"))?;
            return Ok(ExitCode::SUCCESS);
        }
        let unpacked =
            tempfile::tempdir().map_err(Error::io("make a directory in", std::env::temp_dir()))?;
        let mut assets = vec![assets];
        if let Some(reference) = criu_image {
            let criu = match criu_image::local(&reference, unpacked.path())? {
                Some(local) => Some(local),
                None => pull(&node, &reference, criu_pull, dry_run, timeout).await?,
            };
            // Of two files with the same name the later one counts.
            assets.extend(criu);
        }
        let link_tar = node.facts.layout.distribution == Distribution::K3s;
        let runtime = Runtime {
            assets: &assets,
            probe_binary_name: &probe_binary_name,
            tracker_ignore_localhost,
            link_tar,
        };
        let installation = Installation::plan(&node, &options, &runtime)?;
        if dry_run {
            return show(&node, &installation).await;
        }
        // Before anything is touched (I18).
        if tls_dir.is_dir() {
            ca::write(&ca::get_or_create(&kubernetes().await?).await?, &tls_dir)?;
        }
        let notes = [installation.config.notes.clone(), installation.files.notes.clone()].concat();
        let report = installation.run(&mut node, deadline).await?;
        for line in notes.iter().map(|note| format!("note: {note}")).chain(report.lines) {
            print(&format!("{line}\n"))?;
        }
        if let Some(name) = node_name() {
            print(&format!("{}\n", ask_cluster(&name, deadline).await))?;
        }
        Ok(ExitCode::SUCCESS)
    };
    // Every step has a deadline of its own; this is for a bug in one.
    let limit = timeout + LAST_RESORT;
    tokio::time::timeout(limit, work).await.unwrap_or(Err(Error::Timeout(timeout)))
}

async fn examine(
    host: HostRoot,
    known: &Known,
    options: &Options,
    output: Format,
    deadline: Instant,
) -> Result<ExitCode, Error> {
    let mut checks = doctor::kernel(&host);
    match Node::look(host, known, deadline).await {
        Ok(mut node) => checks.extend(doctor::runtime(&mut node, options).await),
        Err(error) => checks.push(Check {
            name: "containerd",
            status: Status::Fail,
            detail: chain(&error),
            hint: "zeropod needs a containerd that runs and a configuration that it can read",
        }),
    }
    checks.extend(doctor::cluster(kubernetes().await, node_name().as_deref()).await);
    print(&match output {
        Format::Table => doctor::table(&checks),
        Format::Json => {
            serde_json::to_string_pretty(&checks)
                .map_err(|error| Error::io("write", "standard output")(error.into()))?
                + "\n"
        }
    })?;
    let healthy = doctor::is_healthy(&checks);
    Ok(if healthy { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Says whether the cluster knows of the handler. If not, that is no error of
/// ours: kubelet will tell it, and containerd serves it already.
async fn ask_cluster(node: &str, deadline: Instant) -> String {
    let client = match kubernetes().await {
        Ok(client) => client,
        Err(error) => return format!("note: {}", chain(&error)),
    };
    let patience = Instant::now() + report::PATIENCE;
    match reported(&client, node, deadline.min(patience)).await {
        Reported::Yes => format!("node {node} reports the handler"),
        Reported::No => format!("note: node {node} does not report the handler yet"),
        Reported::Unknown(reason) => {
            format!("note: whether node {node} reports the handler is unknown: {reason}")
        }
    }
}

/// The node's name in the cluster, if the pod was told.
fn node_name() -> Option<String> {
    std::env::var("NODE_NAME").ok().filter(|name| !name.is_empty())
}

async fn kubernetes() -> Result<kube::Client, Error> {
    // One provider for the whole process; that another was chosen before is
    // as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    kube::Client::try_default().await.map_err(|error| Error::Kubernetes(Box::new(error)))
}

/// Prints what an installation would do.
async fn show(node: &Node, installation: &Installation) -> Result<ExitCode, Error> {
    let restart = installation.restart_reason(node).await?;
    let steps: Vec<_> = installation.files.steps.iter().map(crate::files::Step::describe).collect();
    let plan = &installation.config;
    let mut text = describe(&node.facts) + &conclusion(plan, &steps, restart.as_deref());
    for note in &installation.files.notes {
        let _ = writeln!(text, "note: {note}");
    }
    print(&(text + &plan.to_string()))?;
    Ok(exit_code(installation.is_empty() && restart.is_none()))
}

/// What taking back a change may take beyond the deadline.
const LAST_RESORT: Duration = Duration::from_mins(1);

/// CRIU from a registry, once, if that is wanted.
async fn pull(
    node: &Node,
    reference: &str,
    wanted: bool,
    dry_run: bool,
    limit: Duration,
) -> Result<Option<PathBuf>, Error> {
    if !wanted {
        // Go's manifests name an image in a registry. Pulling it at every
        // start made registries a part of the node (I6).
        print(&format!("note: CRIU comes with the installer, not from {reference}\n"))?;
        return Ok(None);
    }
    let store = node.host.resolve(&Path::new(state::DIR).join("criu"))?;
    if let Some(kept) = criu_image::kept(reference, &store) {
        return Ok(Some(kept));
    }
    if dry_run {
        print(&format!("note: {reference} would be pulled\n"))?;
        return Ok(None);
    }
    let socket = node.host.resolve(&node.facts.layout.socket)?;
    let pulled = criu_image::pulled(reference, &socket, &store, limit).await?;
    print(&format!("{reference}: pulled\n"))?;
    Ok(Some(pulled))
}

fn default_host_root() -> PathBuf {
    let mounted = Path::new("/host");
    if mounted.is_dir() { mounted.into() } else { "/".into() }
}

fn describe(facts: &Facts) -> String {
    let Layout { distribution, config, socket, .. } = &facts.layout;
    format!(
        "runtime:    {distribution}\ncontainerd: {}\nsocket:     {}\nconfig:     {}\n",
        facts.containerd,
        socket.display(),
        config.display()
    )
}

fn conclusion(plan: &Plan, steps: &[String], restart: Option<&str>) -> String {
    let mut text = String::new();
    for step in steps {
        let _ = writeln!(text, "{step}");
    }
    for change in &plan.changes {
        let _ = writeln!(text, "{}: change", change.path.display());
    }
    if let Some(reason) = restart {
        let _ = writeln!(text, "restart containerd: {reason}");
    }
    if text.is_empty() {
        text.push_str("Nothing to do.\n");
    }
    text
}

fn exit_code(done: bool) -> ExitCode {
    if done { ExitCode::SUCCESS } else { ExitCode::from(WORK_TO_DO) }
}

fn print(text: &str) -> Result<(), Error> {
    io::stdout().lock().write_all(text.as_bytes()).map_err(Error::io("write", "standard output"))
}
