//! The network namespace of the host.
#![expect(unsafe_code, reason = "nix does not have this socket option")]

use std::{
    fs::File,
    io,
    net::UdpSocket,
    os::fd::AsRawFd as _,
    path::{Path, PathBuf},
    thread,
};

use nix::sched::{CloneFlags, setns};
use tokio::sync::oneshot;
use tracing::debug;

/// The cookie that programs know the namespace by (Linux 5.14), or 0 if it
/// cannot be had.
pub(crate) async fn host_netns(host_proc: &Path) -> u64 {
    let namespace = host_proc.join("1/ns/net");
    let (tell, told) = oneshot::channel();
    // A namespace is entered by a thread of its own, which ends afterwards.
    let work = move || tell.send(cookie(&namespace));
    let started = thread::Builder::new().name("host network".to_owned()).spawn(work);
    let cookie = match started {
        Ok(_) => told.await.unwrap_or_else(|_| Err(io::Error::other("it panicked"))),
        Err(error) => Err(error),
    };
    cookie.unwrap_or_else(|error| {
        debug!(%error, "the host's network namespace is not known");
        0
    })
}

fn cookie(namespace: &PathBuf) -> io::Result<u64> {
    setns(File::open(namespace)?, CloneFlags::CLONE_NEWNET)?;
    let socket = UdpSocket::bind(("0.0.0.0", 0))?;
    let mut cookie = 0_u64;
    let mut size = libc::socklen_t::try_from(size_of_val(&cookie)).map_err(io::Error::other)?;
    // SAFETY: the kernel writes at most `size` bytes to `cookie`.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut size,
        )
    };
    if result == 0 { Ok(cookie) } else { Err(io::Error::last_os_error()) }
}
