//! `cargo xtask images`; see the library.

use std::{error::Error as _, process::ExitCode};

use clap::Parser as _;
use zeropod_images::run::{Args, run, workspace};

fn main() -> ExitCode {
    let args = Args::parse();
    let done = workspace().and_then(|workspace| run(&args, &workspace, &say));
    let Err(error) = done else { return ExitCode::SUCCESS };
    let mut message = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        message = format!("{message}: {error}");
        cause = error.source();
    }
    say(&format!("error: {message}"));
    ExitCode::FAILURE
}

#[expect(clippy::print_stdout, reason = "it is what this program is for")]
fn say(line: &str) {
    println!("{line}");
}
