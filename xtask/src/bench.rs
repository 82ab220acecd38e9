//! `cargo xtask bench`: figures of release builds. Machines are shared and
//! noisy: compare what one run prints, not the runs of different days.

mod ebpf;

use std::{error::Error, ffi::OsStr, process::Command};

use clap::ValueEnum;

use crate::{
    host::{self, NODE, Need, TESTS},
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
    /// The cost of a packet in the redirector, and of many sandboxes.
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
            What::Ebpf => ebpf::run()?,
            What::Scrape => example("zeropod-metrics-aggregator", "figures", &[])?,
            What::Shims => example("zeropod-shim-event-client", "many_shims", &["500"])?,
            What::Pods => example("zeropod-k8s-status-writer", "memory", &["500"])?,
        }
    }
    Ok(())
}

/// The manager as it is shipped: linked statically with musl, whose allocator
/// gives memory back. With glibc it takes half as much again. What measures it
/// is a release build too, since it is shims, API server and scraper in one.
fn manager() -> Result<(), Box<dyn Error>> {
    say("\n== manager");
    host::install(&[&[Need { what: "musl-gcc", package: "musl-tools" }]])?;
    let musl = format!("{}-unknown-linux-musl", std::env::consts::ARCH);
    host::run(
        Command::new("rustup").current_dir(host::workspace()).args(["target", "add", &musl]),
    )?;
    let release = ["build", "--quiet", "--release", "--package", "zeropod-manager", "--target"];
    host::run(host::cargo().args(release).arg(&musl))?;
    let package = ["--package", "zeropod-testkit", "--features", "box", "--bin", "manager-figures"];
    host::run(host::cargo().args(["build", "--quiet", "--release"]).args(package))?;
    let figures = host::target("release").join("manager-figures");
    let manager = host::target(&musl).join("release/zeropod-manager");
    host::run(host::as_root(figures).arg("--manager").arg(manager))
}

fn example(package: &str, name: &str, args: &[&str]) -> Result<(), Box<dyn Error>> {
    say(&format!("\n== {package}: {name} {}", args.join(" ")));
    let mut cargo: Command = host::cargo();
    cargo.args(["run", "--quiet", "--release", "--package", package, "--example", name, "--"]);
    host::run(cargo.args(args.iter().map(OsStr::new)))
}
