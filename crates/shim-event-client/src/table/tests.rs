use std::time::{Duration, SystemTime};

use zeropod_shim_api::id::PodRef;

use super::*;

/// A moment, in seconds after an arbitrary one.
fn at(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000 + seconds)
}

fn shim() -> ShimId {
    ShimId::from_file_name("abc.sock").unwrap()
}

fn id(id: &str) -> ContainerId {
    ContainerId::new(id).unwrap()
}

fn container(pod: &str) -> ContainerRef {
    ContainerRef::new(PodRef::new("default", pod).unwrap(), "app").unwrap()
}

fn event(of: &str, phase: Phase, time: u64) -> StatusEvent {
    StatusEvent {
        id: id(of),
        container: container("web"),
        phase,
        time: Some(at(time)),
        duration: None,
        log: Vec::new(),
    }
}

fn operation(ended: u64) -> Operation {
    Operation { ended: at(ended), duration: Duration::from_millis(100) }
}

fn reading(running: bool) -> MetricsReading {
    MetricsReading {
        container: container("web"),
        running,
        checkpoint: None,
        restore: None,
        checkpoint_errors: 0,
        restore_errors: 0,
    }
}

/// A table that has taken in `events` of one shim, each when it happened.
fn table(events: &[StatusEvent]) -> Table {
    let mut table = Table::default();
    for event in events {
        table.apply(&shim(), event.clone(), event.time.unwrap());
    }
    table
}

fn only(table: &Table) -> ContainerState {
    let [(_, state)] = table.snapshot().try_into().unwrap();
    state
}

fn causes(changes: &[ContainerChange]) -> Vec<&'static str> {
    changes
        .iter()
        .map(|change| match change.cause {
            Cause::Event(_) => "event",
            Cause::Reading(_) => "reading",
            Cause::Removed => "removed",
        })
        .collect()
}

#[test]
fn a_duration_tells_a_restore_from_a_start() {
    let restored =
        StatusEvent { duration: Some(Duration::from_millis(100)), ..event("a", Phase::Running, 3) };
    let table = table(&[event("a", Phase::Running, 1), event("a", Phase::ScaledDown, 2), restored]);
    let state = only(&table);
    assert_eq!((state.phase, state.since), (Phase::Running, Some(at(3))));
    assert_eq!((state.checkpoint, state.restore), (None, Some(operation(3))));
}

/// F-G7: a failure is not a phase of its own, and its time and duration are
/// those of the last success.
#[test]
fn failures_leave_the_phase() {
    let failure =
        |phase| StatusEvent { duration: Some(Duration::from_millis(100)), ..event("a", phase, 1) };
    let mut running = table(&[event("a", Phase::Running, 2), failure(Phase::CheckpointFailed)]);
    let state = only(&running);
    assert_eq!((state.phase, state.since), (Phase::Running, Some(at(2))));
    assert_eq!((state.checkpoint, state.restore), (None, Some(operation(1))));
    running.apply(&shim(), event("a", Phase::ScaledDown, 3), at(3));
    running.apply(&shim(), failure(Phase::RestoreFailed), at(4));
    let state = only(&running);
    assert_eq!((state.phase, state.since), (Phase::ScaledDown, Some(at(3))));
    assert_eq!(state.checkpoint, Some(operation(1)));
    assert_eq!(only(&table(&[failure(Phase::CheckpointFailed)])).phase, Phase::Running);
    assert_eq!(only(&table(&[failure(Phase::RestoreFailed)])).phase, Phase::ScaledDown);
}

/// S10: a backlog that is older than an answer is told to the metrics but does
/// not move the state back.
#[test]
fn a_backlog_does_not_move_the_state_back() {
    let mut table = Table::default();
    let done = table.reconcile(&shim(), at(100), vec![reading(true)]);
    assert_eq!((causes(&done.changes), done.corrections), (vec!["reading"], 0));
    assert_eq!(only(&table).id, None);
    for time in 1..=64 {
        let phase = if time % 2 == 0 { Phase::ScaledDown } else { Phase::Running };
        let changes = table.apply(&shim(), event("a", phase, time), at(101));
        assert_eq!(causes(&changes), ["event"]);
        assert_eq!(
            (changes[0].state.phase, &changes[0].state.id),
            (Phase::Running, &Some(id("a")))
        );
    }
    // The backlog ended scaled down, so the wake-up was lost.
    assert_eq!(only(&table).since, None);
    // What came after the answer counts.
    table.apply(&shim(), event("a", Phase::ScaledDown, 102), at(102));
    assert_eq!(only(&table).phase, Phase::ScaledDown);
}

