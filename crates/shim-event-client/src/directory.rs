//! Finds the shims: watches the socket directory, then lists it, so that no
//! socket is missed in between, and keeps one task per socket.

use std::{
    collections::HashMap,
    ffi::OsStr,
    fs, io,
    os::unix::fs::{DirBuilderExt, FileTypeExt},
    path::Path,
    sync::Arc,
    time::Duration,
};

use futures_util::StreamExt;
use inotify::{EventMask, EventStream, Inotify, WatchMask};
use tokio::{
    task::{self, JoinError, JoinSet},
    time::{Instant, MissedTickBehavior, interval, interval_at, sleep},
};
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};
use zeropod_shim_api::id::ShimId;

use crate::{
    Error, HEARTBEAT,
    hub::Hub,
    supervise::{chain, supervise},
};

/// Wait before a directory that could not be watched is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// Follows every shim, for ever; ends them all when dropped.
pub(crate) async fn follow(hub: Arc<Hub>) {
    let mut shims = Shims::new(hub);
    loop {
        let error = match shims.watch().await {
            // The directory was replaced: watch the new one.
            Ok(()) => continue,
            Err(error) => error,
        };
        warn!(error = &error as &dyn std::error::Error, "shims are not being followed");
        shims.hub.health.send_modify(|health| health.directory = Some(chain(&error)));
        shims.hub.beat();
        sleep(RETRY).await;
    }
}

struct Shims {
    hub: Arc<Hub>,
    tasks: JoinSet<()>,
    /// Whose task is which.
    names: HashMap<task::Id, ShimId>,
    /// Tells the task of a socket that it was removed.
    removed: HashMap<ShimId, CancellationToken>,
}

impl Shims {
    fn new(hub: Arc<Hub>) -> Self {
        Self { hub, tasks: JoinSet::new(), names: HashMap::new(), removed: HashMap::new() }
    }

    /// Watches the directory until it is replaced.
    async fn watch(&mut self) -> Result<(), Error> {
        let dir = self.hub.config.socket_dir.clone();
        let (mut events, watched) = watch(&dir)?;
        self.list(&dir)?;
        self.hub.health.send_if_modified(|health| health.directory.take().is_some());
        let mut beats = interval(HEARTBEAT);
        let often = self.hub.config.resync_interval;
        let mut lists = interval_at(Instant::now() + often, often);
        lists.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                event = events.next() => {
                    let Some(event) = event else { return Ok(()) };
                    let event = event.map_err(failed("watch", &dir))?;
                    if event.wd != watched && !event.mask.contains(EventMask::Q_OVERFLOW) {
                        continue;
                    }
                    if event.mask.intersects(
                        EventMask::IGNORED | EventMask::DELETE_SELF | EventMask::MOVE_SELF,
                    ) {
                        self.end_missing(&dir);
                        return Ok(());
                    }
                    match event.name.as_deref() {
                        Some(name) => self.look_at(&dir, name),
                        None => self.list(&dir)?,
                    }
                }
                Some(ended) = self.tasks.join_next_with_id() => self.end(&dir, ended),
                _ = beats.tick() => self.hub.beat(),
                _ = lists.tick() => self.list(&dir)?,
            }
        }
    }

    fn end(&mut self, dir: &Path, ended: Result<(task::Id, ()), JoinError>) {
        let id = ended.as_ref().map_or_else(JoinError::id, |(id, ())| *id);
        let Some(shim) = self.names.remove(&id) else { return };
        self.removed.remove(&shim);
        match ended {
            // A new socket may have taken the place meanwhile.
            Ok(_) => self.look_at(dir, shim.file_name().as_ref()),
            // Started again by the next listing, not at once: it may go on.
            Err(error) => {
                error!(%shim, %error, "shim is no longer followed");
                self.hub.forget(&shim);
            }
        }
    }

    /// Brings the tasks in line with the files.
    fn list(&mut self, dir: &Path) -> Result<(), Error> {
        for entry in fs::read_dir(dir).map_err(failed("list", dir))? {
            let entry = entry.map_err(failed("list", dir))?;
            self.look_at(dir, &entry.file_name());
        }
        self.end_missing(dir);
        Ok(())
    }

    /// Tells the tasks whose socket is gone.
    fn end_missing(&self, dir: &Path) {
        for (shim, removed) in &self.removed {
            if !is_socket(&dir.join(shim.file_name())) {
                removed.cancel();
            }
        }
    }

    fn look_at(&mut self, dir: &Path, name: &OsStr) {
        let Some(shim) = name.to_str().and_then(ShimId::from_file_name) else { return };
        let exists = is_socket(&dir.join(name));
        match self.removed.get(&shim) {
            Some(removed) if !exists => removed.cancel(),
            None if exists => {
                let removed = CancellationToken::new();
                self.removed.insert(shim.clone(), removed.clone());
                let hub = Arc::clone(&self.hub);
                let task = self.tasks.spawn(supervise(hub, shim.clone(), removed));
                self.names.insert(task.id(), shim);
            }
            _ => {}
        }
    }
}

/// Makes the directory if absent and watches it.
fn watch(dir: &Path) -> Result<(EventStream<[u8; 4096]>, inotify::WatchDescriptor), Error> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(failed("create", dir))?;
    let inotify = Inotify::init().map_err(failed("watch", dir))?;
    let watched = inotify
        .watches()
        .add(
            dir,
            WatchMask::CREATE
                | WatchMask::MOVED_TO
                | WatchMask::DELETE
                | WatchMask::MOVED_FROM
                | WatchMask::DELETE_SELF
                | WatchMask::MOVE_SELF
                | WatchMask::ONLYDIR,
        )
        .map_err(failed("watch", dir))?;
    let events = inotify.into_event_stream([0; 4096]).map_err(failed("watch", dir))?;
    Ok((events, watched))
}

fn is_socket(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|metadata| metadata.file_type().is_socket())
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::Directory { action, path: path.to_path_buf(), source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Config, ShimHealth};

    /// A task that panicked is nobody's any more, so that the next listing
    /// starts another.
    #[tokio::test]
    async fn a_task_that_panicked_is_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(dir.path().join("abc.sock")).unwrap();
        let config = Config { socket_dir: dir.path().to_path_buf(), ..Config::default() };
        let mut shims = Shims::new(Arc::new(Hub::new(config)));
        let shim = ShimId::from_file_name("abc.sock").unwrap();
        shims.hub.report(&shim, |health| *health = ShimHealth::default());
        let task = shims.tasks.spawn(async { panic!("this panic is part of the test") });
        shims.names.insert(task.id(), shim.clone());
        shims.removed.insert(shim.clone(), CancellationToken::new());

        let ended = shims.tasks.join_next_with_id().await.unwrap();
        shims.end(dir.path(), ended);
        assert!(shims.hub.health.borrow().shims.is_empty());
        assert!(shims.tasks.is_empty());
        shims.list(dir.path()).unwrap();
        assert_eq!(shims.names.values().collect::<Vec<_>>(), [&shim]);
    }
}
