//! Connections that outlive what the shim's maps say of them, and packets
//! that are not in one piece.
#![expect(clippy::unwrap_used, reason = "helpers of tests are tests")]

mod common;

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    time::Duration,
};

use common::{
    can_run,
    manager::Manager,
    node::{Node, Sandbox},
    packet::{ACK, SYN, Tcp, tcp_checksum},
    sh,
    shim::{activity, bound, scale_down},
    wait_until,
};

const LIMIT: Duration = Duration::from_secs(10);

fn attached(node: &Node) -> Sandbox {
    fs::create_dir_all(node.maps_dir()).unwrap();
    let sandbox = node.sandbox();
    sandbox.make_pin_dir();
    let mut manager = Manager::start(node);
    manager.wait_until_attached(&sandbox);
    manager.stop();
    sandbox
}

/// A proxy in the sandbox, for an application whose port nobody listens on.
fn proxy(sandbox: &Sandbox, application: u16) -> TcpListener {
    let any = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), 0);
    let listener = sandbox.inside(|| TcpListener::bind(any)).unwrap();
    scale_down(sandbox, application, listener.local_addr().unwrap().port());
    listener
}

/// As the shim does when the process runs again.
fn restored(sandbox: &Sandbox, application: u16) {
    sandbox.map("disable_redirect").insert(application, 1_u8, 0).unwrap();
}

fn accept(listener: &TcpListener) -> (TcpStream, u16) {
    let (stream, client) = listener.accept().unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    (stream, client.port())
}

fn connect(address: IpAddr, port: u16) -> TcpStream {
    let stream = TcpStream::connect_timeout(&SocketAddr::new(address, port), LIMIT).unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    stream
}

/// Sockets of a port of the sandbox in a state, as ss(8) names it.
fn sockets(sandbox: &Sandbox, state: &str, port: u16) -> usize {
    sandbox.sh(&format!("ss -tanH state {state} \"sport = :{port}\"")).lines().count()
}

#[test]
fn late_segments_of_a_closed_connection_reach_the_proxy() {
    if !can_run(&["ip", "ss"]) {
        return;
    }
    let node = Node::new();
    let sandbox = attached(&node);
    for address in [sandbox.ipv4(), sandbox.ipv6()] {
        let listener = proxy(&sandbox, 80);
        let proxy_port = listener.local_addr().unwrap().port();
        let mut client = connect(address, 80);
        let (server, client_port) = accept(&listener);
        sandbox.map("active_connections").insert(client_port, 1_u8, 0).unwrap();
        restored(&sandbox, 80);
        // The proxy closes first and forgets the connection; then the client
        // closes. With the Go shim's program its FIN meets the application,
        // which answers with a reset.
        drop(server);
        sandbox.map::<u16, u8>("active_connections").remove(&client_port).unwrap();
        assert_eq!(client.read(&mut [0]).unwrap(), 0);
        drop(client);
        wait_until("the proxy's socket has seen the client's FIN", || {
            sockets(&sandbox, "time-wait", proxy_port) == 1
        });
        drop(listener);
        sandbox.map::<u16, u8>("disable_redirect").remove(&80).unwrap();
    }
}

#[test]
fn the_first_of_two_clients_with_one_port_cuts_off_no_other_b17() {
    if !can_run(&["ip"]) {
        return;
    }
    let node = Node::new();
    let sandbox = attached(&node);
    let listener = proxy(&sandbox, 80);
    // Two clients with addresses of their own, which happen to have one port.
    let subnet = match sandbox.ipv4() {
        IpAddr::V4(address) => address.octets(),
        IpAddr::V6(_) => unreachable!(),
    };
    let own = |host| Ipv4Addr::new(subnet[0], subnet[1], subnet[2], host);
    sh(&format!("ip addr add {}/24 dev host{}", own(3), subnet[2]));
    let from = |source| bound(source, 45000, SocketAddr::new(sandbox.ipv4(), 80)).unwrap();
    let (first, mut second) = (from(own(1)), from(own(3)));
    let (served_first, port) = accept(&listener);
    let (mut served_second, _) = accept(&listener);
    assert_eq!(port, 45000);
    sandbox.map("active_connections").insert(port, 1_u8, 0).unwrap();
    restored(&sandbox, 80);
    // The first one is done.
    drop(first);
    drop(served_first);
    sandbox.map::<u16, u8>("active_connections").remove(&port).unwrap();
    // The second one is not.
    for round in 0..3_u8 {
        second.write_all(&[round]).unwrap();
        let mut read = [0];
        served_second.read_exact(&mut read).unwrap();
        served_second.write_all(&read).unwrap();
        second.read_exact(&mut read).unwrap();
        assert_eq!(read, [round]);
    }
    assert_ne!(activity(&sandbox, 80), 0);
}

