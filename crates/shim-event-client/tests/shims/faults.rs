//! Shims that misbehave, beside one that does not.

use std::{
    fs,
    io::{Read as _, Write as _},
    os::unix::net::UnixListener,
    time::Duration,
};

use protobuf::{EnumOrUnknown, Message as _};
use ttrpc::{
    Code,
    proto::{
        MESSAGE_TYPE_DATA, MESSAGE_TYPE_REQUEST, MESSAGE_TYPE_RESPONSE, MessageHeader, Request,
    },
};
use zeropod_shim_api::{
    rpc::shim::{ContainerPhase, ContainerStatus},
    status::Phase,
};
use zeropod_shim_event_client::{Connection, Health};
use zeropod_testkit::node::shim::{Answer, Faults, Service, frame};

use crate::common::{Client, Recorded, message, shim_id, shim_with, until};

const TOOK: Duration = Duration::from_millis(100);

/// X1, F-H2: shims that answer nothing, refuse, or read nothing, beside one
/// that is well: it is followed as if it were alone, and each of the others
/// has a name for what is wrong with it and heals by itself.
#[tokio::test]
async fn one_bad_shim_does_not_hurt_another() {
    let recorded = Recorded::start();
    let client = Client::start(|_| ());
    let good = shim_with("good", "c0ffee");
    let hung = shim_with("hung", "1");
    let refusing = shim_with("refusing", "2");
    let deaf = shim_with("deaf", "3");
    let never = Faults { metrics: Answer::Never, get_status: Answer::Never, ..Faults::default() };
    hung.set_faults(never);
    let error = Answer::Error(Code::INTERNAL, "no stream today".into());
    refusing.set_faults(Faults { subscribe: error, ..Faults::default() });
    deaf.set_faults(Faults { stop_reading: true, ..Faults::default() });
    let shims = [("good", &good), ("hung", &hung), ("refusing", &refusing), ("deaf", &deaf)];
    let _servers = shims.map(|(name, shim)| shim.serve(&client.socket(name)).unwrap());

    let phase_of = |pod: &str| {
        let pod = format!("default/{pod}/app");
        let table = client.events.snapshot();
        table
            .into_iter()
            .find(|(key, _)| key.container.to_string() == pod)
            .map(|(_, state)| state.phase)
    };
    let connection_of = |health: &Health, name: &str| {
        health.shims.get(&shim_id(name)).map(|shim| shim.connection.clone())
    };
    client
        .healthy(|health| {
            connection_of(health, "good") == Some(Connection::Connected)
                && matches!(connection_of(health, "hung"), Some(Connection::Unresponsive(error))
                    if error == "Metrics was not answered within 500ms"
                    || error == "GetStatus was not answered within 500ms")
                && matches!(connection_of(health, "refusing"), Some(Connection::Disconnected(error))
                    if error.contains("no stream today"))
        })
        .await;
    assert_eq!(recorded.gauge("zeropod_shim_connections", "connected"), Some(1.0));
    for _ in 0..3 {
        good.scaled_down("c0ffee", TOOK).unwrap();
        hung.scaled_down("1", TOOK).unwrap();
        until("good", || phase_of("good"), |phase| *phase == Some(Phase::ScaledDown)).await;
        until("hung", || phase_of("hung"), |phase| *phase == Some(Phase::ScaledDown)).await;
        good.restored("c0ffee", TOOK).unwrap();
        hung.restored("1", TOOK).unwrap();
        until("good", || phase_of("good"), |phase| *phase == Some(Phase::Running)).await;
        until("hung", || phase_of("hung"), |phase| *phase == Some(Phase::Running)).await;
    }
    // A shim that answers nothing keeps its subscription: its events come.
    assert_eq!(hung.counters().subscriptions, 1);
    for (_, shim) in shims {
        shim.set_faults(Faults::default());
    }
    client.healthy(|health| health.degraded().is_empty()).await;
    for name in ["refusing", "deaf"] {
        until(name, || phase_of(name), |phase| *phase == Some(Phase::Running)).await;
    }
    for (name, shim) in shims {
        until(name, || shim.counters().open_connections, |open| *open == 1).await;
    }
    assert!(recorded.counter("zeropod_shim_connection_errors_total") > 2);
}

