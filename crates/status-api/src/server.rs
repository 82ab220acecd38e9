//! An HTTP server that no client can exhaust: every connection has limits, and
//! so has their number, for all and for each peer.

use std::{
    collections::HashMap,
    convert::Infallible,
    net::{IpAddr, SocketAddr},
    pin::pin,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::{
    Router,
    http::StatusCode,
    response::{IntoResponse as _, Response},
};
use hyper::{
    Request,
    body::Incoming,
    server::conn::http1,
    service::{Service as _, service_fn},
};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use metrics::{Unit, counter, describe_counter};
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::deadline::WriteDeadline;

/// What clients may do.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Connections at the same time.
    pub connections: usize,
    /// Connections at the same time from one address, so that one peer cannot
    /// take all of them.
    pub connections_per_peer: usize,
    /// Longest wait for the head of a request, so also for the next request on
    /// a connection.
    pub head_timeout: Duration,
    /// Longest wait for the head of a response.
    pub response_timeout: Duration,
    /// Longest wait for a client to take more of a response.
    pub write_timeout: Duration,
    /// Largest head of a request, in bytes.
    pub head_bytes: usize,
    /// Most headers in a request.
    pub headers: usize,
    /// How long connections may go on after the shutdown.
    pub grace: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 128,
            connections_per_peer: 32,
            head_timeout: Duration::from_secs(10),
            response_timeout: Duration::from_secs(10),
            write_timeout: Duration::from_secs(30),
            head_bytes: 16 * 1024,
            headers: 64,
            grace: Duration::from_secs(2),
        }
    }
}

/// Both ends of the connection that a request came by, in its extensions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    /// The client.
    pub remote: SocketAddr,
    /// The address that it reached.
    pub local: SocketAddr,
}

const REFUSED: &str = "zeropod_http_connections_refused_total";

/// Registers the descriptions of the crate's metrics with the recorder in
/// force.
pub fn describe_metrics() {
    describe_counter!(
        REFUSED,
        Unit::Count,
        "Connections closed unanswered, by server and limit: all (too many connections) or peer \
         (too many of one address)."
    );
}

/// Serves `router` until `shutdown`, then lets connections finish within their
/// grace. `name` is the server's in logs and metrics. A listener that fails,
/// for want of file descriptors say, is tried again.
pub async fn serve(
    name: &'static str,
    listener: TcpListener,
    router: Router,
    limits: Limits,
    shutdown: CancellationToken,
) {
    let limits = Arc::new(limits);
    let places = Places::default();
    let mut connections = JoinSet::new();
    loop {
        // Ended ones are forgotten as others come.
        while connections.try_join_next().is_some() {}
        let Some(accepted) = shutdown.run_until_cancelled(listener.accept()).await else { break };
        let (stream, remote) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                warn!(server = name, %error, "Cannot accept a connection");
                sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let Ok(local) = stream.local_addr() else { continue };
        let peer = Peer { remote: canonical(remote), local: canonical(local) };
        match places.take(peer.remote.ip(), &limits) {
            Ok(place) => {
                let (router, limits) = (router.clone(), Arc::clone(&limits));
                let shutdown = shutdown.clone();
                connections.spawn(async move {
                    let _place = place;
                    connection(stream, peer, router, &limits, shutdown).await;
                });
            }
            Err(limit) => {
                counter!(REFUSED, "server" => name, "limit" => limit).increment(1);
                debug!(server = name, peer = %peer.remote, limit, "Refused a connection");
            }
        }
    }
    drop(listener);
    let finished = async { while connections.join_next().await.is_some() {} };
    if timeout(limits.grace, finished).await.is_err() {
        debug!(server = name, "Closing connections that are still in use");
    }
}

async fn connection(
    stream: TcpStream,
    peer: Peer,
    router: Router,
    limits: &Limits,
    shutdown: CancellationToken,
) {
    // Small answers and stream messages should not wait for an acknowledgement.
    let _ = stream.set_nodelay(true);
    let router = TowerToHyperService::new(router);
    let service = service_fn(|mut request: Request<Incoming>| {
        request.extensions_mut().insert(peer);
        let answered = timeout(limits.response_timeout, router.call(request));
        async {
            Ok::<Response, Infallible>(match answered.await {
                Ok(Ok(response)) => response,
                Err(_elapsed) => StatusCode::SERVICE_UNAVAILABLE.into_response(),
            })
        }
    });
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(limits.head_timeout)
        .max_header_size(limits.head_bytes)
        .max_headers(limits.headers);
    let stream = TokioIo::new(WriteDeadline::new(stream, limits.write_timeout));
    let mut connection = pin!(builder.serve_connection(stream, service));
    let ended = tokio::select! {
        ended = &mut connection => ended,
        () = shutdown.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        debug!(peer = %peer.remote, %error, "A connection failed");
    }
}

/// The connections that are open, by peer.
#[derive(Debug, Clone, Default)]
struct Places(Arc<Mutex<HashMap<IpAddr, usize>>>);

impl Places {
    /// A place for one more connection, or the limit that forbids it.
    fn take(&self, peer: IpAddr, limits: &Limits) -> Result<Place, &'static str> {
        let mut open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if open.values().sum::<usize>() >= limits.connections {
            return Err("all");
        }
        let of_peer = open.get(&peer).copied().unwrap_or_default();
        if of_peer >= limits.connections_per_peer {
            return Err("peer");
        }
        open.insert(peer, of_peer + 1);
        Ok(Place { peer, places: self.clone() })
    }
}

/// Of one connection, until it is dropped.
#[derive(Debug)]
struct Place {
    peer: IpAddr,
    places: Places,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = self.places.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(of_peer) = open.get_mut(&self.peer) {
            *of_peer -= 1;
            if *of_peer == 0 {
                open.remove(&self.peer);
            }
        }
    }
}

/// Without the IPv6 clothes that IPv4 wears on a socket of both families.
fn canonical(addr: SocketAddr) -> SocketAddr {
    SocketAddr::new(addr.ip().to_canonical(), addr.port())
}
