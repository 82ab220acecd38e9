//! The activator: takes connections while a container is scaled down, has it
//! woken, and passes them on. Its other side is the redirector, which lets
//! packets to a port go to the activator or past it.
//!
//! What it does with the redirector's maps is the contract that every zeropod
//! shim keeps:
//!
//! - at start, per port: `socket_tracker[port] = 0`, `disable_redirect[port] =
//!   1`, a listener on any port inside the pod, `ingress_redirects[port] =
//!   proxy` and `egress_redirects[proxy] = port`;
//! - [`Activator::redirect`]`(true)` before a scale-down removes
//!   `disable_redirect[port]`;
//! - a connection that is no probe sets `active_connections[client port]`, so
//!   that it stays redirected when, after the wake-up, `disable_redirect[port]`
//!   is set again; then it is proxied, and the entry removed.
//!
//! Entries stay when the activator stops; one that starts later in the same
//! sandbox writes over them.

mod maps;
mod probe;
mod proxy;

use std::{
    fmt, io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use tokio::{net::TcpListener, task::JoinSet, time::sleep};

use self::maps::Maps;
use super::{Error, netns::NetNs};

/// Error of a wake-up; it goes to the observer, the client just loses its
/// connection.
pub type WakeError = Box<dyn std::error::Error + Send + Sync>;

/// What an activator works on.
#[derive(Clone)]
pub struct ActivatorConfig {
    /// Directory of the sandbox's pinned maps.
    pub maps: PathBuf,
    /// Path of the sandbox's network namespace.
    pub netns: PathBuf,
    /// Ports of the application.
    pub ports: Vec<u16>,
    /// How long a woken application may take to listen.
    pub connect_timeout: Duration,
    /// How long a connection is proxied at most.
    pub proxy_timeout: Duration,
    /// Whether the kubelet's probes are answered without waking.
    pub probe_detection: bool,
    /// Bytes of a connection in which a probe is looked for.
    pub probe_buffer_size: usize,
    /// Longest pause between two looks for the maps; the first is 100 ms.
    pub longest_retry: Duration,
    /// Is told what happens to connections.
    pub observer: Arc<dyn Fn(&Activity) + Send + Sync>,
}

impl ActivatorConfig {
    /// With the defaults of zeropod's annotations.
    pub fn new(maps: PathBuf, netns: PathBuf, ports: Vec<u16>) -> Self {
        Self {
            maps,
            netns,
            ports,
            connect_timeout: Duration::from_secs(5),
            proxy_timeout: Duration::from_secs(5),
            probe_detection: true,
            probe_buffer_size: 1024,
            longest_retry: Duration::from_mins(5),
            observer: Arc::new(|_| ()),
        }
    }
}

impl fmt::Debug for ActivatorConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ActivatorConfig")
            .field("maps", &self.maps)
            .field("ports", &self.ports)
            .finish_non_exhaustive()
    }
}

/// What happens to a redirected connection.
#[derive(Debug)]
pub enum Activity {
    /// A probe was answered.
    Probe(SocketAddr),
    /// It was closed before it said anything.
    Empty(SocketAddr),
    /// It is traffic and wakes the application.
    Connection(SocketAddr),
    /// It was passed on and has ended.
    Proxied(SocketAddr),
    /// It was closed without having been served in full.
    Failed(SocketAddr, WakeError),
}

/// A running activator. Dropping it closes its listeners and connections.
#[derive(Debug)]
pub struct Activator {
    shared: Arc<Shared>,
    proxies: Vec<(u16, u16)>,
    _listening: JoinSet<()>,
}

#[derive(Debug)]
struct Shared {
    config: ActivatorConfig,
    maps: Maps,
    netns: NetNs,
}

impl Activator {
    /// Waits for a redirector to be attached and starts. `wake` brings the
    /// application up and returns when it runs, at once if it does already; it
    /// is called for each connection.
    ///
    /// # Errors
    /// When the maps do not fit, or nothing can listen in the sandbox.
    pub async fn start<W, F>(config: ActivatorConfig, wake: W) -> Result<Self, Error>
    where
        W: Fn() -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Result<(), WakeError>> + Send + 'static,
    {
        let mut pause = Duration::from_millis(100);
        loop {
            if let Some(activator) = Self::try_start(config.clone(), wake.clone()).await? {
                return Ok(activator);
            }
            sleep(pause).await;
            pause = (pause * 2).min(config.longest_retry);
        }
    }

    /// Starts if a redirector is attached.
    ///
    /// # Errors
    /// As [`Activator::start`].
    pub async fn try_start<W, F>(config: ActivatorConfig, wake: W) -> Result<Option<Self>, Error>
    where
        W: Fn() -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Result<(), WakeError>> + Send + 'static,
    {
        let Some(maps) = Maps::open(&config.maps)? else { return Ok(None) };
        let netns = NetNs::open(&config.netns)?;
        let shared = Arc::new(Shared { config, maps, netns });
        let mut listening = JoinSet::new();
        let mut proxies = Vec::new();
        for &port in &shared.config.ports {
            shared.maps.register(port)?;
            let listener = shared.listen().await?;
            let proxy =
                listener.local_addr().map_err(Error::io("listen in", &shared.config.netns))?.port();
            shared.maps.set_proxy(port, proxy)?;
            proxies.push((port, proxy));
            listening.spawn(proxy::accept(listener, port, Arc::clone(&shared), wake.clone()));
        }
        Ok(Some(Self { shared, proxies, _listening: listening }))
    }

    /// Application ports with the ports that they are redirected to.
    pub fn proxies(&self) -> &[(u16, u16)] {
        &self.proxies
    }

    /// Sends new connections here, or past here to the application.
    ///
    /// # Errors
    /// When a map cannot be written.
    pub fn redirect(&self, on: bool) -> Result<(), Error> {
        self.shared.redirect(on)
    }

    /// Returns once no packet has come for `after` on any port, at the
    /// earliest after that time.
    ///
    /// # Errors
    /// When a map cannot be read.
    pub async fn idle(&self, after: Duration) -> Result<(), Error> {
        let mut rest = after;
        while !rest.is_zero() {
            sleep(rest).await;
            rest = Duration::ZERO;
            for &port in &self.shared.config.ports {
                if let Some(since) = self.shared.maps.since_activity(port)? {
                    rest = rest.max(after.saturating_sub(since));
                }
            }
        }
        Ok(())
    }
}

impl Shared {
    fn redirect(&self, on: bool) -> Result<(), Error> {
        self.config.ports.iter().try_for_each(|port| self.maps.redirect(*port, on))
    }

    async fn listen(&self) -> Result<TcpListener, Error> {
        // On both families where there are both.
        let listen = || -> io::Result<_> {
            let any = SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0));
            let ipv4 = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
            let bind = std::net::TcpListener::bind;
            let listener = bind(any).or_else(|_| bind(ipv4))?;
            listener.set_nonblocking(true)?;
            Ok(listener)
        };
        self.netns
            .run_async(listen)
            .await
            .and_then(|listener| TcpListener::from_std(listener?))
            .map_err(Error::io("listen in", &self.config.netns))
    }
}
