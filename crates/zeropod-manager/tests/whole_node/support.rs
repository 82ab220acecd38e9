//! A node with a manager and a pod, and what one looks at.

use std::{
    collections::BTreeMap,
    error::Error,
    fs,
    net::Ipv4Addr,
    path::PathBuf,
    process::{Command, ExitCode},
    time::Duration,
};

use libtest_mimic::{Arguments, Failed, Trial};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use zeropod_shim_api::names::{MAPS_DIR, STATUS_LABEL_PREFIX};
use zeropod_testkit::{
    chain,
    kube::{self, create_namespace, create_pod},
    node::stand_in::What,
    node_in_a_box::{
        CONTAINER, Happenings, Kubernetes, NODE, Node, PodOptions, ZeroPod, get, run_inside, until,
        wait_for,
    },
    skip::{skip, without_root},
    tools,
};

pub(crate) type Done = Result<(), Box<dyn Error>>;

pub(crate) const NAMESPACE: &str = "test";
pub(crate) const POD: &str = "web";

/// Runs scenarios within the namespaces of one box, one after the other. Where
/// there is no root, none of them can run.
pub(crate) fn run(trials: impl FnOnce() -> Vec<Trial>) -> Result<ExitCode, Box<dyn Error>> {
    if without_root() {
        return Ok(ExitCode::SUCCESS);
    }
    Ok(run_inside(|| {
        let mut arguments = Arguments::from_args();
        arguments.test_threads = Some(1);
        libtest_mimic::run(&arguments, trials()).exit_code()
    })?)
}

