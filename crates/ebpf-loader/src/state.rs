//! What the redirectors are doing, for whoever wants to show it.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::SystemTime,
};

/// The state of all redirectors of a node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct State {
    /// What keeps all of them from working as they should; empty when all is
    /// well, or when it was not looked at yet.
    pub degraded: BTreeSet<Degraded>,
    /// The sandboxes that run, by pid.
    pub sandboxes: BTreeMap<u32, SandboxState>,
}

/// The state of one sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SandboxState {
    /// Who attaches its redirector.
    pub managed_by: ManagedBy,
    /// Whether it is attached.
    pub attachment: Attachment,
}

/// Who attaches the redirector of a sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ManagedBy {
    /// This process; shims up to 0.11.
    Manager,
    /// The sandbox's own shim; from 0.12 on.
    Shim,
}

/// Whether the redirector of a sandbox is attached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Attachment {
    /// Not known yet, or not ours to know.
    Pending,
    /// To all its interfaces, in both directions.
    Attached(Mechanism),
    /// The last attempt failed; the next one follows by itself.
    Failed {
        /// What went wrong, with its causes.
        error: String,
        /// Attempts that failed since it last was attached.
        attempts: u32,
        /// When the first of them failed.
        since: SystemTime,
        /// UID of the sandbox's pod, so that the pod can be told. `None` when
        /// its process is in no cgroup of a pod.
        pod_uid: Option<String>,
    },
}

/// How programs are attached to an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mechanism {
    /// By pinned TCX links (Linux 6.6).
    Tcx,
    /// By filters on a clsact qdisc.
    Clsact,
}

impl Mechanism {
    /// A name for logs and labels.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Tcx => "tcx",
            Self::Clsact => "clsact",
        }
    }
}

/// What keeps the redirectors of a node from working as they should.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Degraded {
    /// The directory of the pins is on no BPF file system: wake-up is off.
    BpffsMissing,
    /// The directory of the pins is on a BPF file system that is not the
    /// host's, but one of this container: pins would vanish with it, and the
    /// shims see others. Wake-up is off.
    BpffsNotTheHosts,
    /// The BPF file system cannot be written: it is mounted read-only, or a
    /// security module forbids it (the default profile of container runtimes does). Wake-up
    /// is off.
    BpffsNotWritable,
    /// The directory of the pins cannot be made or read: wake-up is off.
    MapsDirUnusable,
    /// The connections that the kubelet opens are not watched (no cgroups of
    /// version 2, or not the host's): whatever comes from its address is taken
    /// for a probe.
    KubeletNotWatched,
    /// New sandboxes are found by looking now and then, since the kernel
    /// gives no notice (`fs.inotify.max_user_instances`).
    NoNotice,
}

impl Degraded {
    /// A name for logs, labels and reports. Names stay what they are: alerts
    /// are written for them.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::BpffsMissing => "bpffs-missing",
            Self::BpffsNotTheHosts => "bpffs-not-the-hosts",
            Self::BpffsNotWritable => "bpffs-not-writable",
            Self::MapsDirUnusable => "maps-dir-unusable",
            Self::KubeletNotWatched => "kubelet-not-watched",
            Self::NoNotice => "no-notice-of-new-sandboxes",
        }
    }
    /// What it means, in a sentence without a period.
    pub const fn detail(self) -> &'static str {
        match self {
            Self::BpffsMissing => {
                "the directory of the pins is on no BPF file system: wake-up is off"
            }
            Self::BpffsNotTheHosts => {
                "the directory of the pins is on a BPF file system that the host has not mounted: \
                 wake-up is off"
            }
            Self::BpffsNotWritable => {
                "the BPF file system cannot be written, by its mount or a security module: wake-up \
                 is off"
            }
            Self::MapsDirUnusable => {
                "the directory of the pins cannot be made or read: wake-up is off"
            }
            Self::KubeletNotWatched => {
                "the kubelet is known by its address alone: other traffic of the node counts as its \
                 probes"
            }
            Self::NoNotice => {
                "the kernel gives no notice (fs.inotify.max_user_instances): new sandboxes are \
                 found late"
            }
        }
    }

    /// Whether no container of the node is woken up, rather than one later or
    /// less precisely than it could be.
    pub const fn stops_wake_up(self) -> bool {
        match self {
            Self::BpffsMissing
            | Self::BpffsNotTheHosts
            | Self::BpffsNotWritable
            | Self::MapsDirUnusable => true,
            Self::KubeletNotWatched | Self::NoNotice => false,
        }
    }
}
