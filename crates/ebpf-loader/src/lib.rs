#![doc = include_str!("../README.md")]
//!
//! # How it works
//!
//! A shim makes the directory `<maps_dir>/<pid of the sandbox>`. [`Redirectors`]
//! notices, loads the two programs of [`REDIRECTOR`] on maps that it pins in
//! that directory, attaches them to the sandbox's interfaces by links pinned
//! beside the maps, and at last pins the map `active_connections`, for which
//! the shim waits. After that nothing is kept open: the pins are the only
//! truth, so that the redirect outlives this process, and the next one only
//! has to look whether they are right.
//!
//! Where TCX cannot be had, filters on clsact qdiscs take the place of the
//! links. Where pins are those of an earlier sandbox, hang on an interface
//! that is gone, or lead to other programs, they are put right. What a sandbox
//! left is removed once it is certain that no other node can be using it.
//!
//! One more program, for the whole node, records which connections the kubelet
//! opens ([`Redirectors::kubelet_cgroup`]): the node's other processes have the
//! kubelet's address too. Its pins are in `zeropod_node`, beside `maps_dir`.
//!
//! A sandbox with a marker directory `<pid>_managed_by_shim` beside its own is
//! attached by its shim (zeropod from 0.12 on). Behind the links that the shim
//! pinned, its programs are replaced by ours, on the same maps and told the
//! same; what the shim could not attach is attached. Its maps are never
//! replaced, since it has them open.

mod bpf;
mod btf;
mod clsact;
mod error;
mod hook;
mod interfaces;
mod kubelet_watch;
mod maps;
mod netns;
mod node;
mod object;
mod pod;
mod redirectors;
mod repair;
mod sandbox;
mod sandbox_id;
mod state;
#[cfg(feature = "trace")]
mod trace;
mod tracker;

pub use error::Error;
pub use object::REDIRECTOR;
pub use pod::pod_uid;
pub use redirectors::{Config, Kubelet, Redirectors};
pub use state::{Attachment, Degraded, ManagedBy, Mechanism, SandboxState, State};
