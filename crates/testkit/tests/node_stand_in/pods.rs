//! Several containers in a pod, and several pods behind one shim.

use std::{collections::BTreeMap, fs};

use ttrpc::context::with_duration;
use zeropod_shim_api::{
    names::sandbox_maps_dir, rpc::shim_ttrpc::ShimClient, status::metrics_request,
};
use zeropod_testkit::{
    node::{
        isolated,
        stand_in::{Mode, StandIn, What},
    },
    skip,
};

use crate::common::{LONG, Manager, config, container, count, get, maps_dir, pod};

#[test]
fn containers_of_a_pod_come_and_go_on_their_own() {
    if !skip::without_root() {
        isolated(containers).unwrap();
    }
}

async fn containers() {
    let dir = tempfile::tempdir().unwrap();
    let (config, mut happenings) = config(dir.path());
    let stand_in = StandIn::start(config).unwrap();
    let _manager = Manager::start();
    let mut never = container(8081, Mode::Checkpoint);
    never.scaledown = std::time::Duration::ZERO;
    let specs = vec![container(8080, Mode::Checkpoint), never];
    let pod = stand_in.run_pod(pod("web", specs)).await.unwrap();
    let ipv4 = pod.addresses().unwrap().ipv4;
    happenings
        .next("scaled down", |what| matches!(what, What::ScaledDown { .. }).then_some(()))
        .await;
    assert_eq!(
        running(&stand_in).await,
        BTreeMap::from([("web/app-8080".into(), false), ("web/app-8081".into(), true)])
    );
    // The other is reached directly and wakes nobody.
    assert_eq!(count(&get(ipv4, 8081, "test").await), 1);
    assert_eq!(running(&stand_in).await.values().filter(|running| **running).count(), 1);
    assert_eq!(count(&get(ipv4, 8080, "test").await), 1);
    stand_in.stop().await.unwrap();
}

#[test]
fn pods_can_share_a_shim() {
    // F-R4
    if !skip::without_root() {
        isolated(grouped).unwrap();
    }
}

async fn grouped() {
    let dir = tempfile::tempdir().unwrap();
    let (config, _happenings) = config(dir.path());
    let stand_in = StandIn::start(config).unwrap();
    let _manager = Manager::start();
    let mut pods = Vec::new();
    for name in ["one", "two"] {
        let containers = vec![container(8080, Mode::Kill)];
        pods.push(stand_in.run_pod(pod(name, containers)).await.unwrap());
    }
    let addresses = pods[1].addresses().unwrap();
    assert_eq!(running(&stand_in).await.len(), 2);

    stand_in.stop_pod(&pods[0]).await.unwrap();
    assert!(!sandbox_maps_dir(&maps_dir(), pods[0].sandbox_pid()).exists());
    assert!(sandbox_maps_dir(&maps_dir(), pods[1].sandbox_pid()).exists());
    assert_eq!(running(&stand_in).await.into_keys().collect::<Vec<_>>(), ["two/app-8080"]);
    assert!(count(&get(addresses.ipv4, 8080, "test").await) > 0);

    stand_in.stop().await.unwrap();
    assert_eq!(fs::read_dir(maps_dir()).unwrap().count(), 0);
}

/// Pod and container names, and whether they run.
async fn running(stand_in: &StandIn) -> BTreeMap<String, bool> {
    let address = format!("unix://{}", stand_in.socket().display());
    let client = ShimClient::new(ttrpc::asynchronous::Client::connect(&address).await.unwrap());
    let answer = client.metrics(with_duration(LONG), &metrics_request()).await.unwrap();
    let entries = answer.metrics.into_iter();
    entries.map(|entry| (format!("{}/{}", entry.pod_name, entry.name), entry.running)).collect()
}
