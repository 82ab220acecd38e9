//! The whole stand-in on real traffic through a real redirector, each test in
//! namespaces of its own.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;
mod conformance;
mod failures;
mod generations;
mod pods;
mod process;
mod seen;
mod traffic;
