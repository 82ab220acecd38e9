//! Real packets, to and fro between a sandbox and its node.

use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    path::Path,
    thread,
};

use aya::{
    programs::{LinkOrder, ProgramInfo, SchedClassifier, TcAttachType, tc::TcAttachOptions},
    sys::{Stats, enable_stats},
};
use zeropod_redirector_abi::{EGRESS_PROGRAM, INGRESS_PROGRAM};

use crate::{
    Row, Target,
    common::node::{Node, Sandbox},
    redirector::Redirector,
};

const ROUNDS: u32 = 7;
const EXCHANGES: u32 = 10_000;

pub(crate) const ROWS: [Row; 8] = [
    ("in, UDP", Target::Floor),
    ("out, UDP", Target::Floor),
    ("in, a port that nobody registered", Target::Theirs),
    ("out, a port that nobody registered", Target::Theirs),
    ("in, process runs", Target::Theirs),
    ("out, process runs", Target::Theirs),
    ("in, to the proxy", Target::TheirsAndFloor),
    ("out, from the proxy", Target::TheirsAndFloor),
];

pub(crate) fn introduce() {
    println!(
        "\nTraffic over veth: ns a packet, the least mean of {ROUNDS} rounds of {EXCHANGES} \
         questions and answers of a byte"
    );
}

/// The cost of each row.
pub(crate) fn measure(object: &Path) -> Vec<u64> {
    let node = Node::new();
    let redirector = Redirector::load(object, &node);
    let sandbox = node.sandbox();
    let _attached = attach(&redirector, &sandbox);
    redirector.know_kubelet();
    let _counting = enable_stats(Stats::RunTime).unwrap();

    let (plain, running, proxy) = (echo(&sandbox), echo(&sandbox), echo(&sandbox));
    redirector.run(running);
    redirector.redirect(80, proxy);
    let mut costs = cost(&redirector, udp(&sandbox)).to_vec();
    for port in [plain, running, 80] {
        costs.extend(cost(&redirector, tcp(sandbox.ipv4(), port)));
    }
    costs
}

/// Attached as long as what is returned is there.
fn attach(redirector: &Redirector, sandbox: &Sandbox) -> [SchedClassifier; 2] {
    [(INGRESS_PROGRAM, TcAttachType::Ingress), (EGRESS_PROGRAM, TcAttachType::Egress)].map(
        |(program, direction)| {
            let mut program = SchedClassifier::from_pin(redirector.pin(program)).unwrap();
            sandbox.inside(|| {
                let order = TcAttachOptions::TcxOrder(LinkOrder::default());
                program.attach_with_options("eth0", direction, order).unwrap();
            });
            program
        },
    )
}

/// Means of an incoming and an outgoing packet.
fn cost(redirector: &Redirector, mut exchange: impl FnMut()) -> [u64; 2] {
    let programs = [INGRESS_PROGRAM, EGRESS_PROGRAM];
    let spent = || {
        programs.map(|program| {
            let info = ProgramInfo::from_pin(redirector.pin(program)).unwrap();
            (u64::try_from(info.run_time().as_nanos()).unwrap(), info.run_count())
        })
    };
    let mut round = || {
        let before = spent();
        (0..EXCHANGES).for_each(|_| exchange());
        let after = spent();
        [0, 1].map(|at| (after[at].0 - before[at].0) / (after[at].1 - before[at].1))
    };
    let rounds: Vec<_> = (0..ROUNDS).map(|_| round()).collect();
    [0, 1].map(|at| rounds.iter().map(|round| round[at]).min().unwrap())
}

fn any() -> SocketAddr {
    (Ipv4Addr::UNSPECIFIED, 0).into()
}

/// A server in the sandbox that says what it hears.
fn echo(sandbox: &Sandbox) -> u16 {
    let listener = sandbox.inside(|| TcpListener::bind(any())).unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        let (mut client, _) = listener.accept().unwrap();
        client.set_nodelay(true).unwrap();
        let mut byte = [0];
        while client.read_exact(&mut byte).is_ok() && client.write_all(&byte).is_ok() {}
    });
    port
}

fn tcp(address: IpAddr, port: u16) -> impl FnMut() {
    let mut server = TcpStream::connect((address, port)).unwrap();
    server.set_nodelay(true).unwrap();
    move || {
        server.write_all(&[7]).unwrap();
        server.read_exact(&mut [0]).unwrap();
    }
}

fn udp(sandbox: &Sandbox) -> impl FnMut() + use<> {
    let server = sandbox.inside(|| UdpSocket::bind(any())).unwrap();
    let port = server.local_addr().unwrap().port();
    thread::spawn(move || {
        let mut byte = [0];
        while let Ok((_, client)) = server.recv_from(&mut byte) {
            server.send_to(&byte, client).unwrap();
        }
    });
    let client = UdpSocket::bind(any()).unwrap();
    client.connect((sandbox.ipv4(), port)).unwrap();
    move || {
        client.send(&[7]).unwrap();
        client.recv(&mut [0]).unwrap();
    }
}
