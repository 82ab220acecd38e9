//! Single packets on the node's side of a sandbox's interface.
#![expect(unsafe_code, reason = "sockets for packets are made by system calls")]

use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

use super::{node::Sandbox, packet::Tcp};

/// Sends a packet to a sandbox from the network namespace of the calling
/// thread, which is the node's.
pub(crate) fn send(sandbox: &Sandbox, packet: &Tcp) {
    let shown = sandbox.sh("ip -br link show eth0");
    let mut frame = packet.bytes();
    let address = shown.split_whitespace().find(|word| word.matches(':').count() == 5).unwrap();
    for (to, from) in frame.iter_mut().zip(address.split(':')) {
        *to = u8::from_str_radix(from, 16).unwrap();
    }
    let interface = format!("host{}", sandbox.number());
    let interface = nix::net::if_::if_nametoindex(&*interface).unwrap();
    // SAFETY: no pointers; the descriptor is new.
    let socket = unsafe {
        let socket = libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0);
        assert!(socket >= 0, "{}", std::io::Error::last_os_error());
        OwnedFd::from_raw_fd(socket)
    };
    // SAFETY: a structure of integers.
    let mut to: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    to.sll_family = u16::try_from(libc::AF_PACKET).unwrap();
    to.sll_ifindex = interface.cast_signed();
    // SAFETY: frame and address outlive the call, and their sizes are given.
    let sent = unsafe {
        libc::sendto(
            socket.as_raw_fd(),
            frame.as_ptr().cast(),
            frame.len(),
            0,
            (&raw const to).cast(),
            u32::try_from(size_of_val(&to)).unwrap(),
        )
    };
    assert_eq!(usize::try_from(sent), Ok(frame.len()));
}
