//! One HTTP request on one connection of its own, so that each request is a
//! new connection to the sandbox.

use std::{
    io,
    net::SocketAddr,
    time::{Duration, Instant},
};

use http_body_util::{BodyExt as _, Empty};
use hyper::{Request, body::Bytes, client::conn::http1};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpStream, time::timeout};

use super::NodeError;

/// Longest wait for an answer; waking a container takes well under a second.
const DEADLINE: Duration = Duration::from_secs(20);

/// What a server answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// HTTP status code.
    pub status: u16,
    /// The body as text.
    pub body: String,
    /// From the first packet of the connection to the last byte of the answer.
    pub took: Duration,
}

/// Sends `GET path` over a new connection.
///
/// # Errors
/// When there is no answer within 20 s.
pub async fn get(addr: SocketAddr, path: &str) -> Result<Answer, NodeError> {
    let failed = |source| NodeError::Http { addr: addr.to_string(), source };
    let start = Instant::now();
    let exchange = async {
        let stream = TcpStream::connect(addr).await?;
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
        let connection = tokio::spawn(connection);
        let request = Request::get(path)
            .header("host", addr.to_string())
            .header("connection", "close")
            .body(Empty::<Bytes>::new())
            .map_err(io::Error::other)?;
        let answer = sender.send_request(request).await.map_err(io::Error::other)?;
        let status = answer.status().as_u16();
        let body = answer.into_body().collect().await.map_err(io::Error::other)?.to_bytes();
        // An error here came too late to matter: the answer is whole.
        let _ = connection.await;
        Ok((status, String::from_utf8_lossy(&body).into_owned()))
    };
    match timeout(DEADLINE, exchange).await {
        Ok(Ok((status, body))) => Ok(Answer { status, body, took: start.elapsed() }),
        Ok(Err(source)) => Err(failed(source)),
        Err(_) => Err(failed(io::ErrorKind::TimedOut.into())),
    }
}