/// F-R3: messages that make no sense are counted and ignored, and the next one
/// that does is taken from the same subscription.
#[tokio::test]
async fn garbage_is_counted_and_ignored() {
    let recorded = Recorded::start();
    let client = Client::start(|_| ());
    let shim = shim_with("web", "c0ffee");
    let _server = shim.serve(&client.socket("abc")).unwrap();
    client.until(|table| table.len() == 1 && table[0].1.id.is_some()).await;

    let sane = || message("web", "c0ffee");
    let mut unknown = sane();
    unknown.phase = EnumOrUnknown::from_i32(17);
    let mut never = sane();
    never.event_time.mut_or_insert_default().seconds = i64::MAX;
    let mut backwards = sane();
    backwards.event_duration.mut_or_insert_default().seconds = -1;
    let mut climbing = sane();
    climbing.pod_name = "../../etc".into();
    let garbage = [
        ContainerStatus::default(),
        message("web", ""),
        message("", "c0ffee"),
        message("web", "../c0ffee"),
        unknown,
        never,
        backwards,
        climbing,
    ];
    let count = garbage.len() as u64;
    for message in garbage {
        assert!(shim.emit(message));
    }
    // Not even protobuf; 1 was the reading, 3 is the stream.
    let stream = 3;
    shim.send_raw(frame(stream, MESSAGE_TYPE_DATA, 0, b"\xff\xff\xff\xff"));
    until(
        "invalid messages",
        || recorded.counter("zeropod_shim_invalid_messages_total"),
        |counted| *counted == count + 1,
    )
    .await;
    // An answer that makes no sense does not end the container either.
    let status = Answer::Error(Code::NOT_FOUND, "GetStatus is not supported".into());
    shim.set_faults(Faults { get_status: status, ..Faults::default() });
    client.healthy(|health| !health.degraded().is_empty()).await;
    client.until_phase(Phase::Running).await;
    shim.scaled_down("c0ffee", TOOK).unwrap();
    client.until_phase(Phase::ScaledDown).await;
    assert_eq!(shim.counters().subscriptions, 1);
}

/// Frames up to ttrpc's limit of 4 MiB are read, and their logs clipped; what
/// is larger, or no frame at all, costs the connection and nothing else.
#[tokio::test]
async fn oversized_and_broken_frames_are_survived() {
    const LIMIT: usize = 4 << 20;
    let client = Client::start(|_| ());
    let shim = shim_with("web", "c0ffee");
    let _server = shim.serve(&client.socket("abc")).unwrap();
    client.until(|table| table.len() == 1 && table[0].1.id.is_some()).await;

    let mut huge = message("web", "c0ffee");
    huge.phase = ContainerPhase::CHECKPOINT_FAILED.into();
    huge.event_log = "x".repeat(LIMIT - 1024);
    shim.emit(huge);
    until(
        "the log",
        || client.published(),
        |events| {
            events.last().is_some_and(|event| event.log.len() == 1 && event.log[0].len() < 1024)
        },
    )
    .await;
    assert_eq!(shim.counters().subscriptions, 1);

    let oversized = vec![0; LIMIT + 1];
    let breakers = [
        frame(3, MESSAGE_TYPE_DATA, 0, &oversized),
        frame(3, 77, 0, b""),
        b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec(),
    ];
    for (broken, bytes) in breakers.into_iter().enumerate() {
        shim.send_raw(bytes);
        if broken == 2 {
            // The length it claims never comes.
            shim.close_connections();
        }
        until(
            "subscriptions",
            || shim.counters(),
            |now| now.subscriptions == broken + 2 && now.open_subscriptions == 1,
        )
        .await;
        shim.scaled_down("c0ffee", TOOK).unwrap();
        client.until_phase(Phase::ScaledDown).await;
        shim.restored("c0ffee", TOOK).unwrap();
        client.until_phase(Phase::Running).await;
    }
}

