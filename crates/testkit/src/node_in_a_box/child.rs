//! A program of the node: its output line by line, and its end.

use std::{
    io,
    process::{ExitStatus, Stdio},
    time::Duration,
};

use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::Command,
    sync::mpsc,
    time::timeout,
};

use super::NodeError;

/// A running program. Dropping it kills it.
#[derive(Debug)]
pub struct Child {
    child: tokio::process::Child,
    lines: mpsc::Receiver<String>,
}

impl Child {
    /// Starts a program; what it prints on standard output can be read with
    /// [`Child::take_lines`], what it prints on standard error is passed through.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(name: &'static str, command: &mut Command) -> Result<Self, NodeError> {
        let start = |source| NodeError::Start { name, source };
        command.stdin(Stdio::null()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().map_err(start)?;
        let output = child.stdout.take().ok_or_else(|| start(io::Error::other("no output")))?;
        // A program whose lines nobody takes is held up by its full pipe, not
        // by memory of ours.
        let (sender, lines) = mpsc::channel(256);
        tokio::spawn(async move {
            let mut output = BufReader::new(output).lines();
            while let Ok(Some(line)) = output.next_line().await {
                if sender.send(line).await.is_err() {
                    break;
                }
            }
        });
        Ok(Self { child, lines })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id().unwrap_or_default()
    }

    /// The lines of its output from now on, which end when it ends. Without a
    /// reader it is held up once some hundred lines wait.
    pub fn take_lines(&mut self) -> mpsc::Receiver<String> {
        std::mem::replace(&mut self.lines, mpsc::channel(1).1)
    }

    /// Kills it as a crash would, and waits for its end.
    pub async fn kill(mut self) {
        // Fails only when it has ended already.
        let _ = self.child.kill().await;
    }

    /// Asks it to end with SIGTERM, as Kubernetes does, and kills it after
    /// 10 s. Returns how it ended, `None` if it had to be killed.
    pub async fn stop(mut self) -> Option<ExitStatus> {
        let pid = nix::unistd::Pid::from_raw(self.pid().cast_signed());
        // Fails only when it has ended already.
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
        // Keeps its pipe empty, so that it can end.
        let end = async {
            while self.lines.recv().await.is_some() {}
            self.child.wait().await
        };
        if let Ok(status) = timeout(Duration::from_secs(10), end).await {
            return status.ok();
        }
        self.kill().await;
        None
    }
}
