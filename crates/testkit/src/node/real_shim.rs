//! The real containerd-shim-zeropod-v2, driven as containerd drives it: against
//! this the stand-in is held.
//!
//! The shim's paths are compiled into it, so that it may run only where
//! [`own_paths`] has put empty directories in their place.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs, io,
    path::{Path, PathBuf},
    process::Stdio,
    thread,
    time::Duration,
};

use nix::{
    mount::{MsFlags, mount},
    sys::{
        signal::{Signal, kill},
        stat::Mode as FileMode,
    },
    unistd::{Pid, mkfifo},
};
use protobuf::CodedOutputStream;
use serde::Deserialize;
use tokio::{
    process::Command,
    time::{sleep, timeout},
};
use ttrpc::{Request, asynchronous::Client};
use zeropod_shim_api::names::SHIM_SOCKET_DIR;

use super::{
    Error,
    container::{ContainerConfig, path_with, write_bundle},
    netns::path_of_pid,
    shim::{Server, Service},
    stand_in::{ContainerSpec, Mode},
};

/// How long the shim may take for one call.
const PATIENCE: Duration = Duration::from_mins(1);

/// Where containerd's own socket would be. The one for events, with `.ttrpc`
/// added, has someone who refuses them: nobody would cost the shim seconds.
const CONTAINERD: &str = "/run/containerd/containerd.sock";

/// Gives the calling thread's mount namespace, which has to be its own as in
/// [`isolated`](super::isolated()), empty directories for all that a shim
/// writes outside of its bundle.
///
/// # Errors
/// When the kernel refuses.
pub fn own_paths() -> Result<(), Error> {
    for path in ["/run", "/var/lib", "/var/log"] {
        let path = Path::new(path);
        let none = None::<&Path>;
        mount(Some("tmpfs"), path, Some("tmpfs"), MsFlags::empty(), none)
            .map_err(|errno| Error::io("mount over", path)(errno.into()))?;
    }
    Ok(())
}

/// What a real shim needs.
#[derive(Debug, Clone)]
pub struct RealShimConfig {
    /// The shim, as from [`tools::zeropod_shim`](crate::tools::zeropod_shim).
    pub program: PathBuf,
    /// Directory of bundles, absolute.
    pub work_dir: PathBuf,
    /// `runc`.
    pub runc: PathBuf,
    /// Directory of `criu`.
    pub criu: PathBuf,
    /// Namespace of the pod.
    pub namespace: String,
    /// Name of the pod.
    pub pod: String,
    /// Pid of its sandbox.
    pub sandbox_pid: u32,
    /// The container.
    pub container: ContainerSpec,
}

/// A real shim with one running container. Dropping it kills both.
pub struct RealShim {
    config: RealShimConfig,
    task: Client,
    shim_pid: u32,
    socket: PathBuf,
    _containerd: Server,
}

impl RealShim {
    /// Starts the shim, then creates and starts the container, as containerd
    /// does for a pod whose sandbox is there.
    ///
    /// # Errors
    /// When any of that fails, with what the shim says.
    pub async fn start(config: RealShimConfig) -> Result<Self, Error> {
        let bundle = config.work_dir.join(&config.container.id);
        write_bundle(&ContainerConfig {
            id: config.container.id.clone(),
            dir: bundle.clone(),
            images: config.work_dir.join("i"),
            netns: path_of_pid(config.sandbox_pid),
            program: config.container.program.clone(),
            args: config.container.args.clone(),
            annotations: annotations(&config),
            runc: config.runc.clone(),
            criu: Some(config.criu.clone()),
        })?;
        let pod_logs = Path::new("/var/log/pods")
            .join(format!("{}_{}_uid", config.namespace, config.pod))
            .join(&config.container.name);
        fs::create_dir_all(&pod_logs).map_err(Error::io("create", &pod_logs))?;
        let log = pod_logs.join("0.log");
        fs::write(&log, "").map_err(Error::io("create", &log))?;

        let events = PathBuf::from(format!("{CONTAINERD}.ttrpc"));
        let containerd = Service::new().serve(&events)?;
        let (address, shim_pid, socket) = start_shim(&config, &bundle).await?;
        let task = Client::connect(&address).await.map_err(|error| failed("connect", &error))?;
        let shim = Self { config, task, shim_pid, socket, _containerd: containerd };
        let id = shim.config.container.id.clone();
        let bundle = bundle.to_string_lossy();
        shim.call("Create", &[(1, Field::Text(&id)), (2, Field::Text(&bundle))]).await?;
        shim.call("Start", &[(1, Field::Text(&id))]).await?;
        Ok(shim)
    }

