//! A server process that ends with its standard input, and removes what it wrote.

use std::{
    collections::VecDeque,
    io::{self, BufRead, BufReader, Read},
    path::PathBuf,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use super::{ApiError, io_error};

const STOP_DEADLINE: Duration = Duration::from_secs(10);

/// A running server. Also one that is never dropped ends, with this process,
/// since its standard input is a pipe from here.
#[derive(Debug)]
pub(super) struct Process {
    child: Child,
    stdin: Option<ChildStdin>,
    log: LogTail,
}

impl Process {
    /// Starts it; returns what it writes to standard output, too.
    pub(super) fn start(command: &mut Command) -> Result<(Self, ChildStdout), ApiError> {
        let program = PathBuf::from(command.get_program());
        let failed = |error| io_error("run", &program)(error);
        let piped = || io::Error::other("no pipe to it");
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(failed)?;
        let log = child.stderr.take().map(LogTail::follow).unwrap_or_default();
        let stdout = child.stdout.take().ok_or_else(piped).map_err(failed)?;
        Ok((Self { stdin: child.stdin.take(), child, log }, stdout))
    }

    pub(super) fn id(&self) -> u32 {
        self.child.id()
    }

    pub(super) fn has_ended(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }

    /// The end of its log, for a message.
    pub(super) fn log(&self) -> String {
        format!("its log ends:\n{}", self.log.read())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.stdin.take());
        let deadline = Instant::now() + STOP_DEADLINE;
        while Instant::now() < deadline {
            if self.has_ended() {
                return;
            }
            thread::sleep(Duration::from_millis(10));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The last lines of a process, for when it fails.
#[derive(Clone, Debug, Default)]
struct LogTail(Arc<Mutex<VecDeque<String>>>);

impl LogTail {
    const LINES: usize = 20;

    /// Reads on for as long as the process writes, or it would block.
    fn follow(stderr: impl Read + Send + 'static) -> Self {
        let tail = Self::default();
        let kept = tail.clone();
        thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                let mut lines = kept.0.lock().unwrap_or_else(PoisonError::into_inner);
                if lines.len() == Self::LINES {
                    lines.pop_front();
                }
                lines.push_back(line);
            }
        });
        tail
    }

    fn read(&self) -> String {
        let lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        lines.iter().map(String::as_str).collect::<Vec<_>>().join("\n")
    }
}
