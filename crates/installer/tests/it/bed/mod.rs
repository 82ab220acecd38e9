//! What several tests of this crate stand on.

pub(crate) mod case;
mod cgroup;
pub(crate) mod node;
pub(crate) mod root;

/// Whether a test can run. If not it says why, and fails where skipping is not
/// an option.
pub(crate) fn can_run(test: &str) -> bool {
    let missing = if nix::unistd::geteuid().is_root() {
        ["debootstrap", "systemd-nspawn", "unshare", "nsenter", "strace", "go"]
            .into_iter()
            .find(|tool| find(tool).is_none())
            .map(|tool| format!("{tool} is not installed"))
    } else {
        Some("needs root".to_owned())
    };
    let Some(reason) = missing else { return true };
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
