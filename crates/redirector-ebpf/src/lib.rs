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

/// A value on the stack, in words: the verifier wants every access to the stack
/// to be aligned, and the compiler is told that none to a packet needs to be.
#[repr(align(8))]
pub struct InWords<T>(pub T);

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
