//! Every kind of packet in every state of a port, and packets of any bytes.
#![expect(clippy::unwrap_used, reason = "helpers of tests are tests")]

mod common;

use std::{
    cell::{Cell, RefCell},
    net::IpAddr,
};

use common::{
    can_run,
    packet::Tcp,
    redirector::{APP, CLIENT_PORT, PROXY, Redirector, requests},
};
use proptest::{prelude::*, test_runner::TestRunner};
use zeropod_redirector_abi::{EGRESS_PROGRAM, INGRESS_PROGRAM};

/// A packet, and whether it holds a TCP header that can be rewritten.
type Kind = (&'static str, bool, fn(Tcp) -> Vec<u8>);

fn options(request: Tcp, number: u8) -> Tcp {
    if request.source.is_ipv4() {
        Tcp { options: vec![1; 40], ..request }
    } else {
        let extensions = vec![(0, vec![0, 0, 1, 4, 0, 0, 0, 0]), (number, vec![0; 8])];
        Tcp { extensions, ..request }
    }
}

/// A fragment at an offset of eight-byte units, with more to come.
fn fragment(request: Tcp, offset: u16) -> Tcp {
    if request.source.is_ipv4() {
        Tcp { fragment: 0x2000 | offset, ..request }
    } else {
        let [high, low] = (offset << 3 | 1).to_be_bytes();
        Tcp { extensions: vec![(44, vec![0, 0, high, low, 0, 0, 0, 7])], ..request }
    }
}

/// The same with another protocol in the IP header.
fn protocol(request: &Tcp, number: u8) -> Vec<u8> {
    let mut packet = request.bytes();
    packet[if request.source.is_ipv4() { 23 } else { 20 }] = number;
    packet
}

const KINDS: [Kind; 14] = [
    ("plain", true, |request| request.bytes()),
    ("options or extension headers", true, |request| options(request, 60).bytes()),
    ("VLAN", true, |request| Tcp { tags: vec![[0x81, 0, 0, 7]], ..request }.bytes()),
    ("VLAN in VLAN", true, |request| {
        let tags = vec![[0x88, 0xa8, 0, 7], [0x81, 0, 0, 8]];
        options(Tcp { tags, ..request }, 43).bytes()
    }),
    ("first fragment", true, |request| fragment(request, 0).bytes()),
    ("jumbo", true, |request| Tcp { payload: vec![7; 3400], ..request }.bytes()),
    ("padded", true, |request| [request.bytes(), vec![0; 6]].concat()),
    ("later fragment", false, |request| fragment(request, 3).bytes()),
    ("UDP", false, |request| protocol(&request, 17)),
    ("ICMP", false, |request| protocol(&request, if request.source.is_ipv4() { 1 } else { 58 })),
    ("ESP", false, |request| match request.source {
        IpAddr::V4(_) => protocol(&request, 50),
        IpAddr::V6(_) => options(request, 50).bytes(),
    }),
    ("ARP", false, |request| {
        let mut packet = request.bytes();
        packet[12..14].copy_from_slice(&[8, 6]);
        packet
    }),
    ("runt", false, |request| {
        let mut packet = request.bytes();
        packet.pop();
        packet
    }),
    ("shortest", false, |request| {
        Tcp { tags: vec![[0x81, 0, 0, 7]], ..request }.bytes()[..15].to_vec()
    }),
];

/// A state of the port, and whether a request to it goes to the proxy.
type PortState = (&'static str, bool, fn(&mut Redirector));

const STATES: [PortState; 4] = [
    ("redirected", true, |_| {}),
    ("disabled", false, |redirector| {
        redirector.map("disable_redirect").insert(APP, 1_u8, 0).unwrap();
    }),
    ("active connection", true, |redirector| {
        redirector.map("disable_redirect").insert(APP, 1_u8, 0).unwrap();
        redirector.map("active_connections").insert(CLIENT_PORT, 1_u8, 0).unwrap();
    }),
    ("unknown", false, |redirector| {
        redirector.map::<u16, u16>("ingress_redirects").remove(&APP).unwrap();
        redirector.map::<u16, u64>("socket_tracker").remove(&APP).unwrap();
    }),
];

/// The entries that a shim writes.
fn entries(redirector: &mut Redirector) -> Vec<Vec<(u16, u16)>> {
    let mut entries = Vec::new();
    for map in ["ingress_redirects", "egress_redirects"] {
        let map = redirector.map::<u16, u16>(map);
        entries.push(map.iter().map(Result::unwrap).collect());
    }
    for map in ["disable_redirect", "active_connections"] {
        let map = redirector.map::<u16, u8>(map);
        entries.push(map.iter().map(|entry| entry.map(|(key, _)| (key, 0)).unwrap()).collect());
    }
    entries
}

#[test]
fn each_kind_of_packet_in_each_state_of_the_port_b2_b8() {
    if !can_run(&[]) {
        return;
    }
    for (state, is_redirected, set) in STATES {
        let mut redirector = Redirector::scaled_down();
        set(&mut redirector);
        let before = entries(&mut redirector);
        for (kind, is_tcp, packet) in KINDS {
            for request in requests() {
                let version = if request.source.is_ipv4() { "IPv4" } else { "IPv6" };
                let what = format!("{version}, {kind}, {state}");
                let is_tracked = state != "unknown";
                if is_tracked {
                    redirector.map("socket_tracker").insert(APP, 0_u64, 0).unwrap();
                }
                let out = redirector.run(INGRESS_PROGRAM, &packet(request.clone()));
                let to = if is_redirected && is_tcp { PROXY } else { APP };
                if is_tcp {
                    let expected = packet(request.ports(CLIENT_PORT, to));
                    assert_eq!(out, expected, "{what}");
                } else {
                    assert_eq!(out, packet(request.clone()), "{what}");
                }
                assert_eq!(entries(&mut redirector), before, "{what}");
                if is_tracked {
                    assert_eq!(redirector.activity() != 0, is_tcp, "{what}");
                }
                // The way back, from the proxy and from elsewhere.
                let answer = |port| Tcp {
                    source: request.destination,
                    destination: request.source,
                    ..request.ports(port, CLIENT_PORT)
                };
                let out = redirector.run(EGRESS_PROGRAM, &packet(answer(PROXY)));
                let expected = if is_tcp { answer(APP) } else { answer(PROXY) };
                if is_tcp {
                    assert_eq!(out, packet(expected), "egress, {what}");
                } else {
                    assert_eq!(out, packet(answer(PROXY)), "egress, {what}");
                }
                let other = packet(answer(PROXY + 1));
                assert_eq!(redirector.run(EGRESS_PROGRAM, &other), other, "egress, {what}");
            }
        }
    }
}

/// Fails unless the packet is as before, or has another port and a checksum
/// that is as valid as it was.
fn check(before: &[u8], after: &[u8], checksum_behind_port: usize, ports: (u16, u16)) {
    if before == after {
        return;
    }
    assert_eq!(before.len(), after.len());
    let changed: Vec<_> = (0..before.len()).filter(|at| before[*at] != after[*at]).collect();
    let word = |bytes: &[u8], at: usize| u16::from_be_bytes([bytes[at], bytes[at + 1]]);
    // The low byte of the port always changes with these two ports; the high
    // one too.
    let port_at = changed[0];
    let checksum_at = port_at + checksum_behind_port;
    assert_eq!((word(before, port_at), word(after, port_at)), ports);
    assert!(
        changed.iter().all(|at| [port_at, port_at + 1, checksum_at, checksum_at + 1].contains(at)),
        "{changed:?}"
    );
    let sum =
        |bytes| (u32::from(word(bytes, port_at)) + u32::from(word(bytes, checksum_at))) % 0xffff;
    assert_eq!(sum(before), sum(after));
}

/// Packets that are nearly valid: of any kind, with some bytes changed.
fn nearly_valid() -> impl Strategy<Value = Vec<u8>> {
    let changes = prop::collection::vec((0_usize..90, any::<u8>()), 0..4);
    let cut = prop::option::of(15_usize..120);
    (0..KINDS.len(), any::<bool>(), any::<bool>(), changes, cut).prop_map(
        |(kind, is_ipv6, is_answer, changes, cut)| {
            let request = requests()[usize::from(is_ipv6)].clone();
            let request = if is_answer { request.ports(PROXY, CLIENT_PORT) } else { request };
            let mut packet = KINDS[kind].2(request);
            let length = packet.len();
            for (at, value) in changes {
                packet[at % length] = value;
            }
            packet.truncate(cut.unwrap_or(length).min(3500));
            packet
        },
    )
}

#[test]
fn a_packet_of_any_bytes_changes_in_port_and_checksum_or_not_at_all() {
    if !can_run(&[]) {
        return;
    }
    let mut redirector = Redirector::scaled_down();
    let packets = prop_oneof![
        3 => nearly_valid(),
        1 => prop::collection::vec(any::<u8>(), 15..200),
    ];
    // `PROPTEST_CASES` asks for more.
    let config = ProptestConfig { failure_persistence: None, ..ProptestConfig::default() };
    let cases = config.cases.max(5000);
    // The kernel takes not every packet for a test.
    let mut runner = TestRunner::new(ProptestConfig { cases, max_global_rejects: cases, ..config });
    let changed = Cell::new(0);
    let redirector = RefCell::new(&mut redirector);
    runner
        .run(&packets, |packet| {
            let mut redirector = redirector.borrow_mut();
            let Ok(ingress) = redirector.try_run(INGRESS_PROGRAM, &packet) else {
                return Err(TestCaseError::reject("not for a test"));
            };
            check(&packet, &ingress, 14, (APP, PROXY));
            let egress = redirector.run(EGRESS_PROGRAM, &packet);
            check(&packet, &egress, 16, (PROXY, APP));
            let count = i32::from(ingress != packet) + i32::from(egress != packet);
            changed.set(changed.get() + count);
            Ok(())
        })
        .unwrap();
    assert!(changed.get() > 1000, "most packets were not even TCP");
}

#[test]
fn an_address_of_any_kind_is_taken_for_what_it_is() {
    if !can_run(&[]) {
        return;
    }
    // 127.0.0.1 written as an IPv6 address is not `::1`.
    let mapped: IpAddr = "::ffff:127.0.0.1".parse().unwrap();
    let mut redirector = Redirector::scaled_down();
    let [_, request] = requests();
    redirector.ingress(&Tcp { source: mapped, ..request });
    assert_ne!(redirector.activity(), 0);
}
