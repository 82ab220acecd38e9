//! Everything about the installer that needs more than one of its modules, in
//! one program, because the tests share what they stand on.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking, in helpers too"
)]
#![expect(clippy::print_stderr, reason = "a skipped test says so")]

mod baked;
mod bed;
mod ca;
mod cli;
mod criu_image;
mod doctor;
mod dump;
mod files;
mod go_installer;
mod matrix;
mod node;
mod others;
mod pod;
mod properties;
mod rancher;
mod report;
mod trouble;
