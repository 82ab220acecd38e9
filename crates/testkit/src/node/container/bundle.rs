//! The files of a container: a root file system with just one program and its
//! libraries, the OCI configuration, and CRIU's.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::{Value, json};

use super::{ContainerConfig, cgroups};
use crate::node::Error;

/// Settings that the installer of zeropod writes for CRIU: established
/// connections are closed by a restore, half-open ones are left out, and
/// packets are not held back during a dump.
const CRIU_SETTINGS: &str = "tcp-close\nskip-in-flight\nnetwork-lock skip\n";

pub(in crate::node) fn write(config: &ContainerConfig) -> Result<(), Error> {
    cgroups::sweep();
    let root = config.dir.join("rootfs");
    // CRIU wants a writable root with /tmp.
    for dir in ["proc", "dev", "tmp"] {
        let dir = root.join(dir);
        fs::create_dir_all(&dir).map_err(Error::io("create", &dir))?;
    }
    copy_into(&root, &config.program, &inside_path(config))?;
    for library in shared_libraries(&config.program)? {
        copy_into(&root, &library, &library)?;
    }
    let criu = config.dir.join("criu.conf");
    fs::write(&criu, CRIU_SETTINGS).map_err(Error::io("write", &criu))?;
    let oci = config.dir.join("config.json");
    fs::write(&oci, oci_config(config, &criu).to_string()).map_err(Error::io("write", &oci))
}

/// Where the program lies in the container.
fn inside_path(config: &ContainerConfig) -> PathBuf {
    Path::new("/").join(config.program.file_name().unwrap_or_default())
}

fn oci_config(config: &ContainerConfig, criu: &Path) -> Value {
    let mut args = vec![inside_path(config).to_string_lossy().into_owned()];
    args.extend(config.args.iter().cloned());
    let short_id: String = config.id.chars().take(16).collect();
    let mut annotations = config.annotations.clone();
    annotations.insert("org.criu.config".into(), criu.to_string_lossy().into_owned());
    // For ports below 1024.
    let capabilities = ["CAP_NET_BIND_SERVICE"];
    json!({
        "ociVersion": "1.0.2",
        "process": {
            "terminal": false,
            "user": { "uid": 0, "gid": 0 },
            "args": args,
            "env": ["PATH=/"],
            "cwd": "/",
            "capabilities": {
                "bounding": capabilities,
                "effective": capabilities,
                "permitted": capabilities,
            },
            "noNewPrivileges": true,
        },
        "root": { "path": "rootfs", "readonly": false },
        "hostname": short_id,
        "mounts": [
            { "destination": "/proc", "type": "proc", "source": "proc" },
            {
                "destination": "/dev",
                "type": "tmpfs",
                "source": "tmpfs",
                "options": ["nosuid", "strictatime", "mode=755", "size=65536k"],
            },
        ],
        "annotations": annotations,
        "linux": {
            "namespaces": [
                { "type": "pid" },
                { "type": "mount" },
                { "type": "ipc" },
                { "type": "uts" },
                { "type": "network", "path": config.netns },
            ],
            "cgroupsPath": format!("/{}", cgroups::name(&config.id)),
        },
    })
}

/// The dynamic loader and the libraries of a program; none if it is static.
fn shared_libraries(program: &Path) -> Result<Vec<PathBuf>, Error> {
    let failed = |reason| Error::Program { program: format!("ldd {}", program.display()), reason };
    let output =
        Command::new("ldd").arg(program).output().map_err(|error| failed(error.to_string()))?;
    let text = String::from_utf8_lossy(&output.stdout);
    if output.status.success() {
        return Ok(libraries_of(&text));
    }
    let said = String::from_utf8_lossy(&output.stderr);
    if (text.clone() + said.clone()).contains("not a dynamic executable") {
        return Ok(Vec::new());
    }
    Err(failed(said.trim().to_owned()))
}

/// Lines are `name => /path (address)`, `/path (address)` for the loader, and
/// `linux-vdso.so.1 (address)` for what the kernel brings.
fn libraries_of(ldd: &str) -> Vec<PathBuf> {
    ldd.lines()
        .filter_map(|line| {
            let right = line.split_once("=>").map_or(line, |(_, right)| right);
            right.split_whitespace().next().filter(|word| word.starts_with('/'))
        })
        .map(PathBuf::from)
        .collect()
}

fn copy_into(root: &Path, from: &Path, to: &Path) -> Result<(), Error> {
    let place = root.join(to.strip_prefix("/").unwrap_or(to));
    if let Some(parent) = place.parent() {
        fs::create_dir_all(parent).map_err(Error::io("create", parent))?;
    }
    fs::copy(from, &place).map_err(Error::io("copy", from))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ldd_output_gives_libraries_and_loader() {
        let text = "\tlinux-vdso.so.1 (0x7ffd)\n\tlibc.so.6 => /lib/x/libc.so.6 (0x7f)\n\
                    \tlibgone.so => not found\n\t/lib64/ld-linux-x86-64.so.2 (0x7f)\n";
        assert_eq!(
            libraries_of(text),
            ["/lib/x/libc.so.6", "/lib64/ld-linux-x86-64.so.2"].map(PathBuf::from)
        );
        assert!(libraries_of("\tstatically linked\n").is_empty());
    }
}
