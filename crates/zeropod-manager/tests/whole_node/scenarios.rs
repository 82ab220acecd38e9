//! What happens on a node.

use std::{
    error::Error,
    io::{Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    os::unix::net::UnixListener,
    path::{Path, PathBuf},
    thread,
};

use tokio::net::TcpStream;
use zeropod_shim_api::names::SHIM_SOCKET_DIR;
use zeropod_testkit::{
    kube::{Fault, On},
    node::{
        netns::NetNs,
        sandbox::{Sandbox, SandboxConfig},
    },
    node_in_a_box::{Child, Kubernetes, METRICS_PORT, Node, get, until},
};

use crate::support::{
    BareSandbox, Done, NAMESPACE, POD, attached, gone, kubelet_address, node, pins, pod, probe,
    request, scaled_down, series, shows,
};

/// The status API, where it is by default.
const STATUS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8091);

/// The main job, from the first request to the one that wakes the server, and
/// everything that is to be seen of it.
pub(crate) async fn story(kubernetes: Kubernetes, flags: &'static [&str], criu: PathBuf) -> Done {
    let node = node(kubernetes).await?;
    let manager = start(&node, flags).await?;
    let pod = pod(&node, criu).await?;
    let mut happenings = pod.happenings();
    assert_eq!(request(&pod).await?, 1);
    shows(&node, "RUNNING").await?;
    scaled_down(&mut happenings).await?;
    shows(&node, "SCALED_DOWN").await?;
    let links = pins(&pod)?.into_keys().filter(|name| name.starts_with("tcx_")).count();
    assert_eq!(links, if flags.is_empty() { 4 } else { 0 });

    assert_eq!(request(&pod).await?, 2, "the counter survived");
    shows(&node, "RUNNING").await?;
    assert_eq!(request(&pod).await?, 3, "directly");
    let events = until("two events", async || {
        let events = node.events(NAMESPACE).await.ok()?;
        (events.len() >= 2).then_some(events)
    })
    .await?;
    let reasons: Vec<_> = events.iter().filter_map(|event| event.reason.as_deref()).collect();
    assert_eq!(reasons, ["Scaled down", "Running"]);

    let series = series(&node).await?;
    for (name, value) in [
        ("zeropod_checkpoint_duration_seconds_count", 1.0),
        ("zeropod_restore_duration_seconds_count", 1.0),
        ("zeropod_running", 1.0),
        ("zeropod_checkpoint_errors_total", 0.0),
        ("zeropod_restore_errors_total", 0.0),
    ] {
        assert_eq!(series.get(name), Some(&value), "{name}");
    }
    for name in ["zeropod_last_checkpoint_time", "zeropod_last_restore_time"] {
        let nanoseconds = series.get(name).copied().unwrap_or_default();
        assert!(nanoseconds > 1.7e18, "{name} {nanoseconds}");
    }

    gone(&node, pod).await?;
    until("no series", async || self::series(&node).await.ok()?.is_empty().then_some(())).await?;
    stop(manager).await
}

/// The redirect needs no manager: it is killed after the scale-down, and the
/// request is answered. The next manager tells the truth at once, and keeps
/// what is pinned.
pub(crate) async fn killed(criu: PathBuf) -> Done {
    let node = node(Kubernetes::InProcess).await?;
    let manager = start(&node, &[]).await?;
    let pod = pod(&node, criu).await?;
    let mut happenings = pod.happenings();
    scaled_down(&mut happenings).await?;
    shows(&node, "SCALED_DOWN").await?;
    let before = pins(&pod)?;
    manager.kill().await;

    assert_eq!(request(&pod).await?, 1);
    let manager = start(&node, &[]).await?;
    shows(&node, "RUNNING").await?;
    scaled_down(&mut happenings).await?;
    shows(&node, "SCALED_DOWN").await?;
    assert_eq!(request(&pod).await?, 2);
    assert_eq!(pins(&pod)?, before);
    gone(&node, pod).await?;
    stop(manager).await
}

