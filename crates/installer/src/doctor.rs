//! Looking at everything that zeropod needs on a node, without changing
//! anything.

use std::{fmt::Write as _, path::Path, time::Duration};

use k8s_openapi::api::{core::v1::Node as KubeNode, node::v1::RuntimeClass};
use kube::Api;
use serde::Serialize;
use zeropod_shim_api::names::RUNTIME_CLASS;

use crate::{
    Error,
    apply::{self, Served},
    bpffs::{BPF_FS, is_bpf_fs},
    chain,
    config::{Source as _, wanted::SHIM},
    host::HostRoot,
    node::Node,
    on_host::{self, NotRun},
    plan::{Options, desired_config},
    state::State,
};

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What it is about, in a word or two.
    pub name: &'static str,
    /// How it is.
    pub status: Status,
    /// What was seen.
    pub detail: String,
    /// What to do about it; empty if nothing is.
    pub hint: &'static str,
}

/// How a thing is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// As it should be.
    Ok,
    /// Something works less well.
    Warn,
    /// Zeropods cannot work.
    Fail,
    /// It could not be looked at from here.
    Unknown,
}

/// The label that puts the `DaemonSet` and zeropods on a node.
const NODE_LABEL: &str = "zeropod.ctrox.dev/node";

/// How long a program of the host may take for one answer.
const ANSWER: Duration = Duration::from_secs(15);

/// The hint for what the installer repairs.
const REINSTALL: &str = "run the installer; -dry-run shows what it would do";

/// What a run without `-o json` prints.
pub fn table(checks: &[Check]) -> String {
    let width = checks.iter().map(|check| check.name.len()).max().unwrap_or_default();
    let mut text = String::new();
    for Check { name, status, detail, hint } in checks {
        let status = match status {
            Status::Ok => "ok",
            Status::Warn => "warn",
            Status::Fail => "FAIL",
            Status::Unknown => "?",
        };
        let _ = writeln!(text, "{status:<5} {name:<width$}  {detail}");
        if !hint.is_empty() {
            let _ = writeln!(text, "      {:<width$}  -> {hint}", "");
        }
    }
    text
}

/// Whether zeropods can work as far as can be told.
pub fn is_healthy(checks: &[Check]) -> bool {
    checks.iter().all(|check| check.status != Status::Fail)
}

