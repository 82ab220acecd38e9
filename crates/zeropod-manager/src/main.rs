//! The zeropod node daemon: command line, logs, and the wiring of the crates
//! that do the work.

mod args;
mod command;
mod containerd;
mod control;
mod http;
mod kubelet;
mod kubernetes;
mod logging;
mod run;
mod status;
mod telemetry;

use std::{env, error::Error, process::ExitCode};

use args::Args;
use logging::LogLevel;
use tracing::error;

fn main() -> ExitCode {
    let mut args: Args = match zeropod_go_flags::parse(env::args_os()) {
        Ok(args) => args,
        Err(error) => return zeropod_go_flags::report(&error),
    };
    if args.version {
        print_version();
        return ExitCode::SUCCESS;
    }
    let command = args.command.take();
    // Two workers, whatever the node's size: the default of one a core costs a
    // node with 200 cores hundreds of threads for a daemon that mostly waits.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(4)
        .enable_all()
        .build();
    let done = match (runtime, command) {
        (Err(error), _) => Err(run::RunError::Runtime(error)),
        (Ok(runtime), Some(command)) => return runtime.block_on(command::run(command)),
        (Ok(runtime), None) => {
            let level = if args.debug { LogLevel::Debug } else { LogLevel::Info };
            runtime.block_on(run::run(args, logging::init(level)))
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            error!(error = &failure as &dyn Error, "The manager stops");
            ExitCode::FAILURE
        }
    }
}

#[expect(clippy::print_stdout, reason = "it is what -version is for")]
fn print_version() {
    println!("{}", zeropod_build_info::long("zeropod-manager"));
}
