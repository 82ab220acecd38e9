//! The client against a server on Go's own ttrpc, which real shims are built
//! with.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    io::{BufRead as _, BufReader, Write as _},
    path::Path,
    process::{Child, ChildStdin, Command, Stdio},
};

use zeropod_shim_api::status::Phase;
use zeropod_shim_event_client::Connection;
use zeropod_testkit::{skip, tools};

use crate::common::{Client, Recorded, until};

/// A shim by Go, with one running container `default/web/app`. Killed when
/// dropped.
struct GoShim {
    process: Child,
    input: ChildStdin,
}

impl GoShim {
    /// `None`, having said so, where it cannot be built: offline, without Go.
    fn serve(socket: &Path) -> Option<Self> {
        let program = match tools::ttrpc_peer() {
            Ok(program) => program,
            Err(error) => {
                skip::skip(&format!("no Go peer: {error}"));
                return None;
            }
        };
        let mut process = Command::new(program)
            .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/../shim-api/proto/shim.proto"))
            .arg("serve")
            .arg(socket)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let input = process.stdin.take().unwrap();
        let mut serving = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut serving).unwrap();
        assert_eq!(serving, "serving\n");
        Some(Self { process, input })
    }

    fn say(&mut self, line: &str) {
        writeln!(self.input, "{line}").unwrap();
    }

    fn event(&mut self, pod: &str, id: &str, rest: &str) {
        self.say(&format!(
            r#"{{"id":"{id}","name":"app","podName":"{pod}","podNamespace":"default"{rest}}}"#
        ));
    }
}

impl Drop for GoShim {
    fn drop(&mut self) {
        // Fails when it has ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Readings, questions and events; both ends of a stream that Go's server
/// makes; and its error for an unknown id.
#[tokio::test]
async fn a_shim_by_go_is_followed() {
    let client = Client::start(|_| ());
    until("the directory", || client.socket_dir().exists(), |exists| *exists).await;
    let recorded = Recorded::start();
    let Some(mut shim) = GoShim::serve(&client.socket("abc")) else { return };
    client.until_phase(Phase::Running).await;

    // The phase of a scale-down is the zero of its enum: it is not sent.
    shim.event("web", "c0ffee", r#","eventDuration":"0.070s""#);
    until(
        "the scale-down",
        || client.published(),
        |events| {
            events.len() == 1
                && events[0].phase == Phase::ScaledDown
                && events[0].duration.is_some()
        },
    )
    .await;
    // It was not true, says the shim when it is asked by id.
    client.until_phase(Phase::Running).await;
    assert_eq!(recorded.counter("zeropod_resync_corrections_total"), 1);

    for (round, end) in (1..).zip(["end", "fail"]) {
        shim.say(end);
        until(
            "the end of the stream",
            || recorded.counter("zeropod_shim_connection_errors_total"),
            |errors| *errors == round,
        )
        .await;
        shim.event("web", "c0ffee", r#","phase":"RUNNING""#);
        let published = client.published().len();
        until("the event", || client.published().len(), |now| *now > published).await;
    }

    shim.event("db", "decaf", r#","phase":"RUNNING""#);
    until(
        "the event",
        || client.published(),
        |events| events.last().is_some_and(|event| event.id.as_str() == "decaf"),
    )
    .await;
    client.until_phase(Phase::Running).await;
    client
        .healthy(|health| {
            health.shims.values().all(|shim| shim.connection == Connection::Connected)
        })
        .await;
}
