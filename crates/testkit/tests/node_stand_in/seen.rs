//! What a manager and a client see of a shim, as lines that can be compared.
//! Times, ports and pids, which differ from run to run, are left out.

use std::{
    collections::BTreeMap,
    fs,
    net::Ipv4Addr,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

use aya::maps::{HashMap, Map, MapData};
use tokio::time::{sleep, timeout};
use ttrpc::context::{Context, with_duration};
use zeropod_redirector_abi::{
    ACTIVE_CONNECTIONS, DISABLE_REDIRECT, EGRESS_REDIRECTS, INGRESS_REDIRECTS, MapGeometry,
};
use zeropod_shim_api::{
    names::{managed_by_shim_dir, sandbox_maps_dir},
    rpc::{
        shim::{ContainerRequest, ContainerStatus},
        shim_ttrpc::ShimClient,
    },
    status::{MetricsReading, Phase, StatusEvent, metrics_request, subscribe_request},
};
use zeropod_testkit::node::{sandbox::Sandbox, stand_in::ContainerSpec};

use crate::common::{LONG, PORT, count, get, maps_dir};

pub(crate) struct Seen {
    client: ShimClient,
    events: ttrpc::asynchronous::ClientStreamReceiver<ContainerStatus>,
    address: Ipv4Addr,
    id: String,
    maps: PathBuf,
    pub(crate) lines: Vec<String>,
}

impl Seen {
    pub(crate) async fn connect(socket: &Path, sandbox: &Sandbox, spec: &ContainerSpec) -> Self {
        let address = format!("unix://{}", socket.display());
        let client = ShimClient::new(ttrpc::asynchronous::Client::connect(&address).await.unwrap());
        let events =
            client.subscribe_status(Context::default(), &subscribe_request()).await.unwrap();
        Self {
            client,
            events,
            address: sandbox.addresses().ipv4,
            id: spec.id.clone(),
            maps: sandbox_maps_dir(&maps_dir(), sandbox.pid()),
            lines: Vec::new(),
        }
    }

    /// Id of the container.
    pub(crate) fn id(&self) -> &str {
        &self.id
    }

    pub(crate) async fn status_of_container(&mut self) {
        self.status(&self.id.clone()).await;
    }

    pub(crate) fn socket(&mut self, socket: &Path) {
        let mode = fs::metadata(socket).unwrap().permissions().mode() & 0o777;
        self.lines.push(format!("socket mode: {mode:o}"));
    }

    fn event_line(what: &str, message: ContainerStatus) -> String {
        let event = StatusEvent::try_from(message).unwrap();
        let (time, duration) = (event.time.is_some(), event.duration.is_some());
        let log = !event.log.is_empty();
        let (phase, container) = (event.phase, event.container);
        format!("{what}: {container} {phase}, time {time}, duration {duration}, log {log}")
    }

    pub(crate) async fn event(&mut self) {
        let message = timeout(LONG, self.events.recv()).await.expect("no event").unwrap().unwrap();
        assert_eq!(message.id, self.id);
        self.lines.push(Self::event_line("event", message));
    }

    pub(crate) async fn events_until_the_end(&mut self) {
        let mut stopping = 0;
        while let Ok(Some(message)) = timeout(LONG, self.events.recv()).await.expect("no end") {
            let event = StatusEvent::try_from(message).unwrap();
            assert_eq!(event.phase, Phase::Stopping);
            stopping += 1;
        }
        // One for the kill; the one of the shutdown can come too late.
        assert!(matches!(stopping, 1 | 2), "{stopping}");
    }

    /// All that can be read: `GetStatus` of known and unknown ids, and
    /// `Metrics` twice.
    pub(crate) async fn reads(&mut self) {
        self.status_of_container().await;
        self.status("unknown").await;
        for _ in 0..2 {
            let answer =
                self.client.metrics(with_duration(LONG), &metrics_request()).await.unwrap();
            for entry in answer.metrics {
                let MetricsReading {
                    container,
                    running,
                    checkpoint,
                    restore,
                    checkpoint_errors,
                    restore_errors,
                } = MetricsReading::try_from(entry).unwrap();
                self.lines.push(format!(
                    "metrics: {container} running {running}, checkpoint {}, restore {}, \
                     errors {checkpoint_errors} {restore_errors}",
                    checkpoint.is_some(),
                    restore.is_some(),
                ));
            }
        }
    }

    async fn status(&mut self, id: &str) {
        let request = ContainerRequest { id: id.into(), ..ContainerRequest::default() };
        let line = match self.client.get_status(with_duration(LONG), &request).await {
            Ok(message) => Self::event_line("status", message),
            Err(ttrpc::Error::RpcStatus(status)) => {
                format!("status: {:?} {}", status.code, status.message)
            }
            Err(error) => panic!("{error}"),
        };
        self.lines.push(line);
    }

    pub(crate) async fn pins(&mut self, sandbox: &Sandbox) {
        let mut names: Vec<_> = fs::read_dir(&self.maps)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        let marker = managed_by_shim_dir(&maps_dir(), sandbox.pid()).is_dir();
        self.lines.push(format!("marker {marker}, pins {names:?}"));
        self.maps("running").await;
    }

    /// Keys and values of the shim's maps, with the proxy's port as `proxy`.
    pub(crate) async fn maps(&mut self, when: &str) {
        // The entry of a connection goes a moment after the connection.
        let proxied = async {
            while self.open::<u8>(&ACTIVE_CONNECTIONS).keys().next().is_some() {
                sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(LONG, proxied).await.expect("a connection stays active");
        let port = |port: u16| if port == PORT { "app" } else { "proxy" };
        let redirects = |map: &MapGeometry| -> BTreeMap<&str, &str> {
            let entries = self.open::<u16>(map);
            entries.iter().map(|entry| entry.unwrap()).map(|(k, v)| (port(k), port(v))).collect()
        };
        let ports = |map: &MapGeometry| -> Vec<&str> {
            let entries = self.open::<u8>(map);
            entries.keys().map(|key| port(key.unwrap())).collect()
        };
        self.lines.push(format!(
            "maps, {when}: ingress {:?}, egress {:?}, disabled {:?}",
            redirects(&INGRESS_REDIRECTS),
            redirects(&EGRESS_REDIRECTS),
            ports(&DISABLE_REDIRECT),
        ));
    }

    fn open<V: aya::Pod>(&self, map: &MapGeometry) -> HashMap<MapData, u16, V> {
        let map = MapData::from_pin(self.maps.join(map.name)).unwrap();
        Map::from_map_data(map).unwrap().try_into().unwrap()
    }

    /// Status line of the answer, and the count of the counter server.
    pub(crate) async fn request(&mut self, user_agent: &str) {
        let answer = get(self.address, PORT, user_agent).await;
        let status = answer.lines().next().unwrap_or_default().to_owned();
        let count = answer.contains("count=").then(|| count(&answer));
        self.lines.push(format!("{user_agent}: {status}, count {count:?}"));
    }
}
