//! `cargo xtask demo`: builds a node in a box and lets it show the main job.

use std::{error::Error, process::ExitCode};

use zeropod_testkit::{apiserver_build, tools};

use crate::{
    host::{self, KUBERNETES, NODE},
    say,
};

/// Options of the demo.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Use a real kube-apiserver; it is built once, which takes minutes.
    #[arg(long)]
    kubernetes: bool,
    /// Leave the node running at the end, with its addresses printed.
    #[arg(long)]
    keep: bool,
}

/// Builds what the demo needs and runs it.
///
/// # Errors
/// When something that it needs cannot be had.
pub(crate) fn run(args: &Args) -> Result<ExitCode, Box<dyn Error>> {
    let &Args { kubernetes, keep } = args;
    host::install(&[&NODE, if kubernetes { &KUBERNETES } else { &[] }])?;
    say("Building the manager and a node to put it on");
    host::run(host::cargo().args(["build", "--quiet", "--package", "zeropod-manager"]))?;
    let programs = host::build_box()?;
    if let Err(error) = tools::criu() {
        say(&format!("No CRIU ({error}): containers will be killed instead of checkpointed"));
    }
    if kubernetes {
        say("Looking for kube-apiserver in the cache; building it takes minutes, once");
        apiserver_build::program()?;
    }
    let mut demo = host::as_root(programs.join("node-in-a-box"));
    demo.arg("--manager").arg(programs.join("zeropod-manager"));
    if kubernetes {
        demo.arg("--kubernetes");
    }
    if keep {
        demo.arg("--keep");
    }
    let status = host::status(&mut demo)?;
    Ok(status
        .code()
        .and_then(|code| u8::try_from(code).ok())
        .map_or(ExitCode::FAILURE, ExitCode::from))
}
