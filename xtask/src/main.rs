//! Tasks of the workspace: `cargo xtask` lists them.

mod bench;
mod build_ebpf;
mod demo;
mod docs;
mod host;
mod images;
mod test;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use zeropod_testkit::chain;

/// Tasks of the zeropod workspace.
#[derive(Parser)]
#[command(name = "cargo xtask")]
struct Args {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Measure speed and memory, side by side in one run.
    Bench(bench::Args),
    /// Build the eBPF object that the loader embeds.
    BuildEbpf(build_ebpf::Args),
    /// Show the main job on this machine: scale a server to zero, wake it by a
    /// request.
    Demo(demo::Args),
    /// Write the generated pages of the book.
    Docs {
        /// Only compare with the committed pages.
        #[arg(long)]
        check: bool,
    },
    /// Build the OCI images of the manager and the installer.
    Images(images::Args),
    /// Run every test.
    Test(test::Args),
}

fn main() -> ExitCode {
    let Args { task } = Args::parse();
    let done = match task {
        Task::Bench(args) => bench::run(&args).map(|()| ExitCode::SUCCESS),
        Task::BuildEbpf(args) => build_ebpf::run(&args).map(|()| ExitCode::SUCCESS),
        Task::Demo(args) => demo::run(&args),
        Task::Docs { check } => docs::run(check).map(|()| ExitCode::SUCCESS),
        Task::Images(args) => images::run(&args),
        Task::Test(args) => test::run(&args),
    };
    done.unwrap_or_else(|error| {
        say(&format!("error: {}", chain(error.as_ref())));
        ExitCode::FAILURE
    })
}

/// Prints a line about what a task does.
#[expect(clippy::print_stdout, reason = "it is what this program is for")]
pub(crate) fn say(line: &str) {
    println!("{line}");
}
