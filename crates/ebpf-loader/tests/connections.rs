//! Connections that outlive what the shim's maps say of them, and packets
//! that are not in one piece.
#![expect(clippy::unwrap_used, reason = "helpers of tests are tests")]

mod common;

use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    time::Duration,
};

use common::{
    can_run,
    manager::{attached, connected},
    node::{Node, Sandbox},
    packet::{ACK, SYN, Tcp},
    redirector::requests,
    sh,
    shim::{activity, bound, scale_down},
    tap::Sum,
    wait_until,
};

const LIMIT: Duration = Duration::from_secs(10);

/// A proxy in the sandbox, for an application whose port nobody listens on.
fn proxy(sandbox: &Sandbox, application: u16) -> TcpListener {
    let any = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), 0);
    let listener = sandbox.inside(|| TcpListener::bind(any)).unwrap();
    scale_down(sandbox, application, listener.local_addr().unwrap().port());
    listener
}

/// As the shim does when the process runs again.
fn restored(sandbox: &Sandbox, application: u16) {
    sandbox.map("disable_redirect").insert(application, 1_u8, 0).unwrap();
}

fn accept(listener: &TcpListener) -> (TcpStream, u16) {
    let (stream, client) = listener.accept().unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    (stream, client.port())
}

fn connect(address: IpAddr, port: u16) -> TcpStream {
    let stream = TcpStream::connect_timeout(&SocketAddr::new(address, port), LIMIT).unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    stream
}

/// Sockets of a port of the sandbox in a state, as ss(8) names it.
fn sockets(sandbox: &Sandbox, state: &str, port: u16) -> usize {
    sandbox.sh(&format!("ss -tanH state {state} \"sport = :{port}\"")).lines().count()
}

#[test]
fn late_segments_of_a_closed_connection_reach_the_proxy() {
    if !can_run(&["ip", "ss"]) {
        return;
    }
    let node = Node::new();
    let sandbox = attached(&node);
    for address in [sandbox.ipv4(), sandbox.ipv6()] {
        let listener = proxy(&sandbox, 80);
        let proxy_port = listener.local_addr().unwrap().port();
        let mut client = connect(address, 80);
        let (server, client_port) = accept(&listener);
        sandbox.map("active_connections").insert(client_port, 1_u8, 0).unwrap();
        restored(&sandbox, 80);
        // The proxy closes first and forgets the connection; then the client
        // closes. With the Go shim's program its FIN meets the application,
        // which answers with a reset.
        drop(server);
        sandbox.map::<u16, u8>("active_connections").remove(&client_port).unwrap();
        assert_eq!(client.read(&mut [0]).unwrap(), 0);
        drop(client);
        wait_until("the proxy's socket has seen the client's FIN", || {
            sockets(&sandbox, "time-wait", proxy_port) == 1
        });
        drop(listener);
        sandbox.map::<u16, u8>("disable_redirect").remove(&80).unwrap();
    }
}

#[test]
fn the_first_of_two_clients_with_one_port_cuts_off_no_other_b17() {
    if !can_run(&["ip"]) {
        return;
    }
    let node = Node::new();
    let sandbox = attached(&node);
    let listener = proxy(&sandbox, 80);
    // Two clients with addresses of their own, which happen to have one port.
    let subnet = match sandbox.ipv4() {
        IpAddr::V4(address) => address.octets(),
        IpAddr::V6(_) => unreachable!(),
    };
    let own = |host| Ipv4Addr::new(subnet[0], subnet[1], subnet[2], host);
    sh(&format!("ip addr add {}/24 dev host{}", own(3), subnet[2]));
    let from = |source| bound(source, 45000, SocketAddr::new(sandbox.ipv4(), 80)).unwrap();
    let (first, mut second) = (from(own(1)), from(own(3)));
    let (served_first, port) = accept(&listener);
    let (mut served_second, _) = accept(&listener);
    assert_eq!(port, 45000);
    sandbox.map("active_connections").insert(port, 1_u8, 0).unwrap();
    restored(&sandbox, 80);
    // The first one is done.
    drop(first);
    drop(served_first);
    sandbox.map::<u16, u8>("active_connections").remove(&port).unwrap();
    // The second one is not.
    for round in 0..3_u8 {
        second.write_all(&[round]).unwrap();
        let mut read = [0];
        served_second.read_exact(&mut read).unwrap();
        served_second.write_all(&read).unwrap();
        second.read_exact(&mut read).unwrap();
        assert_eq!(read, [round]);
    }
    assert_ne!(activity(&sandbox, 80), 0);
}

/// Tags of VLAN 0 say how urgent a packet is, and need no VLAN device. The kernel
/// takes the outermost out of the packet before the program sees it, and leaves
/// the next one in.
#[test]
fn tagged_connections_are_redirected_b8() {
    if !can_run(&["ip"]) {
        return;
    }
    let node = Node::new();
    let (sandbox, mut tap) = connected(&node);
    let _listener = proxy(&sandbox, 80);
    let (service, customer) = ([0x88, 0xa8, 0x40, 0], [0x81, 0, 0x20, 0]);
    for (number, tags) in (0..).zip([vec![customer], vec![service, customer]]) {
        for request in requests() {
            sandbox.map("socket_tracker").insert(80_u16, 0_u64, 0).unwrap();
            let request = Tcp { tags: tags.clone(), ..request.ports(40000 + number, 80) };
            tap.write(&request, Sum::None);
            let answer = tap.read_answer_to(&request);
            assert_eq!((answer.source_port(), answer.flags()), (80, SYN | ACK), "{request:?}");
            assert_eq!(answer.checksum(), answer.right_checksum());
            assert_ne!(activity(&sandbox, 80), 0);
        }
    }
}

#[test]
fn headers_in_fragments_of_an_skb_are_found_b8() {
    if !can_run(&["ip"]) {
        return;
    }
    let node = Node::new();
    let (sandbox, mut tap) = connected(&node);
    let _listener = proxy(&sandbox, 80);
    for request in requests() {
        sandbox.map("socket_tracker").insert(80_u16, 0_u64, 0).unwrap();
        // More than a page: less is always in one piece. The checksum is right,
        // and the kernel verifies it.
        let request = Tcp { payload: vec![7; 6000], ..request };
        tap.write_with_header_in_fragments(&request.bytes());
        let answer = tap.read_answer_to(&request);
        assert_eq!((answer.source_port(), answer.flags()), (80, SYN | ACK));
        assert_eq!(answer.checksum(), answer.right_checksum(), "the device asked for whole sums");
        assert_ne!(activity(&sandbox, 80), 0);
    }
}
