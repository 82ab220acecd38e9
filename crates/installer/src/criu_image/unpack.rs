//! Layers, of which CRIU's files are taken and nothing else.

use std::{
    fs::{self, File},
    io::{self, BufRead as _, BufReader, Read},
    os::unix::fs::{OpenOptionsExt as _, symlink},
    path::{Component, Path, PathBuf},
};

use flate2::read::MultiGzDecoder;
use tar::{Archive, Entry, EntryType};

use crate::Error;

/// Most bytes that are unpacked; CRIU and its libraries are a few MiB.
const MAX_BYTES: u64 = 1 << 30;

/// How gzip and zstd begin (RFC 1952, RFC 8878).
const GZIP: &[u8] = &[0x1f, 0x8b];
const ZSTD: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd];

/// Puts the layers of one image into a directory.
pub(super) struct Unpacker<'a> {
    image: &'a Path,
    into: &'a Path,
    budget: u64,
}

impl<'a> Unpacker<'a> {
    /// For the image at a path, which errors name.
    ///
    /// # Errors
    /// When the directories cannot be made.
    pub(super) fn new(image: &'a Path, into: &'a Path) -> Result<Self, Error> {
        for dir in ["bin", "lib"] {
            let dir = into.join(dir);
            fs::create_dir_all(&dir).map_err(Error::io("create", dir))?;
        }
        Ok(Self { image, into, budget: MAX_BYTES })
    }

    /// Applies a layer on top of those before.
    ///
    /// # Errors
    /// When it is broken, compressed in another way than by gzip, or too
    /// large.
    pub(super) fn apply(&mut self, layer: &Path) -> Result<(), Error> {
        let image = self.image;
        let error = |reason: String| Error::Refused { path: image.to_path_buf(), reason };
        let broken = |cause: io::Error| error(format!("a layer is broken: {cause}"));
        let Some(layer) = open(layer)? else {
            return Err(error("its layers are compressed by zstd; use gzip or none".into()));
        };
        let mut archive = Archive::new(layer);
        for entry in archive.entries().map_err(broken)? {
            let mut entry = entry.map_err(broken)?;
            let path = entry.path().map_err(broken)?.into_owned();
            let Some(place) = place_of(&path) else { continue };
            let Some(rest) = self.budget.checked_sub(entry.size()) else {
                return Err(error("it is larger than 1 GiB".into()));
            };
            self.budget = rest;
            put(&mut entry, self.into, &place).map_err(broken)?;
        }
        Ok(())
    }
}

/// Opens a tar archive, compressed or not; `None` for zstd. What kind it is
/// says the content: Docker's archives have no media types.
pub(super) fn open(path: &Path) -> Result<Option<Box<dyn Read>>, Error> {
    let file = File::open(path).map_err(Error::io("open", path))?;
    let mut file = BufReader::new(file);
    let start = file.fill_buf().map_err(Error::io("read", path))?;
    Ok(match start {
        start if start.starts_with(GZIP) => Some(Box::new(MultiGzDecoder::new(file))),
        start if start.starts_with(ZSTD) => None,
        _ => Some(Box::new(file)),
    })
}

/// `bin/NAME` or `lib/NAME`; `None` for everything else in a layer, also for
/// what would lead out of the directory.
fn place_of(path: &Path) -> Option<PathBuf> {
    let mut names =
        path.components().filter(|it| !matches!(it, Component::CurDir | Component::RootDir));
    match (names.next()?, names.next()?, names.next()) {
        (Component::Normal(dir), Component::Normal(name), None) if dir == "bin" || dir == "lib" => {
            Some(Path::new(dir).join(name))
        }
        _ => None,
    }
}

fn put(entry: &mut Entry<'_, impl Read>, into: &Path, place: &Path) -> io::Result<()> {
    let path = into.join(place);
    let name = place.file_name().unwrap_or_default().to_string_lossy().into_owned();
    if let Some(removed) = name.strip_prefix(".wh.") {
        return remove(&path.with_file_name(removed));
    }
    match entry.header().entry_type() {
        EntryType::Regular | EntryType::Continuous => {
            remove(&path)?;
            let mode = entry.header().mode()? & 0o755;
            let mut options = fs::OpenOptions::new();
            let mut file = options.write(true).create_new(true).mode(mode).open(&path)?;
            io::copy(entry, &mut file).map(|_| ())
        }
        EntryType::Symlink => {
            let target = entry.link_name()?.unwrap_or_default().into_owned();
            // To a neighbour, as libraries have them; anything else means
            // another file on the host.
            if target.components().count() != 1 || target.file_name().is_none() {
                return Ok(());
            }
            remove(&path)?;
            symlink(target, &path)
        }
        EntryType::Directory => Ok(()),
        kind => Err(io::Error::other(format!("{} is of the kind {kind:?}", place.display()))),
    }
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
