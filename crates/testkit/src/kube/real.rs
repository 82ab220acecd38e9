//! The real API server, as a process.

use std::{
    collections::VecDeque,
    error::Error,
    io::{BufRead, BufReader, Read},
    iter,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Stdio},
    sync::{Arc, Mutex, OnceLock, PoisonError, mpsc},
    thread,
    time::{Duration, Instant},
};

use kube::{
    Config,
    config::{Kubeconfig, KubeconfigError},
};

use super::{ApiError, Cluster, io_error};
use crate::apiserver_build;

/// More than the program itself allows, so that its own message comes first.
const START_DEADLINE: Duration = Duration::from_secs(150);
const STOP_DEADLINE: Duration = Duration::from_secs(10);

/// A real kube-apiserver with its own etcd on a free port of loopback, with
/// RBAC and the default admission plugins on, all data in a directory that
/// goes with it.
#[derive(Debug)]
pub struct RealApi {
    process: Process,
    kubeconfig: PathBuf,
    config: Config,
}

impl RealApi {
    /// Starts one and waits until it serves: some seconds, and minutes the
    /// first time, while the program is built.
    ///
    /// # Errors
    /// When it can't be built or started; the message holds the end of its log.
    pub fn start() -> Result<Self, ApiError> {
        Self::start_with(&[])
    }

    /// Starts one with more kube-apiserver flags, such as
    /// `--authorization-mode=AlwaysAllow`; they win over the usual ones.
    ///
    /// # Errors
    /// Like [`RealApi::start`].
    pub fn start_with(flags: &[&str]) -> Result<Self, ApiError> {
        let program = apiserver_build::program()?;
        let (process, kubeconfig) = Process::start(&program, flags)?;
        let config = config(&kubeconfig)?;
        Ok(Self { process, kubeconfig, config })
    }

    /// The one server of this test process, started by the first caller and
    /// ended with the process. Tests that share it take names of their own for
    /// namespaces, nodes and whatever else is not in a namespace.
    ///
    /// # Errors
    /// Like [`RealApi::start`]; the failure is remembered.
    pub fn shared() -> Result<&'static Self, String> {
        static SHARED: OnceLock<Result<RealApi, String>> = OnceLock::new();
        SHARED
            .get_or_init(|| Self::start().map_err(|error| chain(&error)))
            .as_ref()
            .map_err(Clone::clone)
    }

    /// The process id of the server.
    pub fn pid(&self) -> u32 {
        self.process.child.id()
    }
}

impl Cluster for RealApi {
    fn name(&self) -> &'static str {
        "real"
    }

    fn config(&self) -> Config {
        self.config.clone()
    }

    fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }
}

/// Ends with its standard input, and removes what it wrote; see `go/kube-apiserver`.
#[derive(Debug)]
struct Process {
    child: Child,
    stdin: Option<ChildStdin>,
}

impl Process {
    fn start(program: &Path, flags: &[&str]) -> Result<(Self, PathBuf), ApiError> {
        let mut child = Command::new(program)
            .arg("--")
            .args(flags)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(io_error("run", program))?;
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let process = Self { stdin: child.stdin.take(), child };

        let (send, receive) = mpsc::channel();
        let log = stderr.map(LogTail::follow).unwrap_or_default();
        thread::spawn(move || {
            let mut line = String::new();
            // A failure to read leaves a line that names no file.
            let _ = stdout.map(|stdout| BufReader::new(stdout).read_line(&mut line));
            let _ = send.send(line);
        });
        let line = receive.recv_timeout(START_DEADLINE).map_err(|_| {
            ApiError::NotReady(format!(
                "silent for {START_DEADLINE:?}; its log ends:\n{}",
                log.read()
            ))
        })?;
        let said: serde_json::Value = serde_json::from_str(&line).unwrap_or_default();
        match said["kubeconfig"].as_str() {
            Some(path) => Ok((process, path.into())),
            None => Err(ApiError::NotReady(format!("it ended; its log ends:\n{}", log.read()))),
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.stdin.take());
        let deadline = Instant::now() + STOP_DEADLINE;
        while Instant::now() < deadline {
            if !matches!(self.child.try_wait(), Ok(None)) {
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

/// What a client needs from the kubeconfig; kube's own reading of one is async.
fn config(path: &Path) -> Result<Config, ApiError> {
    let wrong =
        |source| ApiError::Kubeconfig { path: path.to_path_buf(), source: Box::new(source) };
    let kubeconfig = Kubeconfig::read_from(path).map_err(wrong)?;
    let cluster =
        kubeconfig.clusters.into_iter().find_map(|named| named.cluster).unwrap_or_default();
    let server = cluster.server.unwrap_or_default();
    let mut config = Config::new(
        server.parse().map_err(|error| wrong(KubeconfigError::ParseClusterUrl(error)))?,
    );
    config.root_cert_file = cluster.certificate_authority.map(PathBuf::from);
    config.auth_info =
        kubeconfig.auth_infos.into_iter().find_map(|named| named.auth_info).unwrap_or_default();
    config.default_retry = false;
    Ok(config)
}

fn chain(error: &dyn Error) -> String {
    iter::successors(Some(error), |error| (*error).source())
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(": ")
}
