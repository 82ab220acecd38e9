use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::{Ipv4Addr, Ipv6Addr},
    path::PathBuf,
    sync::Arc,
    thread,
    time::Duration,
};

use tokio::{
    sync::{oneshot, watch},
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};
use zeropod_shim_api::names::sandbox_maps_dir;

use crate::{
    Attachment, Degraded, Error, ManagedBy, Mechanism, SandboxState, State,
    error::chain,
    kubelet_watch::root_cgroup,
    node::{self, Watch},
    repair::KubeletAddresses,
    sandbox::{Attacher, Outcome, Sandbox},
};

/// How often the directory is listed without notice of a change (R4).
const RESCAN: Duration = Duration::from_secs(30);
/// How often an attached sandbox is looked at again.
const VERIFY: Duration = Duration::from_mins(5);
/// How long a failed sandbox waits for its next attempt: doubled each time.
const FIRST_RETRY: Duration = Duration::from_secs(1);
const LAST_RETRY: Duration = Duration::from_mins(1);
/// How long attaching may take; usually some ten milliseconds.
const DEADLINE: Duration = Duration::from_secs(30);
/// Sandboxes that are attached at the same time.
const CONCURRENCY: usize = 4;

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
        let Self { config, only, replace_shim_programs, cgroup, state, kubelet } = self;
        let mut kubelet = kubelet.subscribe();
        let attacher = Attacher {
            maps_dir: config.maps_dir.clone(),
            cgroup: cgroup.unwrap_or_else(|| root_cgroup(&config.host_proc)),
            probe_binary_name: config.probe_binary_name.clone(),
            ignore_localhost: config.ignore_localhost,
            only,
            replace_shim_programs,
            ..Attacher::default()
        };
        let mut tracker = Tracker {
            config,
            state,
            attacher: Arc::new(attacher),
            kubelet: *kubelet.borrow_and_update(),
            plans: BTreeMap::new(),
            running: JoinSet::new(),
            watch: None,
        };
        let mut rescan = interval(RESCAN);
        rescan.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let next = tracker.next_attempt();
            tokio::select! {
                () = shutdown.cancelled() => return,
                _ = rescan.tick() => tracker.scan(),
                Ok(()) = kubelet.changed() => {
                    tracker.kubelet = *kubelet.borrow_and_update();
                    tracker.look_at_all();
                }
                () = tracker_changed(&mut tracker.watch) => tracker.scan(),
                Some(done) = tracker.running.join_next() => {
                    if let Ok((pid, result)) = done {
                        tracker.done(pid, result);
                    }
                }
                () = sleep_until(next.unwrap_or_else(Instant::now)), if next.is_some() => {}
            }
            tracker.start_due();
        }
    }
}

/// Waits for a change of the watched directory; for ever if none is watched.
async fn tracker_changed(watch: &mut Option<Watch>) {
    match watch {
        Some(open) => {
            if !open.changed().await {
                *watch = None;
            }
        }
        None => std::future::pending().await,
    }
}

/// When to look at a sandbox that we attach.
struct Plan {
    managed_by: ManagedBy,
    /// No attempt before this.
    next: Instant,
    running: bool,
    /// What it was started with has changed.
    outdated: bool,
    failures: u32,
}

struct Tracker {
    config: Config,
    state: watch::Sender<State>,
    attacher: Arc<Attacher>,
    kubelet: KubeletAddresses,
    plans: BTreeMap<u32, Plan>,
    running: JoinSet<(u32, Result<Outcome, Error>)>,
    watch: Option<Watch>,
}

impl Tracker {
    /// Brings the plans in line with the directory.
    fn scan(&mut self) {
        let mut degraded = BTreeSet::new();
        if self.attacher.watch_failure().is_some() {
            degraded.insert(Degraded::KubeletNotWatched);
        }
        let Config { maps_dir, host_proc, .. } = &self.config;
        let found = match node::prepare(maps_dir) {
            Ok(()) => {
                if self.watch.is_none() {
                    match Watch::new(maps_dir) {
                        Ok(watch) => self.watch = Some(watch),
                        Err(error) => {
                            debug!(%error, "no notice of new sandboxes");
                            degraded.insert(Degraded::NoNotice);
                        }
                    }
                }
                node::list(maps_dir, host_proc).map_err(|error| (Degraded::MapsDirUnusable, error))
            }
            Err(unusable) => Err(unusable),
        };
        let found = found.unwrap_or_else(|(why, error)| {
            if !self.state.borrow().degraded.contains(&why) {
                warn!(state = why.as_str(), error = chain(&error), "cannot attach redirectors");
            }
            degraded.insert(why);
            BTreeMap::new()
        });
        let found = self.collect(found);
        self.plans.retain(|pid, _| found.contains_key(pid));
        for (pid, managed_by) in &found {
            let new = Plan {
                managed_by: *managed_by,
                next: Instant::now(),
                running: false,
                outdated: false,
                failures: 0,
            };
            let plan = self.plans.entry(*pid).or_insert(new);
            plan.managed_by = *managed_by;
        }
        self.state.send_if_modified(|state| state.update(degraded, &found));
    }

