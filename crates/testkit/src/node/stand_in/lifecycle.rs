//! One container from its start through scale-downs and wake-ups to its end.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    pin::Pin,
    sync::Arc,
    time::Instant,
};

use tokio::{
    sync::{Mutex, watch},
    task::JoinHandle,
};

use super::{AttachedBy, ContainerSpec, Happening, Mode, StandInConfig, What, happening::millis};
use crate::node::{
    Error,
    activator::{Activator, ActivatorConfig, Activity, WakeError},
    attach, chain,
    container::{Container, ContainerConfig},
    netns::path_of_pid,
    shim::{Identity, Service},
};

/// A container of a stand-in.
#[derive(Debug)]
pub(super) struct Managed {
    inner: Arc<Inner>,
    /// Holds the activator.
    task: Mutex<JoinHandle<()>>,
}

type WakeFuture = Pin<Box<dyn Future<Output = Result<(), WakeError>> + Send>>;

/// Where a container lives.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) namespace: String,
    pub(super) pod: String,
    pub(super) sandbox_pid: u32,
    pub(super) maps: PathBuf,
}

#[derive(Debug)]
struct Inner {
    spec: ContainerSpec,
    place: Place,
    service: Service,
    config: StandInConfig,
    container: Container,
    /// Held during every change, so that a connection that comes during a
    /// scale-down waits for its end.
    state: Mutex<State>,
    running: watch::Sender<bool>,
}

#[derive(Debug)]
struct State {
    life: Life,
    /// After a failure containers are killed instead of checkpointed.
    mode: Mode,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Life {
    Running,
    Down(Mode),
    Stopped,
}

impl Managed {
    pub(super) async fn start(
        config: &StandInConfig,
        service: &Service,
        place: Place,
        spec: ContainerSpec,
    ) -> Result<Self, Error> {
        service.create(Identity {
            id: spec.id.clone(),
            name: spec.name.clone(),
            pod_name: place.pod.clone(),
            pod_namespace: place.namespace.clone(),
        });
        let container = Container::create(ContainerConfig {
            id: spec.id.clone(),
            dir: config.work_dir.join(&spec.id),
            images: config.images.clone(),
            netns: path_of_pid(place.sandbox_pid),
            program: spec.program.clone(),
            args: spec.args.clone(),
            annotations: BTreeMap::new(),
            runc: config.runc.clone(),
            criu: config.criu.clone(),
        })
        .await?;
        container.start().await?;
        let inner = Arc::new(Inner {
            state: Mutex::new(State { life: Life::Running, mode: spec.mode }),
            spec,
            place,
            service: service.clone(),
            config: config.clone(),
            container,
            running: watch::Sender::new(true),
        });
        inner.tell(What::Started { pid: inner.container.pid() });
        let attached = inner.first_attempt().await;
        inner.service.started(&inner.spec.id)?;
        let task = tokio::spawn(Arc::clone(&inner).run(attached));
        Ok(Self { inner, task: Mutex::new(task) })
    }

    /// Kills and deletes the container.
    pub(super) async fn stop(&self) -> Result<(), Error> {
        let inner = &self.inner;
        inner.tell(What::Stopping);
        inner.service.stopping(&inner.spec.id)?;
        // After a scale-down or wake-up that is under way.
        inner.state.lock().await.life = Life::Stopped;
        let mut task = self.task.lock().await;
        task.abort();
        // Only ever says that it was aborted.
        let _ = (&mut *task).await;
        inner.container.delete().await?;
        inner.service.delete(&inner.spec.id);
        inner.container.remove_files()
    }

    /// Leaves the container running when this is dropped.
    pub(super) fn abandon(&self) {
        self.inner.container.abandon();
    }
}

impl Drop for Managed {
    fn drop(&mut self) {
        self.task.get_mut().abort();
        // Now, not when the task is gone: its files may be removed next.
        self.inner.container.kill();
    }
}

impl Inner {
    /// Has the redirector attached, or shows a manager the sandbox, so that it
    /// attaches it, and starts the activator if that is done already.
    async fn first_attempt(self: &Arc<Self>) -> Result<Option<Activator>, Error> {
        let Place { sandbox_pid, maps, .. } = &self.place;
        match &self.config.attached_by {
            AttachedBy::Manager => fs::create_dir_all(maps).map_err(Error::io("create", maps))?,
            AttachedBy::Shim { helper } => {
                attach::run_helper(helper, &self.config.maps_dir, *sandbox_pid).await?;
            }
        }
        Activator::try_start(self.activator_config(), self.wake_hook()).await
    }

    /// Scales down whenever the container is idle; never if nothing is
    /// attached.
    async fn run(self: Arc<Self>, attached: Result<Option<Activator>, Error>) {
        if let Err(error) = self.manage(attached).await {
            self.tell(What::Unmanaged { reason: chain(&error) });
        }
    }

