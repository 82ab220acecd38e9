//! What a packet costs in the redirector, beside the Go implementation's, and
//! what many sandboxes cost.

use std::{
    error::Error,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{host, say};

/// Measures.
///
/// # Errors
/// When something cannot be built or fails.
pub(super) fn run() -> Result<(), Box<dyn Error>> {
    say("\n== ebpf: nanoseconds a packet, and 500 sandboxes");
    let package = ["--package", "zeropod-ebpf-loader", "--example", "bench", "--example", "many"];
    host::run(host::cargo().args(["build", "--quiet", "--release"]).args(package))?;
    let examples = host::target("release").join("examples");
    let mut bench = in_namespaces(&examples.join("bench"));
    bench.arg(host::workspace().join("crates/ebpf-loader/src/redirector.o"));
    match go_object() {
        Some(object) => drop(bench.arg(object)),
        None => say("Without the Go implementation's object, which needs Go"),
    }
    host::run(&mut bench)?;
    host::run(in_namespaces(&examples.join("many")).arg("500"))
}

/// A program in mount and network namespaces of its own.
fn in_namespaces(program: &Path) -> Command {
    let mut command = host::as_root("unshare");
    command.args(["--mount", "--net", "--propagation", "private"]).arg(program);
    command
}

/// The Go implementation's eBPF object, from its published module: what ours
/// is compared with.
fn go_object() -> Option<PathBuf> {
    let module = Command::new("go")
        .args(["mod", "download", "-json", "github.com/ctrox/zeropod@v0.12.1"])
        .current_dir(std::env::temp_dir())
        .output()
        .ok()?;
    let json = String::from_utf8(module.stdout).ok()?;
    let dir = json.lines().find_map(|line| line.trim().strip_prefix("\"Dir\": \""))?;
    let object = Path::new(dir.strip_suffix("\",")?).join("activator/bpf_bpfel.o");
    object.is_file().then_some(object)
}