    /// Removes what is left of sandboxes that are gone, and returns the others.
    fn collect(&self, found: BTreeMap<u32, Option<ManagedBy>>) -> BTreeMap<u32, ManagedBy> {
        let Config { maps_dir, host_proc, .. } = &self.config;
        let mut running = BTreeMap::new();
        for (pid, managed_by) in found {
            if let Some(managed_by) = managed_by {
                running.insert(pid, managed_by);
                continue;
            }
            match node::collect(maps_dir, host_proc, pid) {
                Ok(true) => info!(sandbox = pid, "removed what a sandbox left"),
                Ok(false) => debug!(sandbox = pid, "kept what may be another node's"),
                // Its shim removes it at the same time.
                Err(error) => debug!(sandbox = pid, error = chain(&error), "not removed"),
            }
        }
        running
    }

    /// Makes all sandboxes due.
    fn look_at_all(&mut self) {
        for plan in self.plans.values_mut() {
            plan.outdated = plan.running;
            plan.next = Instant::now();
        }
    }

    fn next_attempt(&self) -> Option<Instant> {
        if self.running.len() >= CONCURRENCY {
            return None;
        }
        self.plans.values().filter(|plan| !plan.running).map(|plan| plan.next).min()
    }

    fn start_due(&mut self) {
        let now = Instant::now();
        for (pid, plan) in &mut self.plans {
            if self.running.len() >= CONCURRENCY {
                break;
            }
            if plan.running || plan.next > now {
                continue;
            }
            plan.running = true;
            let sandbox = Sandbox {
                pid: *pid,
                pins: sandbox_maps_dir(&self.config.maps_dir, *pid),
                managed_by: plan.managed_by,
                host_proc: self.config.host_proc.clone(),
                kubelet: self.kubelet,
            };
            self.running.spawn(attach(Arc::clone(&self.attacher), sandbox));
        }
    }

    fn done(&mut self, pid: u32, result: Result<Outcome, Error>) {
        // It may have gone in the meantime, and with it the error's interest.
        let Some(plan) = self.plans.get_mut(&pid) else { return };
        plan.running = false;
        let attachment = match result {
            Ok(Outcome::Attached { mechanism, changed }) => {
                if changed {
                    info!(sandbox = pid, mechanism = mechanism.as_str(), "redirector attached");
                }
                plan.failures = 0;
                plan.next = Instant::now() + VERIFY;
                Attachment::Attached(mechanism)
            }
            Ok(Outcome::Pending) => {
                plan.next = Instant::now() + FIRST_RETRY;
                Attachment::Pending
            }
            Err(error) => {
                let error = chain(&error);
                let wait = FIRST_RETRY.saturating_mul(1 << plan.failures.min(6)).min(LAST_RETRY);
                plan.failures = plan.failures.saturating_add(1);
                plan.next = Instant::now() + wait;
                warn!(sandbox = pid, error, attempts = plan.failures, "redirector not attached");
                Attachment::Failed { error, attempts: plan.failures }
            }
        };
        if let Some(error) = self.attacher.watch_failure() {
            self.state.send_if_modified(|state| {
                let is_new = state.degraded.insert(Degraded::KubeletNotWatched);
                if is_new {
                    info!(error = chain(error), "the kubelet is known by its address only");
                }
                is_new
            });
        }
        if std::mem::take(&mut plan.outdated) {
            plan.next = Instant::now();
        }
        self.state.send_if_modified(|state| match state.sandboxes.get_mut(&pid) {
            Some(sandbox) if sandbox.attachment != attachment => {
                sandbox.attachment = attachment;
                true
            }
            _ => false,
        });
    }
}

impl State {
    /// Takes over what a scan found; whether that changed anything.
    fn update(&mut self, degraded: BTreeSet<Degraded>, found: &BTreeMap<u32, ManagedBy>) -> bool {
        let before = self.clone();
        self.degraded = degraded;
        self.sandboxes.retain(|pid, _| found.contains_key(pid));
        for (pid, managed_by) in found {
            let new = SandboxState { managed_by: *managed_by, attachment: Attachment::Pending };
            let known = self.sandboxes.entry(*pid).or_insert_with(|| new.clone());
            if known.managed_by != *managed_by {
                *known = new;
            }
        }
        *self != before
    }
}

/// Attaches on a thread of its own, since it enters a network namespace.
async fn attach(attacher: Arc<Attacher>, sandbox: Sandbox) -> (u32, Result<Outcome, Error>) {
    let pid = sandbox.pid;
    let (tell, told) = oneshot::channel();
    let work = move || {
        // Nobody listens any more after the deadline.
        let _unheard = tell.send(attacher.attach(&sandbox));
    };
    let thread = |source| Error::Thread { pid, source };
    if let Err(error) = thread::Builder::new().name(format!("sandbox {pid}")).spawn(work) {
        return (pid, Err(thread(error)));
    }
    let result = match timeout(DEADLINE, told).await {
        Ok(Ok(result)) => result,
        Ok(Err(_)) => Err(thread(io::Error::other("it panicked"))),
        Err(_) => Err(Error::Deadline { pid, limit: DEADLINE }),
    };
    (pid, result)
}
