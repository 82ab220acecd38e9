//! What several tests of this crate stand on.

pub(crate) mod case;
mod cgroup;
pub(crate) mod node;
pub(crate) mod registry;
pub(crate) mod root;

/// Whether a test can run. If not it says why, and fails where skipping is not
/// an option.
pub(crate) fn can_run(test: &str) -> bool {
    let missing = if nix::unistd::geteuid().is_root() {
        ["debootstrap", "systemd-nspawn", "unshare", "nsenter", "strace", "go"]
            .into_iter()
            .find(|tool| find(tool).is_none())
    } else {
        return skip(test, "needs root");
    };
    all_there(test, missing)
}

/// The same for a tool that only some tests need.
pub(crate) fn all_there(test: &str, missing: Option<&str>) -> bool {
    missing.is_none_or(|tool| skip(test, &format!("{tool} is not installed")))
}

/// Says why a test does not run.
pub(crate) fn skip(test: &str, reason: &str) -> bool {
    let strict = std::env::var("CI").is_ok_and(|ci| ci == "true")
        || std::env::var("ZEROPOD_REQUIRE_ALL").is_ok_and(|all| all == "1");
    assert!(!strict, "{test}: {reason}");
    eprintln!("SKIPPED: {test}: {reason}");
    false
}

fn find(tool: &str) -> Option<std::path::PathBuf> {
    std::env::split_paths(&std::env::var_os("PATH")?)
        .map(|dir| dir.join(tool))
        .find(|path| path.is_file())
}
