//! Sockets that a killed shim has left behind. Nobody else removes them.

use std::{fs, io, os::unix::fs::MetadataExt, path::Path};

use tokio::{net::UnixStream, time::Instant};
use tracing::{debug, info, warn};
use zeropod_shim_api::id::ShimId;

use crate::{Config, Error, telemetry};

/// How long one file has been a socket without a listener.
#[derive(Debug, Default)]
pub(crate) struct Refusals {
    first: Option<(Instant, u64)>,
}

impl Refusals {
    /// Takes in why a connection failed. Returns whether the shim counts as
    /// dead.
    pub(crate) fn note(&mut self, error: &Error, config: &Config) -> bool {
        let Error::Dial { path, source } = error else { return self.clear() };
        let inode = fs::symlink_metadata(path).map(|metadata| metadata.ino());
        let (io::ErrorKind::ConnectionRefused, Ok(inode)) = (source.kind(), inode) else {
            return self.clear();
        };
        let first = self.first.filter(|(_, first)| *first == inode);
        let (since, _) = *self.first.insert(first.unwrap_or((Instant::now(), inode)));
        since.elapsed() >= config.dead_after
    }

    fn clear(&mut self) -> bool {
        self.first = None;
        false
    }

    /// Removes the socket if it is provably nobody's: it refuses connections,
    /// is the same file as at the first refusal, and no process has a socket
    /// of this name, not even one that does not listen yet.
    pub(crate) async fn remove(&self, shim: &ShimId, path: &Path, config: &Config) {
        let sockets = match fs::read_to_string(&config.unix_sockets) {
            Ok(sockets) => sockets,
            Err(error) => {
                let list = config.unix_sockets.display();
                debug!(%shim, %list, %error, "not removing the dead socket: cannot see its owner");
                return;
            }
        };
        if has_owner(&sockets, shim) || !refuses(path).await {
            return;
        }
        let same = fs::symlink_metadata(path)
            .is_ok_and(|metadata| self.first.is_some_and(|(_, first)| first == metadata.ino()));
        if !same {
            return;
        }
        match fs::remove_file(path) {
            Ok(()) => {
                telemetry::dead_socket_removed();
                info!(%shim, "removed the socket of a dead shim");
            }
            Err(error) => warn!(%shim, %error, "cannot remove the socket of a dead shim"),
        }
    }
}

async fn refuses(path: &Path) -> bool {
    let dialled = UnixStream::connect(path).await;
    matches!(dialled, Err(error) if error.kind() == io::ErrorKind::ConnectionRefused)
}

/// Whether `/proc/net/unix` lists a socket that is bound to the shim's name.
/// Its directory may have another name in the shim's mount namespace.
fn has_owner(sockets: &str, shim: &ShimId) -> bool {
    let name = shim.file_name();
    sockets
        .lines()
        .filter_map(|line| line.split_ascii_whitespace().nth(7))
        .any(|path| Path::new(path).file_name().is_some_and(|bound| bound == name.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owners_are_found_by_file_name() {
        let list = "Num       RefCount Protocol Flags    Type St Inode Path\n\
            0000000000000000: 00000002 00000000 00010000 0001 01 4242 /run/zeropod/s/abc.sock\n\
            0000000000000000: 00000003 00000000 00000000 0001 03 4243\n\
            0000000000000000: 00000002 00000000 00010000 0001 01 4244 @/run/zeropod/s/def.sock\n";
        let owned = |name| has_owner(list, &ShimId::from_file_name(name).unwrap());
        assert!(owned("abc.sock"));
        assert!(owned("def.sock"));
        assert!(!owned("bc.sock"));
    }
}
