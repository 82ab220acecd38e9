//! Many changes at once.

use kube::api::ListParams;
use zeropod_shim_api::status::Phase;
use zeropod_testkit::kube::{Cluster, InProcessApi};

use crate::bed::{Bed, Look, eventually, scaled_down};

const PODS: usize = 100;

/// 100 pods with 100 transitions each, as fast as they can be sent; each pod
/// ends scaled down.
pub(crate) async fn s10_100_pods_100_transitions(cluster: &dyn Cluster) {
    let bed = Bed::started(cluster, "s10_100_pods").await;
    burst(&bed, 100).await;
}

#[tokio::test]
async fn s10_1000_events_cost_less_than_500_pod_writes_and_no_duplicate() {
    let api = InProcessApi::start().unwrap();
    let bed = Bed::started(&api, "s10_1000_events").await;
    burst(&bed, 10).await;
    eventually(async || {
        let events =
            api.writes().iter().filter(|request| request.path.ends_with("/events")).count();
        if events == PODS * 10 { Ok(()) } else { Err(format!("{events} events")) }
    })
    .await;
    let ours: Vec<_> = api
        .writes()
        .into_iter()
        .filter(|request| request.query.contains("fieldManager=zeropod-manager"))
        .collect();
    let pod_writes = ours.iter().filter(|request| request.path.contains("/pods/")).count();
    tell(&format!("{pod_writes} pod writes for 1,000 events over 100 pods"));
    assert!(pod_writes < 500, "{pod_writes} pod writes");
    let failed: Vec<_> = ours.iter().filter(|request| request.status >= 300).collect();
    assert_eq!(failed, Vec::<&zeropod_testkit::kube::Request>::new());
}

/// Figures for whoever runs the tests with `--nocapture`.
#[expect(clippy::print_stdout, reason = "figures are for people")]
fn tell(figure: &str) {
    println!("{figure}");
}

/// Runs 100 pods, lets each change its phase `transitions` times, and waits
/// until all are right.
async fn burst(bed: &Bed, transitions: usize) {
    for number in 0..PODS {
        bed.run_app(&format!("p{number}"), &format!("c{number}")).await;
    }
    for transition in 0..transitions {
        let phase = if transition % 2 == 1 { Phase::ScaledDown } else { Phase::Running };
        for number in 0..PODS {
            bed.event(&format!("p{number}"), &format!("c{number}"), phase);
        }
    }
    let sent = std::time::Instant::now();
    eventually(async || {
        let pods = bed.pods().list(&ListParams::default()).await.unwrap();
        let wrong = pods.iter().filter(|pod| Look::of(pod) != scaled_down()).count();
        if wrong == 0 { Ok(()) } else { Err(format!("{wrong} pods are wrong")) }
    })
    .await;
    tell(&format!("all {PODS} pods were right {:?} after the last event", sent.elapsed()));
}
