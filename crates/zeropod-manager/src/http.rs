//! Where the HTTP servers listen, and what the public one answers.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
};

use axum::{
    Router,
    http::{
        HeaderMap, HeaderValue,
        header::{ACCEPT, ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_TYPE},
    },
    response::{IntoResponse as _, Response},
};
use tokio::net::TcpListener;
use zeropod_metrics_aggregator::Aggregator;
use zeropod_status_api::{Board, Liveness, Public, public};

use crate::{args::ListenAddr, kubelet::Learner};

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

/// What the pod network may ask. Metrics are answered from what the aggregator
/// knows.
pub(crate) fn routes(
    aggregator: Aggregator,
    board: Board,
    liveness: Liveness,
    kubelet: Learner,
) -> Router {
    public(Public {
        liveness,
        board,
        metrics: Arc::new(move |request| metrics(&aggregator, request)),
        probed: Arc::new(move |peer, program| kubelet.probed(peer, program)),
    })
}

fn metrics(aggregator: &Aggregator, request: &HeaderMap) -> Response {
    let header = |name| request.get(name).and_then(|value| value.to_str().ok());
    let page = aggregator.respond(header(ACCEPT), header(ACCEPT_ENCODING));
    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(page.content_type));
    if let Some(encoding) = page.content_encoding {
        headers.insert(CONTENT_ENCODING, HeaderValue::from_static(encoding));
    }
    (headers, page.body).into_response()
}
