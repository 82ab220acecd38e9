//! The API server is away, has too much to do, or says no.

use super::*;
use crate::plan::RefusalReason;

#[test]
fn s1_ten_of_ten_queued_events_survive_until_the_pods_are_known() {
    let mut world = World::new();
    world.update(Update::Snapshot(Vec::new()));
    world.create("web", "web", "c1");
    for number in 0..10 {
        let phase = if number % 2 == 0 { Phase::ScaledDown } else { Phase::Running };
        world.event_at("web", "c1", phase, number);
    }
    world.pass(Duration::from_mins(10));
    assert_eq!(world.asked(), [""; 0]);
    world.list();
    world.pass(Duration::from_secs(5));
    let asked = world.asked();
    let of = |what: &str| asked.iter().filter(|line| line.contains(what)).count();
    assert_eq!((of("Scaled down"), of("event Running"), of("label"), of("cpu")), (5, 5, 1, 0));
    assert_eq!(world.label("web"), "RUNNING");
}

#[test]
fn s2_everything_is_made_up_for_when_the_server_is_back() {
    let mut world = World::synced();
    world.pod("web", "c1");
    world.refuse = |_| Some(WriteError::Unreachable("connection refused".into()));
    world.event_at("web", "c1", Phase::ScaledDown, 1);
    world.pass(Duration::from_secs(1));
    assert!(
        world.engine.health().subscribe().borrow().degraded.contains(&Degraded::ApiUnreachable)
    );
    world.event_at("web", "c1", Phase::Running, 2);
    world.event_at("web", "c1", Phase::ScaledDown, 3);
    world.pass(Duration::from_mins(5));
    // One probe at a time, at most every few seconds.
    assert!(world.asked().len() < 80);
    world.refuse = |_| None;
    world.pass(Duration::from_secs(10));
    assert_eq!(
        world.asked(),
        [
            "web label SCALED_DOWN",
            "web cpu 1m",
            "web event Scaled down",
            "web event Running",
            "web event Scaled down",
        ]
    );
    assert!(world.engine.health().subscribe().borrow().ready());
}

#[test]
fn s5_conflicts_are_resolved_by_planning_again() {
    let mut world = World::synced();
    world.pod("web", "c1");
    world.refuse = |_| Some(WriteError::Conflict);
    world.event("web", "c1", Phase::ScaledDown);
    world.run();
    assert_eq!(world.asked(), ["web label SCALED_DOWN conflict", "web event Scaled down conflict"]);
    world.refuse = |_| None;
    world.pass(Duration::from_secs(2));
    assert_eq!(world.asked(), ["web event Scaled down", "web label SCALED_DOWN", "web cpu 1m"]);
}

#[test]
fn throttling_holds_everything_back_for_as_long_as_told() {
    let mut world = World::synced();
    world.pod("a", "a1");
    world.pod("b", "b1");
    world.refuse = |_| Some(WriteError::Throttled(Duration::from_secs(7)));
    world.event("a", "a1", Phase::ScaledDown);
    world.run();
    assert_eq!(world.asked(), ["a label SCALED_DOWN throttled"]);
    world.refuse = |_| None;
    world.event("b", "b1", Phase::ScaledDown);
    world.pass(Duration::from_millis(6900));
    assert_eq!(world.asked(), [""; 0]);
    world.pass(Duration::from_secs(1));
    assert_eq!(world.asked().len(), 6);
}

#[test]
fn restores_go_before_scale_downs() {
    let mut world = World::with(|config| config.concurrency = 1);
    world.list();
    world.update(Update::Snapshot(Vec::new()));
    for name in ["a", "b", "c"] {
        world.pod(name, name);
        world.event(name, name, Phase::ScaledDown);
    }
    world.pass(Duration::from_secs(5));
    world.asked();
    // A write is under way while the others change their minds.
    world.pod("d", "d");
    world.event("d", "d", Phase::ScaledDown);
    let job = world.next().unwrap();
    world.pod("e", "e");
    world.event("e", "e", Phase::ScaledDown);
    world.event("c", "c", Phase::Running);
    world.answer(job);
    world.run();
    let asked = world.asked();
    assert_eq!(asked[0..2], ["d label SCALED_DOWN", "c cpu 100m"], "{asked:?}");
}

