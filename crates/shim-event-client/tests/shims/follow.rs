//! Containers followed through their life over real sockets.

use std::{fs, time::Duration};

use crate::common::{Client, change, identity, next, shim_id, shim_with, until};
use tokio_util::sync::CancellationToken;
use ttrpc::Code;
use zeropod_shim_api::{
    change::{Cause, Update},
    status::Phase,
};
use zeropod_shim_event_client::{Config, Connection, ShimEvents};
use zeropod_testkit::node::shim::Service;

const TOOK: Duration = Duration::from_millis(250);

/// Its heartbeat shows that the client turns.
#[tokio::test]
async fn the_client_shows_that_it_turns() {
    let dir = tempfile::tempdir().unwrap();
    let events = ShimEvents::new(Config { socket_dir: dir.path().into(), ..Config::default() });
    let mut heart = events.heartbeat();
    assert!(!heart.has_changed().unwrap(), "it does not run yet");
    let shutdown = CancellationToken::new();
    let running = tokio::spawn({
        let (events, shutdown) = (events.clone(), shutdown.clone());
        async move { events.run(shutdown).await }
    });
    heart.changed().await.unwrap();
    shutdown.cancel();
    running.await.unwrap();
}

/// S2: the state is known before the first event. X2: a stopped container
/// that its shim still lists does not come back.
#[tokio::test]
async fn a_container_is_followed_from_start_to_stop() {
    let client = Client::start(|_| ());
    let mut subscription = client.events.subscribe();
    assert_eq!(next(&mut subscription).await, Update::Snapshot(Vec::new()));

    let shim = Service::new();
    shim.create(identity("web", "c0ffee"));
    let server = shim.serve(&client.socket("abc")).unwrap();
    let read = change(&mut subscription).await;
    assert_eq!(read.key.container.to_string(), "default/web/app");
    assert_eq!(
        (read.state.id, read.key.shim, read.state.phase),
        (None, shim_id("abc"), Phase::Running)
    );
    assert!(matches!(read.cause, Cause::Reading(_)));

    shim.started("c0ffee").unwrap();
    let started = change(&mut subscription).await;
    assert_eq!(started.state.id.unwrap().as_str(), "c0ffee");
    shim.scaled_down("c0ffee", TOOK).unwrap();
    let down = change(&mut subscription).await;
    assert_eq!(down.state.phase, Phase::ScaledDown);
    let checkpoint = down.state.checkpoint.unwrap();
    assert_eq!((checkpoint.duration, Some(checkpoint.ended)), (TOOK, down.state.since));
    assert_eq!(client.events.snapshot(), [(down.key, down.state)]);
    shim.restored("c0ffee", TOOK).unwrap();
    let up = change(&mut subscription).await;
    assert_eq!((up.state.phase, up.state.restore.unwrap().duration), (Phase::Running, TOOK));

    shim.stopping("c0ffee").unwrap();
    let stopped = change(&mut subscription).await;
    assert_eq!((stopped.state.phase, stopped.cause), (Phase::Stopping, Cause::Removed));
    let asked = shim.counters().status_reads;
    until("resyncs", || shim.counters().status_reads, |reads| *reads > asked + 2).await;
    shim.delete("c0ffee");
    shim.stopping("c0ffee").unwrap();
    server.close().unwrap();
    client.healthy(|health| health.shims.is_empty()).await;
    assert_eq!(client.events.snapshot(), []);
    assert_eq!(client.changes.lock().unwrap().len(), 5);
}

/// Shutting down ends the subscriptions, and what they still held is kept.
#[tokio::test]
async fn subscriptions_end_with_the_client() {
    let dir = tempfile::tempdir().unwrap();
    let events =
        ShimEvents::new(Config { socket_dir: dir.path().to_path_buf(), ..Config::default() });
    let mut subscription = events.subscribe();
    let shutdown = CancellationToken::new();
    shutdown.cancel();
    events.run(shutdown).await;
    assert_eq!(subscription.next().await, Some(Update::Snapshot(Vec::new())));
    assert_eq!(subscription.next().await, None);
    assert_eq!(events.subscribe().next().await, None);
}

