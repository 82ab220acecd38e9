//! Entries of a sandbox's maps that are there and should not be, or should be
//! and are not.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    net::{Ipv4Addr, Ipv6Addr},
    path::Path,
    time::Duration,
};

use zeropod_redirector_abi::{
    ACTIVE_CONNECTIONS, DISABLE_REDIRECT, EGRESS_REDIRECTS, INGRESS_REDIRECTS, KUBELET_ADDRS_V4,
    KUBELET_ADDRS_V6, SOCKET_TRACKER,
};

use crate::{Error, bpf, maps::Maps};

/// Removes every port whose last activity was before `start`, which is on
/// the clock of the tracker, and every redirect of a port that is not
/// tracked: a shim tracks a port first, with the value 0. Returns how many
/// ports that were.
pub(crate) fn forget_before(maps: &Maps, start: Duration) -> Result<usize, Error> {
    let forget = || -> io::Result<usize> {
        let mut forgotten = BTreeSet::new();
        for (port, last) in maps.entries(&SOCKET_TRACKER)? {
            let last = u64::from_ne_bytes(last.try_into().unwrap_or_default());
            if last != 0 && u128::from(last) < start.as_nanos() {
                maps.forget(&SOCKET_TRACKER, &port)?;
                forgotten.insert(port);
            }
        }
        let tracked: BTreeSet<_> =
            maps.entries(&SOCKET_TRACKER)?.into_iter().map(|(port, _)| port).collect();
        for map in [INGRESS_REDIRECTS, DISABLE_REDIRECT] {
            for (port, _) in maps.entries(&map)? {
                if !tracked.contains(&port) {
                    maps.forget(&map, &port)?;
                    forgotten.insert(port);
                }
            }
        }
        for (proxy, port) in maps.entries(&EGRESS_REDIRECTS)? {
            if !tracked.contains(&port) {
                maps.forget(&EGRESS_REDIRECTS, &proxy)?;
            }
        }
        if tracked.is_empty() {
            for (client, _) in maps.entries(&ACTIVE_CONNECTIONS)? {
                maps.forget(&ACTIVE_CONNECTIONS, &client)?;
            }
        }
        Ok(forgotten.len())
    };
    forget().map_err(Error::Maps)
}

/// Puts back redirects that a small LRU map threw out (B3), from the way back:
/// a shim enters that last, and the proxy still listens. Looks at the network
/// namespace of the calling thread. Returns how many.
pub(crate) fn restore_redirects(maps: &Maps) -> Result<usize, Error> {
    let restore = || -> io::Result<usize> {
        let redirected: BTreeSet<_> =
            maps.entries(&INGRESS_REDIRECTS)?.into_iter().map(|(port, _)| port).collect();
        let mut lost: BTreeMap<Vec<u8>, Vec<Vec<u8>>> = BTreeMap::new();
        for (proxy, port) in maps.entries(&EGRESS_REDIRECTS)? {
            if !redirected.contains(&port) {
                lost.entry(port).or_default().push(proxy);
            }
        }
        if lost.is_empty() {
            return Ok(0);
        }
        let read = |table| fs::read_to_string(format!("/proc/thread-self/net/{table}"));
        let mut listening = listening_ports(&read("tcp")?);
        // IPv6 may be off.
        listening.extend(listening_ports(&read("tcp6").unwrap_or_default()));
        let mut restored = 0;
        for (port, proxies) in lost {
            let listens = |proxy: &Vec<u8>| {
                <[u8; 2]>::try_from(proxy.as_slice())
                    .is_ok_and(|proxy| listening.contains(&u16::from_ne_bytes(proxy)))
            };
            // Entries of proxies of before stay; with two that listen there is
            // no telling.
            let mut proxies = proxies.into_iter().filter(listens);
            if let (Some(proxy), None) = (proxies.next(), proxies.next()) {
                maps.set(&INGRESS_REDIRECTS, &port, &proxy)?;
                restored += 1;
            }
        }
        Ok(restored)
    };
    restore().map_err(Error::Maps)
}

/// The kubelet's addresses, as far as they are known.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct KubeletAddresses {
    pub(crate) ipv4: Option<Ipv4Addr>,
    pub(crate) ipv6: Option<Ipv6Addr>,
}

impl KubeletAddresses {
    /// Tells a sandbox's programs, and its shim if that has maps for it: its
    /// next version makes arrays named `kubelet_addr_v4` and `_v6`.
    pub(crate) fn tell(&self, maps: &Maps, pins: &Path) -> Result<(), Error> {
        let Self { ipv4, ipv6 } = self;
        let tell = || -> io::Result<()> {
            if let Some(address) = ipv4 {
                maps.set(&KUBELET_ADDRS_V4, &[0], &address.octets())?;
                set_array(&pins.join("kubelet_addr_v4"), &address.octets())?;
            }
            if let Some(address) = ipv6 {
                maps.set(&KUBELET_ADDRS_V6, &[0], &address.octets())?;
                set_array(&pins.join("kubelet_addr_v6"), &address.octets())?;
            }
            Ok(())
        };
        tell().map_err(Error::Maps)
    }
}

/// Sets the only value of an array, if it is there and takes such a value.
fn set_array(pin: &Path, value: &[u8]) -> io::Result<()> {
    let map = match bpf::open(pin) {
        Ok(map) => map,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    let info = bpf::map_info(&map)?;
    let fits = usize::try_from(info.value_size).is_ok_and(|size| size == value.len());
    if !(fits && info.key_size == 4) {
        return Ok(());
    }
    match bpf::update(&map, &[0; 4], value) {
        // Frozen: somebody else decided for good.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(()),
        result => result,
    }
}

/// Ports that are listened on, in a `/proc/net/tcp` or `tcp6`.
fn listening_ports(table: &str) -> BTreeSet<u16> {
    const LISTEN: &str = "0A";
    let port = |line: &str| {
        let mut columns = line.split_whitespace().skip(1);
        let (_, port) = columns.next()?.rsplit_once(':')?;
        (columns.nth(1)? == LISTEN).then_some(u16::from_str_radix(port, 16).ok()?)
    };
    table.lines().skip(1).filter_map(port).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_listening_sockets_count() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt\n\
            \x20  0: 00000000:88B9 00000000:0000 0A 00000000:00000000 00:00000000 00000000\n\
            \x20  1: 0250630A:0050 0150630A:9C40 01 00000000:00000000 00:00000000 00000000\n\
            \x20  2: broken\n";
        assert_eq!(listening_ports(table), BTreeSet::from([35001]));
        assert!(listening_ports("").is_empty());
    }
}
