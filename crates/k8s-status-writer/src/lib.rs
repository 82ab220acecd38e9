//! Turns what zeropod's containers do into what Kubernetes shows of their
//! pods: a status label, Events, and requests that are lowered while a
//! container is scaled down.
//!
//! Give a [`StatusWriter`] a client and the updates of
//! `zeropod-shim-event-client`. It watches the pods of one node, compares
//! them with what their containers do, and writes the difference: nothing when
//! nothing changed, as patches of only its own fields, at most one at a time
//! to each pod. While the API server is away, it takes updates and keeps what
//! is to be told, and catches up later.

mod answer;
mod api;
mod config;
mod engine;
mod event;
mod given_back;
mod go_duration;
mod plan;
mod pod;
mod quantity;
mod state;
mod wire;
mod writer;

pub use config::{Config, Features};
pub use engine::Trouble;
pub use given_back::GivenBack;
pub use state::{Degraded, State};
pub use writer::{Error, HEARTBEAT, Handle, StatusWriter};

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
