//! The Helm chart in `deploy/chart`: what it makes is what the overlays make,
//! and a real API server accepts it.
#![expect(clippy::unwrap_used, reason = "tests fail by it")]

mod deploy;

use std::{collections::BTreeMap, fs};

use deploy::{customized, deploy, overlay};
use kube::{ResourceExt, api::DynamicObject};
use serde_json::{Value, json};
use zeropod_testkit::{
    kube::{Cluster, RealApi, dry_run_manifests, helm_template, parse_manifests},
    skip::skip,
    tools,
};

/// The version of Kubernetes that charts are rendered for.
const KUBERNETES: &str = "v1.34.0";

/// Whether charts and overlays can be rendered here.
fn possible() -> bool {
    let missing = tools::kubectl().err().or_else(|| tools::helm_template().err());
    if let Some(error) = &missing {
        skip(&error.to_string());
    }
    missing.is_none()
}

fn chart(version: &str, values: &Value) -> Vec<DynamicObject> {
    parse_manifests(&helm_template(&deploy().join("chart"), version, values).unwrap()).unwrap()
}

/// Why a chart with these values is refused.
fn refused(values: &Value) -> String {
    helm_template(&deploy().join("chart"), KUBERNETES, values).unwrap_err().to_string()
}

/// An overlay with components.
fn with(resource: &str, components: &[&str]) -> Vec<DynamicObject> {
    customized(resource, components, &json!([]))
}

/// By kind and name, since the order is Helm's and kustomize's own.
fn by_name(objects: Vec<DynamicObject>) -> BTreeMap<String, Value> {
    let key = |object: &DynamicObject| {
        let kind = &object.types.as_ref().unwrap().kind;
        format!("{kind} {}/{}", object.namespace().unwrap_or_default(), object.name_any())
    };
    let count = objects.len();
    let named: BTreeMap<_, _> = objects
        .into_iter()
        .map(|object| (key(&object), serde_json::to_value(object).unwrap()))
        .collect();
    assert_eq!(named.len(), count, "an object is there twice");
    named
}

#[track_caller]
fn assert_same(what: &str, chart: Vec<DynamicObject>, overlay: Vec<DynamicObject>) {
    let (chart, overlay) = (by_name(chart), by_name(overlay));
    let names = |objects: &BTreeMap<String, Value>| objects.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&chart), names(&overlay), "{what}");
    for (name, object) in &chart {
        assert_eq!(object, &overlay[name], "{what}: {name}");
    }
}

fn daemon_set(objects: Vec<DynamicObject>) -> Value {
    by_name(objects).remove("DaemonSet zeropod-system/zeropod-node").unwrap()
}

#[test]
fn the_default_is_the_overlay_production() {
    if possible() {
        assert_same("default", chart(KUBERNETES, &json!({})), overlay("production"));
    }
}

#[test]
fn each_distribution_is_its_overlay() {
    if !possible() {
        return;
    }
    for name in ["k3s", "rke2", "k0s", "microk8s", "gke", "eks"] {
        let values = json!({ "distribution": name });
        assert_same(name, chart(KUBERNETES, &values), overlay(name));
    }
}

#[test]
fn values_are_components() {
    if !possible() {
        return;
    }
    let cases: [(&str, &str, Value, Vec<DynamicObject>); 4] = [
        ("uninstall", KUBERNETES, json!({"uninstall": true}), overlay("uninstall")),
        (
            "uninstall from k3s",
            KUBERNETES,
            json!({"uninstall": true, "distribution": "k3s"}),
            with("k3s", &["uninstaller"]),
        ),
        ("an older cluster", "v1.29.3", json!({}), with("production", &["kubernetes-1.29"])),
        (
            "the node's own paths",
            KUBERNETES,
            json!({"exactMounts": true, "distribution": "rke2"}),
            with("rke2", &["exact-mounts"]),
        ),
    ];
    for (what, version, values, overlay) in cases {
        assert_same(what, chart(version, &values), overlay);
    }
    let nothing = json!({
        "statusLabels": false, "statusEvents": false, "inPlaceScaling": false,
        "migrationManager": false, "admissionPolicy": false,
    });
    let mut base = overlay("base");
    // What production sets, and the base leaves open.
    for object in
        base.iter_mut().filter(|object| object.types.as_ref().unwrap().kind == "DaemonSet")
    {
        let spec = &mut object.data["spec"]["template"]["spec"];
        let image = |name| format!("zeropod-{name}:v{}", env!("CARGO_PKG_VERSION"));
        spec["initContainers"][0]["args"] = json!(["-criu-image=file:/assets"]);
        spec["initContainers"][0]["image"] = image("installer").into();
        spec["initContainers"][1]["image"] = image("installer").into();
        spec["containers"][0]["image"] = image("manager").into();
    }
    assert_same("no features", chart(KUBERNETES, &nothing), base);
}

