//! `cargo xtask bench`: figures of release builds. Machines are shared and
//! noisy: compare what one run prints, not the runs of different days.

use std::{error::Error, ffi::OsStr, process::Command};

use clap::ValueEnum;

use crate::{
    host::{self, NODE, TESTS},
    say,
};

/// Options of the measurements.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// What to measure; everything by default.
    what: Vec<What>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum What {
    /// Start, memory and scrapes of the whole manager.
    Manager,
    /// The cost of a packet in the redirector.
    Ebpf,
    /// The cost of a scrape.
    Scrape,
    /// The cost of following many shims.
    Shims,
    /// The cost of knowing many pods.
    Pods,
}

/// Measures.
///
/// # Errors
/// When something that a measurement needs cannot be had.
pub(crate) fn run(args: &Args) -> Result<(), Box<dyn Error>> {
    let Args { what } = args;
    let what = if what.is_empty() { What::value_variants() } else { what };
    host::install(&[&NODE, &TESTS])?;
    for what in what {
        match what {
            What::Manager => manager()?,
            What::Ebpf => ebpf()?,
            What::Scrape => example("zeropod-metrics-aggregator", "figures", &[])?,
            What::Shims => example("zeropod-shim-event-client", "many_shims", &["500"])?,
            What::Pods => example("zeropod-k8s-status-writer", "memory", &["500"])?,
        }
    }
    Ok(())
}

fn manager() -> Result<(), Box<dyn Error>> {
    say("\n== manager");
    host::run(host::cargo().args([
        "build",
        "--quiet",
        "--release",
        "--package",
        "zeropod-manager",
    ]))?;
    host::run(host::cargo().args([
        "build",
        "--quiet",
        "--package",
        "zeropod-testkit",
        "--features",
        "box",
        "--bins",
    ]))?;
    let figures = host::target("debug").join("manager-figures");
    host::run(
        host::as_root(figures)
            .arg("--manager")
            .arg(host::target("release").join("zeropod-manager")),
    )
}

fn ebpf() -> Result<(), Box<dyn Error>> {
    say("\n== ebpf: nanoseconds a packet");
    let package = ["--package", "zeropod-ebpf-loader", "--example", "bench"];
    host::run(host::cargo().args(["build", "--quiet", "--release"]).args(package))?;
    // The programs are pinned: on a BPF file system that goes with its mount.
    let private = "mount -t bpf bpf /sys/fs/bpf && exec \"$@\"";
    let object = host::workspace().join("crates/ebpf-loader/src/redirector.o");
    host::run(
        host::as_root("unshare")
            .args(["--mount", "--net", "--propagation", "private", "sh", "-ec", private, "sh"])
            .arg(host::target("release").join("examples/bench"))
            .arg(object),
    )
}

fn example(package: &str, name: &str, args: &[&str]) -> Result<(), Box<dyn Error>> {
    say(&format!("\n== {package}: {name} {}", args.join(" ")));
    let mut cargo: Command = host::cargo();
    cargo.args(["run", "--quiet", "--release", "--package", package, "--example", name, "--"]);
    host::run(cargo.args(args.iter().map(OsStr::new)))
}
