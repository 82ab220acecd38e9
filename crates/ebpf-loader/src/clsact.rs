//! Programs on an interface by way of traffic control: a clsact qdisc with a
//! filter per direction, for kernels without TCX (before 6.6).
//!
//! Works on the network namespace of the calling thread. A filter lives as
//! long as its interface; nothing here is undone by dropping a value.

use std::{
    io,
    os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd},
};

use nix::sys::{
    socket::{
        AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, setsockopt, socket,
        sockopt,
    },
    time::TimeVal,
};
use zeropod_redirector_abi::Direction;

/// Puts a program on a direction of an interface, in the place of ours if
/// that is there, with no packet in between that meets neither. Then removes
/// what else goes by the name: the Go manager adds another filter each time
/// (B12).
pub(crate) fn attach(
    program: BorrowedFd<'_>,
    name: &str,
    interface: u32,
    direction: Direction,
) -> io::Result<()> {
    let netlink = Netlink::open()?;
    netlink.add_qdisc(interface)?;
    netlink.put_filter(program, name, interface, direction)?;
    let others = netlink.filters(interface, direction)?;
    for other in others.iter().filter(|filter| filter.name.contains(short(name))) {
        if !other.is_ours() {
            netlink.remove_filter(other, interface, direction)?;
        }
    }
    Ok(())
}

/// Id of the program of our filter, if it is there.
pub(crate) fn attached(interface: u32, direction: Direction) -> io::Result<Option<u32>> {
    let filters = Netlink::open()?.filters(interface, direction)?;
    Ok(filters.into_iter().find(Filter::is_ours).and_then(|filter| filter.program))
}

/// Whether there is a filter that goes by a name.
pub(crate) fn is_taken(name: &str, interface: u32, direction: Direction) -> io::Result<bool> {
    let filters = Netlink::open()?.filters(interface, direction)?;
    Ok(filters.iter().any(|filter| filter.is_ours() || filter.name.contains(short(name))))
}

/// Removes every filter that goes by a name, but not the qdisc: somebody
/// else's filters may hang on it.
pub(crate) fn detach(name: &str, interface: u32, direction: Direction) -> io::Result<()> {
    let netlink = Netlink::open()?;
    for filter in netlink.filters(interface, direction)? {
        if filter.is_ours() || filter.name.contains(short(name)) {
            netlink.remove_filter(&filter, interface, direction)?;
        }
    }
    Ok(())
}

/// A program's name as the kernel keeps it, which is how the Go manager's
/// filters mention it.
fn short(name: &str) -> &str {
    name.get(..15).unwrap_or(name)
}

/// A BPF filter.
#[derive(Debug, PartialEq, Eq)]
struct Filter {
    handle: u32,
    /// Priority and protocol.
    info: u32,
    program: Option<u32>,
    name: String,
}

impl Filter {
    fn is_ours(&self) -> bool {
        (self.handle, self.info) == (HANDLE, INFO)
    }
}

/// "zpod": no other filter has it, so that replacing it replaces ours.
const HANDLE: u32 = 0x7a70_6f64;
/// Where the kernel puts the first filter without a priority of its own, which
/// leaves room before it; all protocols.
const INFO: u32 = 0xc000 << 16 | (0x0003_u16.to_be() as u32);

// Numbers of include/uapi/linux/{netlink,rtnetlink,pkt_sched,pkt_cls}.h.
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_EXCL: u16 = 0x200;
const NLM_F_DUMP: u16 = 0x300;
const NLM_F_CREATE: u16 = 0x400;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const RTM_NEWQDISC: u16 = 36;
const RTM_NEWTFILTER: u16 = 44;
const RTM_DELTFILTER: u16 = 45;
const RTM_GETTFILTER: u16 = 46;
const TC_H_CLSACT: u32 = 0xffff_fff1;
const TC_H_MIN_INGRESS: u32 = 0xffff_fff2;
const TC_H_MIN_EGRESS: u32 = 0xffff_fff3;
const CLSACT_HANDLE: u32 = 0xffff_0000;
const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const TCA_BPF_FD: u16 = 6;
const TCA_BPF_NAME: u16 = 7;
const TCA_BPF_FLAGS: u16 = 8;
const TCA_BPF_ID: u16 = 11;
const TCA_BPF_FLAG_ACT_DIRECT: u32 = 1;
const HEADER: usize = 16;
const TCMSG: usize = 20;
const NLA_TYPE_MASK: u16 = 0x3fff;