#[test]
fn k4_what_the_server_refused_is_not_asked_for_again() {
    let mut world = World::synced();
    world.pod("web", "c1");
    world.refuse = |write| {
        let reason = RefusalReason::LimitRange;
        let message = "minimum cpu usage per Container is 10m".into();
        matches!(write, Write::Resize(_)).then_some(WriteError::Refused { reason, message })
    };
    for _ in 0..5 {
        world.reading("web", "c1", Phase::ScaledDown);
        world.pass(Duration::from_mins(1));
        world.reading("web", "c1", Phase::Running);
        world.pass(Duration::from_mins(1));
    }
    let asked = world.asked();
    let resizes: Vec<_> = asked.iter().filter(|line| line.contains("cpu")).collect();
    assert_eq!(resizes, ["web cpu 1m refused"]);
    assert_eq!(asked.len(), 11, "{asked:?}");
    // Until the pod's spec changes.
    world.reading("web", "c1", Phase::ScaledDown);
    world.pass(Duration::from_mins(1));
    world.asked();
    world.refuse = |_| None;
    world.edit("web", |pod| pod["metadata"]["generation"] = json!(2));
    world.pass(Duration::from_mins(1));
    assert_eq!(world.asked(), ["web cpu 1m"]);
}

#[test]
fn refused_labels_are_tried_again_and_nothing_is_lowered_unrecorded() {
    let mut world = World::synced();
    world.pod("web", "c1");
    world.refuse = |write| {
        let (reason, message) = (RefusalReason::Admission, "denied".into());
        matches!(write, Write::Metadata(_)).then_some(WriteError::Refused { reason, message })
    };
    world.reading("web", "c1", Phase::ScaledDown);
    world.pass(Duration::from_secs(150));
    assert_eq!(world.asked(), ["web label SCALED_DOWN refused"; 3]);
    world.refuse = |_| None;
    world.pass(Duration::from_mins(1));
    assert_eq!(world.asked(), ["web label SCALED_DOWN", "web cpu 1m"]);
}

#[test]
fn a_refused_restore_is_tried_again() {
    // The app does with less than it asked for until it succeeds.
    let mut world = World::synced();
    world.pod("web", "c1");
    world.event("web", "c1", Phase::ScaledDown);
    world.pass(Duration::from_secs(2));
    world.asked();
    world.refuse = |_| {
        let (reason, message) = (RefusalReason::Quota, "exceeded quota".into());
        Some(WriteError::Refused { reason, message })
    };
    world.reading("web", "c1", Phase::Running);
    world.pass(Duration::from_secs(100));
    let asked = world.asked();
    assert_eq!(
        asked.iter().filter(|line| *line == "web cpu 100m refused").count(),
        11,
        "{asked:?}"
    );
    world.refuse = |_| None;
    world.pass(Duration::from_secs(30));
    assert_eq!(world.cpu("web"), "100m");
}

#[test]
fn s7_an_event_that_is_refused_holds_nothing_up() {
    let mut world = World::synced();
    world.pod("web", "c1");
    world.event("web", "c1", Phase::ScaledDown);
    world.refuse = |write| {
        let error = WriteError::Forbidden("namespace is terminating".into());
        matches!(write, Write::Event(_)).then_some(error)
    };
    world.run();
    world.refuse = |_| None;
    world.pass(Duration::from_mins(1));
    assert_eq!((world.label("web"), world.cpu("web")), (&json!("SCALED_DOWN"), &json!("1m")));
    let asked = world.asked();
    assert_eq!(asked.iter().filter(|line| line.contains("event")).count(), 1, "{asked:?}");
}

#[test]
fn a_pod_that_is_gone_is_left_to_the_watch() {
    let mut world = World::synced();
    world.pod("web", "c1");
    world.refuse = |_| Some(WriteError::Gone);
    world.event("web", "c1", Phase::ScaledDown);
    world.pass(Duration::from_mins(5));
    assert!(world.asked().len() < 20);
    world.delete("web");
    world.pass(Duration::from_mins(5));
    assert_eq!(world.asked(), [""; 0]);
    assert_eq!((world.engine.works.len(), world.engine.timers.next()), (0, None));
}

#[test]
fn a_missing_permission_is_a_named_state_and_tried_again() {
    let mut world = World::synced();
    world.pod("web", "c1");
    world.refuse = |write| {
        let error = WriteError::Forbidden("cannot patch resource".into());
        matches!(write, Write::Resize(_)).then_some(error)
    };
    world.event("web", "c1", Phase::ScaledDown);
    world.pass(Duration::from_mins(5));
    // Other kinds of writes go on, and don't hide it.
    assert_eq!(world.label("web"), "SCALED_DOWN");
    let state = world.engine.health().subscribe().borrow().clone();
    assert_eq!(state.degraded, BTreeSet::from([Degraded::Forbidden]));
    assert!(world.asked().len() < 20);
    world.refuse = |_| None;
    world.pass(Duration::from_mins(1));
    assert_eq!(world.cpu("web"), "1m");
    assert!(world.engine.health().subscribe().borrow().ready());
}
