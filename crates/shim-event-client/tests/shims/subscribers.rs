//! Consumers that are slow, beside some that are not.

use std::time::Duration;

use futures_util::StreamExt as _;
use tokio::time::sleep;
use zeropod_shim_api::{
    change::{Cause, Update},
    status::Phase,
};

use crate::common::{Client, Recorded, identity, next, shim_with, until};

const TOOK: Duration = Duration::from_millis(100);
/// More than is kept for the slowest subscriber.
const EVENTS: usize = 3_000;

/// A consumer that lags gets a snapshot instead of what it missed, and costs
/// the others nothing: neither changes nor, in the long run, time.
#[tokio::test]
async fn a_slow_subscriber_gets_a_snapshot() {
    let recorded = Recorded::start();
    let client = Client::start(|_| ());
    let mut slow = client.events.subscribe();
    let quick = client.events.subscribe();
    let quick = tokio::spawn(async move {
        let mut updates = std::pin::pin!(quick.into_stream());
        let mut seen = Vec::new();
        while let Some(update) = updates.next().await {
            match update {
                Update::Change(change) => seen.push(change.state.phase),
                Update::Snapshot(_) => seen.clear(),
            }
            if seen.len() > EVENTS {
                break;
            }
        }
        seen.len()
    });
    let shim = shim_with("web", "c0ffee");
    let _server = shim.serve(&client.socket("abc")).unwrap();
    for event in 0..EVENTS {
        while shim.counters().queued > 64 {
            sleep(Duration::from_millis(1)).await;
        }
        if event % 2 == 0 {
            shim.scaled_down("c0ffee", TOOK).unwrap();
        } else {
            shim.restored("c0ffee", TOOK).unwrap();
        }
    }
    until("events", || client.published().len(), |count| *count == EVENTS + 1).await;
    assert!(quick.await.unwrap() > EVENTS);

    assert_eq!(next(&mut slow).await, Update::Snapshot(Vec::new()));
    let Update::Snapshot(snapshot) = next(&mut slow).await else { panic!("not a snapshot") };
    assert_eq!(snapshot, client.events.snapshot());
    assert!(recorded.counter("zeropod_event_queue_drops_total") > 0);
    shim.scaled_down("c0ffee", TOOK).unwrap();
    let Update::Change(change) = next(&mut slow).await else { panic!("not a change") };
    assert_eq!(change.state.phase, Phase::ScaledDown);
}

/// An observer that panics hurts nobody else.
#[tokio::test]
async fn an_observer_may_panic() {
    let client = Client::start(|_| ());
    client.events.observe(|update| {
        assert!(matches!(update, Update::Snapshot(_)), "this panic is part of the test");
    });
    let mut subscription = client.events.subscribe();
    next(&mut subscription).await;
    let shim = shim_with("web", "c0ffee");
    let _server = shim.serve(&client.socket("abc")).unwrap();
    shim.scaled_down("c0ffee", TOOK).unwrap();
    client.until_phase(Phase::ScaledDown).await;
    assert!(matches!(next(&mut subscription).await, Update::Change(_)));
    assert_eq!(shim.counters().connections, 1);
}

/// Many shims that all have a full queue for a client that has just started:
/// a subscriber that is only not scheduled yet misses nothing.
#[tokio::test]
async fn a_burst_at_the_start_is_not_missed() {
    const SHIMS: usize = 40;
    let recorded = Recorded::start();
    let dir = tempfile::tempdir().unwrap();
    let shims: Vec<_> = (0..SHIMS)
        .map(|number| {
            let name = format!("web-{number}");
            let shim = shim_with(&name, &name);
            shim.create(identity("other", "other"));
            while shim.counters().queued < 120 {
                shim.scaled_down(&name, TOOK).unwrap();
            }
            let socket = dir.path().join(format!("s/{number}.sock"));
            (shim.serve(&socket).unwrap(), shim)
        })
        .collect();
    let client = Client::start_in(dir, |_| ());
    let mut subscription = client.events.subscribe();
    let mut events = 0;
    while events < SHIMS * 120 {
        if let Update::Change(change) = next(&mut subscription).await {
            events += usize::from(matches!(change.cause, Cause::Event(_)));
        }
    }
    assert_eq!(recorded.counter("zeropod_event_queue_drops_total"), 0);
    drop(shims);
}