#[test]
fn headers_in_fragments_of_an_skb_are_found_b8() {
    if !can_run(&["ip"]) {
        return;
    }
    let node = Node::new();
    fs::create_dir_all(node.maps_dir()).unwrap();
    let sandbox = node.sandbox();
    // The interface of the pod is the TAP device, so that the test is what is
    // connected to it.
    sandbox.sh("ip link set eth0 down && ip link set eth0 name veth0");
    let mut tap = sandbox.inside(tap::open);
    sandbox.sh(
        "ip addr add 192.0.2.80/24 dev eth0 && ip addr add 2001:db8::80/64 dev eth0 nodad &&
         ip link set eth0 address 02:00:00:00:00:01 up &&
         ip neigh replace 192.0.2.7 lladdr 02:00:00:00:00:02 dev eth0 &&
         ip neigh replace 2001:db8::7 lladdr 02:00:00:00:00:02 dev eth0",
    );
    sandbox.make_pin_dir();
    let mut manager = Manager::start(&node);
    manager.wait_until_attached(&sandbox);
    manager.stop();
    let _listener = proxy(&sandbox, 80);
    for (client, pod) in [("192.0.2.7", "192.0.2.80"), ("2001:db8::7", "2001:db8::80")] {
        sandbox.map("socket_tracker").insert(80_u16, 0_u64, 0).unwrap();
        let (client, pod): (IpAddr, IpAddr) = (client.parse().unwrap(), pod.parse().unwrap());
        // More than a page: less is always in one piece. The checksum is right,
        // and the kernel verifies it.
        let request = Tcp { payload: vec![7; 6000], ..Tcp::syn((client, 40000), (pod, 80)) };
        tap.write_with_header_in_fragments(&request.bytes());
        let ip_header = if client.is_ipv4() { 20 } else { 40 };
        let answer = tap.read_until(|frame| {
            let tcp = frame.get(14 + ip_header..).unwrap_or_default();
            tcp.len() >= 20 && tcp[13] == SYN | ACK && tcp[2..4] == 40000_u16.to_be_bytes()
        });
        let tcp = &answer[14 + ip_header..];
        assert_eq!(tcp[..2], 80_u16.to_be_bytes());
        let checksum = u16::from_be_bytes([tcp[16], tcp[17]]);
        assert_eq!(checksum, tcp_checksum(pod, client, tcp), "the device asked for whole sums");
        assert_ne!(activity(&sandbox, 80), 0);
    }
}

/// A TAP device named eth0 in the network namespace of the calling thread.
mod tap {
    #![expect(unsafe_code, reason = "devices are made by ioctl")]

    use std::{
        fs::File,
        io::{self, Read as _, Write as _},
        os::fd::AsRawFd as _,
        thread,
        time::{Duration, Instant},
    };

    nix::ioctl_write_int!(set_interface, b'T', 202);

    const IFF_TAP: libc::c_short = 2;
    const IFF_NO_PI: libc::c_short = 0x1000;
    const IFF_VNET_HDR: libc::c_short = 0x4000;
    /// `struct virtio_net_hdr`.
    const HEADER: usize = 10;

    pub(super) struct Tap(File);

    pub(super) fn open() -> Tap {
        let file = File::options().read(true).write(true).open("/dev/net/tun").unwrap();
        // SAFETY: a structure of integers.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        for (to, from) in request.ifr_name.iter_mut().zip(b"eth0") {
            *to = (*from).cast_signed();
        }
        request.ifr_ifru.ifru_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR;
        // SAFETY: the kernel reads and writes a struct ifreq.
        unsafe { set_interface(file.as_raw_fd(), (&raw mut request) as u64) }.unwrap();
        let flags = nix::fcntl::OFlag::O_NONBLOCK;
        nix::fcntl::fcntl(&file, nix::fcntl::FcntlArg::F_SETFL(flags)).unwrap();
        Tap(file)
    }

    impl Tap {
        /// Gives a frame of which only the Ethernet header is linear.
        pub(super) fn write_with_header_in_fragments(&mut self, frame: &[u8]) {
            let mut header = [0; HEADER];
            header[2..4].copy_from_slice(&14_u16.to_ne_bytes());
            self.0.write_all(&[header.as_slice(), frame].concat()).unwrap();
        }

        /// Takes frames until one is as wanted.
        pub(super) fn read_until(&mut self, wanted: impl Fn(&[u8]) -> bool) -> Vec<u8> {
            let start = Instant::now();
            let mut buffer = vec![0; 70_000];
            while start.elapsed() < Duration::from_secs(30) {
                match self.0.read(&mut buffer) {
                    Ok(length) if wanted(&buffer[HEADER..length]) => {
                        return buffer[HEADER..length].to_vec();
                    }
                    Ok(_) => {}
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        thread::sleep(Duration::from_millis(5));
                    }
                    Err(error) => panic!("{error}"),
                }
            }
            panic!("no such frame");
        }
    }
}
