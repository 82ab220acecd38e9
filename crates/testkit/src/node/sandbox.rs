//! A pod sandbox: a network namespace with lo and eth0, held by a pause
//! process. eth0 is one end of a veth pair whose other end lies in the
//! caller's namespace; both have addresses of a subnet of their own.

use std::{
    fs::{self, File},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::AsRawFd,
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use nix::{
    net::if_::if_nametoindex,
    sched::{CloneFlags, unshare},
};
use rtnetlink::{
    Handle, LinkUnspec, LinkVeth, RouteMessageBuilder,
    packet_route::{
        address::{AddressAttribute, AddressFlags, AddressHeaderFlags},
        link::LinkMessage,
    },
};

use super::{
    Error,
    netns::{NetNs, path_of_pid},
};

/// What a sandbox should be like.
#[derive(Debug, Clone, Default)]
pub struct SandboxConfig {
    /// Which of the 16384 subnets it gets; by default one derived from its
    /// pid. Two sandboxes in one namespace need different ones.
    pub index: Option<u16>,
}

/// A running sandbox. Dropping it kills the pause process and takes the
/// interfaces away.
#[derive(Debug)]
pub struct Sandbox {
    pause: Child,
    outside: NetNs,
    host_link: String,
    addresses: Addresses,
    abandoned: AtomicBool,
}

/// Addresses of both ends of a sandbox's link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Addresses {
    /// Of eth0.
    pub ipv4: Ipv4Addr,
    /// Of eth0; absent where IPv6 is off.
    pub ipv6: Option<Ipv6Addr>,
    /// Of the caller's end.
    pub host_ipv4: Ipv4Addr,
    /// Of the caller's end.
    pub host_ipv6: Option<Ipv6Addr>,
}

impl Sandbox {
    /// Makes a sandbox. Blocks for some milliseconds.
    ///
    /// # Errors
    /// When the kernel refuses, which is likely without root.
    pub fn start(config: &SandboxConfig) -> Result<Self, Error> {
        let outside_path = PathBuf::from("/proc/thread-self/ns/net");
        let outside = NetNs::open(&outside_path)?;
        let outside_file = File::open(&outside_path).map_err(Error::io("open", &outside_path))?;
        let pause = spawn_pause()?;
        let index = config.index.unwrap_or((pause.id() % SUBNETS) as u16);
        let mut sandbox = Self {
            host_link: format!("zp{}", pause.id()),
            pause,
            outside,
            addresses: Addresses::of(index),
            abandoned: AtomicBool::new(false),
        };
        sandbox.connect(outside_file)?;
        Ok(sandbox)
    }

    /// Pid of the pause process, by which shims and managers name the sandbox.
    pub fn pid(&self) -> u32 {
        self.pause.id()
    }

    /// Path of its network namespace.
    pub fn netns_path(&self) -> PathBuf {
        path_of_pid(self.pid())
    }

    /// Addresses of both ends.
    pub fn addresses(&self) -> Addresses {
        self.addresses
    }

    /// Leaves the sandbox running when this is dropped, as a shim does that
    /// dies without a clean-up.
    pub fn abandon(&self) {
        self.abandoned.store(true, Ordering::Relaxed);
    }

    fn connect(&mut self, outside: File) -> Result<(), Error> {
        let inside = NetNs::of_pid(self.pid())?;
        let name = self.host_link.clone();
        let ipv6_off = fs::metadata("/proc/sys/net/ipv6").is_err()
            || inside_has_no_ipv6(&inside, &self.netns_path())?;
        if ipv6_off {
            (self.addresses.ipv6, self.addresses.host_ipv6) = (None, None);
        }
        let addresses = self.addresses;
        in_namespace(&inside, async move |netlink| {
            inside_links(&netlink, &name, outside, addresses).await
        })?;
        let name = self.host_link.clone();
        in_namespace(&self.outside, async move |netlink| {
            let link = set_up(&netlink, &name).await?;
            add_address(&netlink, link, addresses.host_ipv4.into(), 30).await?;
            if let Some(ipv6) = addresses.host_ipv6 {
                add_address(&netlink, link, ipv6.into(), 126).await?;
            }
            Ok(())
        })
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        if self.abandoned.load(Ordering::Relaxed) {
            return;
        }
        // Both fail only when it is gone already.
        let _ = self.pause.kill();
        let _ = self.pause.wait();
        // At once, since sockets may keep the namespace alive for long.
        let name = self.host_link.clone();
        let _ = in_namespace(&self.outside, async move |netlink| {
            let index = index_of(&name)?;
            netlink.link().del(index).execute().await.map_err(netlink_error("remove", &name))
        });
    }
}

/// Subnets of 4 addresses in 100.64.0.0/16, which no route of a machine or a
/// cluster should lead to (RFC 6598).
const SUBNETS: u32 = 16_384;

