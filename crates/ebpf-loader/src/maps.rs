//! The maps of a sandbox.

use std::{
    collections::BTreeSet,
    io,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    path::Path,
};

use zeropod_redirector_abi::{ACTIVE_CONNECTIONS, MAPS, MapGeometry};

use crate::{Error, bpf};

/// Pinned last: shims up to 0.11 take its presence for "all is there".
const SIGNAL: &str = ACTIVE_CONNECTIONS.name;

/// The maps of a sandbox, open.
pub(crate) struct Maps(Vec<Map>);

struct Map {
    name: &'static str,
    fd: OwnedFd,
    id: u32,
    pinned: bool,
}

impl Maps {
    /// New maps, which last as long as they are open.
    pub(crate) fn unpinned() -> Result<Self, Error> {
        MAPS.iter().map(create).collect::<io::Result<_>>().map(Self).map_err(Error::Maps)
    }

    /// The maps that are pinned in a directory, after a look at their
    /// geometry, and new ones in place of those that are missing.
    pub(crate) fn open(dir: &Path) -> Result<Self, Error> {
        let open = |geometry: &MapGeometry| match bpf::open(&dir.join(geometry.name)) {
            Ok(fd) => checked(dir, geometry, fd),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                create(geometry).map_err(Error::Maps)
            }
            Err(error) => Err(Error::io("open", dir.join(geometry.name))(error)),
        };
        MAPS.iter().map(open).collect::<Result<_, _>>().map(Self)
    }

    /// Whether all of them were pinned when they were opened.
    pub(crate) fn all_pinned(&self) -> bool {
        self.0.iter().all(|map| map.pinned)
    }

    /// A map by its name.
    pub(crate) fn get(&self, name: &str) -> Option<BorrowedFd<'_>> {
        self.0.iter().find(|map| map.name == name).map(|map| map.fd.as_fd())
    }

    /// Their ids.
    pub(crate) fn ids(&self) -> BTreeSet<u32> {
        self.0.iter().map(|map| map.id).collect()
    }

    /// Pins what is not pinned, but for the signal to the shim.
    pub(crate) fn pin(&mut self, dir: &Path) -> Result<(), Error> {
        self.0.iter_mut().filter(|map| map.name != SIGNAL).try_for_each(|map| map.pin(dir))
    }

    /// Tells the shim that all is there.
    pub(crate) fn signal(&mut self, dir: &Path) -> Result<(), Error> {
        self.0.iter_mut().filter(|map| map.name == SIGNAL).try_for_each(|map| map.pin(dir))
    }
}

impl Map {
    fn pin(&mut self, dir: &Path) -> Result<(), Error> {
        if !self.pinned {
            let path = dir.join(self.name);
            bpf::pin(&self.fd, &path).map_err(Error::io("pin", path))?;
            self.pinned = true;
        }
        Ok(())
    }
}

fn create(geometry: &MapGeometry) -> io::Result<Map> {
    let fd = bpf::create_map(geometry)?;
    let id = bpf::map_info(&fd)?.id;
    Ok(Map { name: geometry.name, fd, id, pinned: false })
}

fn checked(dir: &Path, geometry: &MapGeometry, fd: OwnedFd) -> Result<Map, Error> {
    let info = bpf::map_info(&fd).map_err(Error::Maps)?;
    let kind = bpf::kind_number(geometry.kind);
    let wanted = [kind, geometry.key_size, geometry.value_size, geometry.max_entries, 0];
    let found = [info.kind, info.key_size, info.value_size, info.max_entries, info.flags];
    if wanted != found {
        return Err(Error::Geometry {
            path: dir.join(geometry.name),
            wanted: describe(wanted),
            found: describe(found),
        });
    }
    Ok(Map { name: geometry.name, fd, id: info.id, pinned: true })
}

fn describe([kind, key, value, entries, flags]: [u32; 5]) -> String {
    format!(
        "a map of type {kind} with {key}-byte keys, {value}-byte values, {entries} entries \
         and flags {flags:#x}"
    )
}
