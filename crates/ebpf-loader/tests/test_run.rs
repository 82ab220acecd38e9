//! Single packets through the programs by `BPF_PROG_TEST_RUN`.
#![expect(clippy::unwrap_used, reason = "helpers of tests are tests")]

mod common;

use std::net::IpAddr;

use aya::{
    Ebpf, EbpfLoader, Pod,
    maps::{HashMap, MapData},
    programs::{SchedClassifier, TestRun as _, TestRunOptions},
};
use common::{
    can_run,
    packet::{ACK, RST, Tcp, tcp_checksum},
};
use zeropod_ebpf_loader::REDIRECTOR;
use zeropod_redirector_abi::{EGRESS_PROGRAM, INGRESS_PROGRAM, comm_name};

const CLIENT: (&str, &str) = ("192.0.2.7", "2001:db8::7");
const POD: (&str, &str) = ("192.0.2.80", "2001:db8::80");
const CLIENT_PORT: u16 = 40000;
const APP: u16 = 80;
const PROXY: u16 = 35001;
/// `TC_ACT_UNSPEC`, which is `TCX_NEXT` too.
const NEXT: u32 = u32::MAX;

/// The programs, loaded by aya, on maps of their own.
struct Redirector(Ebpf);

impl Redirector {
    fn new(probe_binary_name: &str, ignore_localhost: bool) -> Self {
        let (name, ignore) = (comm_name(probe_binary_name), u8::from(ignore_localhost));
        let mut loader = EbpfLoader::new();
        loader.btf(None);
        loader.override_global("probe_binary_name", &name, true);
        loader.override_global("tracker_ignore_localhost", &ignore, true);
        let mut object = loader.load(REDIRECTOR).unwrap();
        for (_, program) in object.programs_mut() {
            let program: &mut SchedClassifier = program.try_into().unwrap();
            program.load().unwrap();
        }
        Self(object)
    }

    /// As a shim sets it up for a container that is scaled down.
    fn scaled_down() -> Self {
        let mut redirector = Self::new("nobody", true);
        redirector.map("socket_tracker").insert(APP, 0_u64, 0).unwrap();
        redirector.map("ingress_redirects").insert(APP, PROXY, 0).unwrap();
        redirector.map("egress_redirects").insert(PROXY, APP, 0).unwrap();
        redirector
    }

    fn map<K: Pod, V: Pod>(&mut self, name: &str) -> HashMap<&mut MapData, K, V> {
        self.0.map_mut(name).unwrap().try_into().unwrap()
    }

    fn activity(&mut self) -> u64 {
        self.map::<u16, u64>("socket_tracker").get(&APP, 0).unwrap()
    }

    /// What a program makes of a packet.
    fn run(&mut self, program: &str, packet: &[u8]) -> Vec<u8> {
        let program: &mut SchedClassifier =
            self.0.program_mut(program).unwrap().try_into().unwrap();
        let mut out = vec![0; packet.len() + 64];
        let mut options = TestRunOptions::new();
        options.data_in = Some(packet);
        options.data_out = Some(&mut out);
        let result = program.test_run(options).unwrap();
        assert_eq!(result.return_value, NEXT, "B10");
        out.truncate(usize::try_from(result.data_size_out).unwrap());
        out
    }

    fn ingress(&mut self, packet: &Tcp) -> Vec<u8> {
        self.run(INGRESS_PROGRAM, &packet.bytes())
    }

    fn egress(&mut self, packet: &Tcp) -> Vec<u8> {
        self.run(EGRESS_PROGRAM, &packet.bytes())
    }
}

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// A SYN of the client, of either version of IP.
fn requests() -> [Tcp; 2] {
    [(CLIENT.0, POD.0), (CLIENT.1, POD.1)]
        .map(|(client, pod)| Tcp::syn((address(client), CLIENT_PORT), (address(pod), APP)))
}

#[test]
fn a_request_to_a_scaled_down_port_goes_to_the_proxy_b2() {
    if !can_run(&[]) {
        return;
    }
    for request in requests() {
        let mut redirector = Redirector::scaled_down();
        // The checksum of the expectation is computed from scratch.
        assert_eq!(redirector.ingress(&request), request.ports(CLIENT_PORT, PROXY).bytes());
        assert_ne!(redirector.activity(), 0);
    }
}

#[test]
fn a_wrong_checksum_stays_exactly_as_wrong_b2() {
    if !can_run(&[]) {
        return;
    }
    for request in requests() {
        let mut packet = request.bytes();
        let tcp_at = packet.len() - 20;
        packet[tcp_at + 4] ^= 0x40; // in the sequence number
        let out = Redirector::scaled_down().run(INGRESS_PROGRAM, &packet);
        let there = u16::from_be_bytes([out[tcp_at + 16], out[tcp_at + 17]]);
        let right = tcp_checksum(request.source, request.destination, &out[tcp_at..]);
        assert_ne!(there, right);
        let mut repaired = out.clone();
        repaired[tcp_at + 4] ^= 0x40;
        assert_eq!(repaired, request.ports(CLIENT_PORT, PROXY).bytes());
    }
}

