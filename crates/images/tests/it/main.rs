//! The images of the workspace's own programs, as debug builds: made, pushed to
//! a real registry, imported into a real containerd and run there.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking, in helpers too"
)]

mod bed;
mod containerd;
mod document;
mod registry;
mod twice;
