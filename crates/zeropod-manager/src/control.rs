//! The control socket: a line with a command, answered by a line. Only root
//! can open it.
//!
//! | command | answer |
//! | --- | --- |
//! | `log-level` | `ok info` |
//! | `log-level debug` | `ok debug` |
//! | anything else | `error ...` |

use std::{
    fs, io,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    time::Duration,
};

use thiserror::Error;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{UnixListener, UnixStream},
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::logging::{LogLevel, Logs};

/// Why a command had no effect.
#[derive(Debug, Error)]
pub(crate) enum ControlError {
    /// The socket cannot be made or used.
    #[error("cannot {action} {path}")]
    Socket {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// The daemon answered late or not at all.
    #[error("{0} did not answer within {DEADLINE:?}")]
    Deadline(PathBuf),
    /// The daemon answered otherwise than expected.
    #[error("{path} answered {answer:?}")]
    Answer { path: PathBuf, answer: String },
}

/// For a whole exchange.
const DEADLINE: Duration = Duration::from_secs(5);
/// Bytes of a line.
const MAX_LINE: u64 = 256;

/// The daemon's side of the socket. Removed when dropped.
#[derive(Debug)]
pub(crate) struct Control {
    path: PathBuf,
    listener: UnixListener,
    /// Device and inode, to know the file again.
    file: (u64, u64),
}

impl Control {
    /// Takes the place of whoever had the socket before: it belongs to the
    /// daemon that started last.
    ///
    /// # Errors
    /// When the socket cannot be made.
    pub(crate) fn listen(path: &Path) -> Result<Self, ControlError> {
        let failed =
            |action| move |source| ControlError::Socket { action, path: path.to_owned(), source };
        if let Some(dir) = path.parent() {
            fs::create_dir_all(dir).map_err(failed("make the directory of"))?;
        }
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(failed("remove")(error));
            }
            _ => {}
        }
        let listener = UnixListener::bind(path).map_err(failed("listen on"))?;
        let owner_only = fs::Permissions::from_mode(0o600);
        fs::set_permissions(path, owner_only).map_err(failed("protect"))?;
        let file = identity(path).map_err(failed("look at"))?;
        Ok(Self { path: path.to_owned(), listener, file })
    }

    /// Answers, one command at a time, until `shutdown`.
    pub(crate) async fn serve(self, logs: Logs, shutdown: CancellationToken) {
        while let Some(accepted) = shutdown.run_until_cancelled(self.listener.accept()).await {
            match accepted {
                Ok((stream, _)) => {
                    // What goes wrong is the business of who asked.
                    let _ = timeout(DEADLINE, answer(stream, &logs)).await;
                }
                Err(error) => {
                    warn!(%error, "Cannot accept a connection to the control socket");
                    sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        if identity(&self.path).is_ok_and(|file| file == self.file) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Sets or asks for the log level of the daemon at the other end of a socket.
///
/// # Errors
/// When there is none, or it does not do it.
pub(crate) async fn log_level(
    path: &Path,
    level: Option<LogLevel>,
) -> Result<LogLevel, ControlError> {
    let failed =
        |action| move |source| ControlError::Socket { action, path: path.to_owned(), source };
    let exchange = async {
        let mut stream = UnixStream::connect(path).await.map_err(failed("connect to"))?;
        let command = match level {
            Some(level) => format!("log-level {level}\n"),
            None => "log-level\n".into(),
        };
        stream.write_all(command.as_bytes()).await.map_err(failed("write to"))?;
        read_line(&mut stream).await.map_err(failed("read from"))
    };
    let answer = timeout(DEADLINE, exchange)
        .await
        .map_err(|_elapsed| ControlError::Deadline(path.to_owned()))??;
    let level = answer.strip_prefix("ok ").and_then(|level| level.parse().ok());
    level.ok_or_else(|| ControlError::Answer { path: path.to_owned(), answer })
}

async fn answer(mut stream: UnixStream, logs: &Logs) -> io::Result<()> {
    let command = read_line(&mut stream).await?;
    let answer = match command.split_whitespace().collect::<Vec<_>>()[..] {
        ["log-level"] => format!("ok {}\n", logs.level()),
        ["log-level", level] => match level.parse::<LogLevel>() {
            Ok(level) => {
                logs.set(level);
                info!(%level, "Changed the log level");
                format!("ok {level}\n")
            }
            Err(error) => format!("error {error}\n"),
        },
        _ => "error this command is not known\n".into(),
    };
    stream.write_all(answer.as_bytes()).await
}

/// Reads up to the end of a line, which is not returned.
async fn read_line(stream: &mut UnixStream) -> io::Result<String> {
    let mut line = Vec::new();
    let mut rest = stream.take(MAX_LINE);
    while !line.ends_with(b"\n") {
        match rest.read_u8().await {
            Ok(byte) => line.push(byte),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => break,
            Err(error) => return Err(error),
        }
    }
    Ok(String::from_utf8_lossy(&line).trim_end().to_owned())
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let meta = fs::symlink_metadata(path)?;
    Ok((meta.dev(), meta.ino()))
}