/// How long the kernel may take to answer.
const PATIENCE_S: i64 = 5;

struct Netlink(OwnedFd);

impl Netlink {
    fn open() -> io::Result<Self> {
        let socket = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkRoute,
        )?;
        setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::new(PATIENCE_S, 0))?;
        Ok(Self(socket))
    }

    fn add_qdisc(&self, interface: u32) -> io::Result<()> {
        let message = Message { interface, handle: CLSACT_HANDLE, parent: TC_H_CLSACT, info: 0 };
        let mut attributes = Vec::new();
        push(&mut attributes, TCA_KIND, b"clsact\0");
        match self.request(
            RTM_NEWQDISC,
            NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL,
            message,
            &attributes,
        ) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            result => result.map(drop),
        }
    }

    fn put_filter(
        &self,
        program: BorrowedFd<'_>,
        name: &str,
        interface: u32,
        direction: Direction,
    ) -> io::Result<()> {
        let parent = parent(direction);
        let message = Message { interface, handle: HANDLE, parent, info: INFO };
        let mut options = Vec::new();
        push(&mut options, TCA_BPF_FD, &program.as_raw_fd().to_ne_bytes());
        push(&mut options, TCA_BPF_NAME, &[name.as_bytes(), b"\0"].concat());
        push(&mut options, TCA_BPF_FLAGS, &TCA_BPF_FLAG_ACT_DIRECT.to_ne_bytes());
        let mut attributes = Vec::new();
        push(&mut attributes, TCA_KIND, b"bpf\0");
        push(&mut attributes, TCA_OPTIONS, &options);
        self.request(RTM_NEWTFILTER, NLM_F_ACK | NLM_F_CREATE, message, &attributes).map(drop)
    }

    fn filters(&self, interface: u32, direction: Direction) -> io::Result<Vec<Filter>> {
        let message = Message { interface, handle: 0, parent: parent(direction), info: 0 };
        let answers = self.request(RTM_GETTFILTER, NLM_F_DUMP, message, &[])?;
        Ok(answers.iter().filter_map(|answer| filter(answer)).collect())
    }

    fn remove_filter(
        &self,
        filter: &Filter,
        interface: u32,
        direction: Direction,
    ) -> io::Result<()> {
        let Filter { handle, info, .. } = *filter;
        let message = Message { interface, handle, parent: parent(direction), info };
        let mut attributes = Vec::new();
        push(&mut attributes, TCA_KIND, b"bpf\0");
        self.request(RTM_DELTFILTER, NLM_F_ACK, message, &attributes).map(drop)
    }

    /// Sends a request and returns the bodies of the answers.
    fn request(
        &self,
        kind: u16,
        flags: u16,
        message: Message,
        attributes: &[u8],
    ) -> io::Result<Vec<Vec<u8>>> {
        let length = u32::try_from(HEADER + TCMSG + attributes.len()).map_err(io::Error::other)?;
        let mut request = Vec::new();
        request.extend(length.to_ne_bytes());
        request.extend(kind.to_ne_bytes());
        request.extend((NLM_F_REQUEST | flags).to_ne_bytes());
        request.extend([0; 8]);
        let Message { interface, handle, parent, info } = message;
        for word in [0, interface, handle, parent, info] {
            request.extend(word.to_ne_bytes());
        }
        request.extend(attributes);
        send(self.0.as_fd().as_raw_fd(), &request, MsgFlags::empty())?;

        let mut answers = Vec::new();
        // More than the kernel puts into one datagram of a dump.
        let mut buffer = vec![0; 64 * 1024];
        loop {
            let received = recv(self.0.as_fd().as_raw_fd(), &mut buffer, MsgFlags::empty())?;
            let mut rest = &buffer[..received];
            while let Some((kind, body, after)) = split_message(rest) {
                match kind {
                    NLMSG_DONE => return Ok(answers),
                    NLMSG_ERROR => {
                        return match word(body, 0) {
                            Some(0) => Ok(answers),
                            Some(code) => {
                                Err(io::Error::from_raw_os_error(code.cast_signed().wrapping_neg()))
                            }
                            None => Err(io::ErrorKind::InvalidData.into()),
                        };
                    }
                    _ => answers.push(body.to_vec()),
                }
                rest = after;
            }
        }
    }
}

