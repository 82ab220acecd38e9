//! What the tests of this crate share. Each test binary uses a part of it.
#![expect(dead_code, reason = "each test binary uses a part")]
#![expect(clippy::unwrap_used, clippy::print_stderr, reason = "helpers of tests are tests")]

pub(crate) mod foreign;
pub(crate) mod manager;
pub(crate) mod node;
pub(crate) mod packet;
pub(crate) mod redirector;
pub(crate) mod shim;
pub(crate) mod tap;
pub(crate) mod wire;

use std::{
    env, fs,
    process::{Command, Output},
    time::{Duration, Instant},
};

/// Whether a test can run here. When not, and everything must run, it fails.
pub(crate) fn can_run(tools: &[&str]) -> bool {
    let mut missing = Vec::new();
    if !nix::unistd::geteuid().is_root() {
        missing.push("root".to_owned());
    }
    let found = |tool: &str| {
        let path = env::var_os("PATH").unwrap_or_default();
        env::split_paths(&path)
            .chain(["/usr/sbin".into(), "/sbin".into()])
            .any(|dir| fs::metadata(dir.join(tool)).is_ok_and(|file| file.is_file()))
    };
    missing.extend(tools.iter().filter(|tool| !found(tool)).map(|tool| (*tool).to_owned()));
    if missing.is_empty() {
        return true;
    }
    skip(&missing.join(" and "));
    false
}

/// Tells that a test cannot run here. When everything must run, it fails.
pub(crate) fn skip(missing: &str) {
    let required = env::var_os("CI").is_some_and(|value| value == "true")
        || env::var_os("ZEROPOD_REQUIRE_ALL").is_some_and(|value| value == "1");
    assert!(!required, "this test needs {missing}");
    eprintln!("SKIPPED: needs {missing}");
}

/// Runs a command that must succeed and returns what it printed.
pub(crate) fn sh(command: &str) -> String {
    let Output { status, stdout, stderr } =
        Command::new("sh").args(["-c", command]).output().unwrap();
    assert!(status.success(), "{command}: {status}: {}", String::from_utf8_lossy(&stderr));
    String::from_utf8(stdout).unwrap()
}

/// Waits until something is so.
pub(crate) fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < Duration::from_secs(30), "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
