use std::{io, path::PathBuf, time::Duration};

use thiserror::Error;
use zeropod_redirector_abi::MapGeometry;

use crate::Mechanism;

/// Why a sandbox could not be attached.
#[derive(Debug, Error)]
pub enum Error {
    /// A file or directory cannot be used.
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
    /// The sandbox shares the network namespace of the host.
    #[error("sandbox {pid} is in the network namespace of the host")]
    HostNetwork {
        /// Process of the sandbox.
        pid: u32,
    },
    /// The network namespace of the sandbox cannot be entered.
    #[error("cannot enter the network namespace of sandbox {pid}")]
    Namespace {
        /// Process of the sandbox.
        pid: u32,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The sandbox has no such interface.
    #[error("sandbox {pid} has no interface {interface}")]
    NoInterface {
        /// Process of the sandbox.
        pid: u32,
        /// Name of the interface.
        interface: String,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// A map that a shim pinned is not what the programs need.
    #[error("{path} is {found} instead of {wanted:?}")]
    Geometry {
        /// The pin.
        path: PathBuf,
        /// What it must be.
        wanted: MapGeometry,
        /// What it is.
        found: String,
    },
    /// The embedded object is broken.
    #[error("cannot read the redirector's object")]
    Object(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The kernel gives no map, or does not tell about one.
    #[error("cannot use the redirector's maps")]
    Maps(#[source] io::Error),
    /// The kernel refuses a program.
    #[error("cannot load program {program}{}{log}", if log.is_empty() { "" } else { "\n" })]
    Program {
        /// Its name.
        program: &'static str,
        /// End of the verifier's log, if it was the verifier.
        log: String,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The object lacks a program.
    #[error("the redirector has no program {program}")]
    NoProgram {
        /// Its name.
        program: &'static str,
    },
    /// It cannot be told, or recorded, which sandbox this is.
    #[error("cannot identify sandbox {pid} in {pins}")]
    Identity {
        /// Process of the sandbox.
        pid: u32,
        /// Directory of its pins.
        pins: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// A program cannot be attached.
    #[error(
        "cannot attach {program} to {interface} of sandbox {pid} by {}{}",
        mechanism.as_str(), before.as_deref().unwrap_or_default()
    )]
    Attach {
        /// Process of the sandbox.
        pid: u32,
        /// Name of the interface.
        interface: String,
        /// Name of the program.
        program: &'static str,
        /// How it was to be attached.
        mechanism: Mechanism,
        /// What went wrong with the mechanism that was tried before.
        before: Option<String>,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// What the programs say cannot be read.
    #[cfg(feature = "trace")]
    #[error("cannot read what the redirector says")]
    Log(#[source] io::Error),
    /// Attaching took too long; it may still succeed.
    #[error("sandbox {pid} was not attached within {} s", limit.as_secs())]
    Deadline {
        /// Process of the sandbox.
        pid: u32,
        /// How long it was waited for.
        limit: Duration,
    },
    /// A thread for the sandbox could not be started, or it panicked.
    #[error("no thread for sandbox {pid}")]
    Thread {
        /// Process of the sandbox.
        pid: u32,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
}

impl Error {
    pub(crate) fn object(error: impl std::error::Error + Send + Sync + 'static) -> Self {
        Self::Object(Box::new(error))
    }

    pub(crate) fn io(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { action, path, source }
    }
}

/// An error with all its causes, on one line.
pub(crate) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