    /// Path of its status socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Kills and deletes the container and ends the shim, as containerd does.
    ///
    /// # Errors
    /// When the shim refuses.
    pub async fn stop(self) -> Result<(), Error> {
        let id = Field::Text(&self.config.container.id);
        let (signal, all, now) = (Field::Number(9), Field::Number(1), Field::Number(1));
        self.call("Kill", &[(1, id), (3, signal), (4, all)]).await?;
        self.call("Wait", &[(1, id)]).await?;
        self.call("Delete", &[(1, id)]).await?;
        // The shim may be gone before it answers.
        let _ = self.call("Shutdown", &[(1, id), (2, now)]).await;
        let process = PathBuf::from(format!("/proc/{}", self.shim_pid));
        if until(|| !process.exists(), PATIENCE).await {
            return Ok(());
        }
        Err(failed("Shutdown", &io::Error::from(io::ErrorKind::TimedOut)))
    }

    /// What the shim logged so far.
    pub fn log(&self) -> String {
        let log = self.config.work_dir.join(&self.config.container.id).join("shim.log");
        fs::read_to_string(log).unwrap_or_default()
    }

    async fn call(&self, method: &str, fields: &[(u32, Field<'_>)]) -> Result<Vec<u8>, Error> {
        let request = Request {
            service: "containerd.task.v2.Task".into(),
            method: method.into(),
            payload: encode(fields),
            ..Request::default()
        };
        match timeout(PATIENCE, self.task.request(request)).await {
            Ok(Ok(response)) => Ok(response.payload),
            Ok(Err(error)) => Err(failed(method, &error)),
            Err(_) => Err(failed(method, &io::Error::from(io::ErrorKind::TimedOut))),
        }
    }
}

impl Drop for RealShim {
    fn drop(&mut self) {
        // Both are gone already after `stop`.
        if self.shim_pid > 1 {
            let _ = kill(Pid::from_raw(self.shim_pid.cast_signed()), Signal::SIGKILL);
        }
        let _ = std::process::Command::new(&self.config.runc)
            .args(["--root", "/run/containerd/runc/k8s.io", "delete", "--force"])
            .arg(&self.config.container.id)
            .stderr(Stdio::null())
            .status();
    }
}

async fn until(condition: impl Fn() -> bool, patience: Duration) -> bool {
    let wait = async {
        while !condition() {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(patience, wait).await.is_ok()
}

/// What CRI tells a shim of a container.
fn annotations(config: &RealShimConfig) -> BTreeMap<String, String> {
    let ContainerSpec { name, ports, scaledown, mode, connect_timeout, proxy_timeout, .. } =
        &config.container;
    let ports: Vec<_> = ports.iter().map(u16::to_string).collect();
    let seconds = |duration: &Duration| format!("{}s", duration.as_secs_f64());
    [
        ("io.kubernetes.cri.container-type", "container".into()),
        ("io.kubernetes.cri.container-name", name.clone()),
        ("io.kubernetes.cri.sandbox-name", config.pod.clone()),
        ("io.kubernetes.cri.sandbox-namespace", config.namespace.clone()),
        ("io.kubernetes.cri.sandbox-uid", "uid".into()),
        ("zeropod.ctrox.dev/ports-map", format!("{name}={}", ports.join(","))),
        ("zeropod.ctrox.dev/scaledown-duration", seconds(scaledown)),
        ("zeropod.ctrox.dev/disable-checkpointing", (*mode == Mode::Kill).to_string()),
        ("zeropod.ctrox.dev/connect-timeout", seconds(connect_timeout)),
        ("zeropod.ctrox.dev/proxy-timeout", seconds(proxy_timeout)),
    ]
    .map(|(key, value)| (key.into(), value))
    .into()
}

/// Starts a shim; returns its address, its pid and its status socket.
///
/// A shim reads its address from a file that `<shim> start` writes only after
/// it has started the shim. One that reads too early never serves its status
/// (seen with 0.12.1 on a busy machine); then the next one finds the file.
async fn start_shim(
    config: &RealShimConfig,
    bundle: &Path,
) -> Result<(String, u32, PathBuf), Error> {
    // The shim opens its log at once and wants a reader.
    let log = bundle.join("log");
    mkfifo(&log, FileMode::S_IRUSR | FileMode::S_IWUSR)
        .map_err(|errno| Error::io("create", &log)(errno.into()))?;
    for _ in 0..5 {
        let (from, to) = (log.clone(), bundle.join("shim.log"));
        thread::spawn(move || -> io::Result<u64> {
            io::copy(&mut fs::File::open(from)?, &mut fs::File::create(to)?)
        });
        let address = run_start(config, bundle).await?;
        let pid = find_process(&config.program, &config.container.id);
        let name = address.rsplit('/').next().unwrap_or_default();
        let socket = Path::new(SHIM_SOCKET_DIR).join(format!("{name}.sock"));
        if until(|| socket.exists(), Duration::from_secs(3)).await {
            return Ok((address, pid.unwrap_or(0), socket));
        }
        if let Some(pid) = pid {
            let _ = kill(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL);
        }
    }
    Err(failed("start", &io::Error::other("it does not serve its status")))
}

/// Runs `<shim> start`, which leaves a shim behind and prints its address.
async fn run_start(config: &RealShimConfig, bundle: &Path) -> Result<String, Error> {
    #[derive(Deserialize)]
    struct Bootstrap {
        address: String,
    }

    let output = Command::new(&config.program)
        .args(["-namespace", "k8s.io", "-address", CONTAINERD, "-publish-binary", "true"])
        .args(["-debug", "-id", &config.container.id, "start"])
        .current_dir(bundle)
        .env("TTRPC_ADDRESS", format!("{CONTAINERD}.ttrpc"))
        .env("GRPC_ADDRESS", CONTAINERD)
        .env("PATH", search_path(config))
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let failed = |reason| Error::Program { program: config.program.display().to_string(), reason };
    let output = match timeout(PATIENCE, output).await {
        Ok(Ok(output)) if output.status.success() => output,
        Ok(Ok(output)) => {
            return Err(failed(String::from_utf8_lossy(&output.stderr).trim().to_owned()));
        }
        Ok(Err(error)) => return Err(failed(error.to_string())),
        Err(_) => return Err(failed("no address within a minute".into())),
    };
    let bootstrap: Bootstrap = serde_json::from_slice(&output.stdout)
        .map_err(|error| failed(format!("its address: {error}")))?;
    Ok(bootstrap.address)
}

/// Pid of the process of `program` that has `id` among its arguments.
fn find_process(program: &Path, id: &str) -> Option<u32> {
    fs::read_dir("/proc").ok()?.filter_map(Result::ok).find_map(|entry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        let args = fs::read(entry.path().join("cmdline")).ok()?;
        let ours = fs::read_link(entry.path().join("exe")).ok()? == program;
        (ours && args.split(|byte| *byte == 0).any(|arg| arg == id.as_bytes())).then_some(pid)
    })
}

/// containerd's opt plugin puts a directory with `criu` first.
fn search_path(config: &RealShimConfig) -> OsString {
    let mut path = path_with(&config.criu);
    if let Some(dir) = config.runc.parent() {
        path.push(":");
        path.push(dir);
    }
    path
}

/// A field of a request: they are few and flat.
#[derive(Clone, Copy)]
enum Field<'a> {
    Text(&'a str),
    Number(u32),
}

fn encode(fields: &[(u32, Field<'_>)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut stream = CodedOutputStream::vec(&mut bytes);
    for (number, field) in fields {
        // Writing to memory does not fail.
        let _ = match field {
            Field::Text(text) => stream.write_string(*number, text),
            Field::Number(value) => stream.write_uint32(*number, *value),
        };
    }
    let _ = stream.flush();
    drop(stream);
    bytes
}

fn failed(what: &str, error: &dyn std::error::Error) -> Error {
    Error::Program { program: format!("shim: {what}"), reason: super::chain(error) }
}
