//! What a shim, its clients and an onlooker do with a sandbox.

use std::{
    io::{self, Read as _},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream},
    time::Duration,
};

use zeropod_redirector_abi::MAPS;

use super::node::Sandbox;

pub(crate) const LINKS: [&str; 4] =
    ["tcx_ingress_lo", "tcx_egress_lo", "tcx_ingress_eth0", "tcx_egress_eth0"];

/// What a client reads from a server.
pub(crate) fn ask(address: IpAddr, port: u16) -> io::Result<String> {
    let limit = Duration::from_secs(5);
    let mut stream = TcpStream::connect_timeout(&SocketAddr::new(address, port), limit)?;
    stream.set_read_timeout(Some(limit))?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

/// Application and proxy, as the shim sets them up for a container that is
/// scaled down.
pub(crate) fn scale_down(sandbox: &Sandbox, application: u16, proxy: u16) {
    sandbox.map("socket_tracker").insert(application, 0_u64, 0).unwrap();
    sandbox.map("ingress_redirects").insert(application, proxy, 0).unwrap();
    sandbox.map("egress_redirects").insert(proxy, application, 0).unwrap();
}

pub(crate) fn activity(sandbox: &Sandbox, application: u16) -> u64 {
    sandbox.map::<u16, u64>("socket_tracker").get(&application, 0).unwrap()
}

/// Ids of the programs behind the pinned links.
pub(crate) fn programs(sandbox: &Sandbox) -> Vec<u32> {
    let program = |link: &str| {
        let link = aya::programs::links::PinnedLink::from_pin(sandbox.pins.join(link)).unwrap();
        aya::programs::links::FdLink::from(link).info().unwrap().program_id()
    };
    LINKS.into_iter().map(program).collect()
}

/// Ids of the maps that the shim knows.
pub(crate) fn map_ids(sandbox: &Sandbox) -> Vec<u32> {
    let id = |map: &str| aya::maps::MapInfo::from_pin(sandbox.pins.join(map)).unwrap().id();
    MAPS.iter().map(|map| id(map.name)).collect()
}

/// Programs attached to the interfaces, whoever attached them.
pub(crate) fn attached_programs(sandbox: &Sandbox) -> usize {
    use aya::programs::{SchedClassifier, TcAttachType};
    sandbox.inside(|| {
        let mut programs = 0;
        for interface in ["lo", "eth0"] {
            for direction in [TcAttachType::Ingress, TcAttachType::Egress] {
                programs += SchedClassifier::query_tcx(interface, direction).unwrap().1.len();
            }
        }
        programs
    })
}

/// A connection from a chosen port.
pub(crate) fn bound(source: Ipv4Addr, port: u16, to: SocketAddr) -> io::Result<TcpStream> {
    use nix::sys::socket::{
        AddressFamily, SockFlag, SockType, SockaddrStorage, bind, connect, setsockopt, socket,
        sockopt::ReuseAddr,
    };
    use std::os::fd::AsRawFd as _;
    let socket =
        socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap();
    setsockopt(&socket, ReuseAddr, &true).unwrap();
    let source = SocketAddr::new(source.into(), port);
    bind(socket.as_raw_fd(), &SockaddrStorage::from(source)).unwrap();
    connect(socket.as_raw_fd(), &SockaddrStorage::from(to))?;
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    Ok(stream)
}