#[test]
fn an_answer_of_the_proxy_comes_from_the_application_port_b2() {
    if !can_run(&[]) {
        return;
    }
    for request in requests() {
        let mut answer = Tcp::syn((request.destination, PROXY), (request.source, CLIENT_PORT));
        answer.flags |= ACK;
        answer.payload = b"hello".to_vec();
        let mut redirector = Redirector::scaled_down();
        assert_eq!(redirector.egress(&answer), answer.ports(APP, CLIENT_PORT).bytes());
        // Also a RST, which carries a checksum in software.
        answer.flags = RST;
        assert_eq!(redirector.egress(&answer), answer.ports(APP, CLIENT_PORT).bytes());
        let other = answer.ports(PROXY + 1, CLIENT_PORT);
        assert_eq!(redirector.egress(&other), other.bytes());
    }
}

#[test]
fn requests_to_a_running_process_pass_but_for_those_the_proxy_still_serves() {
    if !can_run(&[]) {
        return;
    }
    for request in requests() {
        let mut redirector = Redirector::scaled_down();
        redirector.map("disable_redirect").insert(APP, 1_u8, 0).unwrap();
        assert_eq!(redirector.ingress(&request), request.bytes());
        assert_ne!(redirector.activity(), 0);
        redirector.map("active_connections").insert(CLIENT_PORT, 1_u8, 0).unwrap();
        assert_eq!(redirector.ingress(&request), request.ports(CLIENT_PORT, PROXY).bytes());
    }
}

#[test]
fn a_port_that_nobody_registered_is_left_alone() {
    if !can_run(&[]) {
        return;
    }
    for request in requests() {
        let mut redirector = Redirector::scaled_down();
        let request = request.ports(CLIENT_PORT, APP + 1);
        assert_eq!(redirector.ingress(&request), request.bytes());
        assert_eq!(redirector.activity(), 0);
        assert_eq!(redirector.map::<u16, u64>("socket_tracker").keys().count(), 1);
    }
}

#[test]
fn the_kubelet_is_known_by_its_whole_address_b7() {
    if !can_run(&[]) {
        return;
    }
    let [request4, request6] = requests();
    let mut redirector = Redirector::scaled_down();
    let IpAddr::V4(kubelet4) = request4.source else { unreachable!() };
    let IpAddr::V6(kubelet6) = request6.source else { unreachable!() };
    redirector.map::<u8, [u8; 4]>("kubelet_addrs_v4").insert(0_u8, kubelet4.octets(), 0).unwrap();
    redirector.map::<u8, [u8; 16]>("kubelet_addrs_v6").insert(0_u8, kubelet6.octets(), 0).unwrap();
    for probe in [&request4, &request6] {
        // Redirected like any other: the proxy answers probes itself.
        assert_eq!(redirector.ingress(probe), probe.ports(CLIENT_PORT, PROXY).bytes());
        assert_eq!(redirector.activity(), 0);
    }
    // A neighbour that differs in the last byte is not the kubelet.
    for (request, neighbour) in [(&request4, "192.0.2.6"), (&request6, "2001:db8::6")] {
        let request = Tcp { source: address(neighbour), ..request.clone() };
        redirector.map("socket_tracker").insert(APP, 0_u64, 0).unwrap();
        redirector.ingress(&request);
        assert_ne!(redirector.activity(), 0, "{neighbour}");
    }
}

#[test]
fn without_an_address_the_kubelet_is_known_by_name_b16() {
    if !can_run(&[]) {
        return;
    }
    // The kernel keeps 15 bytes of a name; the flag may be longer.
    let as_kubelet = std::thread::Builder::new().name("a-kubelet-of-15-bytes".to_owned());
    let test = || {
        for request in requests() {
            let mut redirector = Redirector::new("a-kubelet-of-15-bytes", true);
            redirector.map("socket_tracker").insert(APP, 0_u64, 0).unwrap();
            redirector.ingress(&request);
            assert_eq!(redirector.activity(), 0);
            match request.source {
                IpAddr::V4(address) => {
                    let known = redirector.map::<u8, [u8; 4]>("kubelet_addrs_v4").get(&0, 0);
                    assert_eq!(known.unwrap(), address.octets());
                }
                IpAddr::V6(address) => {
                    let known = redirector.map::<u8, [u8; 16]>("kubelet_addrs_v6").get(&0, 0);
                    assert_eq!(known.unwrap(), address.octets());
                }
            }
        }
    };
    as_kubelet.spawn(test).unwrap().join().unwrap();
}

#[test]
fn localhost_is_activity_only_if_asked_for() {
    if !can_run(&[]) {
        return;
    }
    for localhost in ["127.0.0.1", "::1"] {
        let localhost = address(localhost);
        let request = Tcp::syn((localhost, CLIENT_PORT), (localhost, APP));
        for ignored in [true, false] {
            let mut redirector = Redirector::new("nobody", ignored);
            redirector.map("socket_tracker").insert(APP, 0_u64, 0).unwrap();
            redirector.ingress(&request);
            assert_eq!(redirector.activity() == 0, ignored, "{localhost}");
        }
    }
}
