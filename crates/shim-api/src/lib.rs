//! What crosses the border between zeropod's shims and the node component:
//! the ttrpc protocol ([`rpc`]), every path, label and annotation that both
//! sides know ([`names`]), the validated identifiers ([`id`]), and the changes
//! that the node component derives from them ([`change`]).
//!
//! The protocol is that of `containerd-shim-zeropod-v2` 0.11 and 0.12.

pub mod change;
pub mod id;
pub mod names;
pub mod status;

/// Generated from `proto/shim.proto`.
pub mod rpc {
    #![allow(
        missing_docs,
        unreachable_pub,
        unused_qualifications,
        clippy::all,
        clippy::nursery,
        clippy::pedantic,
        clippy::restriction,
        rust_2018_idioms,
        reason = "generated code"
    )]
    include!(concat!(env!("OUT_DIR"), "/mod.rs"));
}

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
