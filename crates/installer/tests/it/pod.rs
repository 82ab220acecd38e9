//! A pod that really uses the handler, by containerd's own runc shim in the
//! place of ours.

use std::fs;

use prost::Message;
use tonic::{Request, client::Grpc, codegen::http::uri::PathAndQuery, transport::Endpoint};
use tonic_prost::ProstCodec;

use crate::bed::{
    can_run,
    node::{Node, wait_for},
    root,
};

#[test]
fn a_node_with_pods_is_not_uninstalled_on_containerd_1_7() {
    if can_run("a_node_with_pods_is_not_uninstalled_on_containerd_1_7") {
        is_not_uninstalled(&Node::boot(&root::debian("trixie"), &[]));
    }
}

#[test]
fn a_node_with_pods_is_not_uninstalled_on_containerd_2_1() {
    if can_run("a_node_with_pods_is_not_uninstalled_on_containerd_2_1") {
        is_not_uninstalled(&Node::boot(&root::debian("sid"), &[]));
    }
}

#[test]
fn a_node_with_pods_is_not_uninstalled_on_containerd_2_3_4() {
    if can_run("a_node_with_pods_is_not_uninstalled_on_containerd_2_3_4") {
        is_not_uninstalled(&root::node_2_3_4());
    }
}

/// F-C8, and the shim path, opt directory and options that really work.
fn is_not_uninstalled(node: &Node) {
    fs::copy(node.path("/usr/bin/containerd-shim-runc-v2"), node.shim_asset()).unwrap();
    node.run(&["sh", "-ec", PREPARE]).ok();
    wait_for("containerd with another image for sandboxes", || node.handlers());
    node.run(&["ctr", "-n", "k8s.io", "images", "import", "/tmp/image/image.tar"]).ok();

    node.installer(&[]).ok();
    let pod: RunPodSandboxResponse = ask(node, "RunPodSandbox", pod());
    let said = node.installer(&["-uninstall"]).refused();
    assert!(said.contains("pods use the runtime zeropod: default/web."), "{said}");
    assert!(node.handlers().unwrap().contains_key("zeropod"));
    let running = shims(node);
    assert_eq!(running.len(), 1, "{running:?}");

    // An upgrade restarts containerd and replaces the shim below the pod.
    fs::copy("/bin/true", node.criu_asset()).unwrap();
    node.installer(&["-systemd-cgroup=false"]).ok();
    assert_eq!(shims(node), running);

    let id = pod.id;
    let _: Empty = ask(node, "StopPodSandbox", PodSandboxId { id: id.clone() });
    let _: Empty = ask(node, "RemovePodSandbox", PodSandboxId { id });
    node.installer(&["-uninstall"]).ok();
}

/// Process ids of the shims that run from our directory.
fn shims(node: &Node) -> Vec<String> {
    let processes = fs::read_dir(node.path("/proc")).unwrap().map(|entry| entry.unwrap());
    let mut shims: Vec<String> = processes
        .filter(|entry| {
            let command = fs::read_to_string(entry.path().join("cmdline")).unwrap_or_default();
            command.starts_with("/var/lib/containerd/opt/bin/containerd-shim-zeropod-v2\0")
        })
        .map(|entry| entry.file_name().into_string().unwrap())
        .collect();
    shims.sort();
    shims
}

