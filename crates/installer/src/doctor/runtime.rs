//! containerd, its configuration, and the files of the runtime.

use std::path::Path;

use super::{Check, REINSTALL, fail, ok, unknown};
use crate::{
    chain,
    config::wanted::SHIM,
    host::HostRoot,
    node::Node,
    on_host::{self, NotRun},
    plan::{Options, desired_config},
    proof::{self, Served},
    state::State,
};

/// Looks at containerd, its configuration and the runtime's files.
pub async fn runtime(node: &mut Node, options: &Options) -> Vec<Check> {
    let facts = &node.facts;
    let mut checks =
        vec![ok("containerd", format!("{} by {}", facts.containerd, facts.layout.distribution))];
    checks.push(match node.systemd() {
        Ok(Some(_)) => ok("systemd", "answers"),
        Ok(None) => unknown("systemd", "the host has none: containerd is restarted by hand".into()),
        Err(error) => {
            fail("systemd", chain(&error), "the installer needs it to restart containerd")
        }
    });
    let plan = desired_config(&node.facts, options);
    let (opt_path, expected) = match &plan {
        Ok(plan) => (plan.opt_path.clone(), plan.expected.handler.clone()),
        Err(_) => (options.host_opt_path.clone(), None),
    };
    checks.push(match &plan {
        Ok(plan) if plan.is_empty() => {
            ok("configuration", node.facts.layout.config.display().to_string())
        }
        Ok(plan) => {
            let paths: Vec<_> =
                plan.changes.iter().map(|change| change.path.display().to_string()).collect();
            fail("configuration", format!("differs: {}", paths.join(", ")), REINSTALL)
        }
        Err(error) => fail("configuration", chain(error), "see docs/containerd.md"),
    });
    checks.push(match proof::served(node).await {
        Ok(Served::Dead) => fail("handler", "the CRI plugin is not loaded", "see containerd's log"),
        Ok(Served::Handler(None)) => fail("handler", "not served", REINSTALL),
        Ok(Served::Handler(Some(served))) => {
            let known = expected.is_none_or(|it| it.runtime_path == served.runtime_path);
            if known {
                ok("handler", format!("served with {}", served.runtime_path))
            } else {
                fail("handler", format!("served with {}", served.runtime_path), REINSTALL)
            }
        }
        Err(error) => fail("handler", chain(&error), "see containerd's log"),
    });
    checks.push(ownership(&node.host, &opt_path));
    for (name, result, hint) in [
        ("shim", on_host::version(node, &opt_path, SHIM, "-v"), REINSTALL),
        ("criu", on_host::version(node, &opt_path, "criu", "--version"), REINSTALL),
        (
            "checkpoint",
            on_host::checkpoint(node, &opt_path),
            "zeropods would be killed instead; CRIU before 4.2 cannot dump sockets on Linux 6.16 and later",
        ),
    ] {
        checks.push(match result {
            Ok(answer) => ok(name, answer),
            Err(NotRun::Impossible) => unknown(name, "not run: the host has no systemd".into()),
            Err(NotRun::Failed(reason)) => fail(name, reason, hint),
        });
    }
    checks
}

fn ownership(host: &HostRoot, opt_path: &Path) -> Check {
    let state = match State::load(host) {
        Ok(state) => state,
        Err(error) => return unknown("files", chain(&error)),
    };
    if state.files.is_empty() {
        let detail = format!("none recorded below {}", opt_path.display());
        return fail("files", detail, "run the installer");
    }
    let changed: Vec<String> = state
        .files
        .iter()
        .filter(|(path, owned)| !crate::files::is_still(host, path, owned).unwrap_or(false))
        .map(|(path, _)| path.display().to_string())
        .collect();
    if changed.is_empty() {
        ok("files", format!("{} as installed", state.files.len()))
    } else {
        fail("files", format!("missing or changed: {}", changed.join(", ")), "run the installer")
    }
}
