//! Which packets hold a TCP header, and where.
#![expect(clippy::unwrap_used, reason = "helpers of tests are tests")]

use zeropod_redirector_ebpf::packet::{IpVersion, Packet, Plain, Purpose, Segment, any, plain};

const PORTS: [u8; 4] = [0x9c, 0x40, 0, 80];

/// An Ethernet header with VLAN tags, then `ip`, then a TCP header.
fn packet(tags: &[u16], ethertype: u16, ip: &[u8]) -> Vec<u8> {
    let mut packet = vec![0xaa; 12];
    for tag in tags {
        packet.extend(tag.to_be_bytes());
        packet.extend([0, 7]);
    }
    packet.extend(ethertype.to_be_bytes());
    packet.extend(ip);
    packet.extend(PORTS);
    packet.extend([0, 0, 0, 0, 0, 0, 0, 0, 0x50, 0x10, 0, 0, 0, 0, 0, 0]);
    packet
}

/// An IPv4 header with `options` bytes of options, in front of 20 bytes.
fn ipv4(options: u8, protocol: u8, fragment: u16) -> Vec<u8> {
    let mut ip = vec![0x45 + options / 4, 0, 0, 40 + options, 0, 1];
    ip.extend(fragment.to_be_bytes());
    ip.extend([64, protocol, 0, 0, 192, 0, 2, 7, 192, 0, 2, 80]);
    ip.extend(vec![1; options.into()]);
    ip
}

/// An IPv6 header and extension headers, in front of 20 bytes.
fn ipv6(next: u8, extensions: &[&[u8]]) -> Vec<u8> {
    let length: usize = 20 + extensions.iter().map(|bytes| bytes.len()).sum::<usize>();
    let mut ip = vec![0x60, 0, 0, 0];
    ip.extend(u16::try_from(length).unwrap().to_be_bytes());
    ip.extend([next, 64]);
    ip.extend([0x20; 32]);
    ip.extend(extensions.iter().copied().flatten());
    ip
}

/// An extension header of eight bytes.
fn extension(next: u8) -> [u8; 8] {
    [next, 0, 1, 4, 0, 0, 0, 0]
}

fn segment(ip: IpVersion, ip_at: u32, tcp_at: u32) -> Segment {
    let offset_and_flags = [0x50, 0x10];
    Segment { ip, ip_at, tcp_at, source: 40000, destination: 80, length: 20, offset_and_flags }
}

#[test]
fn plain_packets_are_read_at_fixed_offsets() {
    for (packet, expected) in [
        (packet(&[], 0x0800, &ipv4(0, 6, 0)), segment(IpVersion::V4, 14, 34)),
        (packet(&[], 0x0800, &ipv4(0, 6, 0x4000)), segment(IpVersion::V4, 14, 34)),
        (packet(&[], 0x86dd, &ipv6(6, &[])), segment(IpVersion::V6, 14, 54)),
    ] {
        assert_eq!(plain(packet.as_slice()), Plain::Tcp(expected));
        assert_eq!(any(packet.as_slice()), Some(expected));
    }
}

