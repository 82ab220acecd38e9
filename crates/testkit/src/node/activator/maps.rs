//! The five pinned maps that a shim shares with the redirector of its sandbox.

use std::{
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use aya::{
    Pod,
    maps::{HashMap, Map, MapData, MapError},
};
use nix::time::{ClockId, clock_gettime};
use zeropod_redirector_abi::{
    ACTIVE_CONNECTIONS, DISABLE_REDIRECT, EGRESS_REDIRECTS, INGRESS_REDIRECTS, MapGeometry,
    SOCKET_TRACKER,
};

use crate::node::Error;

#[derive(Debug)]
pub(super) struct Maps {
    active_connections: PinnedMap<u8>,
    disable_redirect: PinnedMap<u8>,
    egress_redirects: PinnedMap<u16>,
    ingress_redirects: PinnedMap<u16>,
    socket_tracker: PinnedMap<u64>,
}

impl Maps {
    /// Opens the maps in a sandbox's directory. `None` as long as nobody has
    /// attached a redirector: then `active_connections` is missing.
    pub(super) fn open(dir: &Path) -> Result<Option<Self>, Error> {
        if !dir.join(ACTIVE_CONNECTIONS.name).exists() {
            return Ok(None);
        }
        Ok(Some(Self {
            active_connections: PinnedMap::open(dir, &ACTIVE_CONNECTIONS)?,
            disable_redirect: PinnedMap::open(dir, &DISABLE_REDIRECT)?,
            egress_redirects: PinnedMap::open(dir, &EGRESS_REDIRECTS)?,
            ingress_redirects: PinnedMap::open(dir, &INGRESS_REDIRECTS)?,
            socket_tracker: PinnedMap::open(dir, &SOCKET_TRACKER)?,
        }))
    }

    /// Before its proxy listens: the port is known but not redirected.
    pub(super) fn register(&self, port: u16) -> Result<(), Error> {
        self.socket_tracker.insert(port, 0)?;
        self.disable_redirect.insert(port, 1)
    }

    pub(super) fn set_proxy(&self, port: u16, proxy: u16) -> Result<(), Error> {
        self.ingress_redirects.insert(port, proxy)?;
        self.egress_redirects.insert(proxy, port)
    }

    pub(super) fn redirect(&self, port: u16, on: bool) -> Result<(), Error> {
        if on { self.disable_redirect.remove(port) } else { self.disable_redirect.insert(port, 1) }
    }

    pub(super) fn connection_begins(&self, client: u16) -> Result<(), Error> {
        self.active_connections.insert(client, 1)
    }

    pub(super) fn connection_ends(&self, client: u16) -> Result<(), Error> {
        self.active_connections.remove(client)
    }

    /// Time since the last packet to a port; `None` if there was none.
    pub(super) fn since_activity(&self, port: u16) -> Result<Option<Duration>, Error> {
        let last = self.socket_tracker.get(port)?.unwrap_or(0);
        if last == 0 {
            return Ok(None);
        }
        let now = clock_gettime(ClockId::CLOCK_MONOTONIC)
            .map_err(|errno| Error::io("read", "CLOCK_MONOTONIC")(errno.into()))?;
        Ok(Some(Duration::from(now).saturating_sub(Duration::from_nanos(last))))
    }
}

/// A map from a port. The kernel locks it; the mutex is only for aya's `&mut`.
#[derive(Debug)]
struct PinnedMap<V: Pod> {
    path: PathBuf,
    map: Mutex<HashMap<MapData, u16, V>>,
}

impl<V: Pod> PinnedMap<V> {
    fn open(dir: &Path, geometry: &MapGeometry) -> Result<Self, Error> {
        let path = dir.join(geometry.name);
        let map = MapData::from_pin(&path)
            .and_then(Map::from_map_data)
            .and_then(HashMap::try_from)
            .map_err(map_error("open", &path))?;
        Ok(Self { path, map: Mutex::new(map) })
    }

    fn get(&self, port: u16) -> Result<Option<V>, Error> {
        match self.lock().get(&port, 0) {
            Ok(value) => Ok(Some(value)),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(error) => Err(map_error("read", &self.path)(error)),
        }
    }

    fn insert(&self, port: u16, value: V) -> Result<(), Error> {
        self.lock().insert(port, value, 0).map_err(map_error("write", &self.path))
    }

    /// Removing what is not there is no error.
    fn remove(&self, port: u16) -> Result<(), Error> {
        match self.lock().remove(&port) {
            Ok(()) | Err(MapError::KeyNotFound) => Ok(()),
            Err(MapError::SyscallError(error))
                if error.io_error.kind() == std::io::ErrorKind::NotFound =>
            {
                Ok(())
            }
            Err(error) => Err(map_error("write", &self.path)(error)),
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<MapData, u16, V>> {
        self.map.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn map_error(action: &'static str, path: &Path) -> impl FnOnce(MapError) -> Error {
    move |source| Error::Map { action, path: path.to_path_buf(), source: Box::new(source) }
}
