//! The crate's own metrics, recorded through the `metrics` facade.

use metrics::{Unit, counter, describe_counter};
use zeropod_shim_api::status::Phase;

const EVENTS: &str = "zeropod_shim_events_total";
const INVALID: &str = "zeropod_shim_invalid_messages_total";
const ERRORS: &str = "zeropod_shim_connection_errors_total";
const CORRECTIONS: &str = "zeropod_resync_corrections_total";
const DROPS: &str = "zeropod_event_queue_drops_total";

/// Registers the descriptions of the crate's metrics with the recorder in
/// force.
pub fn describe_metrics() {
    describe_counter!(EVENTS, Unit::Count, "Events received from shims, by phase.");
    describe_counter!(
        INVALID,
        Unit::Count,
        "Messages of shims that were not understood and therefore ignored."
    );
    describe_counter!(
        ERRORS,
        Unit::Count,
        "Failures to dial, subscribe to, or get an answer from a shim, by the step that failed."
    );
    describe_counter!(
        CORRECTIONS,
        Unit::Count,
        "Containers found in another state than the events had told."
    );
    describe_counter!(
        DROPS,
        Unit::Count,
        "Changes that a consumer missed because it was slow; it got a snapshot instead."
    );
}

pub(crate) fn event(phase: Phase) {
    counter!(EVENTS, "phase" => phase.as_str()).increment(1);
}

pub(crate) fn invalid_message() {
    counter!(INVALID).increment(1);
}

pub(crate) fn connection_error(step: &'static str) {
    counter!(ERRORS, "step" => step).increment(1);
}

pub(crate) fn corrections(count: usize) {
    counter!(CORRECTIONS).increment(count as u64);
}

pub(crate) fn subscriber_lagged(missed: u64) {
    counter!(DROPS).increment(missed);
}
