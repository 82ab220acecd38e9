//! Tests that a machine cannot run: a failure where nothing may be skipped,
//! else one line that `cargo xtask test` counts.

use std::{env, fs};

/// Says why a test is skipped; its caller then returns.
///
/// # Panics
/// When the environment has `CI=true` or `ZEROPOD_REQUIRE_ALL=1`: there a test
/// that cannot run has failed.
#[expect(clippy::print_stderr, reason = "the line is meant for whoever runs the tests")]
pub fn skip(reason: &str) {
    let set = |name, value| env::var_os(name).is_some_and(|is| is == value);
    let required = set("CI", "true") || set("ZEROPOD_REQUIRE_ALL", "1");
    assert!(!required, "cannot run: {reason}");
    eprintln!("SKIPPED: {reason}");
}

/// Skips a test that needs root when it has none; true means that it has to
/// return.
pub fn without_root() -> bool {
    let root = fs::read_to_string("/proc/self/status")
        .is_ok_and(|status| status.lines().any(|line| line.starts_with("Uid:\t0\t0\t")));
    if !root {
        skip("needs root");
    }
    !root
}
