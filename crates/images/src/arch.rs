//! The architectures that images are made for.

use std::{fmt, str::FromStr};

use object::{Architecture, Object as _};

use crate::Error;

/// An architecture that images are made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Arch {
    /// x86-64.
    Amd64,
    /// 64-bit Arm.
    Arm64,
}

impl Arch {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Amd64, Self::Arm64];

    /// Its name in images, which is also Debian's.
    pub fn name(self) -> &'static str {
        match self {
            Self::Amd64 => "amd64",
            Self::Arm64 => "arm64",
        }
    }

    /// Its name in Rust, in GNU triplets and in QEMU.
    pub fn machine(self) -> &'static str {
        match self {
            Self::Amd64 => "x86_64",
            Self::Arm64 => "aarch64",
        }
    }

    /// The Rust target that links statically.
    pub fn target(self) -> String {
        format!("{}-unknown-linux-musl", self.machine())
    }

    /// Whether this machine is of it.
    pub fn is_here(self) -> bool {
        self.machine() == std::env::consts::ARCH
    }

    /// Says when a program is not for this architecture.
    ///
    /// # Errors
    /// When it is no ELF file, or one for another machine.
    pub fn check(self, what: &str, program: &[u8]) -> Result<(), Error> {
        let file = object::File::parse(program)
            .map_err(|error| Error::unusable(what, format!("it is no program: {error}")))?;
        let wanted = match self {
            Self::Amd64 => Architecture::X86_64,
            Self::Arm64 => Architecture::Aarch64,
        };
        match file.architecture() {
            found if found == wanted => Ok(()),
            found => Err(Error::unusable(what, format!("it is for {found:?}, not for {self}"))),
        }
    }
}

impl fmt::Display for Arch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Arch {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|arch| arch.name() == name)
            .ok_or_else(|| format!("{name:?} is neither amd64 nor arm64"))
    }
}