#[test]
fn what_users_set_arrives_where_it_belongs() {
    if !possible() {
        return;
    }
    let values = json!({
        "paths": {"containerd-etc": "/srv/containerd"},
        "namespace": {"name": "elsewhere"},
        "priorityClass": {"name": "system-node-critical", "create": false},
        "installer": {"image": {"repository": "registry.example/i", "tag": "b"}, "args": ["-timeout=5m"]},
        "manager": {"args": ["-debug"], "resources": {"limits": {"memory": "1Gi"}}},
        "imagePullSecrets": [{"name": "s"}],
        "podAnnotations": {"a": "b"}, "podLabels": {"c": "d"}, "nodeSelector": {"e": "f"},
        "updateStrategy": {"rollingUpdate": {"maxUnavailable": 3}},
    });
    let mut objects = by_name(chart(KUBERNETES, &values));
    assert!(
        !objects
            .keys()
            .any(|name| name.contains("zeropod-system") || name.starts_with("PriorityClass"))
    );
    let policy =
        &objects["ValidatingAdmissionPolicy /zeropod-node-pods"]["spec"]["matchConditions"][0];
    assert!(
        policy["expression"].as_str().unwrap().contains("serviceaccount:elsewhere:zeropod-node")
    );
    let set = objects.remove("DaemonSet elsewhere/zeropod-node").unwrap();
    let template = &set["spec"]["template"];
    let spec = &template["spec"];
    assert_eq!(template["metadata"]["annotations"]["a"], "b");
    assert_eq!(
        template["metadata"]["annotations"]["kubectl.kubernetes.io/default-container"],
        "manager"
    );
    assert_eq!(template["metadata"]["labels"]["c"], "d");
    assert_eq!(set["spec"]["updateStrategy"]["rollingUpdate"]["maxUnavailable"], 3);
    assert_eq!(spec["nodeSelector"], json!({"e": "f", "zeropod.ctrox.dev/node": "true"}));
    assert_eq!(spec["priorityClassName"], "system-node-critical");
    assert_eq!(spec["imagePullSecrets"][0]["name"], "s");
    assert_eq!(spec["volumes"][0]["hostPath"]["path"], "/srv/containerd");
    for container in spec["initContainers"].as_array().unwrap() {
        assert_eq!(container["image"], "registry.example/i:b");
    }
    assert_eq!(
        spec["initContainers"][0]["args"],
        json!(["-criu-image=file:/assets", "-timeout=5m"])
    );
    let manager = &spec["containers"][0];
    assert_eq!(manager["args"].as_array().unwrap().last().unwrap(), "-debug");
    assert_eq!(manager["resources"]["limits"]["memory"], "1Gi");
    assert_eq!(manager["resources"]["requests"]["cpu"], "10m");
}

#[test]
fn mistakes_are_refused_by_name() {
    if !possible() {
        return;
    }
    for (values, needle) in [
        (json!({"distribution": "talos"}), "distribution"),
        (json!({"statusLabel": true}), "statusLabel"),
        (json!({"paths": {"containerd-etc": "etc"}}), "containerd-etc"),
        (json!({"manager": {"args": ["debug"]}}), "args"),
    ] {
        let said = refused(&values);
        assert!(said.contains(needle), "{said}");
    }
}

/// All that configures the programs is a part of the pods' template, so that a
/// change of it makes them roll: no checksum has to be kept (F-C20).
#[test]
fn every_change_of_a_setting_rolls_the_pods() {
    if !possible() {
        return;
    }
    let set = daemon_set(chart(KUBERNETES, &json!({})));
    for values in [
        json!({"distribution": "k3s"}),
        json!({"uninstall": true}),
        json!({"statusLabels": false}),
        json!({"statusEvents": false}),
        json!({"inPlaceScaling": false}),
        json!({"exactMounts": true}),
        json!({"manager": {"args": ["-debug"]}}),
    ] {
        let other = daemon_set(chart(KUBERNETES, &values));
        assert_ne!(other["spec"]["template"], set["spec"]["template"], "{values}");
    }
    let text = set.to_string();
    assert!(!text.contains("configMap") && !text.contains("secretKeyRef"), "{text}");
}

/// The chart lists every value that it takes, for people.
#[test]
fn the_readme_lists_the_values() {
    let read = |name: &str| fs::read_to_string(deploy().join("chart").join(name)).unwrap();
    let schema: Value = serde_json::from_str(&read("values.schema.json")).unwrap();
    let readme = read("README.md");
    let values = read("values.yaml");
    for name in schema["properties"].as_object().unwrap().keys().filter(|name| *name != "global") {
        assert!(readme.contains(&format!("`{name}")), "{name} is not in README.md");
        assert!(values.contains(&format!("\n{name}:")), "{name} is not in values.yaml");
    }
}

#[tokio::test]
async fn a_real_api_server_accepts_the_chart() {
    if !possible() {
        return;
    }
    let api = match RealApi::shared() {
        Ok(api) => api,
        Err(error) => return skip(&error),
    };
    for (version, values) in [
        (KUBERNETES, json!({})),
        (KUBERNETES, json!({"distribution": "microk8s", "exactMounts": true, "uninstall": true})),
        (KUBERNETES, json!({"namespace": {"name": "elsewhere"}})),
        ("v1.29.3", json!({})),
    ] {
        if let Err(error) = dry_run_manifests(&api.client(), &chart(version, &values)).await {
            panic!("{values}: {error}: {:?}", std::error::Error::source(&error));
        }
    }
}
