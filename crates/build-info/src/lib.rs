//! What a program was built from.

/// Version of the workspace.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Git revision, 12 hex digits; `unknown` outside a checkout, unless
/// `ZEROPOD_REVISION` was set for the build.
pub const REVISION: &str = env!("ZEROPOD_REVISION");

/// Version of rustc.
pub const RUSTC: &str = env!("ZEROPOD_RUSTC");

/// What `-version` prints.
pub fn long(program: &str) -> String {
    format!("{program}\nversion: {VERSION}\nrevision: {REVISION}\nrustc: {RUSTC}")
}

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_compiler_is_the_pinned_one() {
        assert!(include_str!("../../../rust-toolchain.toml").contains(RUSTC), "{RUSTC}");
    }
}
