//! The manifests in `deploy/`: every overlay renders, keeps the order that
//! users' patches of the Go implementation's manifests count on, and is
//! accepted by a real API server.
#![expect(clippy::unwrap_used, reason = "tests fail by it")]

mod deploy;

use deploy::{customized, overlay};
use kube::{
    Api, ResourceExt,
    api::{DynamicObject, PostParams},
    core::GroupVersionKind,
    discovery::pinned_kind,
};
use serde_json::{Value, json};
use zeropod_testkit::{
    kube::{Cluster, RealApi, apply_manifests, dry_run_manifests},
    skip::skip,
    tools,
};

const OVERLAYS: [&str; 9] =
    ["production", "kind", "k3s", "rke2", "k0s", "microk8s", "gke", "eks", "uninstall"];

/// In the order of the base.
const VOLUMES: [&str; 11] = [
    "hostroot",
    "containerd-etc",
    "containerd-run",
    "zeropod-var",
    "zeropod-opt",
    "zeropod-run",
    "systemd-run",
    "criu-etc",
    "hostproc",
    "bpf",
    "tls",
];

/// The objects of an overlay, or nothing if that can't be told here.
fn rendered(name: &str) -> Option<Vec<DynamicObject>> {
    if let Err(error) = tools::kubectl() {
        skip(&error.to_string());
        return None;
    }
    Some(overlay(name))
}

fn real() -> Option<&'static RealApi> {
    RealApi::shared().map_err(|error| skip(&error)).ok()
}

/// One object, as JSON.
fn find(objects: &[DynamicObject], kind: &str, name: &str) -> Value {
    let is = |object: &&DynamicObject| {
        object.types.as_ref().unwrap().kind == kind && object.name_any() == name
    };
    serde_json::to_value(objects.iter().find(is).unwrap_or_else(|| panic!("no {kind} {name}")))
        .unwrap()
}

fn pod_spec(objects: &[DynamicObject]) -> Value {
    find(objects, "DaemonSet", "zeropod-node")["spec"]["template"]["spec"].clone()
}

/// The value of a field of each item.
fn each<'a>(list: &'a Value, field: &str) -> Vec<&'a str> {
    list.as_array().unwrap().iter().map(|item| item[field].as_str().unwrap()).collect()
}

fn args(container: &Value) -> Vec<&str> {
    container["args"].as_array().unwrap().iter().map(|arg| arg.as_str().unwrap()).collect()
}

/// The path of a volume on the host.
fn path<'a>(spec: &'a Value, volume: &str) -> &'a str {
    let volumes = spec["volumes"].as_array().unwrap();
    volumes.iter().find(|one| one["name"] == volume).unwrap()["hostPath"]["path"].as_str().unwrap()
}

#[tokio::test]
async fn a_real_api_server_accepts_every_overlay() {
    let Some(api) = real() else { return };
    for overlay in OVERLAYS {
        let Some(objects) = rendered(overlay) else { return };
        if let Err(error) = dry_run_manifests(&api.client(), &objects).await {
            panic!("{overlay}: {error}: {:?}", std::error::Error::source(&error));
        }
    }
}

