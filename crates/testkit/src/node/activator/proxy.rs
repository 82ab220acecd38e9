//! What becomes of one redirected connection.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional},
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::{Instant, sleep, timeout},
};

use super::{
    Activity, Shared, WakeError,
    probe::{self, Verdict},
};

/// As many as `active_connections` has entries; more wait in the backlog.
const MAX_CONNECTIONS: usize = 512;

/// How long a client may stay silent before it counts as traffic: it may be
/// waiting for the server to speak first.
const SILENCE: Duration = Duration::from_secs(1);

pub(super) async fn accept<W, F>(listener: TcpListener, port: u16, shared: Arc<Shared>, wake: W)
where
    W: Fn() -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Result<(), WakeError>> + Send + 'static,
{
    let mut connections = JoinSet::new();
    loop {
        if connections.len() >= MAX_CONNECTIONS {
            connections.join_next().await;
        }
        while connections.try_join_next().is_some() {}
        match listener.accept().await {
            Ok((connection, peer)) => {
                let (shared, wake) = (Arc::clone(&shared), wake.clone());
                connections.spawn(async move {
                    let result = serve(connection, peer, port, &shared, wake).await;
                    let activity = result.unwrap_or_else(|error| Activity::Failed(peer, error));
                    (shared.config.observer)(&activity);
                });
            }
            // Out of files, or a client that gave up: the next may do better.
            Err(_) => sleep(Duration::from_millis(10)).await,
        }
    }
}

async fn serve<W, F>(
    mut client: TcpStream,
    peer: SocketAddr,
    port: u16,
    shared: &Shared,
    wake: W,
) -> Result<Activity, WakeError>
where
    W: Fn() -> F,
    F: Future<Output = Result<(), WakeError>>,
{
    let mut first = Vec::new();
    if shared.config.probe_detection {
        match filter(&mut client, shared.config.probe_buffer_size, &mut first).await? {
            Filtered::Empty => return Ok(Activity::Empty(peer)),
            Filtered::Probe => {
                client.write_all(probe::ANSWER).await?;
                return Ok(Activity::Probe(peer));
            }
            Filtered::Traffic => {}
        }
    }
    (shared.config.observer)(&Activity::Connection(peer));
    shared.maps.connection_begins(peer.port())?;
    let proxied = async {
        wake().await?;
        shared.redirect(false)?;
        let mut server = dial(shared, port).await?;
        let proxied = async {
            server.write_all(&first).await?;
            copy_bidirectional(&mut client, &mut server).await
        };
        timeout(shared.config.proxy_timeout, proxied).await??;
        Ok(Activity::Proxied(peer))
    };
    let result = proxied.await;
    shared.maps.connection_ends(peer.port())?;
    result
}

enum Filtered {
    Empty,
    Probe,
    Traffic,
}

/// Reads into `first` until it is clear what the connection is.
async fn filter(client: &mut TcpStream, limit: usize, first: &mut Vec<u8>) -> io::Result<Filtered> {
    loop {
        let Ok(read) = timeout(SILENCE, client.read_buf(first)).await else {
            return Ok(Filtered::Traffic);
        };
        if read? == 0 {
            return Ok(if first.is_empty() { Filtered::Empty } else { Filtered::Traffic });
        }
        match probe::classify(first, limit) {
            Verdict::Unclear => {}
            Verdict::Probe => return Ok(Filtered::Probe),
            Verdict::Traffic => return Ok(Filtered::Traffic),
        }
    }
}

/// Connects to the application from inside the sandbox, as soon as it listens.
async fn dial(shared: &Shared, port: u16) -> io::Result<TcpStream> {
    let deadline = Instant::now() + shared.config.connect_timeout;
    let loopback = [IpAddr::from(Ipv4Addr::LOCALHOST), IpAddr::from(Ipv6Addr::LOCALHOST)];
    loop {
        let mut last = None;
        for address in loopback {
            match shared.netns.connect((address, port).into()).await {
                Ok(server) => return Ok(server),
                Err(error) => last = Some(error),
            }
        }
        if Instant::now() >= deadline {
            return Err(last.unwrap_or_else(|| io::ErrorKind::TimedOut.into()));
        }
        sleep(Duration::from_millis(1)).await;
    }
}