#[test]
fn tags_options_and_extension_headers_are_looked_behind_b8() {
    let fragment = [6, 0, 0, 1, 0, 0, 0, 9]; // the first of several
    let authentication = [6, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]; // counts in words, less two
    let routing = [60, 1, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    for (what, packet, expected) in [
        ("options", packet(&[], 0x0800, &ipv4(4, 6, 0)), segment(IpVersion::V4, 14, 38)),
        ("all options", packet(&[], 0x0800, &ipv4(40, 6, 0)), segment(IpVersion::V4, 14, 74)),
        (
            "first fragment",
            packet(&[], 0x0800, &ipv4(0, 6, 0x2000)),
            segment(IpVersion::V4, 14, 34),
        ),
        ("tag", packet(&[0x8100], 0x0800, &ipv4(0, 6, 0)), segment(IpVersion::V4, 18, 38)),
        ("tags", packet(&[0x88a8, 0x8100], 0x86dd, &ipv6(6, &[])), segment(IpVersion::V6, 22, 62)),
        (
            "hop by hop",
            packet(&[], 0x86dd, &ipv6(0, &[&extension(6)])),
            segment(IpVersion::V6, 14, 62),
        ),
        (
            "several",
            packet(&[], 0x86dd, &ipv6(43, &[&routing, &extension(44), &fragment])),
            segment(IpVersion::V6, 14, 86),
        ),
        (
            "authentication",
            packet(&[], 0x86dd, &ipv6(51, &[&authentication])),
            segment(IpVersion::V6, 14, 66),
        ),
    ] {
        assert_eq!(any(packet.as_slice()), Some(expected), "{what}");
        let plain = plain(packet.as_slice());
        assert_eq!(plain, Plain::Unclear, "{what}");
    }
}

#[test]
fn what_is_no_tcp_header_is_none_b8() {
    let later_fragment = [6, 0, 0, 8 | 1, 0, 0, 0, 9];
    let endless: &[u8] = &[0; 8];
    let mut short4 = ipv4(0, 6, 0);
    short4[3] = 39;
    let mut short6 = ipv6(6, &[]);
    short6[5] = 19;
    let mut short_extension = ipv6(0, &[&extension(6)]);
    short_extension[5] = 27;
    let mut tiny_header = ipv4(0, 6, 0);
    tiny_header[0] = 0x44;
    let mut wrong_version = ipv4(0, 6, 0);
    wrong_version[0] = 0x55;
    for (what, packet) in [
        ("UDP", packet(&[], 0x0800, &ipv4(0, 17, 0))),
        ("UDP with options", packet(&[], 0x0800, &ipv4(8, 17, 0))),
        ("UDP over IPv6", packet(&[], 0x86dd, &ipv6(17, &[]))),
        ("ICMPv6", packet(&[], 0x86dd, &ipv6(58, &[]))),
        ("ESP", packet(&[], 0x86dd, &ipv6(0, &[&extension(50)]))),
        ("nothing", packet(&[], 0x86dd, &ipv6(59, &[]))),
        ("ARP", packet(&[], 0x0806, &[0; 28])),
        ("tagged ARP", packet(&[0x8100], 0x0806, &[0; 28])),
        ("three tags", packet(&[0x8100; 3], 0x0800, &ipv4(0, 6, 0))),
        ("later fragment", packet(&[], 0x0800, &ipv4(0, 6, 1))),
        ("last fragment", packet(&[], 0x0800, &ipv4(0, 6, 0x1fff))),
        ("later IPv6 fragment", packet(&[], 0x86dd, &ipv6(44, &[&later_fragment]))),
        ("short", packet(&[], 0x0800, &short4)),
        ("short IPv6", packet(&[], 0x86dd, &short6)),
        ("short behind an extension", packet(&[], 0x86dd, &short_extension)),
        ("header of four words", packet(&[], 0x0800, &tiny_header)),
        ("version 5", packet(&[], 0x0800, &wrong_version)),
        ("IPv4 as IPv6", packet(&[], 0x86dd, &ipv4(0, 6, 0))),
        ("more extensions than make sense", packet(&[], 0x86dd, &ipv6(0, &[endless; 9]))),
    ] {
        assert_eq!(any(packet.as_slice()), None, "{what}");
        assert!(!matches!(plain(packet.as_slice()), Plain::Tcp(_)), "{what}");
    }
}

#[test]
fn a_cut_packet_is_never_read_past_its_end() {
    for whole in [
        packet(&[0x8100], 0x0800, &ipv4(8, 6, 0)),
        packet(&[], 0x0800, &ipv4(0, 6, 0)),
        packet(&[], 0x86dd, &ipv6(0, &[&extension(60), &extension(6)])),
    ] {
        for length in 0..whole.len() {
            assert_eq!(any(&whole[..length]), None, "{length}");
            assert!(!matches!(plain(&whole[..length]), Plain::Tcp(_)), "{length}");
        }
        assert!(any(whole.as_slice()).is_some());
    }
    assert_eq!([1_u8].as_slice().bytes::<1>(u32::MAX), None);
}

#[test]
fn packets_of_more_than_64_kib_say_nothing_of_their_length() {
    let big = |segment| Some(Segment { length: 1 << 16, ..segment });
    let mut big4 = ipv4(0, 6, 0);
    big4[2..4].fill(0);
    let big4 = packet(&[], 0x0800, &big4);
    assert_eq!(any(big4.as_slice()), big(segment(IpVersion::V4, 14, 34)));
    let mut big6 = ipv6(0, &[&[6, 0, 0xc2, 4, 0, 1, 0x86, 0xa0]]);
    big6[4..6].fill(0);
    let big6 = packet(&[], 0x86dd, &big6);
    assert_eq!(any(big6.as_slice()), big(segment(IpVersion::V6, 14, 62)));
}

#[test]
fn a_segment_tells_what_it_is_for() {
    // Flags, words of the TCP header, bytes of the segment behind the 20.
    for (flags, words, more, purpose) in [
        (0x02, 5, 0, Purpose::Open),
        (0x02, 10, 20, Purpose::Open),
        (0x12, 5, 0, Purpose::Open),
        (0x10, 5, 0, Purpose::Control),
        (0x10, 8, 12, Purpose::Control),
        (0x11, 5, 0, Purpose::Control),
        (0x10, 5, 1, Purpose::Data),
        (0x18, 8, 13, Purpose::Data),
        (0x19, 5, 100, Purpose::Data),
        (0x04, 5, 0, Purpose::Reset),
        (0x14, 5, 10, Purpose::Reset),
    ] {
        for ip in [ipv4(0, 6, 0), ipv6(6, &[]), ipv4(4, 6, 0), ipv6(0, &[&extension(6)])] {
            let (ethertype, length_at) = if ip[0] >> 4 == 4 { (0x0800, 3) } else { (0x86dd, 5) };
            let mut ip = ip;
            ip[length_at] += more;
            let mut packet = packet(&[], ethertype, &ip);
            let tcp_at = packet.len() - 20;
            packet[tcp_at + 12] = words << 4;
            packet[tcp_at + 13] = flags;
            packet.extend(vec![0; more.into()]);
            // Padding of short frames is no data.
            packet.extend([0; 6]);
            let found = any(packet.as_slice()).unwrap();
            assert_eq!(found.purpose(), purpose, "{flags:#x} {words} {more} {ethertype:#x}");
            if let Plain::Tcp(plain) = plain(packet.as_slice()) {
                assert_eq!(plain, found);
            }
        }
    }
}
