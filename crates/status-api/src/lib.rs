//! What people and kubelets see of a zeropod node: [`Board`] keeps what its
//! containers are doing, [`public`] answers health checks and scrapes,
//! [`local`] serves the JSON API and the status page, [`serve`] is a small
//! HTTP server that bad clients cannot exhaust, and [`Client`] reads the API
//! for a command line.
//!
//! The API is described in `docs/status-page.md`; its types are in [`api`].

pub mod api;
mod board;
mod client;
mod deadline;
mod liveness;
mod local;
mod page;
mod public;
mod rows;
mod server;
mod table;

pub use self::{
    board::{Board, Counts},
    client::{Client, Error, Follow, Message, Output, print_status, watch_status},
    liveness::Liveness,
    local::local,
    public::{Probed, Public, public},
    server::{Limits, Peer, describe_metrics, serve},
};

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
