//! The program as a user calls it.

use std::{fs, path::Path, process::Command};

fn installer(args: &[&str]) -> (i32, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_zeropod-installer")).args(args).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

fn host_with(config: &str) -> tempfile::TempDir {
    let host = tempfile::tempdir().unwrap();
    let dir = host.path().join("etc/containerd");
    fs::create_dir_all(&dir).unwrap();
    fs::write(dir.join("config.toml"), config).unwrap();
    host
}

fn dry_run(host: &Path, more: &[&str]) -> (i32, String, String) {
    let host_root = format!("-host-root={}", host.display());
    let assets = assets();
    let assets = format!("-assets={}", assets.path().display());
    let args = ["-dry-run", &host_root, &assets, "-containerd-version", "2.1.4"];
    installer(&[&args, more].concat())
}

fn assets() -> tempfile::TempDir {
    let assets = tempfile::tempdir().unwrap();
    fs::create_dir(assets.path().join("bin")).unwrap();
    for program in ["containerd-shim-zeropod-v2", "criu"] {
        fs::write(assets.path().join("bin").join(program), program).unwrap();
    }
    assets
}

#[test]
fn a_dry_run_tells_and_touches_nothing() {
    let host = host_with("version = 2\n");
    let (code, stdout, stderr) = dry_run(host.path(), &[]);
    assert_eq!((code, stderr.as_str()), (2, ""), "{stdout}");
    assert!(stdout.contains("+++ /etc/containerd/conf.d/50-zeropod.toml"), "{stdout}");
    assert!(stdout.contains("/opt/zeropod/bin/criu: copy of "), "{stdout}");
    assert!(stdout.contains("+imports = [\"/etc/containerd/conf.d/*.toml\"]"), "{stdout}");
    let config = host.path().join("etc/containerd/config.toml");
    assert_eq!(fs::read_to_string(config).unwrap(), "version = 2\n");
    assert!(!host.path().join("etc/containerd/conf.d").exists());

    let (code, stdout, _) = dry_run(host.path(), &["-uninstall"]);
    assert_eq!(code, 0, "{stdout}");
    assert!(stdout.contains("Nothing to do."), "{stdout}");
}

#[test]
fn what_cannot_be_told_is_an_error_with_its_cause() {
    let host = host_with("version = [\n");
    let (code, _, stderr) = dry_run(host.path(), &[]);
    assert_eq!(code, 1);
    assert!(
        stderr.starts_with(
            "zeropod-installer: /etc/containerd/config.toml is not valid TOML: TOML parse error at line 1"
        ),
        "{stderr}"
    );
    let host_root = format!("-host-root={}", host.path().display());
    let (code, _, stderr) = installer(&["-dry-run", &host_root]);
    assert_eq!(code, 1);
    assert!(
        stderr.contains("/run/containerd/containerd.sock") && stderr.contains("(os error 2)"),
        "{stderr}"
    );
}

#[test]
fn the_bpf_file_system_is_mounted_once() {
    // F-D4.
    if !crate::bed::can_run("the_bpf_file_system_is_mounted_once") {
        return;
    }
    let installer = env!("CARGO_BIN_EXE_zeropod-installer");
    // Hides the one that may be there.
    let script =
        "mount -t tmpfs tmpfs /sys/fs/bpf && \"$1\" prepare-bpf-fs && \"$1\" prepare-bpf-fs";
    let output = Command::new("unshare")
        .args(["--mount", "--propagation=private", "sh", "-c", script, "sh", installer])
        .output()
        .unwrap();
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert_eq!(stdout, "/sys/fs/bpf: mounted\n/sys/fs/bpf: is there\n", "{output:?}");
}

#[test]
fn usage_and_version() {
    let (code, stdout, _) = installer(&["-version"]);
    assert_eq!(code, 0);
    assert!(stdout.starts_with("zeropod-installer\nversion: 0."), "{stdout}");
    let (code, _, stderr) = installer(&["-nope"]);
    assert_eq!(code, 64);
    assert!(stderr.contains("Usage: zeropod-installer"), "{stderr}");
}