/// S3, F-G2: whatever ends a stream, it is taken up again, and no second one
/// is left behind to steal events.
#[tokio::test]
async fn a_broken_stream_is_taken_up_again() {
    let client = Client::start(|_| ());
    let shim = shim_with("web", "c0ffee");
    let _server = shim.serve(&client.socket("abc")).unwrap();
    client.until_phase(Phase::Running).await;
    let breaks: [&dyn Fn(); 3] = [&|| shim.close_connections(), &|| shim.end_streams(), &|| {
        shim.fail_streams(Code::UNAVAILABLE, "try again");
    }];
    for (broken, end) in breaks.into_iter().enumerate() {
        until(
            "subscriptions",
            || shim.counters(),
            |now| now.subscriptions == broken + 1 && now.open_subscriptions == 1 && now.queued == 0,
        )
        .await;
        end();
        until("subscriptions", || shim.counters(), |now| now.subscriptions == broken + 2).await;
        shim.scaled_down("c0ffee", TOOK).unwrap();
        client.until_phase(Phase::ScaledDown).await;
        shim.restored("c0ffee", TOOK).unwrap();
        client.until_phase(Phase::Running).await;
        assert_eq!(shim.counters().open_subscriptions, 1);
        assert_eq!(shim.counters().open_connections, 1);
    }
}

/// S3: a shim whose socket exists before it accepts is dialled until it does,
/// and one whose place is taken is left for its successor.
#[tokio::test]
async fn a_slow_shim_is_waited_for() {
    let client = Client::start(|_| ());
    let socket = client.socket("abc");
    until("the directory", || client.socket_dir().exists(), |exists| *exists).await;
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    client
        .healthy(|health| {
            health.degraded().iter().any(|degraded| {
                degraded.name == "shim-disconnected"
                    && degraded.detail.contains("onnection refused")
                    && degraded.detail.contains("abc")
            })
        })
        .await;
    for id in ["c0ffee", "deaf"] {
        // A kill leaves the file.
        fs::remove_file(&socket).unwrap();
        let shim = shim_with("web", id);
        let _server = shim.serve(&socket).unwrap();
        client
            .until(|table| {
                table.len() == 1 && table[0].1.id.as_ref().is_some_and(|known| known.as_str() == id)
            })
            .await;
        client.healthy(|health| health.degraded().is_empty()).await;
    }
}

/// S4, F-E5: shims that come while the directory is first listed are found.
/// X4: other files are left alone.
#[tokio::test]
async fn no_shim_is_missed_at_the_start() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("s")).unwrap();
    fs::write(dir.path().join("s/file.sock"), "").unwrap();
    fs::create_dir(dir.path().join("s/dir.sock")).unwrap();
    let mut servers = Vec::new();
    let mut serve = |number: usize, dir: &std::path::Path| {
        let name = format!("web-{number}");
        let shim = shim_with(&name, &name);
        servers.push(shim.serve(&dir.join(format!("{number}.sock"))).unwrap());
    };
    for number in 0..20 {
        serve(number, &dir.path().join("s"));
    }
    let client = Client::start_in(dir, |_| ());
    for number in 20..60 {
        serve(number, &client.socket_dir());
        tokio::task::yield_now().await;
    }
    client.until(|table| table.len() == 60).await;
    client
        .healthy(|health| {
            health.shims.len() == 60
                && health.shims.values().all(|shim| shim.connection == Connection::Connected)
        })
        .await;
}

/// F-R1: the directory is made with its parents, and again when it vanishes.
#[tokio::test]
async fn the_directory_is_made_and_watched_again() {
    let client = Client::start(|_| ());
    until("the directory", || client.socket_dir().exists(), |exists| *exists).await;
    let shim = shim_with("web", "c0ffee");
    let _server = shim.serve(&client.socket("abc")).unwrap();
    client.until_phase(Phase::Running).await;
    fs::remove_dir_all(client.socket_dir()).unwrap();
    shim.close_connections();
    client.until(<[_]>::is_empty).await;
    until("the directory", || client.socket_dir().exists(), |exists| *exists).await;
    let _server = shim.serve(&client.socket("abc")).unwrap();
    client.until_phase(Phase::Running).await;
    client.healthy(|health| health.directory.is_none()).await;
}

/// F-R4: several pods behind one socket; the end of one is not the end of the
/// others.
#[tokio::test]
async fn a_grouped_shim_has_several_pods() {
    let client = Client::start(|_| ());
    let shim = Service::new();
    for pod in ["a", "b", "c"] {
        shim.create(identity(pod, pod));
        shim.started(pod).unwrap();
    }
    let _server = shim.serve(&client.socket("abc")).unwrap();
    client
        .until(|table| table.len() == 3 && table.iter().all(|(_, state)| state.id.is_some()))
        .await;
    shim.scaled_down("b", TOOK).unwrap();
    shim.stopping("a").unwrap();
    client.until(|table| table.len() == 2).await;
    let phases: Vec<_> =
        client.events.snapshot().into_iter().map(|(_, state)| state.phase).collect();
    assert_eq!(phases, [Phase::ScaledDown, Phase::Running]);
}
