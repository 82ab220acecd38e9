//! Reads the API, for a command line on the node.

use std::{
    io::{self, Write},
    net::SocketAddr,
    time::Duration,
};

use axum::body::Body;
use http_body_util::BodyExt as _;
use hyper::{
    Request, Response, StatusCode,
    body::{Bytes, Incoming},
    client::conn::http1,
    header::HOST,
};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use thiserror::Error;
use tokio::{net::TcpStream, time::timeout};

use crate::{
    api::{Changed, Degraded, Removed, Status},
    table::Table,
};

/// A client of one node's API.
#[derive(Debug, Clone)]
pub struct Client {
    addr: SocketAddr,
}

/// How to print.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Output {
    /// The columns that matter most.
    #[default]
    Table,
    /// All columns.
    Wide,
    /// The API's own answer; while watching, its messages, one a line.
    Json,
}

/// A message of the stream.
#[derive(Debug, Clone, PartialEq)]
pub enum Message {
    /// Everything. Replaces whatever was told before.
    Snapshot(Box<Status>),
    /// A container is new or different.
    Change(Box<Changed>),
    /// A container is gone.
    Removed(Removed),
    /// Everything that is wrong, anew.
    Degraded(Vec<Degraded>),
}

/// Why the API cannot be read.
#[derive(Debug, Error)]
pub enum Error {
    /// Nobody answers there.
    #[error("cannot connect to {addr}: is the manager running, with this -status-addr?")]
    Connect {
        /// The address.
        addr: SocketAddr,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The other side is slow, or hung.
    #[error("{addr} did not answer within {deadline:?}")]
    Deadline {
        /// The address.
        addr: SocketAddr,
        /// The time it had.
        deadline: Duration,
    },
    /// The connection broke.
    #[error("the connection to {addr} failed")]
    Http {
        /// The address.
        addr: SocketAddr,
        /// Why it failed.
        #[source]
        source: hyper::Error,
    },
    /// The other side is not this API.
    #[error("{addr} answered {path} with {status}")]
    Refused {
        /// The address.
        addr: SocketAddr,
        /// What was asked.
        path: &'static str,
        /// The answer.
        status: StatusCode,
    },
    /// The other side speaks another language.
    #[error("cannot understand what {addr} answered")]
    Malformed {
        /// The address.
        addr: SocketAddr,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
    /// One message is larger than a whole node's would be.
    #[error("{addr} sent a message of more than {MAX_MESSAGE} bytes")]
    TooLong {
        /// The address.
        addr: SocketAddr,
    },
    /// The stream ended: the manager stops.
    #[error("{addr} ended the stream")]
    Ended {
        /// The address.
        addr: SocketAddr,
    },
    /// The result cannot be written.
    #[error("cannot write the status")]
    Write(#[source] io::Error),
}

/// For an answer, and for the next message of a stream, which beats every ten
/// seconds.
const DEADLINE: Duration = Duration::from_secs(35);
/// Bytes of one message: some ten thousand containers.
const MAX_MESSAGE: usize = 16 << 20;

impl Client {
    /// A client that connects to `addr` for each call.
    pub fn new(addr: SocketAddr) -> Self {
        Self { addr }
    }

    /// Asks for everything, once.
    pub async fn status(&self) -> Result<Status, Error> {
        let mut response = self.get("/api/v1/containers").await?.into_body();
        let mut text = Vec::new();
        while let Some(bytes) = self.chunk(&mut response).await? {
            text.extend_from_slice(&bytes);
            if text.len() > MAX_MESSAGE {
                return Err(Error::TooLong { addr: self.addr });
            }
        }
        self.parse(&text)
    }

    /// Follows the stream.
    pub async fn follow(&self) -> Result<Follow, Error> {
        let body = self.get("/api/v1/stream").await?.into_body();
        Ok(Follow { client: self.clone(), body, buffer: Vec::new() })
    }

    async fn get(&self, path: &'static str) -> Result<Response<Incoming>, Error> {
        let addr = self.addr;
        let http = |source| Error::Http { addr, source };
        let answered = async {
            let stream =
                TcpStream::connect(addr).await.map_err(|source| Error::Connect { addr, source })?;
            let (mut requests, connection) =
                http1::handshake(TokioIo::new(stream)).await.map_err(http)?;
            // Ends with the response; its error reaches the body as well.
            tokio::spawn(connection);
            let mut request = Request::new(Body::empty());
            *request.uri_mut() = path.parse().unwrap_or_default();
            if let Ok(host) = addr.to_string().parse() {
                request.headers_mut().insert(HOST, host);
            }
            requests.send_request(request).await.map_err(http)
        };
        let response = self.in_time(answered).await??;
        match response.status() {
            StatusCode::OK => Ok(response),
            status => Err(Error::Refused { addr, path, status }),
        }
    }

    async fn chunk(&self, body: &mut Incoming) -> Result<Option<Bytes>, Error> {
        while let Some(frame) = self.in_time(body.frame()).await? {
            let frame = frame.map_err(|source| Error::Http { addr: self.addr, source })?;
            if let Ok(bytes) = frame.into_data() {
                return Ok(Some(bytes));
            }
        }
        Ok(None)
    }

    async fn in_time<T>(&self, what: impl Future<Output = T>) -> Result<T, Error> {
        timeout(DEADLINE, what)
            .await
            .map_err(|_elapsed| Error::Deadline { addr: self.addr, deadline: DEADLINE })
    }

    fn parse<T: DeserializeOwned>(&self, text: &[u8]) -> Result<T, Error> {
        serde_json::from_slice(text).map_err(|source| Error::Malformed { addr: self.addr, source })
    }
}

/// A stream of messages, the first one a snapshot.
#[derive(Debug)]
pub struct Follow {
    client: Client,
    body: Incoming,
    buffer: Vec<u8>,
}

impl Follow {
    /// The next message.
    ///
    /// # Errors
    /// When the stream ends or fails: it then has to be followed anew.
    pub async fn next(&mut self) -> Result<Message, Error> {
        Ok(self.next_raw().await?.0)
    }

    /// The next message, with its name and its JSON.
    async fn next_raw(&mut self) -> Result<(Message, String, String), Error> {
        let addr = self.client.addr;
        loop {
            while let Some((event, data)) = self.take_event() {
                let text = data.as_bytes();
                let message = match event.as_str() {
                    "snapshot" => Message::Snapshot(self.client.parse(text)?),
                    "change" => Message::Change(self.client.parse(text)?),
                    "removed" => Message::Removed(self.client.parse(text)?),
                    "degraded" => Message::Degraded(self.client.parse(text)?),
                    // Beats, and what a later version may add.
                    _ => continue,
                };
                return Ok((message, event, data));
            }
            if self.buffer.len() > MAX_MESSAGE {
                return Err(Error::TooLong { addr });
            }
            match self.client.chunk(&mut self.body).await? {
                Some(bytes) => self.buffer.extend_from_slice(&bytes),
                None => return Err(Error::Ended { addr }),
            }
        }
    }

    /// Takes one event of the buffer, in the form that the server gives it:
    /// lines that end in `\n`, one for the data.
    fn take_event(&mut self) -> Option<(String, String)> {
        let end = self.buffer.windows(2).position(|two| two == b"\n\n")?;
        let rest = self.buffer.split_off(end + 2);
        let event = std::mem::replace(&mut self.buffer, rest);
        let text = String::from_utf8_lossy(&event);
        let field = |name: &str| {
            let value = |line: &str| Some(line.strip_prefix(name)?.trim_start().to_owned());
            text.lines().find_map(value).unwrap_or_default()
        };
        Some((field("event:"), field("data:")))
    }
}

/// Prints everything once.
pub async fn print_status(
    client: &Client,
    output: Output,
    to: &mut impl Write,
) -> Result<(), Error> {
    let status = client.status().await?;
    let text = match output {
        Output::Json => {
            serde_json::to_string_pretty(&status)
                .map_err(|source| Error::Malformed { addr: client.addr, source })?
                + "\n"
        }
        Output::Table | Output::Wide => Table::new(output, &status).whole(&status),
    };
    write(to, &text)
}

/// Prints everything, then a line for each change, until the stream ends.
pub async fn watch_status(
    client: &Client,
    output: Output,
    to: &mut impl Write,
) -> Result<(), Error> {
    let mut follow = client.follow().await?;
    let mut table = None;
    loop {
        let (message, event, data) = follow.next_raw().await?;
        let text = match (output, message) {
            (Output::Json, _) => format!("{{\"event\":\"{event}\",\"data\":{data}}}\n"),
            (_, Message::Snapshot(status)) => {
                table.insert(Table::new(output, &status)).whole(&status)
            }
            (_, message) => table.as_mut().map(|table| table.news(&message)).unwrap_or_default(),
        };
        write(to, &text)?;
    }
}

fn write(to: &mut impl Write, text: &str) -> Result<(), Error> {
    to.write_all(text.as_bytes()).and_then(|()| to.flush()).map_err(Error::Write)
}