#[test]
fn names_and_order_are_those_that_patches_count_on() {
    for overlay in OVERLAYS {
        let Some(objects) = rendered(overlay) else { return };
        let spec = pod_spec(&objects);
        assert_eq!(each(&spec["initContainers"], "name"), ["installer", "prepare-bpf-fs"]);
        assert_eq!(each(&spec["containers"], "name"), ["manager"]);
        let installer = &spec["initContainers"][0]["volumeMounts"];
        assert_eq!(
            each(installer, "name"),
            [
                "hostroot",
                "containerd-etc",
                "containerd-run",
                "zeropod-opt",
                "systemd-run",
                "criu-etc",
                "tls"
            ]
        );
        assert_eq!(
            each(installer, "mountPath"),
            [
                "/host",
                "/etc/containerd",
                "/run/containerd",
                "/opt/zeropod",
                "/run/systemd",
                "/etc/criu",
                "/tls"
            ]
        );
        assert_eq!(
            each(&spec["containers"][0]["volumeMounts"], "mountPath"),
            ["/run/zeropod", "/var/lib/zeropod", "/hostproc", "/sys/fs/bpf", "/tls"]
        );
        assert_eq!(each(&spec["containers"][0]["env"], "name"), ["POD_IP", "NODE_NAME"]);
        // Kustomize puts volumes that an overlay changes before the others.
        let changed = match overlay {
            "k3s" | "rke2" => &["containerd-etc", "containerd-run", "zeropod-opt"][..],
            "k0s" | "microk8s" => &["containerd-etc", "containerd-run"],
            "gke" => &["zeropod-opt"],
            _ => &[],
        };
        let rest = VOLUMES.iter().filter(|name| !changed.contains(name));
        let expected: Vec<_> = changed.iter().chain(rest).copied().collect();
        assert_eq!(each(&spec["volumes"], "name"), expected, "{overlay}");
        assert_eq!(args(&spec["containers"][0])[0], "-metrics-addr=:8080");
        assert_eq!(spec["nodeSelector"], json!({"zeropod.ctrox.dev/node": "true"}));
    }
}

// R7: the manager has to know the process that probes, too.
#[test]
fn each_distribution_gets_its_paths_and_arguments() {
    let rancher = "/var/lib/rancher";
    let cases = [
        ("production", "/etc/containerd".into(), "/run/containerd", "/opt/zeropod".into(), vec![]),
        (
            "k3s",
            format!("{rancher}/k3s/agent/etc/containerd/"),
            "/run/k3s/containerd/",
            format!("{rancher}/k3s/agent/containerd"),
            vec!["-runtime=k3s", "-probe-binary-name=k3s"],
        ),
        (
            "rke2",
            format!("{rancher}/rke2/agent/etc/containerd/"),
            "/run/k3s/containerd/",
            format!("{rancher}/rke2/agent/containerd"),
            vec!["-runtime=rke2"],
        ),
        ("k0s", "/etc/k0s".into(), "/run/k0s", "/opt/zeropod".into(), vec!["-runtime=k0s"]),
        (
            "microk8s",
            "/var/snap/microk8s/current/args".into(),
            "/var/snap/microk8s/common/run",
            "/opt/zeropod".into(),
            vec!["-runtime=microk8s", "-probe-binary-name=kubelite"],
        ),
        (
            "gke",
            "/etc/containerd".into(),
            "/run/containerd",
            "/var/lib/toolbox/zeropod".into(),
            vec!["-host-opt-path=/var/lib/toolbox/zeropod"],
        ),
        ("eks", "/etc/containerd".into(), "/run/containerd", "/opt/zeropod".into(), vec![]),
        (
            "uninstall",
            "/etc/containerd".into(),
            "/run/containerd",
            "/opt/zeropod".into(),
            vec!["-uninstall"],
        ),
    ];
    for (overlay, etc, run, opt, more) in cases {
        let Some(objects) = rendered(overlay) else { return };
        let spec = pod_spec(&objects);
        assert_eq!(path(&spec, "containerd-etc"), etc, "{overlay}");
        assert_eq!(path(&spec, "containerd-run"), run, "{overlay}");
        assert_eq!(path(&spec, "zeropod-opt"), opt, "{overlay}");
        let installer = &spec["initContainers"][0];
        assert_eq!(args(installer)[0], "-criu-image=file:/assets", "{overlay}");
        assert_eq!(args(installer)[1..], more, "{overlay}");
        let features = ["-in-place-scaling=true", "-status-labels=true", "-status-events=true"];
        let prober = more.iter().filter(|arg| arg.starts_with("-probe-binary-name="));
        let expected: Vec<_> = features.iter().chain(prober).copied().collect();
        assert_eq!(args(&spec["containers"][0])[1..], expected, "{overlay}");
    }
}

