//! The maps of a sandbox.

use std::{
    collections::BTreeSet,
    io,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    path::Path,
};

use tracing::{debug, warn};
use zeropod_redirector_abi::{
    ACTIVE_CONNECTIONS, DISABLE_REDIRECT, EGRESS_REDIRECTS, INGRESS_REDIRECTS, LOGS, MAPS,
    MapGeometry, MapKind, NODE_MAPS, OWN_MAPS, SOCKET_TRACKER,
};

use crate::{Error, bpf, error::chain, hook::pin_over};

/// Pinned last: shims up to 0.11 take its presence for "all is there".
const SIGNAL: &str = ACTIVE_CONNECTIONS.name;

/// Maps that are plain where we make them (B3): before Linux 6.16 (commit
/// d4adf1c9ee77) a small LRU map may throw out an entry that is in use, and
/// with one of these a port never wakes. The keys are the ports of a pod, so
/// that they do not fill up. Shims up to 0.11 do not look at the kind.
const PLAIN: [&str; 2] = [INGRESS_REDIRECTS.name, DISABLE_REDIRECT.name];

/// Maps that every shim opens.
const OF_SHIM: [&str; 5] = [
    ACTIVE_CONNECTIONS.name,
    DISABLE_REDIRECT.name,
    EGRESS_REDIRECTS.name,
    INGRESS_REDIRECTS.name,
    SOCKET_TRACKER.name,
];

/// The maps of a sandbox, open.
#[derive(Debug)]
pub(crate) struct Maps(Vec<Map>);

#[derive(Debug)]
struct Map {
    geometry: MapGeometry,
    fd: OwnedFd,
    id: u32,
    pinned: bool,
}

impl Maps {
    /// New maps, which last as long as they are open.
    pub(crate) fn unpinned() -> Result<Self, Error> {
        all()
            .chain(of_node(true))
            .map(create)
            .collect::<io::Result<_>>()
            .map(Self)
            .map_err(Error::Maps)
    }

    /// The maps that all sandboxes share, pinned in a directory of the node's;
    /// made there, or if that fails for this process alone. What traced
    /// programs say is among them.
    pub(crate) fn of_node(dir: &Path, is_traced: bool) -> Result<Self, Error> {
        let open = |geometry: &MapGeometry| {
            let path = dir.join(geometry.name);
            if let Ok(fd) = bpf::open(&path) {
                let info = bpf::map_info(&fd).map_err(Error::Maps)?;
                if is_right(geometry, &info) {
                    return Ok(Map { geometry: *geometry, fd, id: info.id, pinned: true });
                }
            }
            let mut map = create(geometry).map_err(Error::Maps)?;
            if let Err(error) = map.pin(dir) {
                debug!(error = chain(&error), "a map of the node is not pinned");
            }
            // Not to be pinned elsewhere.
            map.pinned = true;
            Ok(map)
        };
        of_node(is_traced).map(open).collect::<Result<_, _>>().map(Self)
    }

    /// Adds the maps that all sandboxes share.
    pub(crate) fn with_those_of(mut self, node: &Self) -> Result<Self, Error> {
        for map in &node.0 {
            let fd = map.fd.try_clone().map_err(Error::Maps)?;
            self.0.push(Map { fd, ..*map });
        }
        Ok(self)
    }

    /// The maps that are pinned in the directory of a sandbox that we attach,
    /// and new ones in place of those that are missing or of another geometry
    /// (F-E9).
    pub(crate) fn open(dir: &Path) -> Result<Self, Error> {
        let open = |geometry: &MapGeometry| {
            let path = dir.join(geometry.name);
            match bpf::open(&path) {
                Ok(fd) => {
                    let info = bpf::map_info(&fd).map_err(Error::Maps)?;
                    if is_right(geometry, &info) {
                        return Ok(Map { geometry: *geometry, fd, id: info.id, pinned: true });
                    }
                    warn!(pin = %path.display(), ?info, "a map of another geometry is replaced");
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(Error::io("open", path)(error)),
            }
            create(geometry).map_err(Error::Maps)
        };
        all().map(open).collect::<Result<_, _>>().map(Self)
    }

    /// The maps that a shim pinned in the directory of its sandbox, and new
    /// ones in place of those that later shims do without. `None` while it is
    /// not done. The shim writes to the maps it has open, so that none can be
    /// replaced.
    pub(crate) fn open_of_shim(dir: &Path) -> Result<Option<Self>, Error> {
        let mut maps = Vec::new();
        for geometry in all() {
            let path = dir.join(geometry.name);
            match bpf::open(&path) {
                Ok(fd) => {
                    let info = bpf::map_info(&fd).map_err(Error::Maps)?;
                    if !is_right(geometry, &info) {
                        let found = format!("{info:?}");
                        return Err(Error::Geometry { path, wanted: *geometry, found });
                    }
                    maps.push(Map { geometry: *geometry, fd, id: info.id, pinned: true });
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    if OF_SHIM.contains(&geometry.name) {
                        return Ok(None);
                    }
                    maps.push(create(geometry).map_err(Error::Maps)?);
                }
                Err(error) => return Err(Error::io("open", path)(error)),
            }
        }
        Ok(Some(Self(maps)))
    }

    /// Whether all of them were pinned when they were opened.
    pub(crate) fn all_pinned(&self) -> bool {
        self.0.iter().all(|map| map.pinned)
    }

    /// A map by its name.
    pub(crate) fn get(&self, name: &str) -> Option<BorrowedFd<'_>> {
        self.0.iter().find(|map| map.geometry.name == name).map(|map| map.fd.as_fd())
    }

