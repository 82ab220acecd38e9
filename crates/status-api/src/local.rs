//! What only the node itself may ask: the JSON API, its stream and the page.

use std::{
    convert::Infallible,
    net::{Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use axum::{
    Extension, Json, Router,
    extract::{Request, State},
    http::{HeaderValue, StatusCode, header},
    middleware::{self, Next},
    response::{Html, IntoResponse, Response, Sse, sse::Event},
    routing::get,
};
use futures_util::{Stream, stream};
use tokio::{
    sync::broadcast::{self, error::RecvError},
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;

use crate::{
    Board, Peer,
    api::{Beat, Status, now},
    board::Message,
    page::PAGE,
};

/// Longest silence of the stream: a client that hears nothing for some of
/// these has lost its connection. Not a comment, which browsers hide from the
/// page.
const BEAT: Duration = Duration::from_secs(10);

/// Routes for the page `/`, `/api/v1/containers` and `/api/v1/stream`; to be
/// served by [`crate::serve`]. Streams end at `shutdown`.
///
/// There is no password, so it should listen on loopback, where it answers
/// only requests that were meant for it: their `Host` must be an address or
/// `localhost`. Otherwise any web page could make its own name point here and
/// have a browser on this machine read everything.
pub fn local(board: Board, shutdown: CancellationToken) -> Router {
    Router::new()
        .route("/", get(page))
        .route("/api/v1/containers", get(containers))
        .route("/api/v1/stream", get(stream))
        .layer(middleware::from_fn(guard))
        .with_state(Local { board, shutdown })
}

#[derive(Clone)]
struct Local {
    board: Board,
    shutdown: CancellationToken,
}

async fn page() -> impl IntoResponse {
    ([(header::CONTENT_SECURITY_POLICY, PAGE.policy.as_str())], Html(PAGE.html.as_str()))
}

async fn containers(State(local): State<Local>) -> Json<Status> {
    Json(local.board.status())
}

async fn stream(
    State(Local { board, shutdown }): State<Local>,
) -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
    let following = Following { board, shutdown, messages: None };
    Sse::new(stream::unfold(following, async |mut following| {
        let Message { event, data } = following.next().await?;
        Some((Ok(Event::default().event(event).data(&*data)), following))
    }))
}

/// One client of the stream. While the client does not read, nobody calls
/// [`next`](Self::next), and what waits for it is bounded by the board.
struct Following {
    board: Board,
    shutdown: CancellationToken,
    messages: Option<broadcast::Receiver<Message>>,
}

impl Following {
    /// The next message; `None` at shutdown.
    async fn next(&mut self) -> Option<Message> {
        let Some(messages) = &mut self.messages else { return Some(self.start()) };
        tokio::select! {
            () = self.shutdown.cancelled() => None,
            message = messages.recv() => match message {
                Ok(message) => Some(message),
                Err(RecvError::Lagged(_)) => Some(self.start()),
                Err(RecvError::Closed) => None,
            },
            () = sleep_until(Instant::now() + BEAT) => {
                Some(Message::new("beat", &Beat { at: now() }))
            }
        }
    }

    fn start(&mut self) -> Message {
        let (snapshot, messages) = self.board.follow();
        self.messages = Some(messages);
        snapshot
    }
}

/// Refuses requests that were meant for another host, and tells browsers to
/// keep the answers to themselves.
async fn guard(Extension(peer): Extension<Peer>, request: Request, next: Next) -> Response {
    let host = request.headers().get(header::HOST).and_then(|host| host.to_str().ok());
    if peer.local.ip().is_loopback() && !host.is_some_and(is_this_machine) {
        let message = "this address serves only localhost\n";
        return (StatusCode::MISDIRECTED_REQUEST, message).into_response();
    }
    let mut response = next.run(request).await;
    let headers = response.headers_mut();
    for (name, value) in [
        (header::CACHE_CONTROL, "no-store"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}

/// Whether a `Host` header is an address, or the name of the machine itself.
fn is_this_machine(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        // The colons of an IPv6 address are in brackets.
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    let v6 = name.strip_prefix('[').and_then(|name| name.strip_suffix(']'));
    name.eq_ignore_ascii_case("localhost")
        || name.parse::<Ipv4Addr>().is_ok()
        || v6.is_some_and(|name| name.parse::<Ipv6Addr>().is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_and_localhost_are_this_machine() {
        for host in
            ["localhost", "localhost:8091", "LOCALHOST", "127.0.0.1:80", "[::1]:8091", "[::1]"]
        {
            assert!(is_this_machine(host), "{host}");
        }
        for host in [
            "",
            "evil.example",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "x@localhost",
            ":80",
        ] {
            assert!(!is_this_machine(host), "{host}");
        }
    }
}
