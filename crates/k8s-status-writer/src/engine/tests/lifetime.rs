//! One pod from its start to its end.

use super::*;

const FLAP: Duration = Duration::from_secs(1);

#[test]
fn a_scaling_costs_a_patch_a_resize_and_an_event() {
    // S9
    let mut world = World::synced();
    world.pod("web", "c1");
    world.event("web", "c1", Phase::ScaledDown);
    world.run();
    assert_eq!(world.asked(), ["web label SCALED_DOWN", "web cpu 1m", "web event Scaled down"]);
    // What the watch and the resynchronisation tell again costs nothing.
    world.watch("web");
    world.reading("web", "c1", Phase::ScaledDown);
    world.pass(FLAP * 60);
    assert_eq!(world.asked(), [""; 0]);

    // Waking up, requests come first.
    world.event("web", "c1", Phase::Running);
    world.run();
    assert_eq!(world.asked(), ["web cpu 100m", "web label RUNNING", "web event Running"]);
}

#[test]
fn each_feature_writes_only_its_own() {
    for (features, expected) in [
        (Features { labels: true, ..Features::default() }, vec!["web label SCALED_DOWN"]),
        (Features { events: true, ..Features::default() }, vec!["web event Scaled down"]),
        (
            Features { in_place_scaling: true, ..Features::default() },
            vec!["web label none", "web cpu 1m"],
        ),
        (Features::default(), vec![]),
    ] {
        let mut world = World::with(|config| config.features = features);
        world.list();
        world.update(Update::Snapshot(Vec::new()));
        world.pod("web", "c1");
        world.event("web", "c1", Phase::ScaledDown);
        world.pass(FLAP * 60);
        assert_eq!(world.asked(), expected, "{features:?}");
    }
}

#[test]
fn a_label_goes_30_seconds_after_its_container() {
    let mut world = World::synced();
    world.pod("web", "c1");
    world.event("web", "c1", Phase::Running);
    world.run();
    world.asked();
    world.change("web", "c1", Phase::Running, Cause::Removed);
    world.pass(Duration::from_secs(29));
    assert_eq!(world.asked(), [""; 0]);
    world.pass(Duration::from_secs(2));
    assert_eq!(world.asked(), ["web label none"]);
    assert!(world.label("web").is_null());
}

#[test]
fn no_label_goes_before_the_shims_were_asked() {
    // S2: a restart of the manager is a non-event.
    let mut world = World::new();
    world.create("web", "web", "c1");
    world.pods.get_mut(&pod_ref("web")).unwrap()["metadata"]["labels"] =
        json!({ "status.zeropod.ctrox.dev/app": "RUNNING" });
    world.list();
    world.pass(Duration::from_hours(1));
    world.update(Update::Snapshot(Vec::new()));
    world.pass(Duration::from_secs(20));
    assert_eq!(world.asked(), [""; 0]);
    // The container turns out to be there, and scaled down since.
    world.reading("web", "c1", Phase::ScaledDown);
    world.pass(Duration::from_hours(1));
    assert_eq!(world.asked(), ["web label SCALED_DOWN", "web cpu 1m"]);
}

#[test]
fn s12_a_terminating_pod_is_left_alone() {
    let mut world = World::synced();
    world.pod("web", "c1");
    world.event("web", "c1", Phase::ScaledDown);
    world.run();
    world.asked();
    world.edit("web", |pod| pod["metadata"]["deletionTimestamp"] = json!("t"));
    world.change("web", "c1", Phase::Stopping, Cause::Removed);
    world.pass(Duration::from_mins(1));
    world.delete("web");
    world.pass(Duration::from_mins(1));
    assert_eq!(world.asked(), [""; 0]);
}

#[test]
fn f_k11_a_restarted_container_starts_with_its_own_requests() {
    let mut world = World::synced();
    world.pod("web", "c1");
    world.event("web", "c1", Phase::ScaledDown);
    world.run();
    world.asked();
    // The shim's container ends; the next one runs before the kubelet tells.
    world.change("web", "c1", Phase::ScaledDown, Cause::Removed);
    world.change("web", "c2", Phase::Running, Cause::Event(start("web", "c2")));
    world.run();
    assert_eq!(world.asked(), ["web cpu 100m"]);
    world.edit("web", |pod| {
        pod["status"]["containerStatuses"][0]["containerID"] = json!("containerd://c2");
    });
    world.pass(FLAP);
    assert_eq!(world.asked(), ["web label RUNNING"]);
}

#[test]
fn k7_only_migrated_containers_are_preset_and_k6_until_it_is_done() {
    let mut world = World::synced();
    world.refuse = |_| Some(WriteError::Failed("500".into()));
    // The claim comes before the watch tells of the pod.
    world.engine.preset(&pod_ref("web"), BTreeSet::from(["app".into()]), world.now);
    world.create("web", "u1", "");
    let pod = world.pods.get_mut(&pod_ref("web")).unwrap();
    pod["status"] = json!({ "qosClass": "Burstable" });
    pod["spec"]["containers"].as_array_mut().unwrap().push(json!(
        { "name": "side", "resources": { "requests": { "cpu": "50m" } } }
    ));
    world.watch("web");
    world.pass(Duration::from_secs(1));
    world.refuse = |_| None;
    world.pass(Duration::from_mins(1));
    assert_eq!(world.asked().last().unwrap(), "web cpu 1m");
    assert_eq!((world.label("web"), world.cpu("web")), (&json!("SCALED_DOWN"), &json!("1m")));
    let pod = &world.pods[&pod_ref("web")];
    assert_eq!(pod["spec"]["containers"][1]["resources"]["requests"]["cpu"], "50m");
    assert_eq!(pod["metadata"]["labels"].as_object().unwrap().len(), 1);
    // What its shim says then counts.
    world.edit("web", |pod| {
        pod["status"]["containerStatuses"] = json!([{
            "name": "app", "containerID": "containerd://c1",
            "state": { "running": {} }, "resources": {},
        }]);
    });
    world.event("web", "c1", Phase::Running);
    world.pass(FLAP);
    assert_eq!((world.label("web"), world.cpu("web")), (&json!("RUNNING"), &json!("100m")));
}

#[test]
fn k4_resizes_that_are_not_carried_out_are_told_once() {
    let mut world = World::synced();
    world.pod("web", "c1");
    world.event("web", "c1", Phase::Running);
    world.run();
    world.asked();
    for reason in ["Deferred", "Deferred", "Infeasible"] {
        world.edit("web", |pod| {
            pod["status"]["conditions"] =
                json!([{ "type": "PodResizePending", "status": "True", "reason": reason }]);
        });
    }
    world.pass(Duration::from_mins(1));
    assert_eq!(world.asked(), ["web event Resize deferred", "web event Resize infeasible"]);
}

fn start(pod: &str, id: &str) -> StatusEvent {
    StatusEvent {
        id: ContainerId::new(id).unwrap(),
        container: container(pod),
        phase: Phase::Running,
        time: None,
        duration: None,
        log: Vec::new(),
    }
}

#[test]
fn a_preset_ends_when_its_container_is_there() {
    let mut world = World::synced();
    world.pod("web", "c1");
    world.engine.preset(&pod_ref("web"), BTreeSet::from(["app".into()]), world.now);
    world.event("web", "c1", Phase::Running);
    world.pass(FLAP);
    // It crashes and comes back before the preset would have run out.
    world.change("web", "c1", Phase::Running, Cause::Removed);
    world.pass(FLAP * 5);
    assert_eq!((world.label("web"), world.cpu("web")), (&json!("RUNNING"), &json!("100m")));
}