/// F-G5: what goes over the wire is what Go's ttrpc server of any age needs.
#[tokio::test]
async fn requests_are_what_a_go_server_expects() {
    let client = Client::start(|_| ());
    until("the directory", || client.socket_dir().exists(), |exists| *exists).await;
    let listener = UnixListener::bind(client.socket("abc")).unwrap();
    let read = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut requests = Vec::new();
        for _ in 0..2 {
            let mut header = [0; 10];
            stream.read_exact(&mut header).unwrap();
            let header = MessageHeader::from(header);
            let mut body = vec![0; header.length as usize];
            stream.read_exact(&mut body).unwrap();
            requests.push((header, Request::parse_from_bytes(&body).unwrap()));
            // An empty answer; the second is not waited for.
            stream.write_all(&frame(header.stream_id, MESSAGE_TYPE_RESPONSE, 0, b"")).unwrap();
        }
        requests
    });
    let requests = tokio::task::spawn(async { read });
    let requests = requests.await.unwrap();
    until("two requests", || requests.is_finished(), |finished| *finished).await;
    let [(_, metrics), (header, subscribe)] = requests.join().unwrap().try_into().unwrap();
    assert_eq!((metrics.method.as_str(), metrics.payload), ("Metrics", vec![0x0a, 0x00]));
    assert_eq!(metrics.timeout_nano, 500_000_000);
    assert_eq!(subscribe.service, "zeropod.shim.v1.Shim");
    assert_eq!(
        (subscribe.method.as_str(), subscribe.payload),
        ("SubscribeStatus", vec![0x0a, 0x00])
    );
    assert_eq!((subscribe.timeout_nano, subscribe.metadata.len()), (0, 0));
    assert_eq!((header.type_, header.flags), (MESSAGE_TYPE_REQUEST, 0x01));
}

/// S6: the socket of a killed shim is counted at once; after a grace time its
/// containers are gone, and it is removed, but only if nobody has it.
#[tokio::test]
async fn sockets_of_killed_shims_are_removed() {
    let recorded = Recorded::start();
    let list = tempfile::NamedTempFile::new().unwrap();
    let client = Client::start(|config| {
        config.dead_after = Duration::from_millis(300);
        config.unix_sockets = list.path().to_path_buf();
    });
    let line = |name: &str| format!("0: 00000002 00000000 00010000 0001 01 1 /host/{name}.sock\n");
    fs::write(&list, line("owned")).unwrap();
    let names = ["dead", "owned"];
    for name in names {
        let shim = shim_with(name, name);
        let server = shim.serve(&client.socket(name)).unwrap();
        client.until(|table| table.len() == 1).await;
        drop(server);
        client.until(<[_]>::is_empty).await;
    }
    client.healthy(|health| health.shims.len() == 1).await;
    assert!(!client.socket("dead").exists());
    assert_eq!(recorded.counter("zeropod_shim_dead_sockets_removed_total"), 1);
    client
        .healthy(|health| health.degraded().iter().any(|degraded| degraded.name == "shim-dead"))
        .await;
    assert!(client.socket("owned").exists());

    // Not removed either while nobody can tell who has it.
    fs::remove_file(&list).unwrap();
    let refused = recorded.counter("zeropod_shim_connection_errors_total");
    until(
        "refused connections",
        || recorded.counter("zeropod_shim_connection_errors_total"),
        |now| *now > refused + 2,
    )
    .await;
    assert!(client.socket("owned").exists());
    // A successor in its place is followed.
    fs::remove_file(client.socket("owned")).unwrap();
    let shim = Service::new();
    shim.create(crate::common::identity("owned", "next"));
    let _server = shim.serve(&client.socket("owned")).unwrap();
    client.until_phase(Phase::Running).await;
    client.healthy(|health| health.degraded().is_empty()).await;
}
