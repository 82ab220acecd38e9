use std::{io, path::PathBuf};

use thiserror::Error;

/// Why the installer stopped. Every message says what to do about it where
/// something can be done.
#[derive(Debug, Error)]
pub enum Error {
    /// A file or directory of the host could not be used.
    #[error("cannot {action} {path}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what, as the host names it.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// A path has more symbolic links than Linux would follow.
    #[error("{path} has too many levels of symbolic links")]
    TooManyLinks {
        /// The path.
        path: PathBuf,
    },
    /// A configuration file of containerd is not TOML, so containerd cannot
    /// read it either.
    #[error("{path} is not valid TOML")]
    Toml {
        /// The file.
        path: PathBuf,
        /// Where and why.
        #[source]
        source: Box<toml_edit::TomlError>,
    },
    /// A key has a type that containerd would not take.
    #[error("{key} in {path} is not {expected}")]
    Type {
        /// The file.
        path: PathBuf,
        /// The key.
        key: &'static str,
        /// What it should be.
        expected: &'static str,
    },
    /// A version that does not start with two numbers.
    #[error("containerd version {0:?} is not of the form 2.1.4")]
    Version(String),
    /// The host names no containerd, or more than one.
    #[error("{0}")]
    Detection(String),
    /// The configuration cannot be extended without breaking something.
    #[error("{path}: {reason}")]
    Refused {
        /// The file in question.
        path: PathBuf,
        /// Why, and what to do.
        reason: String,
    },
    /// Another installer is at work.
    #[error("another installer has {path} locked")]
    Busy {
        /// The lock.
        path: PathBuf,
    },
    /// systemd could not do something.
    #[error("systemd cannot {action} {what}")]
    Systemd {
        /// What was asked for.
        action: &'static str,
        /// On which unit or socket.
        what: PathBuf,
        /// What became of it.
        #[source]
        source: Box<crate::systemd::Failure>,
    },
    /// containerd would not take the changed configuration. The old one is
    /// back.
    #[error("containerd rejects the changed configuration, so it was taken back: {reason}")]
    Rejected {
        /// What it says, or what would be wrong.
        reason: String,
    },
    /// A restart is needed and nobody here can do it.
    #[error(
        "containerd has to be restarted ({why}), but {reason}. Restart it, then run the installer again."
    )]
    NoRestart {
        /// Why it has to be.
        why: String,
        /// Why it is not.
        reason: String,
    },
    /// The daemon runs but does not serve what it should.
    #[error("containerd was not seen serving what is configured: {reason}")]
    NotServed {
        /// What it does instead.
        reason: String,
    },
    /// containerd did not come up with the changed configuration.
    #[error("containerd did not work with the changed configuration, so it was taken back")]
    TakenBack {
        /// What went wrong.
        #[source]
        source: Box<Self>,
    },
    /// Pods would lose their runtime.
    #[error("pods use the runtime zeropod: {pods}. Delete them first, or use -force.")]
    InUse {
        /// Their names.
        pods: String,
    },
    /// The authority of the node API could not be had.
    #[error("cannot get the node API's certificate authority in namespace {namespace}: {reason}")]
    Authority {
        /// The namespace.
        namespace: String,
        /// What the API server said.
        reason: String,
    },
    /// There is no way to reach the Kubernetes API.
    #[cfg(feature = "cli")]
    #[error("cannot reach the Kubernetes API")]
    Kubernetes(#[source] Box<kube::Error>),
    /// The installer's own image is incomplete.
    #[error("there is no {name} in bin of {dirs:?}")]
    NoAsset {
        /// File name.
        name: &'static str,
        /// Where it was looked for.
        dirs: Vec<PathBuf>,
    },
    /// The deadline of the run passed.
    #[error("not done within {0:?} (-timeout)")]
    Timeout(std::time::Duration),
    /// containerd could not be asked.
    #[error("cannot ask containerd at {socket} for its {what}: {reason}")]
    Containerd {
        /// The socket.
        socket: PathBuf,
        /// What was asked for.
        what: &'static str,
        /// What went wrong.
        reason: String,
    },
}

/// An error and everything that caused it, in one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        // Some crates put the cause into the message, too.
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text.trim_end().lines().map(str::trim).collect::<Vec<_>>().join(" ")
}

impl Error {
    pub(crate) fn io(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { action, path, source }
    }
}