impl Addresses {
    fn of(index: u16) -> Self {
        let [high, low] = ((u32::from(index) % SUBNETS) as u16 * 4).to_be_bytes();
        let ipv4 = |host| Ipv4Addr::new(100, 64, high, low + host);
        let ipv6 = |host| Ipv6Addr::new(0xfd00, 0x7a65, 0x726f, index, 0, 0, 0, host);
        Self { ipv4: ipv4(2), ipv6: Some(ipv6(2)), host_ipv4: ipv4(1), host_ipv6: Some(ipv6(1)) }
    }
}

/// Starts a process in a new network namespace, made by a thread that ends
/// with it.
fn spawn_pause() -> Result<Child, Error> {
    let spawn = || {
        unshare(CloneFlags::CLONE_NEWNET)?;
        Command::new("sleep")
            .arg("infinity")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
    };
    let failed = Error::io("start", "sleep infinity");
    match thread::spawn(spawn).join() {
        Ok(result) => result.map_err(failed),
        Err(_) => Err(failed(std::io::Error::other("its thread panicked"))),
    }
}

/// Per namespace, IPv6 can be off although the kernel has it.
fn inside_has_no_ipv6(inside: &NetNs, path: &std::path::Path) -> Result<bool, Error> {
    let read = || fs::read_to_string("/proc/sys/net/ipv6/conf/all/disable_ipv6");
    let off = inside.run(read).map_err(Error::io("enter", path))?;
    Ok(off.is_ok_and(|text| text.trim() == "1"))
}

async fn inside_links(
    netlink: &Handle,
    host_link: &str,
    outside: File,
    addresses: Addresses,
) -> Result<(), Error> {
    set_up(netlink, "lo").await?;
    let pair = LinkVeth::new("eth0", host_link).build();
    netlink.link().add(pair).execute().await.map_err(netlink_error("add", "eth0"))?;
    let peer = index_of(host_link)?;
    let moved = LinkUnspec::new_with_index(peer).setns_by_fd(outside.as_raw_fd()).build();
    netlink.link().set(moved).execute().await.map_err(netlink_error("move", host_link))?;
    let eth0 = set_up(netlink, "eth0").await?;
    add_address(netlink, eth0, addresses.ipv4.into(), 30).await?;
    let route = RouteMessageBuilder::<Ipv4Addr>::new().gateway(addresses.host_ipv4).build();
    let add_route = netlink_error("add a route through", "eth0");
    netlink.route().add(route).execute().await.map_err(add_route)?;
    if let (Some(ipv6), Some(gateway)) = (addresses.ipv6, addresses.host_ipv6) {
        add_address(netlink, eth0, ipv6.into(), 126).await?;
        let route =
            RouteMessageBuilder::<Ipv6Addr>::new().gateway(gateway).output_interface(eth0).build();
        let add_route = netlink_error("add a route through", "eth0");
        netlink.route().add(route).execute().await.map_err(add_route)?;
    }
    Ok(())
}

/// Brings lo up in the calling thread's namespace.
pub(crate) fn set_up_loopback() -> Result<(), Error> {
    netlink(async |netlink| set_up(&netlink, "lo").await.map(drop))
}

fn in_namespace<F>(namespace: &NetNs, work: F) -> Result<(), Error>
where
    F: AsyncFnOnce(Handle) -> Result<(), Error> + Send + 'static,
{
    let failed = Error::io("enter", "a network namespace");
    namespace.run(move || netlink(work)).map_err(failed)?
}

/// Sends netlink requests to the calling thread's namespace, by a runtime of
/// its own: the socket belongs to the namespace in which it was made.
fn netlink(work: impl AsyncFnOnce(Handle) -> Result<(), Error>) -> Result<(), Error> {
    let failed = || Error::io("open", "a netlink socket");
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_io().build().map_err(failed())?;
    runtime.block_on(async {
        let (connection, handle, _) = rtnetlink::new_connection().map_err(failed())?;
        let connection = tokio::spawn(connection);
        let result = work(handle).await;
        connection.abort();
        result
    })
}

async fn set_up(netlink: &Handle, name: &str) -> Result<u32, Error> {
    let index = index_of(name)?;
    let up: LinkMessage = LinkUnspec::new_with_index(index).up().build();
    netlink.link().set(up).execute().await.map_err(netlink_error("bring up", name))?;
    Ok(index)
}

/// Index of an interface of the calling thread's namespace.
fn index_of(name: &str) -> Result<u32, Error> {
    if_nametoindex(name).map_err(|errno| Error::io("find interface", name)(errno.into()))
}

async fn add_address(
    netlink: &Handle,
    link: u32,
    address: IpAddr,
    prefix: u8,
) -> Result<(), Error> {
    let mut request = netlink.address().add(link, address, prefix);
    if address.is_ipv6() {
        // Usable at once: duplicates are impossible on a link of two.
        let message = request.message_mut();
        message.header.flags |= AddressHeaderFlags::Nodad;
        message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
    }
    request.execute().await.map_err(netlink_error("add an address to link", &link.to_string()))
}

fn netlink_error(action: &str, name: &str) -> impl FnOnce(rtnetlink::Error) -> Error {
    let action = format!("{action} {name}");
    move |source| Error::Netlink { action, source: Box::new(source) }
}
