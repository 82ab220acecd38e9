//! One packet, again and again.

use std::{net::IpAddr, path::Path};

use aya::programs::{SchedClassifier, TestRun as _, TestRunOptions};
use zeropod_redirector_abi::{EGRESS_PROGRAM, INGRESS_PROGRAM};

use crate::{
    Row, Target,
    common::{
        node::Node,
        packet::{ACK, SYN, Tcp},
    },
    redirector::Redirector,
};

/// Two application ports, each the other's proxy: a packet that was rewritten
/// is rewritten again.
const REDIRECTED: [u16; 2] = [80, 81];
const RUNNING: u16 = 82;
const UNKNOWN: u16 = 83;
/// Its own proxy: what it answers is rewritten to what it is.
const ANSWERING: u16 = 84;
const CLIENT: u16 = 40000;
const RUNS: u32 = 200_000;
const REPEATS: u32 = 15;

pub(crate) const ROWS: [Row; 12] = [
    ("in, UDP", Target::Floor),
    ("in, ARP", Target::Floor),
    ("in, a port that nobody registered", Target::TwoFloors),
    ("in, redirected, kubelet's address known", Target::TheirsAndFloor),
    ("in, redirected, kubelet's address unknown", Target::TheirsAndFloor),
    ("in, redirected, IPv6", Target::TheirsAndFloor),
    ("in, process runs, SYN", Target::Theirs),
    ("in, process runs, data", Target::Theirs),
    ("in, process runs, bare ACK among others", Target::Theirs),
    ("in, process runs, bare ACK alone", Target::Theirs),
    ("out, from the proxy", Target::TheirsAndFloor),
    ("out, other", Target::Theirs),
];

pub(crate) fn introduce() {
    println!("\nBPF_PROG_TEST_RUN: ns a packet, the least of {REPEATS} runs of {RUNS}");
}

fn time(redirector: &Redirector, program: &str, packet: &[u8]) -> u64 {
    let program = SchedClassifier::from_pin(redirector.pin(program)).unwrap();
    let once = || {
        let mut options = TestRunOptions::new();
        options.data_in = Some(packet);
        options.repeat = RUNS;
        u64::try_from(program.test_run(options).unwrap().duration.as_nanos()).unwrap()
    };
    (0..REPEATS).map(|_| once()).min().unwrap()
}

/// The cost of each row.
pub(crate) fn measure(object: &Path) -> Vec<u64> {
    let node = Node::new();
    let redirector = Redirector::load(object, &node);
    let incoming = |packet: &Tcp| time(&redirector, INGRESS_PROGRAM, &packet.bytes());
    let outgoing = |packet: &Tcp| time(&redirector, EGRESS_PROGRAM, &packet.bytes());
    let (client, pod) = ("192.0.2.7".parse().unwrap(), "192.0.2.80".parse().unwrap());
    let (client6, pod6): (IpAddr, IpAddr) =
        ("2001:db8::7".parse().unwrap(), "2001:db8::80".parse().unwrap());
    let to = |port| Tcp::syn((client, CLIENT), (pod, port));
    let mut udp = to(UNKNOWN).bytes();
    udp[23] = 17;
    let mut arp = to(UNKNOWN).bytes();
    arp[12..14].copy_from_slice(&[8, 6]);
    let [one, other] = REDIRECTED;
    for (port, proxy) in [(one, other), (other, one), (ANSWERING, ANSWERING)] {
        redirector.redirect(port, proxy);
    }
    redirector.run(RUNNING);

    let request = to(one);
    let unknown = incoming(&request);
    redirector.know_kubelet();
    // The client's next connection, which no proxy ever saw.
    let running = |flags, payload: &[u8]| Tcp {
        flags,
        payload: payload.to_vec(),
        ..to(RUNNING).ports(CLIENT + 1, RUNNING)
    };
    // The answer to a connection that was sent to the proxy.
    incoming(&to(ANSWERING).ports(CLIENT + 2, ANSWERING));
    let answer = Tcp::syn((pod, ANSWERING), (client, CLIENT + 2));
    vec![
        time(&redirector, INGRESS_PROGRAM, &udp),
        time(&redirector, INGRESS_PROGRAM, &arp),
        incoming(&to(UNKNOWN)),
        incoming(&request),
        unknown,
        incoming(&Tcp::syn((client6, CLIENT), (pod6, one))),
        incoming(&running(SYN, b"")),
        incoming(&running(ACK, b"data")),
        incoming(&running(ACK, b"")),
        {
            // Long ago: the socket is looked for.
            redirector.set("socket_tracker", RUNNING, 0_u64);
            incoming(&running(ACK, b""))
        },
        outgoing(&answer),
        outgoing(&answer.ports(UNKNOWN, CLIENT)),
    ]
}
