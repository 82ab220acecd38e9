//! The client against stand-in shims over real sockets.

mod common;
mod faults;
mod follow;
mod go_peer;
mod resync;
mod subscribers;
