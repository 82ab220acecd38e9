//! A real container, checkpointed and restored.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use std::{collections::BTreeMap, fs, net::IpAddr, path::Path, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{sleep, timeout},
};
use zeropod_testkit::{
    node::{
        container::{Container, ContainerConfig},
        isolated,
        sandbox::{Sandbox, SandboxConfig},
    },
    skip, tools,
};

const PORT: u16 = 8080;

#[test]
fn state_survives_a_checkpoint_and_not_a_kill() {
    if !skip::without_root() {
        isolated(scenario).unwrap();
    }
}

async fn scenario() {
    let dir = tempfile::tempdir().unwrap();
    let sandbox = Sandbox::start(&SandboxConfig::default()).unwrap();
    let container = Container::create(config(dir.path(), &sandbox)).await.unwrap();
    container.start().await.unwrap();
    let address = sandbox.addresses().ipv4.into();
    let first = get(address).await;
    assert!(first.starts_with("count=1 "), "{first}");

    // An open connection must not prevent the checkpoint.
    let mut open = connect(address).await;
    container.checkpoint().await.unwrap();
    assert_eq!(processes(&sandbox), 1, "only the pause process is left");
    TcpStream::connect((address, PORT)).await.unwrap_err();

    container.restore().await.unwrap();
    // Same start, same pid, next count: the same process.
    assert_eq!(get(address).await, first.replace("count=1 ", "count=2 "));
    // `tcp-close`: the peer of a connection from before is told.
    open.write_all(b"GET / HTTP/1.0\r\n\r\n").await.unwrap();
    let ended = timeout(Duration::from_secs(30), open.read(&mut [0; 1])).await.unwrap();
    assert!(matches!(ended, Err(_) | Ok(0)), "{ended:?}");

    if let Some(ipv6) = sandbox.addresses().ipv6 {
        assert!(get(ipv6.into()).await.starts_with("count=3 "));
    }

    container.delete().await.unwrap();
    container.create_again().await.unwrap();
    container.start().await.unwrap();
    assert!(get(address).await.starts_with("count=1 "));
    container.delete().await.unwrap();
    container.remove_files().unwrap();
    assert_eq!(cgroups(), Vec::<String>::new());
}

fn config(dir: &Path, sandbox: &Sandbox) -> ContainerConfig {
    ContainerConfig {
        id: "c0ffee".into(),
        dir: dir.join("container"),
        images: dir.join("i"),
        netns: sandbox.netns_path(),
        program: env!("CARGO_BIN_EXE_counter-server").into(),
        args: vec![PORT.to_string()],
        annotations: BTreeMap::new(),
        runc: tools::runc().unwrap(),
        criu: Some(tools::criu().unwrap()),
    }
}

/// Answer to `GET /`, once the server listens.
async fn get(address: IpAddr) -> String {
    let mut connection = connect(address).await;
    connection.write_all(b"GET / HTTP/1.0\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    connection.read_to_string(&mut answer).await.unwrap();
    answer.split_once("\r\n\r\n").unwrap().1.to_owned()
}

async fn connect(address: IpAddr) -> TcpStream {
    let keep_trying = async {
        loop {
            match TcpStream::connect((address, PORT)).await {
                Ok(connection) => return connection,
                Err(_) => sleep(Duration::from_millis(10)).await,
            }
        }
    };
    timeout(Duration::from_secs(30), keep_trying).await.expect("the server never listened")
}

/// Processes in the sandbox's network namespace.
fn processes(sandbox: &Sandbox) -> usize {
    let namespace = fs::read_link(sandbox.netns_path()).unwrap();
    fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| fs::read_link(entry.ok()?.path().join("ns/net")).ok())
        .filter(|other| *other == namespace)
        .count()
}

/// Control groups of the container that are left.
fn cgroups() -> Vec<String> {
    let mut left = Vec::new();
    let hierarchies = fs::read_dir("/sys/fs/cgroup").unwrap().filter_map(Result::ok);
    for dir in hierarchies.map(|entry| entry.path()).chain(["/sys/fs/cgroup".into()]) {
        let groups = fs::read_dir(dir).into_iter().flatten().filter_map(Result::ok);
        let names = groups.map(|group| group.file_name().to_string_lossy().into_owned());
        left.extend(names.filter(|name| name == "zeropod-testkit-c0ffee"));
    }
    left
}
