//! The board behind the status page: who counts for it, and what of the parts'
//! states is shown as wrong.

use std::collections::BTreeMap;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use zeropod_ebpf_loader::{Attachment, State as Redirectors};
use zeropod_k8s_status_writer::{Degraded as Writing, GivenBack, Handle, State as Writer, Trouble};
use zeropod_metrics_aggregator::Aggregator;
use zeropod_shim_api::id::ContainerRef;
use zeropod_shim_event_client::Health;
use zeropod_status_api::{
    Board, Counts,
    api::{Degraded, Resources},
};

use crate::telemetry;

/// An empty board, on which the counts are those of the metrics.
pub(crate) fn board(node: String, aggregator: Aggregator) -> Board {
    let version = format!("zeropod-manager {}", zeropod_build_info::VERSION);
    Board::new(node, version, move |container| {
        // The aggregator hears of each container first.
        let Some(totals) = aggregator.totals(container) else { return Counts::default() };
        Counts {
            wake_ups: totals.wake_ups,
            checkpoint_failures: totals.checkpoint_errors,
            restore_failures: totals.restore_errors,
            scaled_down: totals.scaled_down,
        }
    })
}

/// Shows what is wrong with a part on the board and in the metrics, until
/// `shutdown`. The parts log it themselves.
pub(crate) async fn show<S>(
    board: Board,
    part: &'static str,
    mut state: watch::Receiver<S>,
    wrong: fn(&S) -> Vec<Degraded>,
    shutdown: CancellationToken,
) {
    let mut before = Vec::new();
    loop {
        let now = wrong(&state.borrow_and_update());
        telemetry::degraded(part, &before, &now);
        board.set_degraded(part, now.clone());
        before = now;
        match shutdown.run_until_cancelled(state.changed()).await {
            Some(Ok(())) => {}
            // The part ended, which the manager notices elsewhere.
            Some(Err(_)) => return shutdown.cancelled().await,
            None => return,
        }
    }
}

/// Shows on the board what the pods give back, until `shutdown`.
pub(crate) async fn show_given_back(
    board: Board,
    mut given: watch::Receiver<BTreeMap<ContainerRef, GivenBack>>,
    shutdown: CancellationToken,
) {
    loop {
        let now = given.borrow_and_update().clone().into_iter();
        board.set_given_back(
            now.map(|(container, GivenBack { cpu_cores, memory_bytes })| {
                (container, Resources { cpu_cores, memory_bytes })
            })
            .collect(),
        );
        match shutdown.run_until_cancelled(given.changed()).await {
            Some(Ok(())) => {}
            Some(Err(_)) => return shutdown.cancelled().await,
            None => return,
        }
    }
}

/// Tells pods whose sandbox has no redirector, until `shutdown`.
pub(crate) async fn tell_pods(
    mut state: watch::Receiver<Redirectors>,
    writer: Handle,
    shutdown: CancellationToken,
) {
    loop {
        writer.set_troubles(troubles(&state.borrow_and_update()));
        match shutdown.run_until_cancelled(state.changed()).await {
            Some(Ok(())) => {}
            Some(Err(_)) => return shutdown.cancelled().await,
            None => return,
        }
    }
}

fn troubles(state: &Redirectors) -> Vec<Trouble> {
    let failed = state.sandboxes.values().filter_map(|sandbox| match &sandbox.attachment {
        Attachment::Failed { error, attempts: _, since, pod_uid: Some(uid) } => Some(Trouble {
            pod_uid: uid.as_str().into(),
            reason: "Redirector not attached",
            message: format!("Connections do not wake the containers of this pod up: {error}"),
            since: *since,
        }),
        _ => None,
    });
    failed.collect()
}

/// Without its directory no shim is found: the node is then of no use.
pub(crate) fn shims(health: &Health) -> Vec<Degraded> {
    let degraded = health.degraded().into_iter();
    degraded
        .map(|wrong| Degraded {
            name: wrong.name.into(),
            detail: wrong.detail,
            unready: wrong.name == "shim-directory",
        })
        .collect()
}

