//! From the command line to an exit code.

use std::{
    fmt::Write as _,
    io::{self, Write as _},
    path::PathBuf,
    process::ExitCode,
};

use crate::{
    Error,
    cli::Args,
    containerd::Containerd,
    distribution::{Layout, detect},
    facts::Facts,
    host::HostRoot,
    plan::{Options, Plan, desired_config, undo},
};

/// Exit code of a dry run that found something to do.
pub const WORK_TO_DO: u8 = 2;

/// Does what the command line says, printing to standard output.
///
/// # Errors
/// Everything that keeps the node from being looked at or configured.
pub async fn run(args: Args) -> Result<ExitCode, Error> {
    let Args {
        criu_image: _,
        runtime,
        host_opt_path,
        uninstall,
        timeout,
        version,
        probe_binary_name: _,
        tracker_ignore_localhost: _,
        dry_run,
        host_root,
        containerd_config,
        containerd_socket,
        containerd_version,
        systemd_cgroup,
    } = args;
    if version {
        print(&format!("{}\n", zeropod_build_info::long("zeropod-installer")))?;
        return Ok(ExitCode::SUCCESS);
    }
    if !dry_run {
        return Err(Error::Unsupported("only -dry-run is implemented so far; nothing was changed"));
    }
    let host = HostRoot::new(host_root.unwrap_or_else(default_host_root));
    let mut layout = match &containerd_config {
        Some(_) => runtime.unwrap_or(crate::distribution::Distribution::Containerd).layout(),
        None => detect(&host, runtime)?,
    };
    layout.config = containerd_config.unwrap_or(layout.config);
    layout.socket = containerd_socket.unwrap_or(layout.socket);
    let look = async {
        let containerd = match containerd_version {
            Some(version) => version,
            None => Containerd::connect(&host.resolve(&layout.socket)?).await?.version().await?,
        };
        Facts::gather(&host, layout, containerd)
    };
    let facts =
        tokio::time::timeout(timeout, look).await.map_err(|_| Error::Timeout(timeout))??;
    let plan = if uninstall {
        undo(&facts)?
    } else {
        desired_config(&facts, &Options { host_opt_path, systemd_cgroup })?
    };
    print(&describe(&facts, &plan))?;
    Ok(if plan.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(WORK_TO_DO) })
}

fn default_host_root() -> PathBuf {
    let mounted = PathBuf::from("/host");
    if mounted.is_dir() { mounted } else { PathBuf::from("/") }
}

fn describe(facts: &Facts, plan: &Plan) -> String {
    let Layout { distribution, config, socket, .. } = &facts.layout;
    let mut text = format!(
        "runtime:    {distribution}\ncontainerd: {}\nsocket:     {}\nconfig:     {}\n",
        facts.containerd,
        socket.display(),
        config.display()
    );
    if plan.is_empty() {
        text.push_str("Nothing to do.\n");
    } else {
        let _ = writeln!(text, "{} file(s) to change:", plan.changes.len());
    }
    text.push_str(&plan.to_string());
    text
}

fn print(text: &str) -> Result<(), Error> {
    io::stdout().lock().write_all(text.as_bytes()).map_err(Error::io("write", "standard output"))
}
