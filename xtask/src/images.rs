//! `cargo xtask images`: gets what building for other machines takes, and
//! hands over to the crate that makes images.

use std::{error::Error, ffi::OsString, process::ExitCode};

use crate::host::{self, Need};

/// Options, which are that crate's.
#[derive(clap::Args)]
#[command(disable_help_flag = true)]
pub(crate) struct Args {
    /// See `cargo xtask images --help`.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    rest: Vec<OsString>,
}

/// Compilers for C, since ring is partly in it, for this machine and for the
/// other one; what starts programs of the other one; Debian's packages.
const IMAGES: [Need; 7] = [
    Need { what: "musl-gcc", package: "musl-tools" },
    #[cfg(not(target_arch = "aarch64"))]
    Need { what: "aarch64-linux-gnu-gcc", package: "gcc-aarch64-linux-gnu" },
    #[cfg(not(target_arch = "aarch64"))]
    Need { what: "/usr/aarch64-linux-gnu/include/stdlib.h", package: "libc6-dev-arm64-cross" },
    #[cfg(not(target_arch = "aarch64"))]
    Need { what: "qemu-aarch64", package: "qemu-user" },
    #[cfg(target_arch = "aarch64")]
    Need { what: "x86_64-linux-gnu-gcc", package: "gcc-x86-64-linux-gnu" },
    #[cfg(target_arch = "aarch64")]
    Need { what: "/usr/x86_64-linux-gnu/include/stdlib.h", package: "libc6-dev-amd64-cross" },
    #[cfg(target_arch = "aarch64")]
    Need { what: "qemu-x86_64", package: "qemu-user" },
    Need { what: "debootstrap", package: "debootstrap" },
    Need { what: "dpkg-deb", package: "dpkg" },
    Need {
        what: "/usr/share/keyrings/debian-archive-keyring.gpg",
        package: "debian-archive-keyring",
    },
];

/// Makes the images.
///
/// # Errors
/// When something that this takes cannot be had.
pub(crate) fn run(args: &Args) -> Result<ExitCode, Box<dyn Error>> {
    let Args { rest } = args;
    // Only told about, a machine needs nothing.
    if !rest.iter().any(|argument| argument == "--help" || argument == "-h") {
        host::install(&[&IMAGES])?;
    }
    let mut images = host::cargo();
    images.args(["run", "--quiet", "--package", "zeropod-images", "--"]).args(rest);
    let status = host::status(&mut images)?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
