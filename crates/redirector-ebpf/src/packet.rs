//! Finds the TCP header of a packet, or finds that there is none.
//!
//! Nothing but a TCP header that is certainly one is ever reported: a later
//! fragment, an unknown extension header or a length that does not add up
//! means "none", and the packet passes untouched.

/// The bytes of a packet, from its Ethernet header on.
pub trait Packet {
    /// The `N` bytes from offset `at` on, if the packet has them.
    fn bytes<const N: usize>(&self, at: u32) -> Option<[u8; N]>;
}

impl Packet for [u8] {
    fn bytes<const N: usize>(&self, at: u32) -> Option<[u8; N]> {
        let at = usize::try_from(at).ok()?;
        self.get(at..at.checked_add(N)?)?.try_into().ok()
    }
}

/// Where a TCP segment is in its packet, and its ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// Version of IP.
    pub ip: IpVersion,
    /// Offset of the IP header.
    pub ip_at: u32,
    /// Offset of the TCP header.
    pub tcp_at: u32,
    /// Source port, host byte order.
    pub source: u16,
    /// Destination port, host byte order.
    pub destination: u16,
    /// Bytes of the segment, with its header; at least 64 KiB where the packet
    /// does not tell.
    pub length: u32,
    /// Bytes 12 and 13 of the header: its length and its flags.
    pub offset_and_flags: [u8; 2],
}

impl Segment {
    /// What it is for.
    #[inline(always)]
    pub fn purpose(&self) -> Purpose {
        let [offset, flags] = self.offset_and_flags;
        if flags & RST != 0 {
            Purpose::Reset
        } else if flags & SYN != 0 {
            Purpose::Open
        } else if self.length > u32::from(offset >> 4) * 4 {
            Purpose::Data
        } else {
            Purpose::Control
        }
    }
}

/// What a segment is for, as far as it can be told from the segment alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// It opens a connection.
    Open,
    /// It carries data.
    Data,
    /// It acknowledges or closes: of meaning to a connection that exists.
    Control,
    /// It ends a connection, or answers one that does not exist.
    Reset,
}

/// Version of the Internet protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IpVersion {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// What [`plain`] says of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Plain {
    /// It holds this TCP segment.
    Tcp(Segment),
    /// It certainly holds no TCP segment.
    Other,
    /// Only [`any`] can tell.
    Unclear,
}

/// Offset of the source port in a TCP header.
pub const TCP_SOURCE: u32 = 0;
/// Offset of the destination port in a TCP header.
pub const TCP_DESTINATION: u32 = 2;
/// Offset of the checksum in a TCP header.
pub const TCP_CHECKSUM: u32 = 16;
/// Offset of the source address in an IPv4 header.
pub const IPV4_SOURCE: u32 = 12;
/// Offset of the source address in an IPv6 header.
pub const IPV6_SOURCE: u32 = 8;

const ETHERNET_HEADER: u32 = 14;
const ETHERTYPE_AT: u32 = 12;
const IPV4_HEADER: u32 = 20;
const IPV6_HEADER: u32 = 40;
const TCP_HEADER: u32 = 20;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;

const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_IPV6: u16 = 0x86dd;
const ETHERTYPE_VLAN: u16 = 0x8100;
const ETHERTYPE_QINQ: u16 = 0x88a8;

const HOP_BY_HOP: u8 = 0;
const TCP: u8 = 6;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const DESTINATION_OPTIONS: u8 = 60;

/// Stands for the length of a segment whose packet does not tell.
const BIG: u32 = 1 << 16;
/// VLAN tags of a packet that are looked behind (IEEE 802.1ad stacks two).
const MAX_TAGS: u32 = 2;
/// Extension headers of an IPv6 packet that are looked behind. RFC 8200
/// section 4.1 knows seven in front of a payload, of which one encrypts it.
const MAX_EXTENSIONS: u32 = 6;

/// Reads the packets that make up nearly all traffic, at fixed offsets:
/// untagged, no IPv4 options, no IPv6 extension headers, not fragmented.
#[inline(always)]
pub fn plain<P: Packet + ?Sized>(packet: &P) -> Plain {
    let Some(ethertype) = packet.bytes(ETHERTYPE_AT) else { return Plain::Unclear };
    match u16::from_be_bytes(ethertype) {
        ETHERTYPE_IPV4 => plain_ipv4(packet),
        ETHERTYPE_IPV6 => plain_ipv6(packet),
        ETHERTYPE_VLAN | ETHERTYPE_QINQ => Plain::Unclear,
        _ => Plain::Other,
    }
}

