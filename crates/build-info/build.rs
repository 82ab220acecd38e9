//! Finds out the revision and the compiler.

use std::{env, path::Path, process::Command};

fn main() {
    println!("cargo::rerun-if-env-changed=ZEROPOD_REVISION");
    let git = Path::new("../../.git/logs/HEAD");
    if git.exists() {
        println!("cargo::rerun-if-changed={}", git.display());
    }
    let revision = env::var("ZEROPOD_REVISION")
        .ok()
        .filter(|revision| !revision.is_empty())
        .or_else(|| output("git", &["rev-parse", "--short=12", "HEAD"]))
        .unwrap_or_else(|| "unknown".into());
    let rustc = env::var("RUSTC")
        .ok()
        .and_then(|rustc| output(&rustc, &["--version"]))
        .and_then(|line| line.split(' ').nth(1).map(str::to_owned))
        .unwrap_or_else(|| "unknown".into());
    println!("cargo::rustc-env=ZEROPOD_REVISION={revision}");
    println!("cargo::rustc-env=ZEROPOD_RUSTC={rustc}");
}

fn output(program: &str, args: &[&str]) -> Option<String> {
    let output = Command::new(program).args(args).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim().to_owned())
}