// M3, F-D2: in the place of the host's root, what the installer uses, at the
// paths that it has on the host.
#[tokio::test]
async fn exact_mounts_are_what_the_installer_needs() {
    if rendered("production").is_none() {
        return;
    }
    for overlay in OVERLAYS {
        let objects = customized(overlay, &["exact-mounts"], &json!([]));
        let spec = pod_spec(&objects);
        let installer = &spec["initContainers"][0];
        assert!(!each(&spec["volumes"], "name").contains(&"hostroot"), "{overlay}");
        assert_eq!(installer["securityContext"]["readOnlyRootFilesystem"], true);
        assert!(args(installer).contains(&"-host-root=/"));
        for mount in installer["volumeMounts"].as_array().unwrap() {
            let name = mount["name"].as_str().unwrap();
            if name != "tls" {
                assert_eq!(mount["mountPath"], path(&spec, name), "{overlay}");
            }
        }
        if let Some(api) = real() {
            dry_run_manifests(&api.client(), &objects).await.unwrap();
        }
    }
}

// I3: removal has the paths of the overlay that installed.
#[test]
fn every_distribution_can_be_uninstalled() {
    if rendered("production").is_none() {
        return;
    }
    for overlay in OVERLAYS.into_iter().filter(|overlay| *overlay != "uninstall") {
        let plain = pod_spec(&rendered(overlay).unwrap());
        let objects = customized(overlay, &["uninstaller"], &json!([]));
        let removal = pod_spec(&objects);
        let installer = &removal["initContainers"][0];
        assert_eq!(args(installer).last(), Some(&"-uninstall"), "{overlay}");
        // Every node, whatever its taints (F-C12), and none waits for another.
        assert_eq!(removal["tolerations"], json!([{"operator": "Exists"}]));
        assert_eq!(removal["nodeSelector"], plain["nodeSelector"]);
        let set = find(&objects, "DaemonSet", "zeropod-node");
        assert_eq!(set["spec"]["updateStrategy"]["rollingUpdate"]["maxUnavailable"], "100%");
        assert_eq!(removal["volumes"], plain["volumes"]);
        assert_eq!(installer["volumeMounts"], plain["initContainers"][0]["volumeMounts"]);
    }
}

#[test]
fn images_have_the_version_of_the_programs() {
    for (overlay, tag) in [("production", concat!("v", env!("CARGO_PKG_VERSION"))), ("kind", "dev")]
    {
        let Some(objects) = rendered(overlay) else { return };
        let spec = pod_spec(&objects);
        let (installer, manager) =
            (&spec["initContainers"][0]["image"], &spec["containers"][0]["image"]);
        assert!(
            installer.as_str().unwrap().ends_with(&format!("zeropod-installer:{tag}")),
            "{installer}"
        );
        assert!(
            manager.as_str().unwrap().ends_with(&format!("zeropod-manager:{tag}")),
            "{manager}"
        );
        // No foreign image: what mounts the BPF file system is ours.
        assert_eq!(&spec["initContainers"][1]["image"], installer);
    }
}

#[test]
fn images_come_from_wherever_the_user_says() {
    if rendered("production").is_none() {
        return;
    }
    let images =
        json!([{"name": "zeropod-installer", "newName": "example.invalid/a", "newTag": "b"}]);
    let spec = pod_spec(&customized("k3s", &[], &images));
    for container in spec["initContainers"].as_array().unwrap() {
        assert_eq!(container["image"], "example.invalid/a:b");
    }
}

