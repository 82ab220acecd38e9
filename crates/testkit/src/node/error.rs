use std::{io, path::PathBuf};

use thiserror::Error;

/// Why a part of the stand-in node could not be made or used.
#[derive(Debug, Error)]
pub enum Error {
    /// A file, directory or namespace.
    #[error("cannot {action} {path}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// A program that failed.
    #[error("{program} failed: {reason}")]
    Program {
        /// The command line.
        program: String,
        /// Its status and last words.
        reason: String,
    },
    /// A request to the kernel about links, addresses or routes.
    #[error("cannot {action}")]
    Netlink {
        /// What was tried.
        action: String,
        /// Why it failed.
        #[source]
        source: Box<rtnetlink::Error>,
    },
    /// A pinned map.
    #[error("cannot {action} map {path}")]
    Map {
        /// What was tried.
        action: &'static str,
        /// The pin.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: Box<aya::maps::MapError>,
    },
    /// A value that cannot be meant.
    #[error("{what} {value:?} is not valid: {reason}")]
    Invalid {
        /// What the value was meant to be.
        what: &'static str,
        /// The value.
        value: String,
        /// The rule it breaks.
        reason: String,
    },
}

impl Error {
    /// For `map_err` on file-system operations.
    pub(super) fn io(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { action, path, source }
    }
}
