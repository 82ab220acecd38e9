//! The crate's own metrics, recorded through the `metrics` facade.

use metrics::{Unit, counter, describe_counter, describe_gauge, gauge};
use zeropod_shim_api::status::Phase;

use crate::{
    Error,
    health::{Connection, Health},
};

const CONNECTIONS: &str = "zeropod_shim_connections";
const ERRORS: &str = "zeropod_shim_connection_errors_total";
const EVENTS: &str = "zeropod_shim_events_total";
const INVALID: &str = "zeropod_shim_invalid_messages_total";
const GAPS: &str = "zeropod_shim_event_gaps_total";
const CORRECTIONS: &str = "zeropod_resync_corrections_total";
const DROPS: &str = "zeropod_event_queue_drops_total";
const REMOVED: &str = "zeropod_shim_dead_sockets_removed_total";

/// Registers the descriptions of the crate's metrics with the recorder in
/// force.
pub fn describe_metrics() {
    describe_gauge!(
        CONNECTIONS,
        Unit::Count,
        "Shims by state of the connection: connecting, connected, unresponsive (subscribed, but \
         does not answer), disconnected (is dialled again) or dead (nobody listens)."
    );
    describe_counter!(
        ERRORS,
        Unit::Count,
        "Failures to reach a shim, by step: dial, subscribe, stream (it or the connection ended), read (no answer \
         to Metrics) or confirm (no answer to GetStatus)."
    );
    describe_counter!(EVENTS, Unit::Count, "Events received from shims, by phase.");
    describe_counter!(
        INVALID,
        Unit::Count,
        "Messages of shims that were not understood and therefore ignored."
    );
    describe_counter!(
        GAPS,
        Unit::Count,
        "Times that events of a shim were found to be lost, by reason: overflow (its queue was \
         full) or correction (a container was in another phase than its events told)."
    );
    describe_counter!(
        CORRECTIONS,
        Unit::Count,
        "Containers found in another phase than their events had told, and corrected."
    );
    describe_counter!(
        DROPS,
        Unit::Count,
        "Changes that a slow consumer within this process missed; it got a snapshot instead."
    );
    describe_counter!(
        REMOVED,
        Unit::Count,
        "Sockets of dead shims that were removed after nobody had listened for a while."
    );
}

pub(crate) fn connections(health: &Health) {
    for (state, count) in Connection::NAMES.into_iter().zip(health.connections()) {
        // Exact: a node has fewer than 2^32 shims.
        gauge!(CONNECTIONS, "state" => state).set(u32::try_from(count).unwrap_or(u32::MAX));
    }
}

pub(crate) fn event(phase: Phase) {
    counter!(EVENTS, "phase" => phase.as_str()).increment(1);
}

pub(crate) fn invalid_message() {
    counter!(INVALID).increment(1);
}

pub(crate) fn connection_error(error: &Error) {
    let step = match error {
        Error::Dial { .. } => "dial",
        Error::StreamEnded | Error::Protocol(_) | Error::Broken(_) => "stream",
        Error::Refused { call, .. }
        | Error::Deadline { call, .. }
        | Error::Malformed { call, .. } => match *call {
            "Metrics" => "read",
            "GetStatus" => "confirm",
            _ => "subscribe",
        },
        Error::Directory { .. } => return,
    };
    counter!(ERRORS, "step" => step).increment(1);
}

pub(crate) fn gap(reason: &'static str) {
    counter!(GAPS, "reason" => reason).increment(1);
}

pub(crate) fn corrections(count: usize) {
    counter!(CORRECTIONS).increment(count as u64);
}

pub(crate) fn subscriber_lagged(missed: u64) {
    counter!(DROPS).increment(missed);
}

pub(crate) fn dead_socket_removed() {
    counter!(REMOVED).increment(1);
}
