//! The traffic redirector of a zeropod sandbox, in eBPF.
//!
//! The programs are the binaries of this crate, which mean something on the
//! target `bpfel-unknown-none` only and are built by `cargo xtask build-ebpf`.
//! The library is what can be tested anywhere: how a packet is read.
#![no_std]
#![expect(
    clippy::inline_always,
    reason = "a program is one function: calls cost registers and stack"
)]

pub mod packet;

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
