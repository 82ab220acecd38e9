//! Checksums in every state that the kernel knows (B2), on the way in and on
//! the way out, with bytes that are verified here. What is `COMPLETE` comes
//! from few devices: it is in `test_run.rs`.

mod common;

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use common::{
    can_run,
    manager::connected,
    node::Node,
    packet::{ACK, RST, SYN, Tcp},
    redirector::requests,
    shim::scale_down,
    tap::{Sum, Tap},
};

const SUMS: [Sum; 3] = [Sum::None, Sum::Partial, Sum::Unnecessary];

#[test]
fn requests_of_every_state_reach_the_proxy_and_are_answered_b2() {
    if !can_run(&["ip"]) {
        return;
    }
    let node = Node::new();
    let (sandbox, mut tap) = connected(&node);
    let any = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), 0);
    scale_down(&sandbox, 80, sandbox.serve(any, "proxy"));
    // Nobody listens on the port of this proxy.
    scale_down(&sandbox, 81, 1);
    for (number, sum) in (0..).zip(SUMS) {
        for request in requests() {
            let what = format!("{sum:?} {}", request.source);
            // The kernel verifies what arrives.
            let open = request.ports(40000 + number, 80);
            tap.write(&open, sum);
            let answer = tap.read_answer_to(&open);
            assert_eq!((answer.source_port(), answer.flags()), (80, SYN | ACK), "{what}");
            // The device does not complete it: the kernel did, after the
            // program.
            assert_eq!(answer.checksum(), answer.right_checksum(), "{what}");
            // A reset carries a complete sum from the start.
            let refused = request.ports(40000 + number, 81);
            tap.write(&refused, sum);
            let answer = tap.read_until(|frame| frame.flags() & RST != 0);
            assert_eq!((answer.source_port(), answer.flags()), (81, RST | ACK), "{what}");
            assert_eq!(answer.checksum(), answer.right_checksum(), "{what}");
        }
    }
}

#[test]
fn packets_of_every_state_leave_with_a_right_checksum_b2() {
    if !can_run(&["ip"]) {
        return;
    }
    let node = Node::new();
    let (sandbox, mut outside) = connected(&node);
    scale_down(&sandbox, 80, 35001);
    // Something behind the pod, such as a virtual machine, whose packets the
    // pod passes on: only such leave in every state.
    let mut inside = sandbox.inside(|| Tap::open("inner"));
    sandbox.sh(
        "ip addr add 198.51.100.1/24 dev inner && ip addr add 2001:db8:1::1/64 dev inner nodad &&
         ip link set inner address 02:00:00:00:00:01 up &&
         for file in ipv4/conf/all/forwarding ipv6/conf/all/forwarding
         do echo 1 > /proc/sys/net/$file; done",
    );
    for (number, sum) in (0..).zip(SUMS) {
        for (client, request) in ["198.51.100.7", "2001:db8:1::7"].into_iter().zip(requests()) {
            let source: IpAddr = client.parse().unwrap();
            // From the proxy's port to the client.
            let answer = Tcp {
                flags: ACK,
                payload: b"hello".to_vec(),
                ..Tcp::syn((source, 35001), (request.source, 40000 + number))
            };
            inside.write(&answer, sum);
            let left =
                outside.read_until(|frame| frame.destination() == (request.source, 40000 + number));
            assert_eq!(left.source_port(), 80, "{sum:?} {source}");
            assert_eq!(left.checksum(), left.right_checksum(), "{sum:?} {source}");
        }
    }
}
