//! A container followed through its life over a real socket.

mod common;

use std::time::Duration;

use common::{Service, config, container, event, metrics, next};
use tokio_util::sync::CancellationToken;
use zeropod_shim_api::{
    change::{Cause, ContainerChange, Update},
    rpc::shim::ContainerPhase,
    status::Phase,
};
use zeropod_shim_event_client::{Connection, ShimEvents, Subscription};

async fn change(subscription: &mut Subscription) -> ContainerChange {
    match next(subscription).await {
        Update::Change(change) => *change,
        Update::Snapshot(snapshot) => panic!("unexpected snapshot {snapshot:?}"),
    }
}

/// F-R1: the directory is made with its parents. S4: a shim that comes after
/// the start is found. S2: its state is known before its first event.
#[tokio::test]
async fn a_container_is_followed_from_start_to_stop() {
    let dir = tempfile::tempdir().unwrap();
    let socket_dir = dir.path().join("run/zeropod/s");
    let events = ShimEvents::new(config(&socket_dir));
    let mut subscription = events.subscribe();
    assert_eq!(next(&mut subscription).await, Update::Snapshot(Vec::new()));
    let shutdown = CancellationToken::new();
    let running = tokio::spawn({
        let (events, shutdown) = (events.clone(), shutdown.clone());
        async move { events.run(shutdown).await }
    });
    while !socket_dir.exists() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }

    let service = Service::new();
    service.metrics.lock().unwrap().push(metrics(true));
    service.statuses.lock().unwrap().push(event("c0ffee", ContainerPhase::RUNNING, None));
    let server = service.serve(&socket_dir.join("abc.sock")).await;
    let read = change(&mut subscription).await;
    assert_eq!((read.key.container, read.state.phase), (container(), Phase::Running));
    assert_eq!((read.state.id, read.key.shim.as_str()), (None, "abc"));
    assert!(matches!(read.cause, Cause::Reading(_)));

    service.emit(event("c0ffee", ContainerPhase::RUNNING, None));
    let started = change(&mut subscription).await;
    assert_eq!(started.state.id.unwrap().as_str(), "c0ffee");

    let took = Duration::from_millis(250);
    *service.statuses.lock().unwrap() =
        vec![event("c0ffee", ContainerPhase::SCALED_DOWN, Some(took))];
    service.emit(event("c0ffee", ContainerPhase::SCALED_DOWN, Some(took)));
    let down = change(&mut subscription).await;
    assert_eq!(down.state.phase, Phase::ScaledDown);
    assert_eq!(down.state.checkpoint.unwrap().duration, took);
    assert_eq!(down.state.since, Some(down.state.checkpoint.unwrap().ended));
    assert_eq!(events.snapshot(), [(down.key, down.state)]);

    service.emit(event("c0ffee", ContainerPhase::STOPPING, None));
    let stopped = change(&mut subscription).await;
    assert_eq!((stopped.state.phase, stopped.cause), (Phase::Stopping, Cause::Removed));
    // X2: the shim still lists it, and resyncs happen meanwhile.
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(events.snapshot(), []);

    drop(server);
    std::fs::remove_file(socket_dir.join("abc.sock")).unwrap();
    let mut health = events.health();
    health.wait_for(|health| health.shims.is_empty()).await.unwrap();
    shutdown.cancel();
    running.await.unwrap();
    assert_eq!(subscription.next().await, None);
}

/// S3, F-G2: a broken stream is taken up again, and a shim whose first dial
/// fails is dialled until it answers.
#[tokio::test]
async fn a_broken_stream_is_taken_up_again() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("abc.sock");
    // Bound but not listening, as a shim that is still starting.
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let events = ShimEvents::new(config(dir.path()));
    let mut subscription = events.subscribe();
    let mut health = events.health();
    let shutdown = CancellationToken::new();
    let running = tokio::spawn({
        let (events, shutdown) = (events.clone(), shutdown.clone());
        async move { events.run(shutdown).await }
    });
    let disconnected = health
        .wait_for(|health| {
            health.shims.values().any(|shim| matches!(shim.connection, Connection::Disconnected(_)))
        })
        .await
        .unwrap()
        .degraded();
    assert_eq!(disconnected[0].name, "shim-disconnected");
    assert!(disconnected[0].detail.contains("onnection refused"), "{disconnected:?}");

    std::fs::remove_file(&path).unwrap();
    let service = Service::new();
    service.metrics.lock().unwrap().push(metrics(true));
    let _server = service.serve(&path).await;
    assert_eq!(next(&mut subscription).await, Update::Snapshot(Vec::new()));
    change(&mut subscription).await;
    for _ in 0..3 {
        health
            .wait_for(|health| {
                health.shims.values().all(|shim| shim.connection == Connection::Connected)
            })
            .await
            .unwrap();
        service.end_streams();
        for (phase, wire) in [
            (Phase::ScaledDown, ContainerPhase::SCALED_DOWN),
            (Phase::Running, ContainerPhase::RUNNING),
        ] {
            *service.metrics.lock().unwrap() = vec![metrics(phase == Phase::Running)];
            service.emit(event("c0ffee", wire, None));
            while change(&mut subscription).await.state.phase != phase {}
        }
    }
    shutdown.cancel();
    running.await.unwrap();
}
