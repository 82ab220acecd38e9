//! The metrics endpoint.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
};

use axum::{
    Router,
    extract::State,
    http::{
        HeaderMap, HeaderValue,
        header::{ACCEPT, ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_TYPE},
    },
    response::IntoResponse,
    routing,
};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use zeropod_metrics_aggregator::Aggregator;

use crate::args::ListenAddr;

/// Listens on an address. Without a host on every address of both families, or
/// of IPv4 alone on a machine without IPv6.
///
/// # Errors
/// When the host has no address, or no address can be listened on.
pub(crate) async fn listen(addr: &ListenAddr) -> io::Result<TcpListener> {
    let ListenAddr { host, port } = addr;
    if let Some(host) = host {
        return TcpListener::bind((host.as_str(), *port)).await;
    }
    match TcpListener::bind(SocketAddr::from((Ipv6Addr::UNSPECIFIED, *port))).await {
        Ok(listener) => Ok(listener),
        Err(_) => TcpListener::bind((Ipv4Addr::UNSPECIFIED, *port)).await,
    }
}

/// Serves `GET /metrics` from what the aggregator knows.
///
/// # Errors
/// When the listener fails for good.
pub(crate) async fn serve(
    listener: TcpListener,
    aggregator: Aggregator,
    shutdown: CancellationToken,
) -> io::Result<()> {
    let router = Router::new().route("/metrics", routing::get(metrics)).with_state(aggregator);
    axum::serve(listener, router).with_graceful_shutdown(shutdown.cancelled_owned()).await
}

async fn metrics(State(aggregator): State<Aggregator>, request: HeaderMap) -> impl IntoResponse {
    let header = |name| request.get(name).and_then(|value| value.to_str().ok());
    let page = aggregator.respond(header(ACCEPT), header(ACCEPT_ENCODING));
    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(page.content_type));
    if let Some(encoding) = page.content_encoding {
        headers.insert(CONTENT_ENCODING, HeaderValue::from_static(encoding));
    }
    (headers, page.body)
}