/// Without pins no sandbox is woken up: the node is then of no use. One
/// sandbox is one sandbox.
pub(crate) fn redirectors(state: &Redirectors) -> Vec<Degraded> {
    telemetry::sandboxes(state);
    let all = state.degraded.iter().map(|wrong| Degraded {
        name: wrong.as_str().into(),
        detail: wrong.detail().into(),
        unready: wrong.stops_wake_up(),
    });
    let each = state.sandboxes.iter().filter_map(|(pid, sandbox)| match &sandbox.attachment {
        Attachment::Failed { error, attempts, .. } => Some(Degraded {
            name: "redirector-not-attached".into(),
            detail: format!("sandbox {pid}: {error} (attempt {attempts})"),
            unready: false,
        }),
        Attachment::Pending | Attachment::Attached(_) => None,
    });
    all.chain(each).collect()
}

/// Containers are scaled without it: only their pods don't say so.
pub(crate) fn writer(state: &Writer) -> Vec<Degraded> {
    let wrong = state.degraded.iter().map(|wrong| {
        let detail = match wrong {
            Writing::PodsNotSynced => "the pods of this node have not been listed yet",
            Writing::PodsWatchFailing => "watching the pods fails",
            Writing::ApiUnreachable => "the API server cannot be reached",
            Writing::Forbidden => "the API server refuses writes: a permission is missing",
        };
        Degraded { name: wrong.as_str().into(), detail: detail.into(), unready: false }
    });
    wrong.collect()
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use zeropod_ebpf_loader::{Degraded as Redirection, ManagedBy, SandboxState};

    use super::*;

    fn names(wrong: &[Degraded]) -> Vec<(&str, bool)> {
        wrong.iter().map(|wrong| (&*wrong.name, wrong.unready)).collect()
    }

    // F-C19: ready means that the node can do its job, not that all is well.
    #[test]
    fn only_what_makes_the_node_useless_makes_it_unready() {
        assert_eq!(shims(&Health::default()), []);
        let health = Health { directory: Some("no".into()), ..Health::default() };
        assert_eq!(names(&shims(&health)), [("shim-directory", true)]);

        assert_eq!(redirectors(&Redirectors::default()), []);
        let failed = Attachment::Failed {
            error: "no eth0".into(),
            attempts: 3,
            since: SystemTime::UNIX_EPOCH,
            pod_uid: None,
        };
        let state = Redirectors {
            degraded: [Redirection::NoNotice, Redirection::BpffsMissing].into(),
            sandboxes: [
                (7, SandboxState { managed_by: ManagedBy::Manager, attachment: failed }),
                (8, SandboxState { managed_by: ManagedBy::Shim, attachment: Attachment::Pending }),
            ]
            .into(),
        };
        let wrong = redirectors(&state);
        assert_eq!(
            names(&wrong),
            [
                ("bpffs-missing", true),
                ("no-notice-of-new-sandboxes", false),
                ("redirector-not-attached", false),
            ]
        );
        assert_eq!(wrong[2].detail, "sandbox 7: no eth0 (attempt 3)");

        let state = Writer { degraded: [Writing::Forbidden].into() };
        assert_eq!(names(&writer(&state)), [("forbidden", false)]);
    }

    #[test]
    fn only_sandboxes_of_known_pods_are_told() {
        let failed = |pod_uid: Option<&str>| Attachment::Failed {
            error: "no eth0".into(),
            attempts: 3,
            since: SystemTime::UNIX_EPOCH,
            pod_uid: pod_uid.map(Into::into),
        };
        let sandboxes = [failed(None), failed(Some("u1")), Attachment::Pending].into_iter();
        let sandbox = |attachment| SandboxState { managed_by: ManagedBy::Manager, attachment };
        let state = Redirectors {
            sandboxes: (1..).zip(sandboxes.map(sandbox)).collect(),
            ..Redirectors::default()
        };
        let [trouble] = &*troubles(&state) else { panic!("{state:?}") };
        assert_eq!((&*trouble.pod_uid, trouble.since), ("u1", SystemTime::UNIX_EPOCH));
        assert!(trouble.message.ends_with(": no eth0"));
    }

    #[tokio::test]
    async fn the_board_follows_a_part() {
        let board = board("node-1".into(), Aggregator::new());
        let (tell, state) = watch::channel(Writer::default());
        let shutdown = CancellationToken::new();
        let showing = tokio::spawn(show(board.clone(), "writer", state, writer, shutdown.clone()));
        for now in [Writer { degraded: [Writing::Forbidden].into() }, Writer::default()] {
            tell.send_replace(now.clone());
            let shown = async {
                while board.degraded() != writer(&now) {
                    tokio::task::yield_now().await;
                }
            };
            tokio::time::timeout(Duration::from_mins(1), shown).await.unwrap();
        }
        shutdown.cancel();
        showing.await.unwrap();
    }
}
