//! Tables of updates and what the board then shows.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use zeropod_shim_api::{
    id::{ContainerId, PodRef},
    status::{Operation, Phase, StatusEvent},
};

use super::*;

fn at(seconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(seconds)
}

fn name() -> ContainerRef {
    ContainerRef::new(PodRef::new("default", "web").unwrap(), "app").unwrap()
}

fn key(shim: &str) -> ContainerKey {
    let shim = ShimId::from_file_name(&format!("{shim}.sock")).unwrap();
    ContainerKey { shim, container: name() }
}

fn state(phase: Phase, since: u64) -> ContainerState {
    let id = Some(ContainerId::new("c0ffee").unwrap());
    ContainerState { id, phase, since: Some(at(since)), checkpoint: None, restore: None }
}

fn change(shim: &str, state: ContainerState, cause: Cause) -> Update {
    Update::Change(Box::new(ContainerChange { key: key(shim), state, cause }))
}

/// An event, and the state after it.
fn event(phase: Phase, time: u64, millis: Option<u64>) -> Update {
    let event = StatusEvent {
        id: ContainerId::new("c0ffee").unwrap(),
        container: name(),
        phase,
        time: Some(at(time)),
        duration: millis.map(Duration::from_millis),
        log: Vec::new(),
    };
    let phase = if phase == Phase::ScaledDown { Phase::ScaledDown } else { Phase::Running };
    let mut after = state(phase, time);
    (after.checkpoint, after.restore) = (event.checkpoint(), event.restore());
    change("a", after, Cause::Event(event))
}

fn gone() -> Update {
    change("a", state(Phase::Stopping, 30), Cause::Removed)
}

fn nothing(_: &ContainerKey) -> Counts {
    Counts::default()
}

#[test]
fn a_row_shows_the_last_state_and_what_was_counted() {
    let mut rows = Rows::default();
    rows.apply(&event(Phase::ScaledDown, 40, Some(250)));
    let counted = |of: &ContainerKey| {
        assert_eq!(*of, key("a"));
        Counts {
            wake_ups: 3,
            checkpoint_failures: 2,
            restore_failures: 1,
            scaled_down: Duration::from_micros(1_234_567),
        }
    };
    let down = rows.one(&name(), counted).unwrap();
    assert_eq!((down.namespace.as_str(), down.pod.as_str()), ("default", "web"));
    assert_eq!((down.container.as_str(), &*down.phase), ("app", "SCALED_DOWN"));
    assert_eq!(down.since.unwrap().as_second(), 40);
    assert_eq!(down.last_checkpoint.map(|last| last.seconds), Some(0.25));
    assert_eq!((down.wake_ups, down.checkpoint_failures, down.restore_failures), (3, 2, 1));
    assert!((down.scaled_down_seconds - 1.235).abs() < 1e-9);

    rows.apply(&event(Phase::Running, 70, Some(30)));
    let up = rows.one(&name(), nothing).unwrap();
    assert_eq!((&*up.phase, up.since.unwrap().as_second()), ("RUNNING", 70));
    assert_eq!(up.last_restore.map(|last| last.seconds), Some(0.03));
}

#[test]
fn times_that_no_calendar_has_are_shown_as_the_last_that_it_has() {
    let mut far = state(Phase::Running, 0);
    far.since = Some(SystemTime::UNIX_EPOCH + Duration::from_secs(1 << 60));
    far.restore = Some(Operation { ended: at(0), duration: Duration::MAX });
    let mut rows = Rows::default();
    rows.apply(&Update::Snapshot(vec![(key("a"), far)]));
    let shown = rows.one(&name(), nothing).unwrap();
    assert!(shown.since.is_some_and(|since| since > jiff::Timestamp::UNIX_EPOCH), "{shown:?}");
    assert!(shown.last_restore.is_some_and(|last| last.seconds.is_finite()));
}

// X2: a row ends with its container, and a snapshot ends what it does not list.
#[test]
fn rows_end_with_their_container() {
    let mut rows = Rows::default();
    let started = event(Phase::Running, 20, None);
    assert_eq!(rows.apply(&started), News::Changed(name()));
    assert_eq!(rows.apply(&gone()), News::Removed(name()));
    assert_eq!(rows.apply(&gone()), News::None);
    assert_eq!(rows.all(nothing), []);

    rows.apply(&started);
    assert_eq!(rows.apply(&Update::Snapshot(Vec::new())), News::All);
    assert_eq!(rows.all(nothing), []);
}

#[test]
fn of_two_pods_of_one_name_the_newest_shows() {
    let mut rows = Rows::default();
    let phases = [("a", Phase::ScaledDown), ("b", Phase::Running)];
    let snapshot = phases.map(|(shim, phase)| (key(shim), state(phase, 20)));
    rows.apply(&Update::Snapshot(snapshot.to_vec()));
    assert_eq!(rows.all(nothing).len(), 1);
    assert_eq!(rows.one(&name(), nothing).unwrap().phase, "RUNNING");
    assert_eq!(rows.apply(&gone()), News::Changed(name()));
    assert_eq!(rows.one(&name(), nothing).unwrap().phase, "RUNNING");
}

#[test]
fn what_is_given_back_shows_whichever_is_known_first() {
    let mut rows = Rows::default();
    let given = Resources { cpu_cores: 0.1, memory_bytes: 1 << 20 };
    let all = BTreeMap::from([(name(), given)]);
    assert_eq!(rows.give_back(all.clone()), [], "the container is not known");
    rows.apply(&event(Phase::ScaledDown, 20, None));
    assert_eq!(rows.one(&name(), nothing).unwrap().gives_back, Some(given));
    assert_eq!(rows.give_back(all), [], "nothing new");
    assert_eq!(rows.give_back(BTreeMap::new()), [name()]);
    assert_eq!(rows.one(&name(), nothing).unwrap().gives_back, None);
}
