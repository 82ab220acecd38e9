//! Network namespaces, entered only by threads of their own: `setns` changes
//! one thread, and a thread that came back into the wrong namespace would do
//! its next work there.

use std::{
    fs::File,
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::mpsc,
    thread,
};

use nix::sched::{CloneFlags, setns};
use tokio::{
    net::{TcpSocket, TcpStream},
    sync::oneshot,
};

use super::Error;

/// A network namespace with a thread in it. Clones share the thread, which
/// ends with the last of them.
#[derive(Debug, Clone)]
pub struct NetNs {
    jobs: mpsc::Sender<Job>,
}

type Job = Box<dyn FnOnce() + Send>;

impl NetNs {
    /// The namespace at `path`, such as `/proc/<pid>/ns/net`.
    ///
    /// # Errors
    /// When it cannot be opened or entered, which needs root.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let enter = |source| Error::Io { action: "enter", path: path.to_path_buf(), source };
        let namespace = File::open(path).map_err(enter)?;
        let (jobs, queue) = mpsc::channel::<Job>();
        let (entered, result) = mpsc::channel();
        thread::Builder::new()
            .name("netns".into())
            .spawn(move || {
                let in_there = setns(&namespace, CloneFlags::CLONE_NEWNET);
                let ok = in_there.is_ok();
                // Only gone when `open` is, which waits.
                let _ = entered.send(in_there);
                if ok {
                    for job in queue {
                        job();
                    }
                }
            })
            .map_err(enter)?;
        match result.recv() {
            Ok(Ok(())) => Ok(Self { jobs }),
            Ok(Err(errno)) => Err(enter(errno.into())),
            Err(_) => Err(enter(thread_is_gone())),
        }
    }

    /// The namespace of a process.
    ///
    /// # Errors
    /// As [`NetNs::open`].
    pub fn of_pid(pid: u32) -> Result<Self, Error> {
        Self::open(&path_of_pid(pid))
    }

    /// Runs `job` in the namespace and waits for it. Sockets that it makes and
    /// processes that it starts stay in the namespace.
    ///
    /// # Errors
    /// When the thread is gone, because an earlier job panicked.
    pub fn run<T: Send + 'static>(
        &self,
        job: impl FnOnce() -> T + Send + 'static,
    ) -> io::Result<T> {
        let (done, result) = mpsc::channel();
        self.send(Box::new(move || drop(done.send(job()))))?;
        result.recv().map_err(|_| thread_is_gone())
    }

    /// As [`NetNs::run`], for async callers.
    ///
    /// # Errors
    /// As [`NetNs::run`].
    pub async fn run_async<T: Send + 'static>(
        &self,
        job: impl FnOnce() -> T + Send + 'static,
    ) -> io::Result<T> {
        let (done, result) = oneshot::channel();
        self.send(Box::new(move || drop(done.send(job()))))?;
        result.await.map_err(|_| thread_is_gone())
    }

    /// Connects to an address from inside the namespace.
    ///
    /// # Errors
    /// When the connection is refused or fails; there is no time limit.
    pub async fn connect(&self, address: SocketAddr) -> io::Result<TcpStream> {
        // A socket belongs to the namespace in which it was made.
        let socket = self
            .run_async(move || match address {
                SocketAddr::V4(_) => TcpSocket::new_v4(),
                SocketAddr::V6(_) => TcpSocket::new_v6(),
            })
            .await??;
        socket.connect(address).await
    }

    fn send(&self, job: Job) -> io::Result<()> {
        self.jobs.send(job).map_err(|_| thread_is_gone())
    }
}

/// Where the kernel shows the network namespace of a process.
pub fn path_of_pid(pid: u32) -> PathBuf {
    PathBuf::from(format!("/proc/{pid}/ns/net"))
}

fn thread_is_gone() -> io::Error {
    io::Error::other("the thread of the network namespace is gone")
}
