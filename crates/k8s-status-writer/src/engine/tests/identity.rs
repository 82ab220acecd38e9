//! Which pod a container belongs to.

use super::*;

#[test]
fn s11_nothing_of_an_earlier_pod_reaches_the_next_of_its_name() {
    let mut world = World::synced();
    world.pod("db-0", "old");
    world.event("db-0", "old", Phase::Running);
    world.run();
    world.asked();
    world.delete("db-0");
    world.create("db-0", "u2", "");
    world.watch("db-0");
    // Late news of the old container, and the new one's start.
    world.event("db-0", "old", Phase::ScaledDown);
    world.event("db-0", "new", Phase::Running);
    world.run();
    assert_eq!(world.asked(), [""; 0]);
    world.edit("db-0", |pod| {
        pod["status"]["containerStatuses"][0]["containerID"] = json!("containerd://new");
    });
    world.pass(Duration::from_mins(2));
    assert_eq!(world.asked(), ["db-0 label RUNNING", "db-0 event Running"]);
    assert_eq!(world.engine.reports.len(), 0);
}

#[test]
fn running_waits_for_the_kubelet_to_report_the_id() {
    let mut world = World::synced();
    world.pod("web", "");
    world.event("web", "c1", Phase::Running);
    world.pass(Duration::from_secs(50));
    assert_eq!(world.asked(), [""; 0]);
    world.edit("web", |pod| {
        pod["status"]["containerStatuses"][0]["containerID"] = json!("containerd://c1");
    });
    world.run();
    assert_eq!(world.asked(), ["web label RUNNING", "web event Running"]);
}

#[test]
fn an_entry_without_an_id_writes_to_no_pod() {
    let mut world = World::synced();
    world.pod("web", "c1");
    let snapshot =
        vec![(key("web", "c1"), ContainerState { id: None, ..state("c1", Phase::Running) })];
    world.update(Update::Snapshot(snapshot));
    world.pass(Duration::from_mins(1));
    assert_eq!(world.asked(), [""; 0]);
    world.reading("web", "c1", Phase::Running);
    world.run();
    assert_eq!(world.asked(), ["web label RUNNING"]);
}

#[test]
fn two_shims_know_the_same_name_for_a_moment() {
    let mut world = World::synced();
    world.pod("web", "c2");
    world.reading("web", "c1", Phase::ScaledDown);
    world.reading("web", "c2", Phase::Running);
    world.change("web", "c1", Phase::Stopping, Cause::Removed);
    world.pass(Duration::from_mins(1));
    assert_eq!(world.asked(), ["web label RUNNING"]);
}

#[test]
fn a_snapshot_is_everything() {
    let mut world = World::synced();
    world.pod("a", "a1");
    world.pod("b", "b1");
    world.update(Update::Snapshot(vec![
        (key("a", "a1"), state("a1", Phase::Running)),
        (key("b", "b1"), state("b1", Phase::ScaledDown)),
    ]));
    world.run();
    assert_eq!(world.asked(), ["a label RUNNING", "b label SCALED_DOWN", "b cpu 1m"]);
    world.update(Update::Snapshot(vec![(key("b", "b1"), state("b1", Phase::ScaledDown))]));
    world.pass(Duration::from_secs(31));
    assert_eq!(world.asked(), ["a label none"]);
}

#[test]
fn the_answer_to_a_write_is_not_undone_by_the_watch() {
    let mut world = World::synced();
    world.pod("web", "c1");
    let stale = world.read("web");
    world.event("web", "c1", Phase::ScaledDown);
    world.run();
    world.asked();
    world.engine.on_pod(PodChange::Changed(pod_ref("web"), stale), world.now);
    world.pass(Duration::from_secs(5));
    assert_eq!(world.asked(), [""; 0]);
}
