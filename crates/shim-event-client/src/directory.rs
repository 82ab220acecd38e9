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
use tokio::{task::JoinSet, time::sleep};
use tokio_util::sync::CancellationToken;
use tracing::warn;
use zeropod_shim_api::id::ShimId;

use crate::{
    Error,
    hub::Hub,
    supervise::{chain, supervise},
};

/// Wait before a directory that could not be watched is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// Follows every shim, for ever; ends them all when dropped.
pub(crate) async fn follow(hub: Arc<Hub>) {
    let mut shims = Shims { hub, tasks: JoinSet::new(), removed: HashMap::new() };
    loop {
        let error = match shims.watch().await {
            // The directory was replaced: watch the new one.
            Ok(()) => continue,
            Err(error) => error,
        };
        warn!(error = &error as &dyn std::error::Error, "shims are not being followed");
        shims.hub.health.send_modify(|health| health.directory = Some(chain(&error)));
        sleep(RETRY).await;
    }
}

struct Shims {
    hub: Arc<Hub>,
    tasks: JoinSet<ShimId>,
    /// Tells the task of a socket that it was removed.
    removed: HashMap<ShimId, CancellationToken>,
}

impl Shims {
    /// Watches the directory until it is replaced.
    async fn watch(&mut self) -> Result<(), Error> {
        let dir = self.hub.config.socket_dir.clone();
        let (mut events, watched) = watch(&dir)?;
        self.list(&dir)?;
        self.hub.health.send_if_modified(|health| health.directory.take().is_some());
        loop {
            tokio::select! {
                event = events.next() => {
                    let Some(event) = event else { return Ok(()) };
                    let event = event.map_err(error("watch", &dir))?;
                    if event.wd != watched && !event.mask.contains(EventMask::Q_OVERFLOW) {
                        continue;
                    }
                    if event.mask.intersects(
                        EventMask::IGNORED | EventMask::DELETE_SELF | EventMask::MOVE_SELF,
                    ) {
                        self.list_or_forget(&dir);
                        return Ok(());
                    }
                    match event.name.as_deref() {
                        Some(name) => self.look_at(&dir, name),
                        None => self.list(&dir)?,
                    }
                }
                Some(ended) = self.tasks.join_next() => {
                    if let Ok(shim) = ended {
                        self.removed.remove(&shim);
                        // A new socket may have taken the place meanwhile.
                        self.look_at(&dir, shim.file_name().as_ref());
                    }
                }
                () = sleep(self.hub.config.resync_interval) => self.list(&dir)?,
            }
        }
    }

    /// Brings the tasks in line with the files.
    fn list(&mut self, dir: &Path) -> Result<(), Error> {
        for entry in fs::read_dir(dir).map_err(error("list", dir))? {
            let entry = entry.map_err(error("list", dir))?;
            self.look_at(dir, &entry.file_name());
        }
        self.list_or_forget(dir);
        Ok(())
    }

    /// Tells the tasks whose socket is gone.
    fn list_or_forget(&self, dir: &Path) {
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
                self.tasks.spawn(async {
                    supervise(hub, shim.clone(), removed).await;
                    shim
                });
            }
            _ => {}
        }
    }
}

/// Makes the directory if absent and watches it.
fn watch(dir: &Path) -> Result<(EventStream<[u8; 4096]>, inotify::WatchDescriptor), Error> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(error("create", dir))?;
    let inotify = Inotify::init().map_err(error("watch", dir))?;
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
        .map_err(error("watch", dir))?;
    let events = inotify.into_event_stream([0; 4096]).map_err(error("watch", dir))?;
    Ok((events, watched))
}

fn is_socket(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|metadata| metadata.file_type().is_socket())
}

fn error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::Directory { action, path: path.to_path_buf(), source }
}