/// What `struct tcmsg` says, but for the address family.
#[derive(Clone, Copy)]
struct Message {
    interface: u32,
    handle: u32,
    parent: u32,
    info: u32,
}

fn parent(direction: Direction) -> u32 {
    match direction {
        Direction::Ingress => TC_H_MIN_INGRESS,
        Direction::Egress => TC_H_MIN_EGRESS,
    }
}

/// Reads a filter from a `struct tcmsg` with attributes; `None` when it is no
/// BPF filter, or the head of a list of them.
fn filter(message: &[u8]) -> Option<Filter> {
    let attributes = message.get(TCMSG..)?;
    let handle = word(message, 8)?;
    let is_bpf = attribute(attributes, TCA_KIND)?.starts_with(b"bpf\0");
    if handle == 0 || !is_bpf {
        return None;
    }
    let options = attribute(attributes, TCA_OPTIONS)?;
    let name = attribute(options, TCA_BPF_NAME).unwrap_or_default();
    let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
    Some(Filter {
        handle,
        info: word(message, 16)?,
        program: attribute(options, TCA_BPF_ID).and_then(|id| word(id, 0)),
        name: String::from_utf8_lossy(name).into_owned(),
    })
}

/// Splits off the first message: its type, its body, and what follows it.
fn split_message(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let length = usize::try_from(word(bytes, 0)?).ok()?;
    let body = bytes.get(HEADER..length)?;
    let kind = u16::from_ne_bytes(bytes.get(4..6)?.try_into().ok()?);
    Some((kind, body, bytes.get(length.next_multiple_of(4)..).unwrap_or_default()))
}

fn attribute(mut attributes: &[u8], kind: u16) -> Option<&[u8]> {
    loop {
        let length = usize::from(u16::from_ne_bytes(attributes.get(..2)?.try_into().ok()?));
        let found = u16::from_ne_bytes(attributes.get(2..4)?.try_into().ok()?);
        let value = attributes.get(4..length)?;
        if found & NLA_TYPE_MASK == kind {
            return Some(value);
        }
        attributes = attributes.get(length.next_multiple_of(4)..)?;
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn push(attributes: &mut Vec<u8>, kind: u16, value: &[u8]) {
    // Names and numbers: far from the limit of 64 KiB.
    let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
    attributes.extend(length.to_ne_bytes());
    attributes.extend(kind.to_ne_bytes());
    attributes.extend(value);
    attributes.resize(attributes.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_of_any_bytes_are_read_without_panic() {
        let mut attributes = Vec::new();
        push(&mut attributes, TCA_KIND, b"bpf\0");
        let mut options = Vec::new();
        push(&mut options, TCA_BPF_NAME, b"tc_redirect_ingress\0");
        push(&mut options, TCA_BPF_ID, &7_u32.to_ne_bytes());
        push(&mut attributes, TCA_OPTIONS, &options);
        let mut message = vec![0; TCMSG];
        message[8..12].copy_from_slice(&1_u32.to_ne_bytes());
        message.extend(attributes);
        let whole = filter(&message);
        let name = "tc_redirect_ingress".to_owned();
        assert_eq!(whole, Some(Filter { handle: 1, info: 0, program: Some(7), name }));
        for length in 0..message.len() {
            for byte in [0, 1, 3, 0xff] {
                let mut broken = message[..length].to_vec();
                broken.push(byte);
                let _any = filter(&broken);
                let _any = split_message(&broken);
            }
        }
    }
}