#[inline(always)]
fn plain_ipv4<P: Packet + ?Sized>(packet: &P) -> Plain {
    let Some(header) = packet.bytes::<10>(ETHERNET_HEADER) else { return Plain::Unclear };
    if header[9] != TCP {
        return Plain::Other;
    }
    // Neither an offset nor more to come; the other two bits say nothing.
    let whole = (header[6] & 0x3f) | header[7] == 0;
    let length = u16::from_be_bytes([header[2], header[3]]);
    if header[0] != 0x45 || !whole || u32::from(length) < IPV4_HEADER + TCP_HEADER {
        return Plain::Unclear;
    }
    let length = u32::from(length) - IPV4_HEADER;
    tcp(packet, IpVersion::V4, ETHERNET_HEADER, ETHERNET_HEADER + IPV4_HEADER, length)
        .map_or(Plain::Unclear, Plain::Tcp)
}

#[inline(always)]
fn plain_ipv6<P: Packet + ?Sized>(packet: &P) -> Plain {
    let Some(header) = packet.bytes::<7>(ETHERNET_HEADER) else { return Plain::Unclear };
    let length = u16::from_be_bytes([header[4], header[5]]);
    if header[0] >> 4 != 6 || header[6] != TCP || u32::from(length) < TCP_HEADER {
        return Plain::Unclear;
    }
    tcp(packet, IpVersion::V6, ETHERNET_HEADER, ETHERNET_HEADER + IPV6_HEADER, length.into())
        .map_or(Plain::Unclear, Plain::Tcp)
}

/// Reads any packet: VLAN tags, IPv4 options, IPv6 extension headers. Of a
/// fragmented packet the first fragment holds the TCP header.
#[inline(always)]
pub fn any<P: Packet + ?Sized>(packet: &P) -> Option<Segment> {
    let mut at = ETHERTYPE_AT;
    for _ in 0..=MAX_TAGS {
        let ethertype = u16::from_be_bytes(packet.bytes(at)?);
        match ethertype {
            ETHERTYPE_IPV4 => return ipv4(packet, at + 2),
            ETHERTYPE_IPV6 => return ipv6(packet, at + 2),
            ETHERTYPE_VLAN | ETHERTYPE_QINQ => at += 4,
            _ => return None,
        }
    }
    None
}

#[inline(always)]
fn ipv4<P: Packet + ?Sized>(packet: &P, ip_at: u32) -> Option<Segment> {
    let header = packet.bytes::<10>(ip_at)?;
    let header_length = u32::from(header[0] & 0xf) * 4;
    // 0 in packets of more than 64 KiB (kernel commit b1a78b9b9886, BIG TCP).
    let length = u32::from(u16::from_be_bytes([header[2], header[3]]));
    let fragment_offset = u16::from_be_bytes([header[6], header[7]]) & 0x1fff;
    if header[0] >> 4 != 4
        || header_length < IPV4_HEADER
        || header[9] != TCP
        || fragment_offset != 0
        || length != 0 && length < header_length + TCP_HEADER
    {
        return None;
    }
    let length = if length == 0 { BIG } else { length - header_length };
    tcp(packet, IpVersion::V4, ip_at, ip_at + header_length, length)
}

#[inline(always)]
fn ipv6<P: Packet + ?Sized>(packet: &P, ip_at: u32) -> Option<Segment> {
    let header = packet.bytes::<7>(ip_at)?;
    if header[0] >> 4 != 6 {
        return None;
    }
    // 0 in jumbograms (RFC 2675), which is how the kernel makes packets of
    // more than 64 KiB.
    let length = u32::from(u16::from_be_bytes([header[4], header[5]]));
    let mut next = header[6];
    let mut at = ip_at + IPV6_HEADER;
    for _ in 0..=MAX_EXTENSIONS {
        let extension = match next {
            TCP if length == 0 => return tcp(packet, IpVersion::V6, ip_at, at, BIG),
            TCP => {
                let length = (ip_at + IPV6_HEADER + length).checked_sub(at)?;
                let whole = length >= TCP_HEADER;
                return if whole { tcp(packet, IpVersion::V6, ip_at, at, length) } else { None };
            }
            HOP_BY_HOP | ROUTING | FRAGMENT | AUTHENTICATION | DESTINATION_OPTIONS => {
                packet.bytes::<4>(at)?
            }
            _ => return None,
        };
        at += match next {
            FRAGMENT if u16::from_be_bytes([extension[2], extension[3]]) & 0xfff8 != 0 => {
                return None;
            }
            FRAGMENT => 8,
            AUTHENTICATION => (u32::from(extension[1]) + 2) * 4,
            _ => (u32::from(extension[1]) + 1) * 8,
        };
        next = extension[0];
    }
    None
}

/// `length` is that of the segment, at least that of a header.
#[inline(always)]
fn tcp<P: Packet + ?Sized>(
    packet: &P,
    ip: IpVersion,
    ip_at: u32,
    tcp_at: u32,
    length: u32,
) -> Option<Segment> {
    let header = packet.bytes::<20>(tcp_at)?;
    Some(Segment {
        ip,
        ip_at,
        tcp_at,
        source: u16::from_be_bytes([header[0], header[1]]),
        destination: u16::from_be_bytes([header[2], header[3]]),
        length,
        offset_and_flags: [header[12], header[13]],
    })
}
