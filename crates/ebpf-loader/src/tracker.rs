//! Which sandboxes there are, and when to look at which.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    sync::Arc,
    thread,
    time::{Duration, SystemTime},
};

use tokio::{
    sync::{oneshot, watch},
    task::JoinSet,
    time::{Instant, timeout},
};
use tracing::{debug, info, warn};
use zeropod_shim_api::names::sandbox_maps_dir;

use crate::{
    Attachment, Config, Degraded, Error, ManagedBy, SandboxState, State,
    error::chain,
    node::{self, Watch},
    pod::pod_uid,
    repair::KubeletAddresses,
    sandbox::{Attacher, Outcome, Sandbox},
};

/// How often an attached sandbox is looked at again.
const VERIFY: Duration = Duration::from_mins(5);
/// How long a failed sandbox waits for its next attempt: doubled each time.
const FIRST_RETRY: Duration = Duration::from_secs(1);
const LAST_RETRY: Duration = Duration::from_mins(1);
/// How long attaching may take; usually some ten milliseconds.
const DEADLINE: Duration = Duration::from_secs(30);
/// Sandboxes that are attached at the same time.
const CONCURRENCY: usize = 4;

/// When to look at a sandbox.
struct Plan {
    managed_by: ManagedBy,
    /// No attempt before this.
    next: Instant,
    running: bool,
    /// What it was started with has changed.
    outdated: bool,
    failures: u32,
    /// The first of them.
    failing: Option<Failing>,
    /// How often its shim was not done with it.
    looks: u32,
}

/// What is known of a failure from its first time on.
#[derive(Clone)]
struct Failing {
    since: SystemTime,
    pod_uid: Option<String>,
}

/// Sandboxes, and when to look at which.
pub(crate) struct Tracker {
    config: Config,
    state: watch::Sender<State>,
    attacher: Arc<Attacher>,
    kubelet: KubeletAddresses,
    plans: BTreeMap<u32, Plan>,
    running: JoinSet<(u32, Result<Outcome, Error>)>,
    watch: Option<Watch>,
}

/// What a tracker waits for.
pub(crate) enum News {
    /// The directory of the pins is another.
    Directory,
    /// A sandbox was looked at.
    Done(u32, Result<Outcome, Error>),
}

impl Tracker {
    pub(crate) fn new(
        config: Config,
        attacher: Attacher,
        kubelet: KubeletAddresses,
        state: watch::Sender<State>,
    ) -> Self {
        Self {
            config,
            state,
            attacher: Arc::new(attacher),
            kubelet,
            plans: BTreeMap::new(),
            running: JoinSet::new(),
            watch: None,
        }
    }

    /// Waits for the next news. Loses none when it is dropped.
    pub(crate) async fn news(&mut self) -> News {
        let Self { watch, running, .. } = self;
        let changed = async {
            match watch {
                Some(open) => {
                    if !open.changed().await {
                        *watch = None;
                    }
                }
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = changed => News::Directory,
            // A task that panicked has nothing to tell.
            Some(Ok((pid, result))) = running.join_next() => News::Done(pid, result),
            else => std::future::pending().await,
        }
    }

    /// Acts on news.
    pub(crate) fn take(&mut self, news: News) {
        match news {
            News::Directory => self.scan(),
            News::Done(pid, result) => self.done(pid, result),
        }
    }

    /// Brings the plans in line with the directory.
    pub(crate) fn scan(&mut self) {
        let mut degraded = BTreeSet::new();
        if self.attacher.watch_failure().is_some() {
            degraded.insert(Degraded::KubeletNotWatched);
        }
        let Config { maps_dir, host_proc, .. } = &self.config;
        let found = match node::prepare(maps_dir, host_proc) {
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
                failing: None,
                looks: 0,
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

    /// Makes all sandboxes due, to tell them.
    pub(crate) fn kubelet_moved(&mut self, kubelet: KubeletAddresses) {
        self.kubelet = kubelet;
        for plan in self.plans.values_mut() {
            plan.outdated = plan.running;
            plan.next = Instant::now();
        }
    }

    /// When to start the next sandbox, if one waits and there is room.
    pub(crate) fn next_attempt(&self) -> Option<Instant> {
        if self.running.len() >= CONCURRENCY {
            return None;
        }
        self.plans.values().filter(|plan| !plan.running).map(|plan| plan.next).min()
    }

    /// Starts the sandboxes whose time has come.
    pub(crate) fn start_due(&mut self) {
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
                (plan.failures, plan.failing, plan.looks) = (0, None, 0);
                plan.next = Instant::now() + VERIFY;
                Attachment::Attached(mechanism)
            }
            Ok(Outcome::Pending) => {
                plan.next = Instant::now() + retry_after(plan.looks);
                plan.looks = plan.looks.saturating_add(1);
                Attachment::Pending
            }
            Err(error) => {
                let error = chain(&error);
                let wait = retry_after(plan.failures);
                plan.failures = plan.failures.saturating_add(1);
                plan.next = Instant::now() + wait;
                warn!(sandbox = pid, error, attempts = plan.failures, "redirector not attached");
                let host_proc = &self.config.host_proc;
                let failing = plan.failing.get_or_insert_with(|| Failing {
                    since: SystemTime::now(),
                    pod_uid: pod_uid(host_proc, pid),
                });
                let Failing { since, pod_uid } = failing.clone();
                Attachment::Failed { error, attempts: plan.failures, since, pod_uid }
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

fn retry_after(attempts: u32) -> Duration {
    FIRST_RETRY.saturating_mul(1 << attempts.min(6)).min(LAST_RETRY)
}