/// A scenario that needs CRIU: where it cannot work, the scenario is skipped,
/// and fails where nothing may be skipped.
pub(crate) fn trial<F>(name: &str, scenario: impl FnOnce(PathBuf) -> F + Send + 'static) -> Trial
where
    F: Future<Output = Done>,
{
    Trial::test(name, move || {
        let criu = match tools::criu() {
            Ok(criu) => criu,
            Err(error) => {
                skip(&error.to_string());
                return Ok(());
            }
        };
        let runtime = tokio::runtime::Runtime::new()?;
        runtime.block_on(scenario(criu)).map_err(|error| Failed::from(chain(error.as_ref())))
    })
}

/// Starts a node with an empty namespace.
pub(crate) async fn node(kubernetes: Kubernetes) -> Result<Node, Box<dyn Error>> {
    let manager = PathBuf::from(env!("CARGO_BIN_EXE_zeropod-manager"));
    let node = Node::start(kubernetes, &manager).await?;
    create_namespace(&node.client(), NAMESPACE).await?;
    Ok(node)
}

/// Starts the pod, whose server counts its requests.
pub(crate) async fn pod(node: &Node, criu: PathBuf) -> Result<ZeroPod, Box<dyn Error>> {
    let options = PodOptions {
        namespace: NAMESPACE,
        name: POD,
        scaledown: Duration::from_secs(1),
        criu: Some(criu),
    };
    Ok(ZeroPod::start(node, options).await?)
}

/// A sandbox without any interface, in a control group that is named as the
/// kubelet names those of pods. Ends when dropped.
pub(crate) struct BareSandbox {
    process: std::process::Child,
    group: PathBuf,
}

impl BareSandbox {
    /// Creates the pod and its sandbox, and shows the sandbox to the manager.
    pub(crate) async fn start(node: &Node) -> Result<Self, Box<dyn Error>> {
        let object = create_pod(
            &node.client(),
            &kube::pod(NAMESPACE, POD).on_node(NODE).container(CONTAINER, &[], &[]).build(),
        )
        .await?;
        let uid = object.metadata.uid.ok_or("a pod without uid")?;
        // Unified, or one of the controllers'.
        let root = PathBuf::from("/sys/fs/cgroup");
        let all = [root.clone(), root.join("pids"), root.join("systemd")];
        let root = all.iter().find(|dir| dir.join("cgroup.procs").exists());
        // The test bed removes groups of that prefix that are left behind.
        let group = root.ok_or("no control groups")?.join(format!("zeropod-testkit-pod{uid}"));
        fs::create_dir(&group)?;
        let process = Command::new("unshare").args(["--net", "sleep", "600"]).spawn()?;
        let pid = process.id().to_string();
        let sandbox = Self { process, group };
        fs::write(sandbox.group.join("cgroup.procs"), &pid)?;
        // Until then it is still in the node's network.
        let own = fs::read_link("/proc/self/ns/net")?;
        until("a network namespace", async || {
            (fs::read_link(format!("/proc/{pid}/ns/net")).ok()? != own).then_some(())
        })
        .await?;
        fs::create_dir_all(PathBuf::from(MAPS_DIR).join(&pid))?;
        Ok(sandbox)
    }
}

impl Drop for BareSandbox {
    fn drop(&mut self) {
        // All fail only for what is gone already.
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = fs::remove_dir(&self.group);
    }
}

/// Sends a request to the pod, and returns how many its server says it had.
pub(crate) async fn request(pod: &ZeroPod) -> Result<u64, Box<dyn Error>> {
    let answer = get(pod.address, "/").await?;
    let count =
        answer.body.split_whitespace().find_map(|word| word.strip_prefix("count=")?.parse().ok());
    count.ok_or_else(|| format!("no count in {:?}", answer.body).into())
}

/// Waits for the next scale-down by checkpoint.
pub(crate) async fn scaled_down(happenings: &mut Happenings) -> Done {
    wait_for(happenings, "a scale-down", |what| {
        matches!(what, What::ScaledDown { .. }).then_some(())
    })
    .await?;
    Ok(())
}

/// Waits until the redirector is attached.
pub(crate) async fn attached(happenings: &mut Happenings) -> Done {
    wait_for(happenings, "a redirector", |what| {
        matches!(what, What::Registered { .. }).then_some(())
    })
    .await?;
    Ok(())
}

/// Waits until the pod shows a phase in its label and its requests.
pub(crate) async fn shows(node: &Node, phase: &str) -> Done {
    let requests = match phase {
        "SCALED_DOWN" => ["1m", "1Ki"],
        _ => ["100m", "64Mi"],
    };
    until(&format!("label {phase} and requests {requests:?}"), async || {
        let (label, now) = shown(node).await?;
        (label == phase && now == requests).then_some(())
    })
    .await?;
    Ok(())
}

async fn shown(node: &Node) -> Option<(String, [String; 2])> {
    let pod = node.pod(NAMESPACE, POD).await.ok()?;
    let label = pod.metadata.labels?.get(&format!("{STATUS_LABEL_PREFIX}{CONTAINER}"))?.clone();
    let requests = pod.spec?.containers.into_iter().next()?.resources?.requests?;
    Some((label, [requests.get("cpu")?.0.clone(), requests.get("memory")?.0.clone()]))
}

/// The values of the series of the pod, by metric name.
pub(crate) async fn series(node: &Node) -> Result<BTreeMap<String, f64>, Box<dyn Error>> {
    let page = node.metrics().await?;
    let labels = format!(r#"{{container="{CONTAINER}",namespace="{NAMESPACE}",pod="{POD}"}} "#);
    Ok(page
        .lines()
        .filter_map(|line| {
            let (name, value) = line.split_once(&labels)?;
            Some((name.to_owned(), value.parse().ok()?))
        })
        .collect())
}

/// Inode of each pin of the pod's sandbox: another one would be another pin.
pub(crate) fn pins(pod: &ZeroPod) -> Result<BTreeMap<String, u64>, Box<dyn Error>> {
    use std::os::unix::fs::MetadataExt as _;
    let mut pins = BTreeMap::new();
    for entry in fs::read_dir(PathBuf::from(MAPS_DIR).join(pod.sandbox_pid.to_string()))? {
        let entry = entry?;
        pins.insert(entry.file_name().to_string_lossy().into_owned(), entry.metadata()?.ino());
    }
    Ok(pins)
}

/// Asks for `/probe` as the kubelet does.
pub(crate) async fn probe(mut stream: TcpStream) -> Done {
    let request = "GET /probe HTTP/1.1\r\nhost: node\r\nuser-agent: kube-probe/1.34\r\n\
                   connection: close\r\n\r\n";
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    Ok(())
}

/// What the programs of the pod's sandbox take for the kubelet's address.
pub(crate) fn kubelet_address(pod: &ZeroPod) -> Result<Option<Ipv4Addr>, Box<dyn Error>> {
    let map = PathBuf::from(MAPS_DIR).join(pod.sandbox_pid.to_string()).join("kubelet_addrs_v4");
    let dump = Command::new("bpftool").args(["-j", "map", "dump", "pinned"]).arg(map).output()?;
    assert!(dump.status.success(), "{dump:?}");
    let entries: serde_json::Value = serde_json::from_slice(&dump.stdout)?;
    let Some(value) = entries[0]["value"].as_array() else { return Ok(None) };
    let byte = |hex: &serde_json::Value| {
        u8::from_str_radix(hex.as_str().unwrap_or_default().trim_start_matches("0x"), 16)
    };
    let bytes = value.iter().map(byte).collect::<Result<Vec<_>, _>>()?;
    Ok(Some(Ipv4Addr::from(<[u8; 4]>::try_from(bytes.as_slice())?)))
}

/// Stops the pod and looks that nothing of it is left.
pub(crate) async fn gone(node: &Node, pod: ZeroPod) -> Done {
    pod.stop(node).await?;
    until("no pins and no sockets", async || {
        let empty = |dir: &str| fs::read_dir(dir).ok()?.next().is_none().then_some(());
        empty(MAPS_DIR)?;
        empty(zeropod_shim_api::names::SHIM_SOCKET_DIR)
    })
    .await?;
    Ok(())
}
