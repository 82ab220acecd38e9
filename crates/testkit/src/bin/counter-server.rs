//! `counter-server [PORT]`: an HTTP server whose only state is in memory, so
//! that its answers tell a restored process from a fresh one.
//!
//! `GET /` answers `count=N pid=P started=T`: requests so far with this one,
//! process id, and start in seconds since the Unix epoch.

use std::{
    env,
    io::{self, BufRead, BufReader, Write},
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    process,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{SystemTime, UNIX_EPOCH},
};

fn main() -> io::Result<()> {
    let port = match env::args().nth(1) {
        None => 8080,
        Some(port) => port.parse().map_err(|error| {
            io::Error::new(io::ErrorKind::InvalidInput, format!("port {port:?}: {error}"))
        })?,
    };
    let started = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let count = Arc::new(AtomicU64::new(0));
    for connection in listen(port)?.incoming() {
        // A connection that dies, as on a checkpoint with `tcp-close`, is
        // nothing to the others.
        let Ok(connection) = connection else { continue };
        let count = Arc::clone(&count);
        thread::spawn(move || serve(&connection, &count, started));
    }
    Ok(())
}

/// Listens on IPv6 and IPv4, or on IPv4 alone where IPv6 is off.
fn listen(port: u16) -> io::Result<TcpListener> {
    TcpListener::bind(SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)))
        .or_else(|_| TcpListener::bind(SocketAddr::from((Ipv4Addr::UNSPECIFIED, port))))
}

fn serve(connection: &TcpStream, count: &AtomicU64, started: u64) -> io::Result<()> {
    let mut reader = BufReader::new(connection);
    while let Some(close) = read_request(&mut reader)? {
        let count = count.fetch_add(1, Ordering::Relaxed) + 1;
        let body = format!("count={count} pid={} started={started}\n", process::id());
        let connection_header = if close { "close" } else { "keep-alive" };
        let mut writer = connection;
        write!(
            writer,
            "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {}\r\n\
             Connection: {connection_header}\r\n\r\n{body}",
            body.len()
        )?;
        if close {
            break;
        }
    }
    Ok(())
}

/// Reads the head of a request; requests here have no body. `None` at the end
/// of the connection, else whether the client wants it closed afterwards.
fn read_request(reader: &mut impl BufRead) -> io::Result<Option<bool>> {
    let mut request = String::new();
    if reader.read_line(&mut request)? == 0 {
        return Ok(None);
    }
    let mut close = request.trim_end().ends_with("HTTP/1.0");
    loop {
        let mut header = String::new();
        if reader.read_line(&mut header)? == 0 {
            return Ok(None);
        }
        let header = header.trim_end().to_ascii_lowercase();
        if header.is_empty() {
            return Ok(Some(close));
        }
        close |= header.strip_prefix("connection:").is_some_and(|value| value.trim() == "close");
    }
}
