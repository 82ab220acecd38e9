//! A command in a real OCI container, run by runc in a sandbox's network
//! namespace, checkpointed and restored by CRIU.

mod bundle;
mod cgroups;

pub(super) use self::bundle::write as write_bundle;

use std::{
    collections::{BTreeMap, VecDeque},
    env,
    ffi::OsString,
    fs,
    io::{self, PipeReader, PipeWriter, Read, pipe},
    path::{Path, PathBuf},
    process::Stdio,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use tokio::{process::Command, time::timeout};

use super::Error;

/// What runs, and where its files go.
#[derive(Debug, Clone)]
pub struct ContainerConfig {
    /// Id for runc; letters, digits and `-`.
    pub id: String,
    /// Directory of the container's own, absolute: bundle, root file system
    /// and runc's state. Made if absent.
    pub dir: PathBuf,
    /// Checkpoint images go to `<images>/<id>`, as with the real shim.
    pub images: PathBuf,
    /// Path of the network namespace.
    pub netns: PathBuf,
    /// The program. It and its shared libraries are copied into the container.
    pub program: PathBuf,
    /// Arguments of the program, without its name.
    pub args: Vec<String>,
    /// Annotations of the OCI configuration.
    pub annotations: BTreeMap<String, String>,
    /// `runc`, as from [`tools::runc`](crate::tools::runc).
    pub runc: PathBuf,
    /// Directory of `criu`, as from [`tools::criu`](crate::tools::criu).
    /// Without it nothing can be checkpointed.
    pub criu: Option<PathBuf>,
}

/// A container. Dropping it kills it, which blocks for some milliseconds, and
/// leaves its files.
#[derive(Debug)]
pub struct Container {
    config: ContainerConfig,
    output: Output,
    /// Whether runc knows it and a drop has to remove it.
    exists: AtomicBool,
}

impl Container {
    /// Makes the container, without starting the program in it.
    ///
    /// # Errors
    /// When its files cannot be written or runc fails.
    pub async fn create(config: ContainerConfig) -> Result<Self, Error> {
        write_bundle(&config)?;
        let container = Self { config, output: Output::new()?, exists: AtomicBool::new(false) };
        container.create_again().await?;
        Ok(container)
    }

    /// Makes the container again after [`Container::delete`].
    ///
    /// # Errors
    /// When runc fails.
    pub async fn create_again(&self) -> Result<(), Error> {
        let args: [OsString; 6] = [
            "create".into(),
            "--bundle".into(),
            self.config.dir.clone().into(),
            "--pid-file".into(),
            self.pid_file().into(),
            self.config.id.clone().into(),
        ];
        self.exists.store(true, Ordering::Relaxed);
        self.runc(&args, true).await
    }

    /// Starts the program.
    ///
    /// # Errors
    /// When runc fails.
    pub async fn start(&self) -> Result<(), Error> {
        self.runc(&["start", &self.config.id].map(OsString::from), false).await
    }

    /// Writes the processes to disk and ends them. When this fails they run on.
    ///
    /// # Errors
    /// When CRIU fails; [`Container::dump_log`] says more.
    pub async fn checkpoint(&self) -> Result<(), Error> {
        let snapshot = self.snapshot();
        remove_dir(&snapshot)?;
        fs::create_dir_all(&snapshot).map_err(Error::io("create", &snapshot))?;
        let args: [OsString; 6] = [
            "checkpoint".into(),
            "--image-path".into(),
            snapshot.into(),
            "--work-path".into(),
            self.images().join("work").into(),
            self.config.id.clone().into(),
        ];
        self.runc(&args, false).await
    }

    /// Brings the checkpointed processes back and removes the images, also
    /// when it fails: no image is restored twice.
    ///
    /// # Errors
    /// When CRIU fails; [`Container::restore_log`] says more.
    pub async fn restore(&self) -> Result<(), Error> {
        let args: [OsString; 11] = [
            "restore".into(),
            "--detach".into(),
            "--image-path".into(),
            self.snapshot().into(),
            "--work-path".into(),
            self.config.dir.join("work").into(),
            "--bundle".into(),
            self.config.dir.clone().into(),
            "--pid-file".into(),
            self.pid_file().into(),
            self.config.id.clone().into(),
        ];
        self.exists.store(true, Ordering::Relaxed);
        let restored = self.runc(&args, true).await;
        remove_dir(&self.images())?;
        restored
    }

    /// Kills the processes and removes the container with its control groups.
    /// One that is gone already is no error.
    ///
    /// # Errors
    /// When runc fails.
    pub async fn delete(&self) -> Result<(), Error> {
        self.runc(&["delete", "--force", &self.config.id].map(OsString::from), false).await?;
        self.exists.store(false, Ordering::Relaxed);
        Ok(())
    }

    /// What a drop does: kills it if it is there, and blocks until it is gone.
    pub fn kill(&self) {
        if self.exists.swap(false, Ordering::Relaxed) {
            // Nobody is left to tell of a failure.
            let _ = self.runc_command().args(["delete", "--force", &self.config.id]).status();
        }
    }

    /// Leaves it running when this is dropped, as a shim does that dies
    /// without a clean-up.
    pub fn abandon(&self) {
        self.exists.store(false, Ordering::Relaxed);
    }

    /// Removes the container's directory and images, after
    /// [`Container::delete`].
    ///
    /// # Errors
    /// When a file cannot be removed.
    pub fn remove_files(&self) -> Result<(), Error> {
        remove_dir(&self.config.dir)?;
        remove_dir(&self.images())
    }

    /// Pid of its first process, in the caller's pid namespace.
    pub fn pid(&self) -> Option<u32> {
        fs::read_to_string(self.pid_file()).ok()?.trim().parse().ok()
    }

    /// Whether it can be checkpointed.
    pub fn has_criu(&self) -> bool {
        self.config.criu.is_some()
    }

    /// The last 64 KiB of what the program wrote to stdout and stderr.
    pub fn output(&self) -> String {
        self.output.text()
    }

    /// CRIU's log of the last checkpoint.
    pub fn dump_log(&self) -> PathBuf {
        self.images().join("work/dump.log")
    }

    /// CRIU's log of the last restore.
    pub fn restore_log(&self) -> PathBuf {
        self.config.dir.join("work/restore.log")
    }

    fn images(&self) -> PathBuf {
        self.config.images.join(&self.config.id)
    }

    fn snapshot(&self) -> PathBuf {
        self.images().join("snapshot")
    }

    fn pid_file(&self) -> PathBuf {
        self.config.dir.join("pid")
    }

    fn runc_command(&self) -> std::process::Command {
        let mut command = std::process::Command::new(&self.config.runc);
        command.arg("--root").arg(self.config.dir.join("runc"));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command
    }

    /// Runs runc to its end. Processes of the container inherit the output
    /// pipe, so that only commands that make some get it.
    async fn runc(&self, args: &[OsString], starts_processes: bool) -> Result<(), Error> {
        let log = self.config.dir.join("runc.log");
        let _ = fs::remove_file(&log);
        let mut command = Command::from(self.runc_command());
        command.arg("--log").arg(&log).args(args).kill_on_drop(true);
        if let Some(criu) = &self.config.criu {
            command.env("PATH", path_with(criu));
        }
        if starts_processes {
            command.stdout(self.output.writer()?).stderr(self.output.writer()?);
        }
        let said = args.first().map(|arg| arg.to_string_lossy().into_owned());
        let program = format!("runc {}", said.unwrap_or_default());
        let failed = |reason| Error::Program { program, reason };
        let mut child = match command.spawn() {
            Ok(child) => child,
            Err(error) => return Err(failed(error.to_string())),
        };
        // Restoring a large process takes seconds; nothing takes a minute.
        match timeout(Duration::from_mins(1), child.wait()).await {
            Ok(Ok(status)) if status.success() => Ok(()),
            Ok(Ok(status)) => {
                let said = fs::read_to_string(&log).unwrap_or_default();
                Err(failed(format!("{status}: {}", said.trim())))
            }
            Ok(Err(error)) => Err(failed(error.to_string())),
            Err(_) => Err(failed("no end within a minute".into())),
        }
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        self.kill();
    }
}

/// What a program wrote, through one pipe for all its lives: a restored
/// process needs the very pipe back, since CRIU does not dump its other end.
#[derive(Debug)]
struct Output {
    writer: PipeWriter,
    kept: Arc<Mutex<VecDeque<u8>>>,
}

impl Output {
    const KEPT: usize = 64 * 1024;

    fn new() -> Result<Self, Error> {
        let failed = || Error::io("create", "an output pipe");
        let (reader, writer) = pipe().map_err(failed())?;
        let kept = Arc::new(Mutex::new(VecDeque::new()));
        let keep = Arc::clone(&kept);
        // Ends with the last process that holds the pipe.
        thread::Builder::new()
            .name("container-output".into())
            .spawn(move || keep_reading(reader, &keep))
            .map_err(failed())?;
        Ok(Self { writer, kept })
    }

    fn writer(&self) -> Result<PipeWriter, Error> {
        self.writer.try_clone().map_err(Error::io("clone", "an output pipe"))
    }

    fn text(&self) -> String {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(kept.make_contiguous()).into_owned()
    }
}

fn keep_reading(mut reader: PipeReader, kept: &Mutex<VecDeque<u8>>) {
    let mut buffer = [0; 4096];
    while let Ok(length @ 1..) = reader.read(&mut buffer) {
        let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.extend(&buffer[..length]);
        let excess = kept.len().saturating_sub(Output::KEPT);
        kept.drain(..excess);
    }
}

pub(super) fn path_with(first: &Path) -> OsString {
    let rest = env::var_os("PATH").unwrap_or_default();
    let mut path = first.as_os_str().to_owned();
    path.push(":");
    path.push(rest);
    path
}

fn remove_dir(path: &Path) -> Result<(), Error> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Error::io("remove", path)(error))
        }
        _ => Ok(()),
    }
}
