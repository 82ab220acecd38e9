//! What zeropod's tests and its demo stand on: real parts where they can run
//! on one machine, stand-ins where they cannot.

pub mod apiserver_build;
pub mod cache;
mod chain;
mod go_module;
#[cfg(feature = "kube")]
pub mod kube;
#[cfg(feature = "node")]
pub mod node;
#[cfg(feature = "box")]
pub mod node_in_a_box;
pub mod skip;
pub mod tools;

pub use chain::chain;

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
