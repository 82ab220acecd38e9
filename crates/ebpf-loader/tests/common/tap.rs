//! TAP devices: the test is what is connected to an interface of a sandbox, and
//! says in what state the checksum of each packet is.
#![expect(unsafe_code, reason = "devices are made by ioctl")]

use std::{
    fs::File,
    io::{self, Read as _, Write as _},
    net::IpAddr,
    os::fd::AsRawFd as _,
    thread,
    time::{Duration, Instant},
};

use super::{
    node::Sandbox,
    packet::{Tcp, tcp_checksum},
};

nix::ioctl_write_int!(set_interface, b'T', 202);

const IFF_TAP: libc::c_short = 2;
const IFF_NO_PI: libc::c_short = 0x1000;
const IFF_VNET_HDR: libc::c_short = 0x4000;
/// `struct virtio_net_hdr`.
const HEADER: usize = 10;
/// The checksum is to be filled in by whoever sends the packet.
const NEEDS_CSUM: u8 = 1;
/// Somebody verified the checksum.
const DATA_VALID: u8 = 2;

/// What a packet says of its checksum, as the kernel names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sum {
    /// Complete; nobody looked.
    None,
    /// Only that of the pseudo header, for a device to complete.
    Partial,
    /// Complete; a device found it right.
    Unnecessary,
}

pub(crate) struct Tap(File);

/// A frame with a TCP segment, no options or extensions before it.
#[derive(Debug)]
pub(crate) struct Frame {
    tcp: Vec<u8>,
    addresses: (IpAddr, IpAddr),
}

impl Tap {
    /// A device in the network namespace of the calling thread.
    pub(crate) fn open(name: &str) -> Self {
        let file = File::options().read(true).write(true).open("/dev/net/tun").unwrap();
        // SAFETY: a structure of integers.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
            *to = from.cast_signed();
        }
        request.ifr_ifru.ifru_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR;
        // SAFETY: the kernel reads and writes a struct ifreq.
        unsafe { set_interface(file.as_raw_fd(), (&raw mut request) as u64) }.unwrap();
        let flags = nix::fcntl::OFlag::O_NONBLOCK;
        nix::fcntl::fcntl(&file, nix::fcntl::FcntlArg::F_SETFL(flags)).unwrap();
        Self(file)
    }

    /// The interface of a pod, with the addresses of [`POD`](super::redirector::POD)
    /// and the neighbour of [`CLIENT`](super::redirector::CLIENT).
    pub(crate) fn in_place_of_eth0(sandbox: &Sandbox) -> Self {
        sandbox.sh("ip link set eth0 down && ip link set eth0 name veth0");
        let tap = sandbox.inside(|| Self::open("eth0"));
        sandbox.sh(
            "ip addr add 192.0.2.80/24 dev eth0 && ip addr add 2001:db8::80/64 dev eth0 nodad &&
             ip link set eth0 address 02:00:00:00:00:01 up &&
             ip neigh replace 192.0.2.7 lladdr 02:00:00:00:00:02 dev eth0 &&
             ip neigh replace 2001:db8::7 lladdr 02:00:00:00:00:02 dev eth0",
        );
        tap
    }

    /// Gives a packet whose checksum is in this state.
    pub(crate) fn write(&mut self, packet: &Tcp, sum: Sum) {
        let mut frame = packet.bytes();
        let mut header = [0; HEADER];
        let tcp_at = 14 + if packet.source.is_ipv4() { 20 } else { 40 };
        match sum {
            Sum::None => {}
            Sum::Unnecessary => header[0] = DATA_VALID,
            Sum::Partial => {
                header[0] = NEEDS_CSUM;
                header[6..8].copy_from_slice(&u16::try_from(tcp_at).unwrap().to_ne_bytes());
                header[8..10].copy_from_slice(&16_u16.to_ne_bytes());
                // Of the pseudo header alone: a segment of zeros adds nothing.
                let zeros = vec![0; frame.len() - tcp_at];
                let pseudo = !tcp_checksum(packet.source, packet.destination, &zeros);
                frame[tcp_at + 16..tcp_at + 18].copy_from_slice(&pseudo.to_be_bytes());
            }
        }
        self.0.write_all(&[header.as_slice(), &frame].concat()).unwrap();
    }

    /// Gives a frame of which only the Ethernet header is linear.
    pub(crate) fn write_with_header_in_fragments(&mut self, frame: &[u8]) {
        let mut header = [0; HEADER];
        header[2..4].copy_from_slice(&14_u16.to_ne_bytes());
        self.0.write_all(&[header.as_slice(), frame].concat()).unwrap();
    }

    /// Takes frames until one goes to the sender of a packet.
    pub(crate) fn read_answer_to(&mut self, packet: &Tcp) -> Frame {
        self.read_until(|frame| frame.destination() == (packet.source, packet.source_port))
    }

    /// Takes frames until one is as wanted.
    pub(crate) fn read_until(&mut self, wanted: impl Fn(&Frame) -> bool) -> Frame {
        let start = Instant::now();
        let mut buffer = vec![0; 70_000];
        while start.elapsed() < Duration::from_secs(30) {
            match self.0.read(&mut buffer) {
                Ok(length) => match Frame::of(&buffer[HEADER..length]) {
                    Some(frame) if wanted(&frame) => return frame,
                    _ => {}
                },
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    thread::sleep(Duration::from_millis(5));
                }
                Err(error) => panic!("{error}"),
            }
        }
        panic!("no such frame");
    }
}

impl Frame {
    fn of(frame: &[u8]) -> Option<Self> {
        fn address<const N: usize>(frame: &[u8], at: usize) -> Option<IpAddr>
        where
            IpAddr: From<[u8; N]>,
        {
            Some(<[u8; N]>::try_from(frame.get(at..at + N)?).unwrap().into())
        }
        let (addresses, tcp_at) = match frame.get(12..14)? {
            [8, 0] if frame.get(23) == Some(&6) => {
                ((address::<4>(frame, 26)?, address::<4>(frame, 30)?), 34)
            }
            [0x86, 0xdd] if frame.get(20) == Some(&6) => {
                ((address::<16>(frame, 22)?, address::<16>(frame, 38)?), 54)
            }
            _ => return None,
        };
        let tcp = frame.get(tcp_at..)?.to_vec();
        (tcp.len() >= 20).then_some(Self { tcp, addresses })
    }

    pub(crate) fn source_port(&self) -> u16 {
        self.word(0)
    }

    pub(crate) fn destination(&self) -> (IpAddr, u16) {
        (self.addresses.1, self.word(2))
    }

    pub(crate) fn flags(&self) -> u8 {
        self.tcp[13]
    }

    /// The checksum that it carries.
    pub(crate) fn checksum(&self) -> u16 {
        self.word(16)
    }

    /// The checksum that it should carry.
    pub(crate) fn right_checksum(&self) -> u16 {
        tcp_checksum(self.addresses.0, self.addresses.1, &self.tcp)
    }

    fn word(&self, at: usize) -> u16 {
        u16::from_be_bytes([self.tcp[at], self.tcp[at + 1]])
    }
}