/// Scaled down, woken and scaled down again without a manager: its successor
/// shows the last state, and counts what the shim kept for it.
pub(crate) async fn down(criu: PathBuf) -> Done {
    let node = node(Kubernetes::InProcess).await?;
    let manager = start(&node, &[]).await?;
    let pod = pod(&node, criu).await?;
    let mut happenings = pod.happenings();
    attached(&mut happenings).await?;
    shows(&node, "RUNNING").await?;
    manager.kill().await;

    for round in 1..=2 {
        scaled_down(&mut happenings).await?;
        assert_eq!(request(&pod).await?, round);
    }
    scaled_down(&mut happenings).await?;
    let manager = start(&node, &[]).await?;
    shows(&node, "SCALED_DOWN").await?;
    until("3 checkpoints and 2 restores to be counted", async || {
        let series = series(&node).await.ok()?;
        let count = |name: &str| series.get(name).copied();
        (count("zeropod_checkpoint_duration_seconds_count") == Some(3.0)
            && count("zeropod_restore_duration_seconds_count") == Some(2.0)
            && count("zeropod_running") == Some(0.0))
        .then_some(())
    })
    .await?;
    gone(&node, pod).await?;
    stop(manager).await
}

/// No API server while the pod is scaled down: metrics go on, and the label
/// follows when it is back.
pub(crate) async fn api_away(criu: PathBuf) -> Done {
    let node = node(Kubernetes::InProcess).await?;
    let manager = start(&node, &[]).await?;
    let pod = pod(&node, criu).await?;
    let mut happenings = pod.happenings();
    shows(&node, "RUNNING").await?;
    let api = node.in_process().ok_or("not in process")?;
    api.inject(On::any(), usize::MAX, Fault::Status(503));
    api.cut_watches();

    scaled_down(&mut happenings).await?;
    until("the metrics to show it", async || {
        (series(&node).await.ok()?.get("zeropod_running") == Some(&0.0)).then_some(())
    })
    .await?;
    api.clear_faults();
    shows(&node, "SCALED_DOWN").await?;
    assert_eq!(request(&pod).await?, 1);
    gone(&node, pod).await?;
    stop(manager).await
}

/// F-R7: with every feature off there are metrics and redirects, and not one
/// request to the API server.
pub(crate) async fn no_features(criu: PathBuf) -> Done {
    let node = node(Kubernetes::InProcess).await?;
    let flags = ["-status-labels=false", "-status-events=false", "-in-place-scaling=false"];
    let manager = start(&node, &flags).await?;
    let pod = pod(&node, criu).await?;
    let api = node.in_process().ok_or("not in process")?;
    api.forget_requests();
    let mut happenings = pod.happenings();
    scaled_down(&mut happenings).await?;
    assert_eq!(request(&pod).await?, 1);
    until("the metrics to show it", async || {
        let series = series(&node).await.ok()?;
        (series.get("zeropod_restore_duration_seconds_count") == Some(&1.0)).then_some(())
    })
    .await?;
    assert_eq!(api.requests(), []);
    gone(&node, pod).await?;
    stop(manager).await
}

/// One socket that takes everything and answers nothing, and one that answers
/// with garbage, beside a good shim.
pub(crate) async fn bad_shims(criu: PathBuf) -> Done {
    let node = node(Kubernetes::InProcess).await?;
    let manager = start(&node, &[]).await?;
    let [hung, lying] = ["hung", "lying"].map(|name| {
        let path = Path::new(SHIM_SOCKET_DIR).join(format!("{name}.sock"));
        UnixListener::bind(&path).map(|listener| (path, listener))
    });
    let (hung_path, hung) = hung?;
    let (lying_path, lying) = lying?;
    thread::spawn(move || {
        for mut peer in lying.incoming().flatten() {
            // Both fail when the manager has had enough of it.
            let _ = peer.read(&mut [0; 64]);
            let _ = peer.write_all(&[0xff; 4096]);
        }
    });
    let held = thread::spawn(move || hung.incoming().take(3).collect::<Vec<_>>());

    let pod = pod(&node, criu).await?;
    let mut happenings = pod.happenings();
    scaled_down(&mut happenings).await?;
    shows(&node, "SCALED_DOWN").await?;
    assert_eq!(request(&pod).await?, 1);
    shows(&node, "RUNNING").await?;
    std::fs::remove_file(hung_path)?;
    std::fs::remove_file(lying_path)?;
    drop(held);
    gone(&node, pod).await?;
    stop(manager).await
}