    /// The id of a map.
    pub(crate) fn id(&self, geometry: &MapGeometry) -> Option<u32> {
        self.0.iter().find(|map| map.geometry.name == geometry.name).map(|map| map.id)
    }

    /// Their ids.
    pub(crate) fn ids(&self) -> BTreeSet<u32> {
        self.0.iter().map(|map| map.id).collect()
    }

    /// Pins what is not pinned, but for the signal to the shim.
    pub(crate) fn pin(&mut self, dir: &Path) -> Result<(), Error> {
        let mut maps = self.0.iter_mut();
        maps.try_for_each(|map| if map.geometry.name == SIGNAL { Ok(()) } else { map.pin(dir) })
    }

    /// Tells the shim that all is there.
    pub(crate) fn signal(&mut self, dir: &Path) -> Result<(), Error> {
        self.0.iter_mut().try_for_each(|map| map.pin(dir))
    }

    /// All entries of a map, keys and values as bytes.
    pub(crate) fn entries(&self, geometry: &MapGeometry) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
        let Some(map) = self.get(geometry.name) else { return Ok(Vec::new()) };
        let mut keys: Vec<Vec<u8>> = Vec::new();
        let mut next = vec![0; geometry.key_size as usize];
        // At most as many as there can be: with a key removed meanwhile the
        // kernel begins anew.
        while keys.len() < geometry.max_entries as usize
            && bpf::next_key(map, keys.last().map(Vec::as_slice), &mut next)?.is_some()
        {
            keys.push(next.clone());
        }
        let mut entries = Vec::new();
        for key in keys {
            let mut value = vec![0; geometry.value_size as usize];
            if bpf::lookup(map, &key, &mut value)?.is_some() {
                entries.push((key, value));
            }
        }
        Ok(entries)
    }

    /// Removes an entry, if it is there.
    pub(crate) fn forget(&self, geometry: &MapGeometry, key: &[u8]) -> io::Result<()> {
        match self.get(geometry.name) {
            Some(map) => bpf::remove(map, key).map(drop),
            None => Ok(()),
        }
    }

    /// Sets an entry, new or not.
    pub(crate) fn set(&self, geometry: &MapGeometry, key: &[u8], value: &[u8]) -> io::Result<()> {
        match self.get(geometry.name) {
            Some(map) => bpf::update(map, key, value),
            None => Ok(()),
        }
    }
}

impl Map {
    fn pin(&mut self, dir: &Path) -> Result<(), Error> {
        if !self.pinned {
            let fd = self.fd.try_clone().map_err(Error::Maps)?;
            pin_over(fd, &dir.join(self.geometry.name))?;
            self.pinned = true;
        }
        Ok(())
    }
}

fn all() -> impl Iterator<Item = &'static MapGeometry> {
    MAPS.iter().chain(&OWN_MAPS)
}

fn of_node(is_traced: bool) -> impl Iterator<Item = &'static MapGeometry> {
    NODE_MAPS.iter().chain((cfg!(feature = "trace") && is_traced).then_some(&LOGS))
}

fn create(geometry: &MapGeometry) -> io::Result<Map> {
    let fd = bpf::create_map(&MapGeometry { kind: own_kind(geometry), ..*geometry })?;
    let id = bpf::map_info(&fd)?.id;
    Ok(Map { geometry: *geometry, fd, id, pinned: false })
}

fn own_kind(geometry: &MapGeometry) -> MapKind {
    if PLAIN.contains(&geometry.name) { MapKind::Hash } else { geometry.kind }
}

fn is_right(geometry: &MapGeometry, info: &bpf::MapInfo) -> bool {
    let kinds = [geometry.kind, own_kind(geometry)].map(bpf::kind_number);
    kinds.contains(&info.kind)
        && (info.key_size, info.value_size) == (geometry.key_size, geometry.value_size)
        && (info.max_entries, info.flags) == (geometry.max_entries, 0)
}
