//! A stand-in with a real redirector, in namespaces of its own.

use std::{
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
    process,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use nix::mount::{MsFlags, mount};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::mpsc,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use zeropod_ebpf_loader::Redirectors;
use zeropod_testkit::{
    node::stand_in::{
        AttachedBy, ContainerSpec, Happening, Mode, PodConfig, SandboxSource, StandInConfig, What,
    },
    tools,
};

pub(crate) const PORT: u16 = 8080;
pub(crate) const LONG: Duration = Duration::from_mins(1);

/// What happens in a stand-in, in order.
pub(crate) struct Happenings(mpsc::UnboundedReceiver<Happening>);

impl Happenings {
    /// The next of one kind; others are skipped, but none may be a failure.
    pub(crate) async fn next<T>(&mut self, what: &str, pick: impl Fn(&What) -> Option<T>) -> T {
        let find = async {
            loop {
                let happening = self.0.recv().await.expect("the stand-in is gone");
                if let Some(found) = pick(&happening.what) {
                    return found;
                }
                assert!(!is_failure(&happening.what), "waiting for {what}: {happening:?}");
            }
        };
        timeout(LONG, find).await.unwrap_or_else(|_| panic!("never happened: {what}"))
    }
}

fn is_failure(what: &What) -> bool {
    matches!(
        what,
        What::CheckpointFailed { .. }
            | What::RestoreFailed { .. }
            | What::ConnectionFailed { .. }
            | What::Unmanaged { .. }
    )
}

pub(crate) fn config(dir: &Path) -> (StandInConfig, Happenings) {
    let (tell, happenings) = mpsc::unbounded_channel();
    let config = StandInConfig {
        socket_dir: dir.join("s"),
        shim_id: "0123456789abcdef".repeat(4),
        maps_dir: maps_dir(),
        images: dir.join("i"),
        work_dir: dir.join("work"),
        runc: tools::runc().unwrap(),
        criu: Some(tools::criu().unwrap()),
        attached_by: AttachedBy::Manager,
        longest_retry: Duration::from_millis(200),
        observer: Arc::new(move |happening: &Happening| drop(tell.send(happening.clone()))),
    };
    (config, Happenings(happenings))
}

pub(crate) fn maps_dir() -> PathBuf {
    "/sys/fs/bpf/zeropod_maps".into()
}

pub(crate) fn pod(name: &str, containers: Vec<ContainerSpec>) -> PodConfig {
    PodConfig {
        namespace: "default".into(),
        name: name.into(),
        sandbox: SandboxSource::Make(zeropod_testkit::node::sandbox::SandboxConfig::default()),
        containers,
    }
}

pub(crate) fn container(port: u16, mode: Mode) -> ContainerSpec {
    // Control groups bear the id, and tests run beside each other.
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let unique = u64::from(process::id()) << 32 | NEXT.fetch_add(1, Ordering::Relaxed);
    ContainerSpec {
        id: format!("{unique:064x}"),
        name: format!("app-{port}"),
        program: env!("CARGO_BIN_EXE_counter-server").into(),
        args: vec![port.to_string()],
        ports: vec![port],
        scaledown: Duration::from_millis(500),
        mode,
        connect_timeout: LONG,
        proxy_timeout: Duration::from_secs(5),
    }
}

/// Attaches every sandbox, as a manager does; ends when dropped.
pub(crate) struct Manager(CancellationToken);

impl Manager {
    pub(crate) fn start() -> Self {
        // The first process of this node is whoever mounted its BPF file system.
        let none = None::<&str>;
        mount(Some("/proc/thread-self"), "/proc/1", none, MsFlags::MS_BIND, none).unwrap();
        let token = CancellationToken::new();
        let redirectors = Redirectors::new(zeropod_ebpf_loader::Config {
            maps_dir: maps_dir(),
            host_proc: "/proc".into(),
            probe_binary_name: "kubelet".into(),
            ignore_localhost: true,
        });
        tokio::spawn(redirectors.run(token.clone()));
        Self(token)
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

/// Answer to one request on a connection of its own, once somebody listens.
pub(crate) async fn get(address: impl Into<IpAddr>, port: u16, user_agent: &str) -> String {
    let address = (address.into(), port);
    let request = format!("GET / HTTP/1.0\r\nUser-Agent: {user_agent}\r\n\r\n");
    let exchange = async {
        let mut connection = loop {
            match TcpStream::connect(address).await {
                Ok(connection) => break connection,
                Err(_) => sleep(Duration::from_millis(5)).await,
            }
        };
        connection.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        connection.read_to_string(&mut answer).await?;
        Ok::<_, std::io::Error>(answer)
    };
    timeout(LONG, exchange).await.expect("no answer").unwrap()
}

/// The count in an answer of the counter server.
pub(crate) fn count(answer: &str) -> u64 {
    let body = answer.split_once("\r\n\r\n").expect("a head").1;
    let count = body.strip_prefix("count=").expect("a count");
    count.split_once(' ').expect("more").0.parse().unwrap()
}

/// The kernel's usual way to say no: CRIU runs out of room.
pub(crate) fn tiny_file_system(at: &Path) {
    fs::create_dir_all(at).unwrap();
    let options = Some("size=64k");
    mount(Some("tmpfs"), at, Some("tmpfs"), MsFlags::empty(), options).unwrap();
}
