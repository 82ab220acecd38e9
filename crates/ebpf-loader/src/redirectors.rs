use std::{
    borrow::Cow,
    net::{Ipv4Addr, Ipv6Addr},
    path::PathBuf,
    time::Duration,
};

use tokio::{
    sync::watch,
    time::{Instant, MissedTickBehavior, interval, sleep_until},
};
use tokio_util::sync::CancellationToken;

use crate::{
    Mechanism, REDIRECTOR, State, kubelet_watch::root_cgroup, netns::host_netns,
    repair::KubeletAddresses, sandbox::Attacher, tracker::Tracker,
};

/// How often the directory is listed without notice of a change (R4).
const RESCAN: Duration = Duration::from_secs(30);

/// Where to find the sandboxes, and what to tell their programs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Directory of the pins, `/sys/fs/bpf/zeropod_maps` on a node. Made when
    /// it is missing, if its parent is on a BPF file system.
    pub maps_dir: PathBuf,
    /// The host's `/proc`: `/hostproc` in the manager's pod.
    pub host_proc: PathBuf,
    /// Name of the process whose packets are the kubelet's probes, for as
    /// long as its address is not known; cut to 15 bytes as the kernel does.
    pub probe_binary_name: String,
    /// Whether packets from 127.0.0.1 and `::1` do not keep a container awake.
    pub ignore_localhost: bool,
}

/// Keeps the redirector of every sandbox attached.
#[derive(Debug)]
pub struct Redirectors {
    config: Config,
    only: Option<Mechanism>,
    replace_shim_programs: bool,
    cgroup: Option<PathBuf>,
    rescan: Duration,
    object: Cow<'static, [u8]>,
    state: watch::Sender<State>,
    kubelet: watch::Sender<KubeletAddresses>,
}

/// Tells the redirectors where the kubelet's probes come from.
#[derive(Debug, Clone)]
pub struct Kubelet(watch::Sender<KubeletAddresses>);

impl Kubelet {
    /// Tells all sandboxes, those to come as well. An address that is `None`
    /// stays what it was. It takes the place of what the programs guessed.
    pub fn set_addresses(&self, ipv4: Option<Ipv4Addr>, ipv6: Option<Ipv6Addr>) {
        self.0.send_if_modified(|known| {
            let before = *known;
            known.ipv4 = ipv4.or(before.ipv4);
            known.ipv6 = ipv6.or(before.ipv6);
            *known != before
        });
    }
}

impl Redirectors {
    /// Touches nothing until it [runs](Self::run).
    pub fn new(config: Config) -> Self {
        Self {
            config,
            only: None,
            replace_shim_programs: true,
            cgroup: None,
            rescan: RESCAN,
            object: REDIRECTOR.into(),
            state: watch::Sender::default(),
            kubelet: watch::Sender::default(),
        }
    }

    /// Attaches by one mechanism only, rather than by TCX, and by clsact where
    /// that fails.
    #[must_use]
    pub fn only(self, mechanism: Mechanism) -> Self {
        Self { only: Some(mechanism), ..self }
    }

    /// Whether programs that a shim attached (zeropod from 0.12 on) are
    /// replaced by ours, which they are by default.
    #[must_use]
    pub fn replace_shim_programs(self, replace: bool) -> Self {
        Self { replace_shim_programs: replace, ..self }
    }

    /// Looks for the kubelet in a cgroup of version 2 and all below it, rather
    /// than in the root of all.
    ///
    /// A packet from the kubelet's address is a probe only if the kubelet, by
    /// the name of [`Config::probe_binary_name`], opened its connection; what
    /// other processes of the node send is activity. Connections whose ports
    /// change on the way (some SNAT) cannot be told apart and count as
    /// activity; gRPC probes are connections of the kubelet like any other,
    /// but wake a container that is scaled down, as exec probes do.
    #[must_use]
    pub fn kubelet_cgroup(self, cgroup: PathBuf) -> Self {
        Self { cgroup: Some(cgroup), ..self }
    }

    /// Lists the sandboxes so often, whatever the kernel gives notice of; every
    /// 30 s by default.
    #[must_use]
    pub fn rescan_every(self, rescan: Duration) -> Self {
        Self { rescan, ..self }
    }

    /// Loads a redirector that says what it does with each packet, as `cargo
    /// xtask build-ebpf --trace` makes it. Its lines go to tracing, at level
    /// `INFO`. For debugging: it slows down every packet of a tracked port.
    #[cfg(feature = "trace")]
    #[must_use]
    pub fn traced(self, object: Vec<u8>) -> Self {
        Self { object: object.into(), ..self }
    }

    /// To tell them where the kubelet's probes come from.
    pub fn kubelet(&self) -> Kubelet {
        Kubelet(self.kubelet.clone())
    }

    /// Follows what they are doing.
    pub fn state(&self) -> watch::Receiver<State> {
        self.state.subscribe()
    }

    /// Attaches sandboxes as they appear until told to stop. What is attached
    /// stays attached.
    ///
    /// Needs `CAP_BPF`, `CAP_NET_ADMIN` and `CAP_SYS_ADMIN` (for setns), and a
    /// tokio runtime with I/O and time.
    pub async fn run(self, shutdown: CancellationToken) {
        let Self { config, only, replace_shim_programs, cgroup, rescan, object, state, kubelet } =
            self;
        let mut kubelet = kubelet.subscribe();
        let attacher = Attacher {
            object,
            host_netns: host_netns(&config.host_proc).await,
            maps_dir: config.maps_dir.clone(),
            cgroup: cgroup.unwrap_or_else(|| root_cgroup(&config.host_proc)),
            probe_binary_name: config.probe_binary_name.clone(),
            ignore_localhost: config.ignore_localhost,
            only,
            replace_shim_programs,
            ..Attacher::default()
        };
        let mut tracker = Tracker::new(config, attacher, *kubelet.borrow_and_update(), state);
        let mut rescan = interval(rescan);
        rescan.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let next = tracker.next_attempt();
            tokio::select! {
                () = shutdown.cancelled() => return,
                _ = rescan.tick() => tracker.scan(),
                Ok(()) = kubelet.changed() => {
                    tracker.kubelet_moved(*kubelet.borrow_and_update());
                }
                news = tracker.news() => tracker.take(news),
                () = sleep_until(next.unwrap_or_else(Instant::now)), if next.is_some() => {}
            }
            tracker.start_due();
        }
    }
}
