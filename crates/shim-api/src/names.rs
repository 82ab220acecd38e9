//! Names that cross the wire, the file system or the Kubernetes API. They are
//! the same as in zeropod 0.11 and 0.12, so that a node can be switched over
//! with running pods on it.

use std::path::{Path, PathBuf};

/// Directory of the shims' sockets.
pub const SHIM_SOCKET_DIR: &str = "/run/zeropod/s";

/// Where the manager pod sees the host's `/proc`.
pub const HOST_PROC: &str = "/hostproc";

/// Base directory of the redirectors' pins; one directory per sandbox in it.
pub const MAPS_DIR: &str = "/sys/fs/bpf/zeropod_maps";

/// Ending of the marker directory beside a sandbox's pin directory: its shim
/// attaches the redirector itself (shims from 0.12 on).
pub const MANAGED_BY_SHIM_SUFFIX: &str = "_managed_by_shim";

/// Prefix of the status label of a container; the rest is the container name.
pub const STATUS_LABEL_PREFIX: &str = "status.zeropod.ctrox.dev/";

/// Pod annotation: CPU requests before scaling down, a JSON object from
/// container name to quantity.
pub const CPU_REQUESTS_ANNOTATION: &str = "zeropod.ctrox.dev/cpu-requests";

/// Pod annotation: memory requests before scaling down, as
/// [`CPU_REQUESTS_ANNOTATION`].
pub const MEMORY_REQUESTS_ANNOTATION: &str = "zeropod.ctrox.dev/memory-requests";

/// CPU request of a scaled-down container; zero would change the `QoS` class.
pub const SCALED_DOWN_CPU: &str = "1m";

/// Memory request of a scaled-down container; zero would change the `QoS` class.
pub const SCALED_DOWN_MEMORY: &str = "1Ki";

/// Runtime class and containerd runtime handler.
pub const RUNTIME_CLASS: &str = "zeropod";

/// `reportingController` and `source.component` of the events.
pub const EVENT_REPORTER: &str = "zeropod.ctrox.dev/manager";

/// `metadata.generateName` of the events.
pub const EVENT_NAME_PREFIX: &str = "zeropod-status-event-";

/// Every pod annotation that the shim understands, in the order in which the
/// containerd runtime table allows them.
pub const POD_ANNOTATIONS: [&str; 13] = [
    "zeropod.ctrox.dev/ports-map",
    "zeropod.ctrox.dev/container-names",
    "zeropod.ctrox.dev/scaledown-duration",
    "zeropod.ctrox.dev/disable-checkpointing",
    "zeropod.ctrox.dev/pre-dump",
    "zeropod.ctrox.dev/migrate",
    "zeropod.ctrox.dev/live-migrate",
    "zeropod.ctrox.dev/disable-probe-detection",
    "zeropod.ctrox.dev/probe-buffer-size",
    "zeropod.ctrox.dev/proxy-timeout",
    "zeropod.ctrox.dev/connect-timeout",
    "zeropod.ctrox.dev/disable-migrate-data",
    "io.containerd.runc.v2.group",
];

/// Pin directory of a sandbox below `maps_dir` (usually [`MAPS_DIR`]).
pub fn sandbox_maps_dir(maps_dir: &Path, sandbox_pid: u32) -> PathBuf {
    maps_dir.join(sandbox_pid.to_string())
}

/// Marker directory of a sandbox whose shim attaches the redirector itself.
pub fn managed_by_shim_dir(maps_dir: &Path, sandbox_pid: u32) -> PathBuf {
    maps_dir.join(format!("{sandbox_pid}{MANAGED_BY_SHIM_SUFFIX}"))
}

/// Key of the status label of a container.
pub fn status_label(container_name: &str) -> String {
    format!("{STATUS_LABEL_PREFIX}{container_name}")
}