// M1, F-D1 to F-D4.
#[test]
fn pods_may_do_what_they_need_and_no_more() {
    let Some(objects) = rendered("production") else { return };
    let namespace = find(&objects, "Namespace", "zeropod-system");
    assert_eq!(namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"], "privileged");
    let spec = pod_spec(&objects);
    for field in ["hostNetwork", "hostPID", "hostIPC"] {
        assert_eq!(spec[field], Value::Null);
    }
    let manager = &spec["containers"][0]["securityContext"];
    assert_eq!(manager["capabilities"]["drop"], json!(["ALL"]));
    assert_eq!(
        manager["capabilities"]["add"],
        json!(["SYS_PTRACE", "SYS_ADMIN", "NET_ADMIN", "SYS_RESOURCE"])
    );
    assert_eq!(manager["privileged"], Value::Null);
    let mounts = |list: &str| spec[list].as_array().unwrap().clone();
    for container in mounts("initContainers").iter().chain(&mounts("containers")) {
        for mount in container["volumeMounts"].as_array().unwrap() {
            let expected =
                match (container["name"].as_str().unwrap(), mount["name"].as_str().unwrap()) {
                    ("prepare-bpf-fs", "bpf") => "Bidirectional",
                    ("manager", "bpf") => "HostToContainer",
                    _ => "",
                };
            assert_eq!(mount["mountPropagation"].as_str().unwrap_or_default(), expected, "{mount}");
        }
    }
    assert_eq!(spec["priorityClassName"], "zeropod-node");
    find(&objects, "PriorityClass", "zeropod-node");
    for container in mounts("initContainers").iter().chain(&mounts("containers")) {
        assert!(container["resources"]["requests"]["memory"].is_string(), "{container}");
    }
    let probes = ["startupProbe", "livenessProbe", "readinessProbe"];
    let paths =
        probes.map(|probe| spec["containers"][0][probe]["httpGet"]["path"].as_str().unwrap());
    assert_eq!(paths, ["/probe", "/healthz", "/readyz"]);
}

#[tokio::test]
async fn clusters_before_1_30_get_what_they_know() {
    if rendered("production").is_none() {
        return;
    }
    let objects = customized("production", &["kubernetes-1.29"], &json!([]));
    let kinds: Vec<_> =
        objects.iter().map(|object| object.types.as_ref().unwrap().kind.as_str()).collect();
    assert!(!kinds.iter().any(|kind| kind.starts_with("ValidatingAdmission")), "{kinds:?}");
    let set = find(&objects, "DaemonSet", "zeropod-node");
    assert_eq!(
        set["spec"]["template"]["spec"]["containers"][0]["securityContext"]["appArmorProfile"],
        Value::Null
    );
    let annotations = &set["spec"]["template"]["metadata"]["annotations"];
    assert_eq!(annotations["container.apparmor.security.beta.kubernetes.io/manager"], "unconfined");
    let Some(api) = real() else { return };
    dry_run_manifests(&api.client(), &objects).await.unwrap();
}

/// A migration as the Go implementation writes it.
#[tokio::test]
async fn migrations_of_the_go_implementation_fit() {
    let (Some(api), Some(objects)) = (real(), rendered("production")) else { return };
    let client = api.client();
    let is_definition =
        |object: &DynamicObject| object.types.as_ref().unwrap().kind == "CustomResourceDefinition";
    let definitions: Vec<_> = objects.into_iter().filter(is_definition).collect();
    apply_manifests(&client, &definitions).await.unwrap();
    let kind = GroupVersionKind::gvk("runtime.zeropod.ctrox.dev", "v1", "Migration");
    let (resource, _) = pinned_kind(&client, &kind).await.unwrap();
    let migrations = Api::<DynamicObject>::namespaced_with(client, "default", &resource);
    let object = json!({
        "apiVersion": "runtime.zeropod.ctrox.dev/v1",
        "kind": "Migration",
        "metadata": {
            "name": "web",
            "finalizers": ["migration.runtime.zeropod.ctrox.dev/checkpoint-cleanup"],
        },
        "spec": {
            "containers": [{
                "name": "app",
                "id": "0123",
                "imageServer": {"host": "10.0.0.1", "port": 8090},
                "ports": [8080],
            }],
            "podTemplateHash": "",
            "restoreReady": false,
            "sourceNode": "a",
        },
    });
    let created: DynamicObject = serde_json::from_value(object.clone()).unwrap();
    let mut created = migrations.create(&PostParams::default(), &created).await.unwrap();
    assert_eq!(created.data["spec"], object["spec"]);
    // Times that are not known yet are written as null, durations as 0s.
    created.data["status"] = json!({"containers": [{
        "name": "app",
        "condition": {"phase": "Running"},
        "pausedAt": "2026-01-02T03:04:05.678901Z",
        "restoredAt": null,
        "migrationDuration": "0s",
    }]});
    let updated = migrations.replace_status("web", &PostParams::default(), &created).await.unwrap();
    let container = &updated.data["status"]["containers"][0];
    assert_eq!(container["pausedAt"], "2026-01-02T03:04:05.678901Z");
    assert_eq!(container["restoredAt"], Value::Null);
}
