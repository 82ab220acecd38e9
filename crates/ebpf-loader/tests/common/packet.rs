//! TCP packets, byte by byte, with checksums computed here.

use std::net::IpAddr;

/// A packet in the making.
#[derive(Debug, Clone)]
pub(crate) struct Tcp {
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
    pub(crate) source_port: u16,
    pub(crate) destination_port: u16,
    pub(crate) flags: u8,
    pub(crate) payload: Vec<u8>,
    /// VLAN tags, outermost first, as they follow the addresses.
    pub(crate) tags: Vec<[u8; 4]>,
    /// IPv4 options; their length is a multiple of 4.
    pub(crate) options: Vec<u8>,
    /// IPv6 extension headers: the number of each and its bytes, of which the
    /// first is filled in.
    pub(crate) extensions: Vec<(u8, Vec<u8>)>,
    /// The third word of the IPv4 header: flags and fragment offset.
    pub(crate) fragment: u16,
}

pub(crate) const FIN: u8 = 0x01;
pub(crate) const SYN: u8 = 0x02;
pub(crate) const RST: u8 = 0x04;
pub(crate) const PSH: u8 = 0x08;
pub(crate) const ACK: u8 = 0x10;

impl Tcp {
    /// A SYN.
    pub(crate) fn syn(source: (IpAddr, u16), destination: (IpAddr, u16)) -> Self {
        Self {
            source: source.0,
            destination: destination.0,
            source_port: source.1,
            destination_port: destination.1,
            flags: SYN,
            payload: Vec::new(),
            tags: Vec::new(),
            options: Vec::new(),
            extensions: Vec::new(),
            fragment: 0,
        }
    }

    /// The bytes, with right checksums.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut tcp = Vec::new();
        tcp.extend(self.source_port.to_be_bytes());
        tcp.extend(self.destination_port.to_be_bytes());
        tcp.extend([0, 0, 0, 1, 0, 0, 0, 0, 5 << 4, self.flags, 0xff, 0xff, 0, 0, 0, 0]);
        tcp.extend(&self.payload);
        let sum = tcp_checksum(self.source, self.destination, &tcp);
        tcp[16..18].copy_from_slice(&sum.to_be_bytes());

        let mut packet = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
        packet.extend(self.tags.iter().flatten());
        match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                packet.extend([8, 0]);
                let header_length = 20 + self.options.len();
                let total = u16::try_from(header_length + tcp.len()).unwrap();
                let mut ip = vec![0x40 | u8::try_from(header_length / 4).unwrap(), 0];
                ip.extend(total.to_be_bytes());
                ip.extend([0, 1]);
                ip.extend(self.fragment.to_be_bytes());
                ip.extend([64, 6, 0, 0]);
                ip.extend(source.octets());
                ip.extend(destination.octets());
                ip.extend(&self.options);
                let sum = !ones_sum(&ip, 0);
                ip[10..12].copy_from_slice(&sum.to_be_bytes());
                packet.extend(ip);
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                packet.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
                let extensions: usize = self.extensions.iter().map(|(_, bytes)| bytes.len()).sum();
                packet.extend(u16::try_from(extensions + tcp.len()).unwrap().to_be_bytes());
                packet.extend([self.extensions.first().map_or(6, |(number, _)| *number), 64]);
                packet.extend(source.octets());
                packet.extend(destination.octets());
                for (at, (_, bytes)) in self.extensions.iter().enumerate() {
                    packet.push(self.extensions.get(at + 1).map_or(6, |(number, _)| *number));
                    packet.extend(&bytes[1..]);
                }
            }
            other => panic!("{other:?}"),
        }
        packet.extend(tcp);
        packet
    }

    /// The same packet from or to another port.
    pub(crate) fn ports(&self, source_port: u16, destination_port: u16) -> Self {
        Self { source_port, destination_port, ..self.clone() }
    }
}

/// The checksum that a TCP segment must carry (RFC 9293 section 3.1); the
/// field itself counts as zero.
pub(crate) fn tcp_checksum(source: IpAddr, destination: IpAddr, tcp: &[u8]) -> u16 {
    let mut pseudo = Vec::new();
    for address in [source, destination] {
        match address {
            IpAddr::V4(address) => pseudo.extend(address.octets()),
            IpAddr::V6(address) => pseudo.extend(address.octets()),
        }
    }
    pseudo.extend(u32::try_from(tcp.len()).unwrap().to_be_bytes());
    pseudo.extend([0, 0, 0, 6]);
    let mut tcp = tcp.to_vec();
    tcp[16..18].fill(0);
    !ones_sum(&tcp, u32::from(ones_sum(&pseudo, 0)))
}

fn ones_sum(bytes: &[u8], start: u32) -> u16 {
    let words = bytes
        .chunks(2)
        .map(|word| u32::from(word[0]) << 8 | word.get(1).map_or(0, |low| u32::from(*low)));
    let mut sum = words.fold(start, |sum, word| sum + word);
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    u16::try_from(sum).unwrap()
}
