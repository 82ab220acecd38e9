//! Why an image could not be made.

use std::{
    io,
    path::{Path, PathBuf},
    process::Command,
};

use thiserror::Error;

/// Why an image could not be made.
#[derive(Debug, Error)]
pub enum Error {
    /// A file cannot be used.
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
    /// A document is not of its format.
    #[error("{what} is not what it should be")]
    Json {
        /// Which document.
        what: String,
        /// Where and why.
        #[source]
        source: serde_json::Error,
    },
    /// A program cannot be started.
    #[error("cannot start {program}")]
    Start {
        /// The program.
        program: String,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// A program failed.
    #[error("{program} ended with {status}: {said}")]
    Failed {
        /// The program with its arguments.
        program: String,
        /// How it ended.
        status: String,
        /// Its last words.
        said: String,
    },
    /// A program or an image that was handed in cannot be used.
    #[error("{what}: {reason}")]
    Unusable {
        /// What was handed in.
        what: String,
        /// Why not.
        reason: String,
    },
    /// Something that has to be said on the command line was not.
    #[error("{0}")]
    Missing(String),
    /// A binary is larger than a node should have to pull.
    #[error(
        "{program} for {arch} takes {size} bytes gzipped, more than the {limit} that are allowed"
    )]
    TooLarge {
        /// Its name.
        program: &'static str,
        /// Architecture it was built for.
        arch: &'static str,
        /// Size, gzipped.
        size: usize,
        /// Largest allowed size.
        limit: usize,
    },
    /// A registry refused, or is not there.
    #[error("cannot {action} {reference}")]
    Registry {
        /// What was tried.
        action: &'static str,
        /// On what.
        reference: String,
        /// Why it failed.
        #[source]
        source: Box<oci_client::errors::OciDistributionError>,
    },
}

impl Error {
    /// For `map_err`.
    pub(crate) fn io(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { action, path: path.into(), source }
    }

    /// For `map_err`.
    pub(crate) fn json(what: impl Into<String>) -> impl FnOnce(serde_json::Error) -> Self {
        move |source| Self::Json { what: what.into(), source }
    }

    pub(crate) fn unusable(what: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Unusable { what: what.into(), reason: reason.into() }
    }
}

/// Runs a program to its end and returns what it printed.
pub(crate) fn output(command: &mut Command) -> Result<Vec<u8>, Error> {
    let program = format!("{command:?}");
    let output =
        command.output().map_err(|source| Error::Start { program: program.clone(), source })?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    // debootstrap says on standard output what went wrong, others on standard error.
    let both = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&both);
    let lines: Vec<&str> = text.lines().collect();
    let said = lines[lines.len().saturating_sub(5)..].join("; ");
    Err(Error::Failed { program, status: output.status.to_string(), said })
}

/// Reads a whole file.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>, Error> {
    std::fs::read(path).map_err(Error::io("read", path))
}

/// Writes a file, with the directories above it.
pub(crate) fn write(path: &Path, content: &[u8]) -> Result<(), Error> {
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir).map_err(Error::io("create", dir))?;
    }
    std::fs::write(path, content).map_err(Error::io("write", path))
}
