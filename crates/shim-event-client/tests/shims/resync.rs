//! Events that never came, or came late.

use std::time::Duration;

use crate::common::{Client, Recorded, identity, message, shim_with, until};
use zeropod_shim_api::{change::Cause, status::Phase};
use zeropod_testkit::node::shim::{Answer, Faults, QUEUE_CAPACITY, Service};

const TOOK: Duration = Duration::from_millis(100);

/// S1, S2: every event that waited for the client is published, and the state
/// is that of the last one.
#[tokio::test]
async fn a_backlog_is_published_as_a_whole() {
    let recorded = Recorded::start();
    let shim = shim_with("web", "c0ffee");
    for _ in 0..4 {
        shim.scaled_down("c0ffee", TOOK).unwrap();
        shim.restored("c0ffee", TOOK).unwrap();
    }
    shim.scaled_down("c0ffee", TOOK).unwrap();
    let client = Client::start(|_| ());
    let _server = shim.serve(&client.socket("abc")).unwrap();
    until("events", || client.published().len(), |count| *count == 10).await;
    client.until_phase(Phase::ScaledDown).await;
    // S10: meanwhile the state never flapped.
    assert!(
        client.changes.lock().unwrap().iter().all(|change| change.state.phase == Phase::ScaledDown)
    );
    assert_eq!(recorded.counter("zeropod_shim_events_total"), 10);
    assert_eq!(recorded.counter("zeropod_shim_event_gaps_total"), 0);
    assert_eq!(recorded.counter("zeropod_resync_corrections_total"), 0);
}

/// S2: a queue that overflowed has lost the newest events; the state is right
/// all the same, and the gap has a counter and a name until it is checked.
#[tokio::test]
async fn an_overflow_is_a_gap() {
    let recorded = Recorded::start();
    let shim = shim_with("web", "c0ffee");
    while shim.counters().dropped < 3 {
        shim.scaled_down("c0ffee", TOOK).unwrap();
        shim.restored("c0ffee", TOOK).unwrap();
    }
    let client = Client::start(|config| config.resync_interval = Duration::from_millis(400));
    let _server = shim.serve(&client.socket("abc")).unwrap();
    let mut lost = false;
    client
        .healthy(|health| {
            lost |= health.degraded().iter().any(|degraded| degraded.name == "shim-events-lost");
            lost
        })
        .await;
    until("events", || client.published().len(), |count| *count == QUEUE_CAPACITY).await;
    client.until_phase(Phase::Running).await;
    assert_eq!(recorded.counter("zeropod_shim_event_gaps_total overflow"), 1);
    client.healthy(|health| health.degraded().is_empty()).await;
}

/// S2, F-G1: an event that went to a dead subscriber is made up for by asking.
/// F-H1: asking clears nothing.
#[tokio::test]
async fn a_lost_event_is_made_up_for() {
    let recorded = Recorded::start();
    let client = Client::start(|_| ());
    let shim = shim_with("web", "c0ffee");
    let _server = shim.serve(&client.socket("abc")).unwrap();
    client.until(|table| table.len() == 1 && table[0].1.id.is_some()).await;
    // From now on the subscription gets no events, and then the queue is full.
    shim.set_faults(Faults { subscribe: Answer::Never, ..Faults::default() });
    shim.close_connections();
    until("subscriptions", || shim.counters().subscriptions, |count| *count == 2).await;
    while shim.emit(message("other", "dead")) {}
    let reads = shim.counters().metrics_reads;
    shim.scaled_down("c0ffee", TOOK).unwrap();
    client.until_phase(Phase::ScaledDown).await;
    let last = client.changes.lock().unwrap().last().cloned().unwrap();
    assert!(matches!(last.cause, Cause::Reading(_)), "{last:?}");
    assert_eq!(last.state.checkpoint.unwrap().duration, TOOK);
    assert_eq!(last.state.since, Some(last.state.checkpoint.unwrap().ended));
    assert_eq!(recorded.counter("zeropod_resync_corrections_total"), 1);
    assert_eq!(recorded.counter("zeropod_shim_event_gaps_total correction"), 1);
    assert_eq!(shim.counters().metrics_reads, reads);
    client.healthy(|health| health.degraded().is_empty()).await;
}

/// F-H3: a container that crashed and was deleted sends no event.
#[tokio::test]
async fn a_container_that_vanished_is_removed() {
    let recorded = Recorded::start();
    let client = Client::start(|_| ());
    let shim = shim_with("web", "c0ffee");
    shim.create(identity("db", "deaf"));
    shim.started("deaf").unwrap();
    let _server = shim.serve(&client.socket("abc")).unwrap();
    client
        .until(|table| table.len() == 2 && table.iter().all(|(_, state)| state.id.is_some()))
        .await;
    shim.delete("c0ffee");
    client.until(|table| table.len() == 1).await;
    assert_eq!(client.events.snapshot()[0].0.container.to_string(), "default/db/app");
    let last = client.changes.lock().unwrap().last().cloned().unwrap();
    assert_eq!((last.cause, last.state.phase), (Cause::Removed, Phase::Running));
    assert_eq!(recorded.counter("zeropod_shim_event_gaps_total"), 0);
}

/// A restarted container whose start event was lost is taken up by name, and
/// by id as soon as an event tells it.
#[tokio::test]
async fn a_container_without_an_id_is_read_by_name() {
    let client = Client::start(|_| ());
    let shim = Service::new();
    shim.create(identity("web", "c0ffee"));
    let _server = shim.serve(&client.socket("abc")).unwrap();
    client.until_phase(Phase::Running).await;
    let reads = shim.counters().metrics_reads;
    until("readings", || shim.counters().metrics_reads, |now| *now > reads + 2).await;
    assert_eq!(client.events.snapshot()[0].1.id, None);
    shim.started("c0ffee").unwrap();
    client.until(|table| table[0].1.id.is_some()).await;
    // Now it is asked for by id, and nothing is cleared any more.
    let asked = shim.counters().status_reads;
    until("questions", || shim.counters().status_reads, |now| *now > asked + 2).await;
    let reads = shim.counters().metrics_reads;
    until("questions", || shim.counters().status_reads, |now| *now > asked + 5).await;
    assert_eq!(shim.counters().metrics_reads, reads);
}

/// Failures of which no event tells, such as one before the container was
/// created anew, come with the next reading.
#[tokio::test]
async fn metrics_are_read_now_and_then() {
    let client = Client::start(|config| config.metrics_interval = Duration::from_millis(200));
    let shim = shim_with("web", "c0ffee");
    let _server = shim.serve(&client.socket("abc")).unwrap();
    client.until(|table| table.len() == 1 && table[0].1.id.is_some()).await;
    let reads = shim.counters().metrics_reads;
    until("readings", || shim.counters().metrics_reads, |now| *now > reads + 2).await;
    shim.checkpoint_failed("c0ffee", "Error (criu/tun.c:85)").unwrap();
    until(
        "readings with errors",
        || client.changes.lock().unwrap().clone(),
        |changes| {
            changes.iter().any(|change| match &change.cause {
                Cause::Reading(reading) => reading.checkpoint_errors == 1,
                Cause::Event(_) | Cause::Removed => false,
            })
        },
    )
    .await;
}