#[test]
fn a_backlog_that_agrees_tells_since_when() {
    let mut table = Table::default();
    table.reconcile(&shim(), at(100), vec![reading(true)]);
    for (phase, time) in [(Phase::Running, 1), (Phase::ScaledDown, 2), (Phase::Running, 3)] {
        table.apply(&shim(), event("a", phase, time), at(101));
    }
    assert_eq!(only(&table).since, Some(at(3)));
}

/// An answer that was asked for before an event came is older than the event.
#[test]
fn a_late_answer_does_not_override_an_event() {
    let mut table = table(&[event("a", Phase::ScaledDown, 10)]);
    let done = table.reconcile(&shim(), at(9), vec![reading(true)]);
    assert_eq!(done, Reconciled::default());
    let running = event("a", Phase::Running, 8);
    assert_eq!(table.answer(&shim(), &id("a"), at(9), Some(running)), Reconciled::default());
    assert_eq!(table.answer(&shim(), &id("a"), at(9), None), Reconciled::default());
    assert_eq!(table.reconcile(&shim(), at(9), Vec::new()), Reconciled::default());
    assert_eq!(only(&table).phase, Phase::ScaledDown);
}

/// S2: what events did not tell is corrected, and counted.
#[test]
fn lost_events_are_corrected() {
    let mut table = table(&[event("a", Phase::Running, 1)]);
    let status = StatusEvent {
        duration: Some(Duration::from_millis(100)),
        ..event("a", Phase::ScaledDown, 5)
    };
    assert!(!table.agrees(&shim(), &status));
    let done = table.answer(&shim(), &id("a"), at(10), Some(status));
    assert_eq!((causes(&done.changes), done.corrections), (vec!["reading"], 1));
    let state = only(&table);
    assert_eq!((state.phase, state.since), (Phase::ScaledDown, Some(at(5))));
    assert_eq!(state.checkpoint, Some(operation(5)));
    // By name and a second time there is nothing to correct.
    assert_eq!(table.reconcile(&shim(), at(11), vec![reading(false)]), Reconciled::default());
    let read = MetricsReading { restore: Some(operation(12)), ..reading(true) };
    let done = table.reconcile(&shim(), at(13), vec![read]);
    assert_eq!((causes(&done.changes), done.corrections), (vec!["reading"], 1));
    assert_eq!(only(&table).since, Some(at(12)));
}

/// F-H1: a reading that agrees is still news when it brings something.
#[test]
fn a_reading_with_errors_is_published() {
    let mut table = table(&[event("a", Phase::Running, 1)]);
    let errors = MetricsReading { restore_errors: 1, ..reading(true) };
    let done = table.reconcile(&shim(), at(2), vec![errors]);
    assert_eq!((causes(&done.changes), done.corrections), (vec!["reading"], 0));
}

/// X2: a stopped container that its shim still lists does not come back, but
/// the next one of the same name does, even when its start went unnoticed.
#[test]
fn a_stopped_container_stays_ended() {
    let mut table = table(&[event("a", Phase::Running, 1)]);
    let stopped = table.apply(&shim(), event("a", Phase::Stopping, 2), at(2));
    assert_eq!(causes(&stopped), ["removed"]);
    assert_eq!((stopped[0].state.phase, &stopped[0].state.id), (Phase::Stopping, &Some(id("a"))));
    // H11: repeated when the shim shuts down.
    assert_eq!(table.apply(&shim(), event("a", Phase::Stopping, 3), at(3)), []);
    assert_eq!(table.reconcile(&shim(), at(4), vec![reading(true)]), Reconciled::default());
    let still = Some(event("a", Phase::Running, 4));
    assert_eq!(table.answer(&shim(), &id("a"), at(5), still), Reconciled::default());
    assert_eq!(table.snapshot(), []);
    assert_eq!(table.ids(&shim()), [id("a")]);
    table.answer(&shim(), &id("a"), at(6), None);
    assert_eq!(table.ids(&shim()), []);
    assert_eq!(causes(&table.reconcile(&shim(), at(7), vec![reading(true)]).changes), ["reading"]);
}

/// A stop of a container that was known by its name only.
#[test]
fn a_stop_tells_the_id_too_late() {
    let mut table = Table::default();
    table.reconcile(&shim(), at(1), vec![reading(true)]);
    assert_eq!(causes(&table.apply(&shim(), event("a", Phase::Stopping, 2), at(2))), ["removed"]);
    assert_eq!(table.reconcile(&shim(), at(3), vec![reading(true)]), Reconciled::default());
}

