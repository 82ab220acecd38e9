//! Puts the zeropod runtime on a node and configures containerd.
//!
//! Everything is decided before anything is done: [`facts::Facts`] says how
//! the node is, [`plan::desired_config`] and [`plan::undo`] work out the
//! changes, as pure functions, and the rest carries them out and proves them
//! by asking the daemon.
//!
//! The feature `cli`, which is on by default, adds what only the program
//! needs.

pub mod acceptance;
pub mod apply;
mod baked;
pub mod bpffs;
#[cfg(feature = "cli")]
pub mod ca;
#[cfg(feature = "cli")]
pub mod cli;
pub mod config;
pub mod containerd;
#[cfg(feature = "cli")]
pub mod criu_image;
pub mod distribution;
pub mod doctor;
mod dump;
mod error;
pub mod facts;
pub mod files;
pub mod host;
pub mod install;
pub mod node;
pub mod on_host;
mod ours;
mod pins;
mod place;
pub mod plan;
pub mod proof;
#[cfg(feature = "cli")]
pub mod report;
#[cfg(feature = "cli")]
pub mod run;
mod selinux;
pub mod state;
pub mod systemd;
mod takeover;
pub mod version;
mod write;

pub use error::{Error, chain};

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
