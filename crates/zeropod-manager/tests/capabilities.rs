//! The capabilities of the manager's container are enough, and none that can
//! be shown to be needed is missing from the list: a node whose manager has
//! just those of `deploy/base`, and nodes whose manager lacks one of them.
//!
//! Not libtest's harness, as `whole_node`.

#[path = "whole_node/support.rs"]
#[expect(dead_code, reason = "shared with whole_node, which uses all of it")]
mod support;

use std::{
    error::Error,
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::ExitCode,
};

use libtest_mimic::Trial;
use support::{Done, NAMESPACE, gone, pod, request, run, scaled_down, shows, trial};
use tempfile::TempDir;
use zeropod_testkit::{
    kube::{create_namespace, parse_manifests},
    node_in_a_box::{Kubernetes, Node, until},
};

/// Those without which nothing can be attached, and how. By TCX it is done
/// without `NET_ADMIN`; `SYS_RESOURCE` counts only on kernels before 5.11.
const NEEDED: [(&str, &str, &[&str]); 3] = [
    ("without_sys_ptrace_nothing_is_attached", "SYS_PTRACE", &[]),
    ("without_sys_admin_nothing_is_attached", "SYS_ADMIN", &[]),
    ("without_net_admin_clsact_is_not_attached", "NET_ADMIN", &["-attach-mechanism", "clsact"]),
];

fn main() -> Result<ExitCode, Box<dyn Error>> {
    run(trials)
}

fn trials() -> Vec<Trial> {
    // M1, F-D2.
    let clsact: &[&str] = &["-attach-mechanism", "clsact"];
    let mut trials = vec![
        trial("f_d2_the_manifests_capabilities_are_enough", |criu| enough(&[], criu)),
        trial("f_d2_and_for_clsact", move |criu| enough(clsact, criu)),
    ];
    trials.extend(
        NEEDED.map(|(name, needed, flags)| trial(name, move |criu| lacking(needed, flags, criu))),
    );
    trials
}

/// The main job, with the capabilities of the manifest.
async fn enough(flags: &[&str], criu: PathBuf) -> Done {
    let capabilities = manifest()?;
    assert!(NEEDED.iter().all(|(_, needed, _)| capabilities.iter().any(|one| one == needed)));
    let (node, _wrapper) = node_with(&capabilities).await?;
    let mut manager = node.start_manager(flags).await?;
    let mut log = manager.take_lines();
    // Else it is held up once its pipe is full.
    tokio::spawn(async move { while log.recv().await.is_some() {} });
    assert_eq!(effective(manager.pid())?, mask(&capabilities)? & mask_of_this_process()?);

    let pod = pod(&node, criu).await?;
    let mut happenings = pod.happenings();
    assert_eq!(request(&pod).await?, 1);
    shows(&node, "RUNNING").await?;
    scaled_down(&mut happenings).await?;
    shows(&node, "SCALED_DOWN").await?;
    assert_eq!(request(&pod).await?, 2, "the counter survived");
    shows(&node, "RUNNING").await?;
    until("a manager that misses nothing", async || {
        let metrics = node.metrics().await.ok()?;
        let wrong = |line: &&str| line.starts_with("zeropod_degraded{") && !line.ends_with(" 0");
        metrics.lines().find(wrong).is_none().then_some(())
    })
    .await?;
    gone(&node, pod).await?;
    match manager.stop().await {
        Some(status) if status.success() => Ok(()),
        other => Err(format!("the manager ended with {other:?}").into()),
    }
}

/// The same without one of them: the sandbox is told to be without redirector.
async fn lacking(needed: &str, flags: &[&str], criu: PathBuf) -> Done {
    let mut capabilities = manifest()?;
    capabilities.retain(|one| one != needed);
    let (node, _wrapper) = node_with(&capabilities).await?;
    let mut manager = node.start_manager(flags).await?;
    let mut log = manager.take_lines();
    tokio::spawn(async move { while log.recv().await.is_some() {} });
    let pod = pod(&node, criu).await?;
    until("a sandbox without redirector", async || {
        let metrics = node.metrics().await.ok()?;
        metrics
            .lines()
            .any(|line| line.contains(r#""redirector-not-attached""#) && !line.ends_with(" 0"))
            .then_some(())
    })
    .await?;
    pod.stop(&node).await?;
    manager.kill().await;
    Ok(())
}

/// What the manager's container adds to nothing.
fn manifest() -> Result<Vec<String>, Box<dyn Error>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/base/node-daemonset.yaml");
    let objects = parse_manifests(&fs::read_to_string(path)?)?;
    let container = &objects[0].data["spec"]["template"]["spec"]["containers"][0];
    let capabilities = &container["securityContext"]["capabilities"];
    assert_eq!(capabilities["drop"], serde_json::json!(["ALL"]));
    let add = capabilities["add"].as_array().ok_or("no capabilities")?;
    Ok(add.iter().filter_map(|one| Some(one.as_str()?.to_owned())).collect())
}

/// A node whose manager has these in its bounding set only, as a container's.
async fn node_with(capabilities: &[String]) -> Result<(Node, TempDir), Box<dyn Error>> {
    let dir = tempfile::tempdir()?;
    let wrapper = dir.path().join("manager");
    let mut kept = vec!["-all".to_owned()];
    kept.extend(capabilities.iter().map(|one| format!("+{}", one.to_lowercase())));
    let manager = env!("CARGO_BIN_EXE_zeropod-manager");
    let options = format!("--bounding-set={} --inh-caps=-all --no-new-privs", kept.join(","));
    fs::write(&wrapper, format!("#!/bin/sh\nexec setpriv {options} '{manager}' \"$@\"\n"))?;
    fs::set_permissions(&wrapper, fs::Permissions::from_mode(0o755))?;
    let node = Node::start(Kubernetes::InProcess, &wrapper).await?;
    create_namespace(&node.client(), NAMESPACE).await?;
    Ok((node, dir))
}

/// Numbers as in `linux/capability.h`.
fn mask(capabilities: &[String]) -> Result<u64, Box<dyn Error>> {
    let numbers = [("NET_ADMIN", 12), ("SYS_PTRACE", 19), ("SYS_ADMIN", 21), ("SYS_RESOURCE", 24)];
    let number = |name: &String| numbers.iter().find(|(known, _)| known == name);
    capabilities.iter().try_fold(0, |mask, name| {
        let (_, number) = number(name).ok_or_else(|| format!("{name} is not known here"))?;
        Ok(mask | 1 << number)
    })
}

/// A machine may withhold some from root.
fn mask_of_this_process() -> Result<u64, Box<dyn Error>> {
    effective(std::process::id())
}

fn effective(pid: u32) -> Result<u64, Box<dyn Error>> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    Ok(u64::from_str_radix(line.ok_or("no CapEff")?.trim(), 16)?)
}