/// A signal that does not end the container sends STOPPING as well.
#[test]
fn a_container_that_lives_on_is_taken_back() {
    let mut table = table(&[event("a", Phase::Running, 1), event("a", Phase::Stopping, 2)]);
    assert_eq!(causes(&table.apply(&shim(), event("a", Phase::ScaledDown, 3), at(3))), ["event"]);
    assert_eq!(only(&table).phase, Phase::ScaledDown);
}

/// F-K11: a container that crashed is replaced by the next one of its name;
/// what its shim still says of it changes nothing.
#[test]
fn a_crashed_container_is_replaced() {
    let mut table = table(&[event("a", Phase::ScaledDown, 1)]);
    let changes = table.apply(&shim(), event("b", Phase::Running, 5), at(5));
    assert_eq!(causes(&changes), ["removed", "event"]);
    assert_eq!(changes[0].state.phase, Phase::ScaledDown);
    assert_eq!(changes[1].state.id, Some(id("b")));
    for phase in [Phase::Stopping, Phase::ScaledDown, Phase::RestoreFailed] {
        assert_eq!(table.apply(&shim(), event("a", phase, 6), at(6)), []);
    }
    assert_eq!(only(&table).id, Some(id("b")));
}

/// A container that crashed and was deleted: no event told of it.
#[test]
fn a_container_that_its_shim_does_not_know_is_gone() {
    let mut table = table(&[event("a", Phase::Running, 1)]);
    let done = table.answer(&shim(), &id("a"), at(2), None);
    assert_eq!((causes(&done.changes), done.corrections), (vec!["removed"], 0));
    assert_eq!(table.snapshot(), []);
    table.apply(&shim(), event("b", Phase::Running, 3), at(3));
    assert_eq!(causes(&table.reconcile(&shim(), at(4), Vec::new()).changes), ["removed"]);
}

/// F-R4: one socket, many pods.
#[test]
fn grouped_pods_are_told_apart() {
    let other = StatusEvent { container: container("db"), ..event("b", Phase::Running, 1) };
    let mut table = table(&[event("a", Phase::Running, 1), other]);
    table.apply(&shim(), event("a", Phase::Stopping, 2), at(2));
    assert_eq!(table.snapshot()[0].0.container, container("db"));
    assert_eq!(table.snapshot().len(), 1);
}

/// H12: everything of a shim ends with it, and nothing of another.
#[test]
fn a_shim_takes_its_containers_along() {
    let mut table = table(&[event("a", Phase::Running, 1)]);
    let other = ShimId::from_file_name("def.sock").unwrap();
    table.apply(&other, event("b", Phase::Running, 1), at(1));
    assert_eq!(causes(&table.shim_gone(&shim())), ["removed"]);
    assert_eq!(table.shim_gone(&shim()), []);
    assert_eq!(table.snapshot()[0].0.shim, other);
}

#[test]
fn an_event_from_the_future_counts_as_of_now() {
    let mut table = Table::default();
    table.apply(&shim(), event("a", Phase::Running, 1_000_000), at(1));
    assert_eq!(only(&table).since, Some(at(1)));
    table.apply(&shim(), event("a", Phase::ScaledDown, 2), at(2));
    assert_eq!(only(&table).phase, Phase::ScaledDown);
}

#[test]
fn a_clock_that_is_set_back_does_not_freeze_the_state() {
    let events = [event("a", Phase::Running, 1_000)];
    let mut by_event = table(&events);
    by_event.apply(&shim(), event("a", Phase::ScaledDown, 10), at(10));
    assert_eq!(only(&by_event).phase, Phase::ScaledDown);
    let mut by_answer = table(&events);
    by_answer.reconcile(&shim(), at(10), vec![reading(false)]);
    assert_eq!(only(&by_answer).phase, Phase::ScaledDown);
}

#[test]
fn a_shim_that_talks_nonsense_is_bounded() {
    let mut table = Table::default();
    for number in 0..2 * MAX_CONTAINERS {
        let pod = format!("web-{number}");
        let name = container(&pod);
        let nonsense = StatusEvent { container: name.clone(), ..event(&pod, Phase::Running, 1) };
        table.apply(&shim(), nonsense.clone(), at(1));
        table.reconcile(&shim(), at(0), vec![MetricsReading { container: name, ..reading(true) }]);
        if number % 2 == 0 {
            table.apply(&shim(), StatusEvent { phase: Phase::Stopping, ..nonsense }, at(1));
        }
        table.apply(&shim(), event(&pod, Phase::Running, 1), at(1));
    }
    assert!(table.snapshot().len() <= MAX_CONTAINERS);
    assert!(table.ids(&shim()).len() <= 2 * MAX_CONTAINERS);
}
