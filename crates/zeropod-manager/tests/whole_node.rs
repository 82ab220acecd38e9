//! The whole node: this manager, a stand-in shim with real sandbox, container
//! and CRIU, and a Kubernetes API, each scenario with a node of its own.
//!
//! Not libtest's harness: everything runs within the namespaces of one box,
//! one scenario after the other.

#[path = "whole_node/scenarios.rs"]
mod scenarios;
#[path = "whole_node/support.rs"]
mod support;

use std::{error::Error, process::ExitCode};

use libtest_mimic::Trial;
use scenarios::{
    api_away, bad_shims, down, killed, no_features, not_attached, spoofed, story, terminated,
};
use support::{run, trial};
use zeropod_testkit::node_in_a_box::Kubernetes;

fn main() -> Result<ExitCode, Box<dyn Error>> {
    run(trials)
}

fn trials() -> Vec<Trial> {
    use Kubernetes::{InProcess, Real};
    vec![
        trial("scaled_down_and_woken_by_a_request", |criu| story(InProcess, &[], criu)),
        trial("the_same_with_a_real_api_server", |criu| story(Real, &[], criu)),
        trial("b1_the_same_by_clsact", |criu| {
            story(InProcess, &["-attach-mechanism", "clsact"], criu)
        }),
        trial("killed_between_scale_down_and_request", killed),
        trial("s2_what_happened_while_it_was_down_is_made_up_for", down),
        trial("the_api_server_is_away_for_a_while", api_away),
        trial("r7_without_features_nothing_is_asked_of_the_api", no_features),
        trial("x1_a_hung_and_a_lying_shim_harm_nobody", bad_shims),
        trial("a_sandbox_without_a_redirector_is_told_once", |_| not_attached()),
        trial("a_pod_that_says_it_is_the_kubelet_is_not_believed", spoofed),
        trial("m7_sigterm_ends_it_and_leaves_the_redirect", terminated),
    ]
}