/// An image of busybox, and containerd told to use it for sandboxes, with its
/// data where overlays can be mounted, and a runc that does without the cgroup
/// controllers that the node may not have. Our handler inherits the latter.
const PREPARE: &str = r#"
systemctl stop containerd
touch /etc/hosts /etc/resolv.conf
mount -t tmpfs tmpfs /var/lib/containerd
mkdir -p /tmp/image/root/bin
cd /tmp/image
cp /usr/bin/busybox root/bin/
tar -C root -cf layer.tar .
sum=$(sha256sum layer.tar | cut -d ' ' -f 1)
cat > config.json <<EOF
{"architecture": "amd64", "os": "linux", "config": {"Entrypoint": ["/bin/busybox", "sleep", "100000"]}, "rootfs": {"type": "layers", "diff_ids": ["sha256:$sum"]}}
EOF
echo '[{"Config": "config.json", "RepoTags": ["localhost/pause:1"], "Layers": ["layer.tar"]}]' > manifest.json
tar -cf image.tar manifest.json config.json layer.tar
sed -i 's|^  \[plugins."io.containerd.grpc.v1.cri"\]|&\n    sandbox_image = "localhost/pause:1"\n    restrict_oom_score_adj = true|' /etc/containerd/config.toml
cat >> /etc/containerd/config.toml <<'EOF'
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
BinaryName = "/usr/local/bin/runc-without-limits"
EOF
cat > /usr/local/bin/runc-without-limits <<'EOF'
#!/bin/sh
for argument; do
  if [ "$previous" = --bundle ]; then
    sed -i 's/"cpu":{[^}]*}/"cpu":{}/' "$argument/config.json"
  fi
  previous=$argument
done
exec runc "$@"
EOF
chmod 755 /usr/local/bin/runc-without-limits
systemctl start containerd
"#;

fn ask<Q, A>(node: &Node, method: &str, query: Q) -> A
where
    Q: Message + 'static,
    A: Message + Default + 'static,
{
    let socket = node.path("/run/containerd/containerd.sock");
    let path = format!("/runtime.v1.RuntimeService/{method}");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let endpoint = Endpoint::from_shared(format!("unix://{}", socket.display())).unwrap();
        let mut grpc = Grpc::new(endpoint.connect().await.unwrap());
        grpc.ready().await.unwrap();
        let path = PathAndQuery::from_maybe_shared(path).unwrap();
        let answer = grpc.unary(Request::new(query), path, ProstCodec::<Q, A>::default()).await;
        answer.unwrap_or_else(|status| panic!("{method}: {status}")).into_inner()
    })
}

/// A pod on the host's network, so that it needs no plugin for one.
fn pod() -> RunPodSandboxRequest {
    const NODE: i32 = 2;
    RunPodSandboxRequest {
        config: Some(PodSandboxConfig {
            metadata: Some(Metadata {
                name: "web".into(),
                uid: "0123".into(),
                namespace: "default".into(),
            }),
            linux: Some(Linux {
                security_context: Some(SecurityContext {
                    namespace_options: Some(NamespaceOptions { network: NODE }),
                }),
            }),
        }),
        runtime_handler: "zeropod".into(),
    }
}

#[derive(Clone, PartialEq, Message)]
struct Empty {}

#[derive(Clone, PartialEq, Message)]
struct PodSandboxId {
    #[prost(string, tag = "1")]
    id: String,
}

#[derive(Clone, PartialEq, Message)]
struct RunPodSandboxRequest {
    #[prost(message, optional, tag = "1")]
    config: Option<PodSandboxConfig>,
    #[prost(string, tag = "2")]
    runtime_handler: String,
}

#[derive(Clone, PartialEq, Message)]
struct RunPodSandboxResponse {
    #[prost(string, tag = "1")]
    id: String,
}

#[derive(Clone, PartialEq, Message)]
struct PodSandboxConfig {
    #[prost(message, optional, tag = "1")]
    metadata: Option<Metadata>,
    #[prost(message, optional, tag = "8")]
    linux: Option<Linux>,
}

#[derive(Clone, PartialEq, Message)]
struct Metadata {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    uid: String,
    #[prost(string, tag = "3")]
    namespace: String,
}

#[derive(Clone, PartialEq, Message)]
struct Linux {
    #[prost(message, optional, tag = "2")]
    security_context: Option<SecurityContext>,
}

#[derive(Clone, PartialEq, Message)]
struct SecurityContext {
    #[prost(message, optional, tag = "1")]
    namespace_options: Option<NamespaceOptions>,
}

#[derive(Clone, PartialEq, Message)]
struct NamespaceOptions {
    #[prost(int32, tag = "1")]
    network: i32,
}
