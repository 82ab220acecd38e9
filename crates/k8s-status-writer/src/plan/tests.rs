//! Tables: a pod, what its containers do, and what is to be written.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::*;
use crate::pod::Received;

const ALL: Features = Features { labels: true, events: true, in_place_scaling: true };

/// A running pod with the container `app` (100m, 128Mi), changed by `edit`.
fn pod(edit: impl FnOnce(&mut Value)) -> Pod {
    let mut json = json!({
        "metadata": {
            "name": "web", "namespace": "default", "uid": "u1",
            "labels": {}, "annotations": {},
        },
        "spec": { "containers": [
            { "name": "app", "resources": { "requests": { "cpu": "100m", "memory": "128Mi" } } },
        ]},
        "status": { "qosClass": "Burstable" },
    });
    edit(&mut json);
    serde_json::from_value::<Received>(json).unwrap().pod
}

fn requests(cpu: &str, memory: &str) -> Value {
    json!({ "requests": { "cpu": cpu, "memory": memory } })
}

fn recorded(json: &mut Value, cpu: &str, memory: &str) {
    json["metadata"]["annotations"] = json!({
        "zeropod.ctrox.dev/cpu-requests": cpu,
        "zeropod.ctrox.dev/memory-requests": memory,
    });
}

fn scaled_down(json: &mut Value) {
    json["spec"]["containers"][0]["resources"] = requests("1m", "1Ki");
    recorded(json, r#"{"app":"100m"}"#, r#"{"app":"128Mi"}"#);
    json["metadata"]["labels"]["status.zeropod.ctrox.dev/app"] = json!("SCALED_DOWN");
}

fn app(seen: Seen) -> BTreeMap<Box<str>, Seen> {
    BTreeMap::from([("app".into(), seen)])
}

fn reasons(writes: &Writes) -> Vec<(&str, &'static str)> {
    writes.refusals.iter().map(|r| (&*r.container, r.reason.as_str())).collect()
}

#[test]
fn scaling_down_records_labels_and_lowers() {
    let writes = plan(&pod(|_| ()), &app(Seen::ScaledDown), ALL);
    assert_eq!(
        writes.metadata.unwrap().patch("u1"),
        json!({ "metadata": {
            "uid": "u1",
            "labels": { "status.zeropod.ctrox.dev/app": "SCALED_DOWN" },
            "annotations": {
                "zeropod.ctrox.dev/cpu-requests": r#"{"app":"100m"}"#,
                "zeropod.ctrox.dev/memory-requests": r#"{"app":"128Mi"}"#,
            },
        }})
    );
    assert_eq!(
        writes.scale_down.unwrap().patch("u1"),
        json!({
            "metadata": { "uid": "u1" },
            "spec": { "containers": [
                { "name": "app", "resources": { "requests": { "cpu": "1m", "memory": "1Ki" } } },
            ]},
        })
    );
    assert_eq!((writes.restore, writes.refusals), (None, vec![]));
}

#[test]
fn waking_up_restores() {
    let writes = plan(&pod(scaled_down), &app(Seen::Running), ALL);
    assert_eq!(
        writes.restore.unwrap().patch("u1")["spec"],
        json!({ "containers": [
            { "name": "app", "resources": { "requests": { "cpu": "100m", "memory": "128Mi" } } },
        ]})
    );
    assert_eq!(
        writes.metadata.unwrap().patch("u1")["metadata"],
        json!({ "uid": "u1", "labels": { "status.zeropod.ctrox.dev/app": "RUNNING" } })
    );
    assert_eq!(writes.scale_down, None);
}

#[test]
fn nothing_is_written_when_nothing_changed() {
    // S9, F-I2, F-R7
    let down = pod(scaled_down);
    assert_eq!(plan(&down, &app(Seen::ScaledDown), ALL), Writes::default());
    assert_eq!(plan(&down, &BTreeMap::new(), ALL), Writes::default());
    assert_eq!(plan(&down, &app(Seen::Running), Features::default()), Writes::default());
    let equal_by_value = pod(|json| {
        scaled_down(json);
        json["spec"]["containers"][0]["resources"] = requests("0.001", "1024");
    });
    assert_eq!(plan(&equal_by_value, &app(Seen::ScaledDown), ALL), Writes::default());
    // S12
    let terminating = pod(|json| json["metadata"]["deletionTimestamp"] = json!("t"));
    assert_eq!(plan(&terminating, &app(Seen::Running), ALL), Writes::default());
}

#[test]
fn each_feature_is_its_own() {
    let labels = plan(
        &pod(|_| ()),
        &app(Seen::ScaledDown),
        Features { labels: true, ..Features::default() },
    );
    assert_eq!(labels.metadata.unwrap().annotations, BTreeMap::new());
    assert_eq!(labels.scale_down, None);
    let scaling = plan(
        &pod(|_| ()),
        &app(Seen::ScaledDown),
        Features { in_place_scaling: true, ..Features::default() },
    );
    assert_eq!(scaling.metadata.unwrap().labels, BTreeMap::new());
    assert!(scaling.scale_down.is_some());
}

#[test]
fn annotations_cover_every_container_in_the_contracted_format() {
    let pod = pod(|json| {
        json["spec"]["containers"] = json!([
            { "name": "b" },
            { "name": "app", "resources": { "requests": { "cpu": "100m", "memory": "128Mi" } } },
        ]);
        json["spec"]["initContainers"] = json!([
            { "name": "setup", "resources": { "requests": { "cpu": "7" } } },
        ]);
    });
    let annotations = plan(&pod, &app(Seen::Running), ALL).metadata.unwrap().annotations;
    assert_eq!(annotations["zeropod.ctrox.dev/cpu-requests"], r#"{"app":"100m","b":"0"}"#);
    assert_eq!(annotations["zeropod.ctrox.dev/memory-requests"], r#"{"app":"128Mi","b":"0"}"#);
}

#[test]
fn only_present_requests_are_scaled_and_only_downwards() {
    // F-K2: a request that is absent or zero is never added. F-K5: nor raised.
    for (now, lowered) in [
        (json!({}), json!(null)),
        (json!({ "cpu": "0", "memory": "0" }), json!(null)),
        (json!({ "cpu": "1", "ephemeral-storage": "1Gi" }), json!({ "cpu": "1m" })),
        (json!({ "memory": "1" }), json!(null)),
        (json!({ "memory": "2Ki" }), json!({ "memory": "1Ki" })),
    ] {
        let pod = pod(|json| json["spec"]["containers"][0]["resources"]["requests"] = now.clone());
        let patch = plan(&pod, &app(Seen::ScaledDown), ALL)
            .scale_down
            .map_or(json!(null), |resize| resize.patch("u1"));
        assert_eq!(patch["spec"]["containers"][0]["resources"]["requests"], lowered, "{now}");
    }
}

#[test]
fn k5_no_annotations_without_requests() {
    let pod = pod(|json| json["spec"]["containers"][0]["resources"] = json!({}));
    let metadata = plan(&pod, &app(Seen::Running), ALL).metadata.unwrap();
    assert_eq!(metadata.annotations, BTreeMap::new());
}

#[test]
fn k5_sidecars_are_scaled_and_other_init_containers_are_not() {
    let pod = pod(|json| {
        json["spec"]["initContainers"] = json!([
            { "name": "side", "restartPolicy": "Always",
              "resources": { "requests": { "cpu": "50m" } } },
            { "name": "setup", "resources": { "requests": { "cpu": "50m" } } },
        ]);
    });
    let seen =
        BTreeMap::from([("side".into(), Seen::ScaledDown), ("setup".into(), Seen::ScaledDown)]);
    assert_eq!(
        plan(&pod, &seen, ALL).scale_down.unwrap().patch("u1")["spec"],
        json!({ "initContainers": [
            { "name": "side", "resources": { "requests": { "cpu": "1m" } } },
        ]})
    );
}

#[test]
fn k1_guaranteed_static_and_pod_level_pods_are_refused() {
    for (reason, edit) in [
        (
            "guaranteed-qos",
            (|json| json["status"]["qosClass"] = json!("Guaranteed")) as fn(&mut Value),
        ),
        ("static-pod", |json| {
            json["metadata"]["annotations"]["kubernetes.io/config.mirror"] = json!("hash");
        }),
        ("pod-level-resources", |json| {
            json["spec"]["resources"] = json!({ "limits": { "cpu": "1" } });
        }),
    ] {
        let pod = pod(edit);
        let writes = plan(&pod, &app(Seen::ScaledDown), ALL);
        assert_eq!(reasons(&writes), [("app", reason)]);
        assert_eq!((&writes.scale_down, &writes.restore), (&None, &None));
        // The label is right all the same, and nothing is recorded.
        let metadata = writes.metadata.unwrap();
        assert_eq!(metadata.labels["app"], Some("SCALED_DOWN"));
        assert_eq!(metadata.annotations, BTreeMap::new());
        // Nothing is refused that isn't due.
        assert_eq!(reasons(&plan(&pod, &app(Seen::Running), ALL)), []);
    }
}

#[test]
fn k2_resources_that_would_restart_the_container_are_left() {
    let policy = |json: &mut Value| {
        json["spec"]["containers"][0]["resizePolicy"] =
            json!([{ "resourceName": "memory", "restartPolicy": "RestartContainer" }]);
    };
    let down = plan(&pod(policy), &app(Seen::ScaledDown), ALL);
    assert_eq!(reasons(&down), [("app", "restart-policy")]);
    let patch = down.scale_down.unwrap().patch("u1");
    assert_eq!(patch["spec"]["containers"][0]["resources"]["requests"], json!({ "cpu": "1m" }));

    let up = plan(
        &pod(|json| {
            scaled_down(json);
            policy(json);
        }),
        &app(Seen::Running),
        ALL,
    );
    assert_eq!(reasons(&up), [("app", "restart-policy")]);
    let patch = up.restore.unwrap().patch("u1");
    assert_eq!(patch["spec"]["containers"][0]["resources"]["requests"], json!({ "cpu": "100m" }));
}

#[test]
fn k3_a_change_while_running_is_the_new_original() {
    let changed = pod(|json| {
        recorded(json, r#"{"app":"100m"}"#, r#"{"app":"128Mi"}"#);
        json["spec"]["containers"][0]["resources"] = requests("250m", "128Mi");
    });
    for seen in [Seen::Running, Seen::ScaledDown] {
        let writes = plan(&changed, &app(seen), ALL);
        assert_eq!(writes.restore, None);
        assert_eq!(
            writes.metadata.unwrap().annotations,
            BTreeMap::from([("zeropod.ctrox.dev/cpu-requests", r#"{"app":"250m"}"#.to_owned())])
        );
    }
}

#[test]
fn k3_sentinels_are_never_recorded() {
    let lost = pod(|json| {
        scaled_down(json);
        json["metadata"]["annotations"] = json!({});
    });
    let annotations = plan(&lost, &app(Seen::ScaledDown), ALL).metadata.unwrap().annotations;
    assert_eq!(annotations["zeropod.ctrox.dev/cpu-requests"], r#"{"app":"0"}"#);
    // Waking up, there is nothing to go back to, and that is said.
    let writes = plan(&lost, &app(Seen::Running), ALL);
    assert_eq!(writes.restore, None);
    assert_eq!(reasons(&writes), [("app", "original-unknown")]);
    // Unless it is remembered since before the annotation was lost.
    let mut remembered = lost;
    remembered.remember(&pod(scaled_down));
    let writes = plan(&remembered, &app(Seen::Running), ALL);
    assert_eq!(
        writes.metadata.unwrap().annotations["zeropod.ctrox.dev/cpu-requests"],
        r#"{"app":"100m"}"#
    );
    assert!(writes.restore.is_some());
}

#[test]
fn broken_annotations_are_written_anew() {
    let broken = pod(|json| recorded(json, "{", r#"{"app":"128Mi"}"#));
    let annotations = plan(&broken, &app(Seen::ScaledDown), ALL).metadata.unwrap().annotations;
    assert_eq!(
        annotations,
        BTreeMap::from([("zeropod.ctrox.dev/cpu-requests", r#"{"app":"100m"}"#.to_owned())])
    );
}

#[test]
fn what_is_recorded_of_containers_not_followed_stays() {
    let pod = pod(|json| {
        json["spec"]["containers"].as_array_mut().unwrap().push(json!(
            { "name": "other", "resources": { "requests": { "cpu": "3", "memory": "3Gi" } } }
        ));
        recorded(json, r#"{"app":"100m","other":"2"}"#, r#"{"app":"128Mi","other":"2Gi"}"#);
    });
    assert_eq!(plan(&pod, &app(Seen::Running), ALL).metadata.unwrap().annotations, BTreeMap::new());
}

#[test]
fn f_k11_restarts_restore_requests() {
    for seen in [Seen::Stopping, Seen::Gone] {
        let writes = plan(&pod(scaled_down), &app(seen), ALL);
        assert!(writes.restore.is_some(), "{seen:?}");
    }
}

#[test]
fn labels_go_when_the_container_is_gone_and_stay_while_it_stops() {
    let gone = plan(&pod(scaled_down), &app(Seen::Gone), ALL);
    assert_eq!(
        gone.metadata.unwrap().patch("u1")["metadata"],
        json!({ "uid": "u1", "labels": { "status.zeropod.ctrox.dev/app": null } })
    );
    assert_eq!(plan(&pod(scaled_down), &app(Seen::Stopping), ALL).metadata, None);
    assert_eq!(plan(&pod(|_| ()), &app(Seen::Gone), ALL), Writes::default());
}

#[test]
fn f_k9_opted_out_pods_are_put_back_and_left_alone() {
    let opt_out = |json: &mut Value| {
        json["metadata"]["annotations"]["zeropod.ctrox.dev/disable-in-place-scaling"] =
            json!("true");
    };
    let writes = plan(&pod(opt_out), &app(Seen::ScaledDown), ALL);
    assert_eq!((writes.scale_down, writes.refusals), (None, vec![]));
    assert_eq!(writes.metadata.unwrap().annotations, BTreeMap::new());
    let down = pod(|json| {
        scaled_down(json);
        opt_out(json);
    });
    assert!(plan(&down, &app(Seen::ScaledDown), ALL).restore.is_some());
}

#[test]
fn resizes_wait_for_the_kubelet_but_labels_do_not() {
    let pod = pod(|json| {
        json["status"]["containerStatuses"] =
            json!([{ "name": "app", "state": { "running": {} } }]);
    });
    let writes = plan(&pod, &app(Seen::ScaledDown), ALL);
    assert_eq!((writes.scale_down, writes.refusals), (None, vec![]));
    assert_eq!(writes.metadata.unwrap().labels["app"], Some("SCALED_DOWN"));
}

#[test]
fn two_containers_change_at_once() {
    let pod = pod(|json| {
        scaled_down(json);
        json["spec"]["containers"].as_array_mut().unwrap().push(json!(
            { "name": "b", "resources": { "requests": { "cpu": "2" } } }
        ));
    });
    let seen = BTreeMap::from([("app".into(), Seen::Running), ("b".into(), Seen::ScaledDown)]);
    let writes = plan(&pod, &seen, ALL);
    assert_eq!(&*writes.restore.unwrap().containers[0].name, "app");
    assert_eq!(&*writes.scale_down.unwrap().containers[0].name, "b");
    assert_eq!(writes.metadata.unwrap().labels.len(), 2);
}
