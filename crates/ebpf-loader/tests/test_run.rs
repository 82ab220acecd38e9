//! Single packets through the programs by `BPF_PROG_TEST_RUN`.

mod common;

use std::net::IpAddr;

use common::{
    can_run,
    packet::{ACK, FIN, PSH, RST, SYN, Tcp, tcp_checksum},
    redirector::{APP, CLIENT_PORT, PROXY, Redirector, address, requests},
    skip,
};
use zeropod_redirector_abi::{EGRESS_PROGRAM, INGRESS_PROGRAM, NO_TASK_COMM};

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
fn a_checksum_that_a_device_computed_over_all_stays_right_b2() {
    if !can_run(&[]) {
        return;
    }
    let [request, _] = requests();
    let untouched = request.ports(CLIENT_PORT, APP + 1).bytes();
    if Redirector::scaled_down().run_complete(INGRESS_PROGRAM, &untouched).is_err() {
        return skip("Linux 6.15, to test with CHECKSUM_COMPLETE");
    }
    for request in requests() {
        let redirector = Redirector::scaled_down();
        // The kernel compares its sum with the packet afterwards.
        let out = redirector.run_complete(INGRESS_PROGRAM, &request.bytes()).unwrap();
        assert_eq!(out, request.ports(CLIENT_PORT, PROXY).bytes());
        let answer = Tcp::syn((request.destination, PROXY), (request.source, CLIENT_PORT));
        let out = redirector.run_complete(EGRESS_PROGRAM, &answer.bytes()).unwrap();
        assert_eq!(out, answer.ports(APP, CLIENT_PORT).bytes());
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
fn the_name_is_learnt_from_the_task_itself_on_kernels_before_6_16() {
    if !can_run(&["bpftool"]) {
        return;
    }
    // As the loader finds it, but by other means.
    let types = common::sh("bpftool btf dump file /sys/kernel/btf/vmlinux format raw");
    let mut members = types.lines().skip_while(|line| !line.contains(" STRUCT 'task_struct' "));
    let comm = members.find(|line| line.trim_start().starts_with("'comm' ")).unwrap();
    let bits: u32 = comm.rsplit_once('=').unwrap().1.parse().unwrap();
    let test = move || {
        for (offset, is_known) in [(bits / 8, true), (bits / 8 + 16, false), (NO_TASK_COMM, false)]
        {
            for request in requests() {
                let mut redirector = Redirector::told("a-kubelet", true, offset);
                redirector.map("socket_tracker").insert(APP, 0_u64, 0).unwrap();
                redirector.ingress(&request);
                assert_eq!(redirector.activity() == 0, is_known, "{offset}");
            }
        }
    };
    let as_kubelet = std::thread::Builder::new().name("a-kubelet".to_owned());
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

#[test]
fn a_reset_or_an_acknowledgement_without_a_socket_is_no_activity() {
    if !can_run(&[]) {
        return;
    }
    for request in requests() {
        for running in [false, true] {
            for (flags, payload, is_activity) in [
                (SYN, "", true),
                (ACK, "data", true),
                (ACK | PSH | FIN, "data", true),
                (ACK, "", false),
                (ACK | FIN, "", false),
                (RST, "", false),
                (RST | ACK, "", false),
                (RST, "why", false),
            ] {
                let mut redirector = Redirector::scaled_down();
                if running {
                    redirector.map("disable_redirect").insert(APP, 1_u8, 0).unwrap();
                }
                let packet = Tcp { flags, payload: payload.into(), ..request.clone() };
                let to = if running { APP } else { PROXY };
                let out = redirector.ingress(&packet);
                assert_eq!(out, packet.ports(CLIENT_PORT, to).bytes(), "{flags:#x} {payload}");
                assert_eq!(redirector.activity() != 0, is_activity, "{flags:#x} {payload}");
            }
        }
    }
}

#[test]
fn a_proxy_of_before_is_not_taken_for_the_one_of_now_b18() {
    if !can_run(&[]) {
        return;
    }
    for request in requests() {
        let mut redirector = Redirector::scaled_down();
        redirector.map("egress_redirects").insert(PROXY + 1, APP, 0).unwrap();
        let answer = |port| Tcp::syn((request.destination, port), (request.source, CLIENT_PORT));
        // To a client that is unknown, and to one that was sent to the proxy.
        for is_known in [false, true] {
            if is_known {
                redirector.ingress(&request);
            }
            assert_eq!(redirector.egress(&answer(PROXY)), answer(APP).bytes());
            assert_eq!(redirector.egress(&answer(PROXY + 1)), answer(PROXY + 1).bytes());
        }
        // When another proxy takes over, connections of the one before go on;
        // others from its port are none of them.
        redirector.map("ingress_redirects").insert(APP, PROXY + 1, 0).unwrap();
        assert_eq!(redirector.egress(&answer(PROXY)), answer(APP).bytes());
        let other = answer(PROXY).ports(PROXY, CLIENT_PORT + 1);
        assert_eq!(redirector.egress(&other), other.bytes());
        // The next connection from the same client port is the other's.
        redirector.ingress(&request);
        assert_eq!(redirector.egress(&answer(PROXY)), answer(PROXY).bytes());
        assert_eq!(redirector.egress(&answer(PROXY + 1)), answer(APP).bytes());
    }
}
