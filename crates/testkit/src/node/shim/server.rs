//! The listening socket of a shim.

use std::{
    fs, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use tokio::{
    net::UnixListener,
    task::{JoinHandle, JoinSet},
};

use super::{Shared, connection};
use crate::node::Error;

/// A shim that can be reached. Dropping it is like `kill -9`: connections
/// break, and the socket stays behind.
#[derive(Debug)]
pub struct Server {
    socket: PathBuf,
    accepting: JoinHandle<()>,
}

impl Server {
    pub(super) fn start(socket: &Path, shared: Arc<Shared>) -> Result<Self, Error> {
        if let Some(dir) = socket.parent() {
            fs::create_dir_all(dir).map_err(Error::io("create", dir))?;
        }
        let listener = UnixListener::bind(socket).map_err(Error::io("listen on", socket))?;
        fs::set_permissions(socket, fs::Permissions::from_mode(0o600))
            .map_err(Error::io("protect", socket))?;
        let accepting = tokio::spawn(accept(listener, shared));
        Ok(Self { socket: socket.to_path_buf(), accepting })
    }

    /// Path of the socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Ends as a shim does that shuts down: removes the socket, then closes
    /// the connections.
    ///
    /// # Errors
    /// When the socket cannot be removed.
    pub fn close(self) -> Result<(), Error> {
        match fs::remove_file(&self.socket) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(Error::io("remove", &self.socket)(error))
            }
            _ => Ok(()),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn accept(listener: UnixListener, shared: Arc<Shared>) {
    // Ends its connections when it is dropped.
    let mut connections = JoinSet::new();
    // Fails when the process has too many open files: then waiting for a
    // connection to end is all there is to do.
    while let Ok((socket, _)) = listener.accept().await {
        while connections.try_join_next().is_some() {}
        connections.spawn(connection::serve(socket, Arc::clone(&shared)));
    }
    while connections.join_next().await.is_some() {}
}
