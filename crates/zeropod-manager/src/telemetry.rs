//! The metrics that only the manager can know, and what all of them mean.

use std::collections::BTreeMap;

use metrics::{describe_gauge, gauge};
use sha2::{Digest as _, Sha256};
use zeropod_ebpf_loader::{Attachment, ManagedBy, Mechanism, REDIRECTOR, State as Redirectors};
use zeropod_status_api::api::Degraded;

const BUILD: &str = "zeropod_build_info";
const REDIRECTOR_INFO: &str = "zeropod_redirector_info";
const SANDBOXES: &str = "zeropod_sandboxes";
const DEGRADED: &str = "zeropod_degraded";

/// Registers the descriptions of all metrics with the recorder in force, and
/// tells what this program is. The status writer describes its own when it
/// starts.
pub(crate) fn start() {
    zeropod_shim_event_client::describe_metrics();
    zeropod_status_api::describe_metrics();
    describe_gauge!(BUILD, "1, labelled with version, revision and compiler.");
    describe_gauge!(
        REDIRECTOR_INFO,
        "1, labelled with the first 12 hex digits of the SHA-256 of the eBPF object."
    );
    describe_gauge!(
        SANDBOXES,
        "Sandboxes, by who attaches their redirector (manager or shim) and whether it is \
         attached: pending, failed, or how (tcx or clsact)."
    );
    describe_gauge!(
        DEGRADED,
        "How often a thing is wrong now, by the name that /readyz gives it and by the part of \
         the manager that says so."
    );
    gauge!(
        BUILD,
        "version" => zeropod_build_info::VERSION,
        "revision" => zeropod_build_info::REVISION,
        "rustc" => zeropod_build_info::RUSTC,
    )
    .set(1.0);
    let digest = Sha256::digest(REDIRECTOR);
    let digest: Vec<_> = digest.iter().take(6).map(|byte| format!("{byte:02x}")).collect();
    gauge!(REDIRECTOR_INFO, "digest" => digest.concat()).set(1.0);
}

/// Counts the sandboxes by their state.
pub(crate) fn sandboxes(state: &Redirectors) {
    let of = |attachment: &Attachment| match attachment {
        Attachment::Pending => "pending",
        Attachment::Failed { .. } => "failed",
        Attachment::Attached(mechanism) => mechanism.as_str(),
    };
    let attachments = ["pending", "failed", Mechanism::Tcx.as_str(), Mechanism::Clsact.as_str()];
    for (managed_by, name) in [(ManagedBy::Manager, "manager"), (ManagedBy::Shim, "shim")] {
        for attachment in attachments {
            let count = state
                .sandboxes
                .values()
                .filter(|one| one.managed_by == managed_by && of(&one.attachment) == attachment)
                .count();
            gauge!(SANDBOXES, "managed_by" => name, "attachment" => attachment).set(small(count));
        }
    }
}

/// Counts what is wrong with a part, and what no longer is.
pub(crate) fn degraded(part: &'static str, before: &[Degraded], now: &[Degraded]) {
    let mut counts: BTreeMap<String, usize> =
        before.iter().map(|wrong| (wrong.name.to_string(), 0)).collect();
    for wrong in now {
        *counts.entry(wrong.name.to_string()).or_default() += 1;
    }
    for (name, count) in counts {
        gauge!(DEGRADED, "part" => part, "state" => name).set(small(count));
    }
}

fn small(count: usize) -> f64 {
    u32::try_from(count).unwrap_or(u32::MAX).into()
}

#[cfg(test)]
mod tests {
    use std::{env, fs, path::Path};

    use futures_util::stream;
    use tokio_util::sync::CancellationToken;
    use zeropod_ebpf_loader::SandboxState;
    use zeropod_k8s_status_writer::{Config, StatusWriter};
    use zeropod_metrics_aggregator::{Aggregator, Format};

    use super::*;

    /// Every crate has described its metrics and nothing else happened.
    async fn described() -> Aggregator {
        let aggregator = Aggregator::new();
        let recorder = aggregator.recorder();
        // Of this thread, on which the test's runtime runs everything.
        let _local = metrics::set_default_local_recorder(&recorder);
        start();
        let _ = rustls::crypto::ring::default_provider().install_default();
        let nowhere = kube::Config::new("http://127.0.0.1:1".parse().unwrap());
        let client = kube::Client::try_from(nowhere).unwrap();
        let stopped = CancellationToken::new();
        stopped.cancel();
        StatusWriter::new(client, Config::new("node-1")).run(stream::empty(), stopped).await;
        aggregator
    }

    /// To bring the docs up to date: `UPDATE_DOCS=1 cargo test -p zeropod-manager documented`.
    #[tokio::test]
    async fn every_metric_is_documented_and_nothing_else() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/metrics.md");
        let text = fs::read_to_string(&path).unwrap();
        let (start, end) = ("<!-- generated: metrics -->\n", "<!-- end -->\n");
        let (head, rest) = text.split_once(start).unwrap();
        let (table, tail) = rest.split_once(end).unwrap();
        let expected = described().await.documentation();
        if env::var_os("UPDATE_DOCS").is_some_and(|is| is == "1") {
            fs::write(&path, [head, start, &expected, end, tail].concat()).unwrap();
        } else {
            assert_eq!(table, expected, "docs/metrics.md is out of date");
        }
    }

    #[test]
    fn sandboxes_and_degraded_states_are_counted_and_uncounted() {
        let aggregator = Aggregator::new();
        let recorder = aggregator.recorder();
        let _local = metrics::set_default_local_recorder(&recorder);
        let attachment = Attachment::Attached(Mechanism::Tcx);
        let sandbox = SandboxState { managed_by: ManagedBy::Manager, attachment };
        let mut state = Redirectors::default();
        state.sandboxes.insert(7, sandbox);
        let wrong = Degraded { name: "no-bpf".into(), detail: String::new(), unready: true };
        for (sandboxes_now, wrong_before, wrong_now) in [
            (state, vec![], vec![wrong.clone(), wrong.clone()]),
            (Redirectors::default(), vec![wrong], vec![]),
        ] {
            let count = sandboxes_now.sandboxes.len();
            sandboxes(&sandboxes_now);
            degraded("loader", &wrong_before, &wrong_now);
            let text = aggregator.render(Format::Text);
            for line in [
                format!("zeropod_sandboxes{{managed_by=\"manager\",attachment=\"tcx\"}} {count}\n"),
                format!(
                    "zeropod_degraded{{part=\"loader\",state=\"no-bpf\"}} {}\n",
                    wrong_now.len()
                ),
            ] {
                assert!(text.contains(&line), "{line} is not in {text}");
            }
        }
    }
}