/// Looks at the kernel that this runs on, which is the host's.
pub fn kernel(host: &HostRoot) -> Vec<Check> {
    let release = read(host, "/proc/sys/kernel/osrelease");
    let version = release.as_deref().and_then(major_minor);
    let exists = |path: &str| host.exists(Path::new(path)).unwrap_or(false);
    let bpf_fs = host.resolve(Path::new(BPF_FS)).and_then(|path| is_bpf_fs(&path));
    vec![
        match (&release, version) {
            (Some(release), Some(version)) if version >= (6, 6) => {
                ok("kernel", format!("{release}: redirects by TCX"))
            }
            (Some(release), Some(version)) if version >= (5, 17) => Check {
                name: "kernel",
                status: Status::Warn,
                detail: format!("{release}: redirects by the older clsact hook"),
                hint: "TCX, which shares an interface with other programs, needs 6.6",
            },
            (release, _) => Check {
                name: "kernel",
                status: Status::Fail,
                detail: release.clone().unwrap_or_else(|| "its release is unknown".into()),
                hint: "the redirector needs bpf_strncmp, so Linux 5.17 or later",
            },
        },
        if exists("/sys/kernel/btf/vmlinux") {
            ok("kernel BTF", "present")
        } else {
            fail("kernel BTF", "absent", "a kernel with CONFIG_DEBUG_INFO_BTF is needed")
        },
        match bpf_fs {
            Ok(true) => ok("bpffs", format!("mounted on {BPF_FS}")),
            Ok(false) => fail(
                "bpffs",
                format!("{BPF_FS} is another file system"),
                "run `zeropod-installer prepare-bpf-fs` with bidirectional propagation",
            ),
            Err(error) => unknown("bpffs", error.to_string()),
        },
        if exists("/proc/sys/vm/unprivileged_userfaultfd") || exists("/dev/userfaultfd") {
            ok("userfaultfd", "present")
        } else {
            Check {
                name: "userfaultfd",
                status: Status::Warn,
                detail: "absent".into(),
                hint: "live migration needs CONFIG_USERFAULTFD; everything else works",
            }
        },
        security(host),
    ]
}

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
    checks.push(match apply::served(node).await {
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

/// Looks at what the cluster says of the node, if it can be asked.
pub async fn cluster(client: Result<kube::Client, Error>, node_name: Option<&str>) -> Vec<Check> {
    let client = match client {
        Ok(client) => client,
        Err(error) => return vec![unknown("cluster", chain(&error))],
    };
    let classes: Api<RuntimeClass> = Api::all(client.clone());
    let class = match within(classes.get_opt(RUNTIME_CLASS)).await {
        Ok(Some(class)) if class.handler == RUNTIME_CLASS => ok("RuntimeClass", "present"),
        Ok(Some(class)) => fail(
            "RuntimeClass",
            format!("its handler is {}", class.handler),
            "its handler has to be zeropod",
        ),
        Ok(None) => fail("RuntimeClass", "absent", "apply the one in deploy/base"),
        Err(reason) => unknown("RuntimeClass", reason),
    };
    let nodes: Api<KubeNode> = Api::all(client);
    let label = match node_name {
        None => unknown("node label", "NODE_NAME is not set".into()),
        Some(name) => match within(nodes.get_opt(name)).await {
            Ok(node) => {
                let labels = node.and_then(|node| node.metadata.labels).unwrap_or_default();
                if labels.get(NODE_LABEL).is_some_and(|value| value == "true") {
                    ok("node label", format!("{NODE_LABEL}=true"))
                } else {
                    fail(
                        "node label",
                        "absent",
                        "kubectl label node NAME zeropod.ctrox.dev/node=true",
                    )
                }
            }
            Err(reason) => unknown("node label", reason),
        },
    };
    vec![class, label]
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

fn security(host: &HostRoot) -> Check {
    let selinux = read(host, "/sys/fs/selinux/enforce");
    let apparmor = read(host, "/sys/module/apparmor/parameters/enabled");
    match (selinux.as_deref(), apparmor.as_deref()) {
        (Some("1"), _) => Check {
            name: "security module",
            status: Status::Warn,
            detail: "SELinux enforces".into(),
            hint: "files below the opt directory need a type that containerd may run",
        },
        (_, Some("Y")) => ok("security module", "AppArmor"),
        _ => ok("security module", "none that restricts"),
    }
}

async fn within<T>(answer: impl Future<Output = Result<T, kube::Error>>) -> Result<T, String> {
    match tokio::time::timeout(ANSWER, answer).await {
        Ok(answer) => answer.map_err(|error| chain(&error)),
        Err(_) => Err(format!("no answer in {ANSWER:?}")),
    }
}

fn read(host: &HostRoot, path: &str) -> Option<String> {
    let content = host.read(Path::new(path)).ok()??;
    Some(String::from_utf8_lossy(&content).trim().to_owned())
}

fn major_minor(release: &str) -> Option<(u32, u32)> {
    let mut parts = release.split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

fn ok(name: &'static str, detail: impl Into<String>) -> Check {
    Check { name, status: Status::Ok, detail: detail.into(), hint: "" }
}

fn fail(name: &'static str, detail: impl Into<String>, hint: &'static str) -> Check {
    Check { name, status: Status::Fail, detail: detail.into(), hint }
}

fn unknown(name: &'static str, detail: String) -> Check {
    Check { name, status: Status::Unknown, detail, hint: "" }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn old_kernels_are_told() {
        // F-B8.
        for (release, status) in [
            ("6.18.5", Status::Ok),
            ("6.6.0-rc1", Status::Ok),
            ("5.17.0-100-generic", Status::Warn),
            ("5.10.210-201.852.amzn2.x86_64", Status::Fail),
            ("unknown", Status::Fail),
        ] {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("proc/sys/kernel");
            fs::create_dir_all(&path).unwrap();
            fs::write(path.join("osrelease"), format!("{release}\n")).unwrap();
            let checks = kernel(&HostRoot::new(dir.path()));
            assert_eq!((checks[0].name, checks[0].status), ("kernel", status), "{release}");
        }
    }

    #[test]
    fn the_table_is_read_by_people() {
        let checks = [ok("a", "fine"), fail("long one", "broken", "repair it")];
        assert_eq!(
            table(&checks),
            "ok    a         fine\nFAIL  long one  broken\n                -> repair it\n"
        );
        assert!(!is_healthy(&checks) && is_healthy(&checks[..1]));
    }
}
