//! X5: clients that are slow, greedy or many cannot hold the server up.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use std::time::Duration;

use axum::{Router, body::Body, routing::get};
use common::{ANY, PATIENCE, Running, eventually, raw};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};
use zeropod_status_api::Limits;

fn routes() -> Router {
    let endless = || async {
        Body::from_stream(futures_util::stream::repeat_with(|| {
            Ok::<_, std::io::Error>(vec![0; 65_536])
        }))
    };
    Router::new()
        .route("/", get(|| async { "hello" }))
        .route("/hangs", get(std::future::pending::<()>))
        .route("/endless", get(endless))
}

fn short() -> Limits {
    let short = Duration::from_millis(200);
    Limits {
        head_timeout: short,
        response_timeout: short,
        write_timeout: short,
        ..Limits::default()
    }
}

async fn start(limits: Limits) -> Running {
    Running::start(ANY, limits, |_| routes()).await
}

/// Reads until the server closes.
async fn closed(stream: &mut TcpStream) -> String {
    let mut text = Vec::new();
    let mut bytes = [0; 1024];
    let all = async {
        while let Ok(read @ 1..) = stream.read(&mut bytes).await {
            text.extend_from_slice(&bytes[..read]);
        }
    };
    timeout(PATIENCE, all).await.expect("the server closes");
    String::from_utf8_lossy(&text).into_owned()
}

#[tokio::test]
async fn slowloris_is_cut_off() {
    let server = start(short()).await;
    let mut slow = TcpStream::connect(server.addr).await.unwrap();
    slow.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nX-One: ").await.unwrap();
    let (mut reads, mut writes) = slow.split();
    let drip = async {
        // One byte at a time never ends the head, and does not win time.
        while writes.write_all(b"x").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let end = async {
        let mut bytes = [0; 64];
        while let Ok(1..) = reads.read(&mut bytes).await {}
    };
    timeout(PATIENCE, async {
        tokio::select! { () = drip => (), () = end => () }
    })
    .await
    .expect("the server closes");
    server.stop().await;
}

#[tokio::test]
async fn an_idle_connection_is_closed_and_a_used_one_is_kept() {
    // Long enough for a busy machine to send the second request in time.
    let server = start(Limits { head_timeout: Duration::from_secs(3), ..short() }).await;
    let mut stream = TcpStream::connect(server.addr).await.unwrap();
    for _ in 0..2 {
        stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"hello") {
            let mut bytes = [0; 256];
            let read = timeout(PATIENCE, stream.read(&mut bytes)).await.unwrap().unwrap();
            assert!(read > 0, "closed after {}", String::from_utf8_lossy(&answer));
            answer.extend_from_slice(&bytes[..read]);
        }
    }
    assert_eq!(closed(&mut stream).await, "");
    server.stop().await;
}

#[tokio::test]
async fn large_and_many_headers_are_refused() {
    let server = start(Limits::default()).await;
    let large = format!("GET / HTTP/1.1\r\nHost: x\r\nX-Large: {}\r\n\r\n", "x".repeat(64 * 1024));
    let many = format!("GET / HTTP/1.1\r\nHost: x\r\n{}\r\n", "A: b\r\n".repeat(100));
    for request in [large, many] {
        let answer = raw(server.addr, &request).await;
        // The rest of what is sent may reset the connection before the answer.
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 431 "), "{answer}");
    }
    let small = raw(server.addr, "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await;
    assert!(small.ends_with("hello"), "{small}");
    server.stop().await;
}

#[tokio::test]
async fn a_request_that_takes_too_long_is_answered_anyway() {
    let server = start(short()).await;
    let answer =
        raw(server.addr, "GET /hangs HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
    server.stop().await;
}

#[tokio::test]
async fn a_client_that_does_not_read_is_dropped() {
    let server = start(Limits { connections_per_peer: 1, ..short() }).await;
    let mut deaf = TcpStream::connect(server.addr).await.unwrap();
    deaf.write_all(b"GET /endless HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    // Its place is free again once the server has given it up.
    eventually("another is served", async || {
        raw(server.addr, "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            .await
            .ends_with("hello")
    })
    .await;
    drop(deaf);
    server.stop().await;
}

#[tokio::test]
async fn connections_are_limited_for_all_and_for_each_peer() {
    for limits in [
        Limits { connections: 2, ..Limits::default() },
        Limits { connections_per_peer: 2, ..Limits::default() },
    ] {
        let server = start(limits).await;
        let mut held = Vec::new();
        for _ in 0..2 {
            let mut stream = TcpStream::connect(server.addr).await.unwrap();
            stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
            assert!(timeout(PATIENCE, stream.read_u8()).await.unwrap().is_ok());
            held.push(stream);
        }
        let mut third = TcpStream::connect(server.addr).await.unwrap();
        assert_eq!(closed(&mut third).await, "");
        held.clear();
        eventually("a place is free again", async || {
            raw(server.addr, "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                .await
                .ends_with("hello")
        })
        .await;
        server.stop().await;
    }
}

#[tokio::test]
async fn a_shutdown_finishes_requests_and_cuts_what_goes_on_for_ever() {
    let limits = Limits { grace: Duration::from_millis(100), ..Limits::default() };
    let server = start(limits).await;
    let mut idle = TcpStream::connect(server.addr).await.unwrap();
    let mut endless = TcpStream::connect(server.addr).await.unwrap();
    endless.write_all(b"GET /endless HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    endless.read_u8().await.unwrap();
    let addr = server.addr;
    server.stop().await;
    assert_eq!(closed(&mut idle).await, "");
    TcpStream::connect(addr).await.unwrap_err();
}