    async fn manage(
        self: &Arc<Self>,
        attached: Result<Option<Activator>, Error>,
    ) -> Result<(), Error> {
        let activator = match attached? {
            Some(activator) => activator,
            None => Activator::start(self.activator_config(), self.wake_hook()).await?,
        };
        self.tell(What::Registered { ports: activator.proxies().to_vec() });
        if self.spec.scaledown.is_zero() {
            std::future::pending::<()>().await;
        }
        let mut running = self.running.subscribe();
        loop {
            // Fails only when the sender is gone, which is in `self`.
            let _ = running.wait_for(|running| *running).await;
            activator.idle(self.spec.scaledown).await?;
            self.tell(What::Idle);
            self.scale_down(&activator).await?;
        }
    }

    /// Weak, since the container's task owns the activator.
    fn wake_hook(
        self: &Arc<Self>,
    ) -> impl Fn() -> WakeFuture + Clone + Send + Sync + 'static + use<> {
        let weak = Arc::downgrade(self);
        move || {
            let container = weak.upgrade();
            Box::pin(async move {
                match container {
                    Some(container) => container.wake().await,
                    None => Err("the container is gone".into()),
                }
            })
        }
    }

    fn activator_config(self: &Arc<Self>) -> ActivatorConfig {
        let weak = Arc::downgrade(self);
        let observer = move |activity: &Activity| {
            if let Some(container) = weak.upgrade() {
                container.observe(activity);
            }
        };
        ActivatorConfig {
            connect_timeout: self.spec.connect_timeout,
            proxy_timeout: self.spec.proxy_timeout,
            longest_retry: self.config.longest_retry,
            observer: Arc::new(observer),
            ..ActivatorConfig::new(
                self.place.maps.clone(),
                path_of_pid(self.place.sandbox_pid),
                self.spec.ports.clone(),
            )
        }
    }

    async fn scale_down(&self, activator: &Activator) -> Result<(), Error> {
        let mut state = self.state.lock().await;
        if state.life != Life::Running {
            return Ok(());
        }
        activator.redirect(true)?;
        let mode = state.mode;
        let begin = Instant::now();
        let result = match mode {
            Mode::Checkpoint => self.container.checkpoint().await,
            Mode::Kill => self.container.delete().await,
        };
        let took = begin.elapsed();
        match result {
            Ok(()) => {
                state.life = Life::Down(mode);
                self.running.send_replace(false);
                self.service.scaled_down(&self.spec.id, took)?;
                self.tell(What::ScaledDown { mode, duration_ms: millis(took) });
            }
            Err(error) => {
                activator.redirect(false)?;
                state.mode = Mode::Kill;
                let log = criu_log(&self.container.dump_log());
                self.service.checkpoint_failed(&self.spec.id, &log)?;
                self.tell(What::CheckpointFailed { reason: chain(&error) });
            }
        }
        Ok(())
    }

    async fn wake(&self) -> Result<(), WakeError> {
        let mut state = self.state.lock().await;
        let mut mode = match state.life {
            Life::Running => return Ok(()),
            Life::Stopped => return Err("the container is stopped".into()),
            Life::Down(mode) => mode,
        };
        let mut begin = Instant::now();
        if mode == Mode::Checkpoint
            && let Err(error) = self.container.restore().await
        {
            (state.mode, mode) = (Mode::Kill, Mode::Kill);
            let log = criu_log(&self.container.restore_log());
            self.service.restore_failed(&self.spec.id, &log)?;
            self.tell(What::RestoreFailed { reason: chain(&error) });
            self.container.delete().await?;
            begin = Instant::now();
        }
        if mode == Mode::Kill {
            self.container.create_again().await?;
            self.container.start().await?;
        }
        let took = begin.elapsed();
        state.life = Life::Running;
        self.running.send_replace(true);
        self.service.restored(&self.spec.id, took)?;
        self.tell(What::Restored { mode, duration_ms: millis(took) });
        Ok(())
    }

    fn observe(&self, activity: &Activity) {
        self.tell(match activity {
            Activity::Probe(peer) => What::Probe { peer: *peer },
            Activity::Connection(peer) => What::Connection { peer: *peer },
            Activity::Proxied(peer) => What::Proxied { peer: *peer },
            Activity::Failed(peer, error) => {
                What::ConnectionFailed { peer: *peer, reason: chain(&**error) }
            }
            // Port scans and TCP probes: of no interest to anyone.
            Activity::Empty(_) => return,
        });
    }

    fn tell(&self, what: What) {
        (self.config.observer)(&Happening::now(&self.place.pod, &self.spec.name, what));
    }
}

/// The end of CRIU's log as the Go shim sends it (H5): up to 21 lines, of a
/// long log joined by newlines, of a short one by a backslash and an `n`.
fn criu_log(path: &Path) -> String {
    let text = fs::read_to_string(path).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    let last = &lines[lines.len().saturating_sub(21)..];
    last.join(if lines.len() > 20 { "\n" } else { "\\n" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_logs_are_joined_by_two_characters() {
        // H5
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(&file, "a\nb\n").unwrap();
        assert_eq!(criu_log(file.path()), "a\\nb");
        fs::write(&file, "x\n".repeat(50)).unwrap();
        assert_eq!(criu_log(file.path()), vec!["x"; 21].join("\n"));
    }
}
