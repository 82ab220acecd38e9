//! From a shim's event to the label that everyone who watches the pod sees.

use std::time::{Duration, Instant};

use futures_util::{Stream, TryStreamExt as _};
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api,
    api::{ListParams, WatchEvent, WatchParams},
};
use tokio::{
    pin,
    time::{sleep, timeout},
};
use zeropod_shim_api::names::STATUS_LABEL_PREFIX;
use zeropod_testkit::node_in_a_box::{Node, PATIENCE};

use crate::{CONTAINER, Done, NAMESPACE, Shim, id, median, pod_name, say};

/// Between two events, so that the manager is idle at each.
const PAUSE: Duration = Duration::from_millis(250);

/// Scales one container after the other down, on an idle manager, and says
/// how long the labels took and what that cost the API server.
pub(crate) async fn measure(node: &Node, shims: &[Shim]) -> Done {
    // A label of a container changes once a second at most.
    sleep(Duration::from_secs(2)).await;
    if let Some(api) = node.in_process() {
        api.forget_requests();
    }
    let pods: Api<Pod> = Api::namespaced(node.client(), NAMESPACE);
    let version = pods.list(&ListParams::default()).await?.metadata.resource_version;
    let events = pods.watch(&WatchParams::default(), &version.unwrap_or_default()).await?;
    pin!(events);
    let mut latencies = Vec::new();
    for (number, (shim, _)) in shims.iter().enumerate() {
        let start = Instant::now();
        shim.scaled_down(&id(number), Duration::from_millis(200))?;
        timeout(PATIENCE, label(&mut events, &pod_name(number))).await??;
        latencies.push(start.elapsed());
        sleep(PAUSE).await;
    }
    let median = median(&mut latencies);
    let worst = latencies.last().copied().unwrap_or_default();
    let (server, cost) = match node.in_process() {
        None => ("kube-apiserver", String::new()),
        Some(api) => {
            let writes = api.writes();
            let of = |part: &str| writes.iter().filter(|write| write.path.ends_with(part)).count();
            let (resizes, events) = (of("/resize"), of("/events"));
            let metadata = writes.len() - resizes - events;
            let cost = format!(
                "; {metadata} patches of labels and annotations, {resizes} resizes and {events} \
                 Events, {} other requests",
                api.requests().len() - writes.len()
            );
            ("in process", cost)
        }
    };
    let count = shims.len();
    say(&format!(
        "event to label, {server}: median of {count} {median:.1?}, worst {worst:.1?}{cost}"
    ));
    Ok(())
}

/// Waits until the watch shows that the pod is scaled down.
async fn label(
    events: &mut (impl Stream<Item = kube::Result<WatchEvent<Pod>>> + Unpin),
    name: &str,
) -> Done {
    let label = format!("{STATUS_LABEL_PREFIX}{CONTAINER}");
    while let Some(event) = events.try_next().await? {
        let WatchEvent::Modified(pod) = event else { continue };
        let labels = pod.metadata.labels.unwrap_or_default();
        if pod.metadata.name.as_deref() == Some(name)
            && labels.get(&label).is_some_and(|phase| phase == "SCALED_DOWN")
        {
            return Ok(());
        }
    }
    Err("the watch ended".into())
}