/// A sandbox that nothing can be attached to: its pod hears of it, once.
pub(crate) async fn not_attached() -> Done {
    let node = node(Kubernetes::InProcess).await?;
    let manager = start(&node, &[]).await?;
    let sandbox = BareSandbox::start(&node).await?;
    let events = until("an event", async || {
        let events = node.events(NAMESPACE).await.ok()?;
        (!events.is_empty()).then_some(events)
    })
    .await?;
    let event = &events[0];
    assert_eq!(event.type_.as_deref(), Some("Warning"));
    assert_eq!(event.reason.as_deref(), Some("Redirector not attached"));
    assert_eq!(event.involved_object.name.as_deref(), Some(POD));
    let message = event.message.as_deref().unwrap_or_default();
    assert!(message.starts_with("Connections do not wake the containers of this pod up: "));
    // It goes on trying.
    until("a third attempt", async || {
        let status = get(STATUS, "/api/v1/containers").await.ok()?;
        status.body.contains("(attempt 3)").then_some(())
    })
    .await?;
    assert_eq!(node.events(NAMESPACE).await?.len(), 1);
    drop(sandbox);
    stop(manager).await
}

/// Any pod can say that it is the kubelet. Another pod that does is not
/// believed, whereas a probe from an address of the host's is.
pub(crate) async fn spoofed(criu: PathBuf) -> Done {
    let node = node(Kubernetes::InProcess).await?;
    let manager = start(&node, &[]).await?;
    let pod = pod(&node, criu).await?;
    let mut happenings = pod.happenings();
    attached(&mut happenings).await?;
    let other = Sandbox::start(&SandboxConfig::default())?;
    let probes = SocketAddr::new(other.addresses().host_ipv4.into(), METRICS_PORT);
    let inside = NetNs::of_pid(other.pid())?;
    probe(inside.connect(probes).await?).await?;

    // What it could have prevented.
    scaled_down(&mut happenings).await?;
    assert_eq!(request(&pod).await?, 1);
    assert_eq!(kubelet_address(&pod)?, None);

    probe(TcpStream::connect(probes).await?).await?;
    until("the kubelet's address", async || {
        (kubelet_address(&pod).ok()?? == other.addresses().host_ipv4).then_some(())
    })
    .await?;
    probe(inside.connect(probes).await?).await?;
    scaled_down(&mut happenings).await?;
    assert_eq!(kubelet_address(&pod)?, Some(other.addresses().host_ipv4));
    gone(&node, pod).await?;
    stop(manager).await
}

/// SIGTERM: a clean end, and the redirect goes on.
pub(crate) async fn terminated(criu: PathBuf) -> Done {
    let node = node(Kubernetes::InProcess).await?;
    let manager = start(&node, &[]).await?;
    let pod = pod(&node, criu).await?;
    let mut happenings = pod.happenings();
    scaled_down(&mut happenings).await?;
    let before = pins(&pod)?;
    stop(manager).await?;
    assert_eq!(pins(&pod)?, before);
    assert_eq!(request(&pod).await?, 1);
    gone(&node, pod).await
}

/// Starts the manager, and shows what it warns of.
#[expect(clippy::print_stdout, reason = "for whoever reads why a scenario failed")]
async fn start(node: &Node, flags: &[&str]) -> Result<Child, Box<dyn Error>> {
    let mut manager = node.start_manager(flags).await?;
    let mut log = manager.take_lines();
    tokio::spawn(async move {
        while let Some(line) = log.recv().await {
            if !line.contains(r#""level":"INFO""#) {
                println!("{line}");
            }
        }
    });
    Ok(manager)
}

async fn stop(manager: Child) -> Done {
    match manager.stop().await {
        Some(status) if status.success() => Ok(()),
        Some(status) => Err(format!("the manager ended with {status}").into()),
        None => Err("the manager did not end on SIGTERM".into()),
    }
}
