//! Where the kubelet's probes come from, learnt from the ones that it sends to
//! `/probe` here. It sends those to all pods from the same address.
//!
//! Any pod can claim to be the kubelet, and would then no longer wake its
//! victims up. But a pod cannot have an address of the host's, so only these
//! are believed.

use std::{
    collections::HashSet,
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use tracing::{debug, info, warn};

/// Learns the kubelet's addresses.
pub(crate) struct Learner {
    /// `net` of a process in the host's network namespace, in `/proc`.
    host_net: PathBuf,
    known: Mutex<Known>,
    tell: Box<dyn Fn(IpAddr) + Send + Sync>,
}

#[derive(Default)]
struct Known {
    /// The host's own addresses.
    host: HashSet<IpAddr>,
    read: Option<Instant>,
    kubelet: [Option<IpAddr>; 2],
}

/// How often the host's addresses are read at most, whoever asks.
const INTERVAL: Duration = Duration::from_secs(10);

impl Learner {
    /// Calls `tell` whenever an address of either family is new.
    pub(crate) fn new(host_net: PathBuf, tell: impl Fn(IpAddr) + Send + Sync + 'static) -> Self {
        Self { host_net, known: Mutex::default(), tell: Box::new(tell) }
    }

    /// Somebody asked for `/probe`.
    pub(crate) fn probed(&self, peer: IpAddr, program: Option<&str>) {
        let kubelet = program.is_some_and(|program| program.starts_with("kube-probe/"));
        // The host's loopback is not the one of this pod.
        if !kubelet || peer.is_loopback() {
            return;
        }
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let family = usize::from(peer.is_ipv6());
        if known.kubelet[family] == Some(peer) {
            return;
        }
        let due = known.read.is_none_or(|read| read.elapsed() >= INTERVAL);
        if !known.host.contains(&peer) && due {
            known.read = Some(Instant::now());
            known.host = addresses(&self.host_net);
        }
        if known.host.contains(&peer) {
            info!(address = %peer, before = ?known.kubelet[family], "Learnt the kubelet's address");
            known.kubelet[family] = Some(peer);
            (self.tell)(peer);
        } else {
            debug!(address = %peer, "Ignored a probe from an address that is not the host's");
        }
    }
}

/// All addresses of a network namespace. What cannot be read is missing.
fn addresses(net: &Path) -> HashSet<IpAddr> {
    let read = |file| {
        fs::read_to_string(net.join(file)).unwrap_or_else(|error| {
            warn!(file, %error, "Cannot read the host's addresses");
            String::new()
        })
    };
    let v4 = ipv4(&read("fib_trie")).into_iter().map(IpAddr::V4);
    let v6 = ipv6(&read("if_inet6")).into_iter().map(IpAddr::V6);
    v4.chain(v6).collect()
}

/// Local addresses of a `fib_trie`: below each address stand its routes, one
/// of which is `/32 host LOCAL`.
fn ipv4(trie: &str) -> Vec<Ipv4Addr> {
    let mut local = Vec::new();
    let mut address: Option<Ipv4Addr> = None;
    for line in trie.lines().map(str::trim) {
        if let Some(leaf) = line.strip_prefix("|-- ") {
            address = leaf.parse().ok();
        } else if line == "/32 host LOCAL" {
            local.extend(address);
        }
    }
    local
}

/// Addresses of an `if_inet6`: 32 hex digits at the start of each line.
fn ipv6(table: &str) -> Vec<Ipv6Addr> {
    let address = |line: &str| u128::from_str_radix(line.get(..32)?, 16).ok().map(Ipv6Addr::from);
    table.lines().filter_map(address).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    const TRIE: &str = "Main:
  +-- 0.0.0.0/0 3 0 5
     |-- 0.0.0.0
        /0 universe UNICAST
     +-- 127.0.0.0/8 2 0 2
        |-- 127.0.0.1
           /32 host LOCAL
     |-- 10.244.0.1
        /32 link UNICAST
        /32 host LOCAL
     |-- 10.244.0.7
        /32 link UNICAST
     |-- 10.244.0.255
        /32 link BROADCAST
";
    const INET6: &str = "\
00000000000000000000000000000001 01 80 10 80       lo
fd000000000000000000000000000002 04 40 00 82     eth0
rubbish
";

    #[test]
    fn only_the_hosts_own_addresses_count() {
        assert_eq!(ipv4(TRIE), [Ipv4Addr::LOCALHOST, Ipv4Addr::new(10, 244, 0, 1)]);
        assert_eq!(ipv6(INET6), ["::1", "fd00::2"].map(|text| text.parse::<Ipv6Addr>().unwrap()));
        assert_eq!((ipv4(""), ipv6("é")), (vec![], vec![]));
    }

    // F-F1, and any pod can send the user agent.
    #[test]
    fn only_probes_from_the_host_are_believed() {
        let net = tempfile::tempdir().unwrap();
        fs::write(net.path().join("fib_trie"), TRIE).unwrap();
        fs::write(net.path().join("if_inet6"), INET6).unwrap();
        let told = Arc::new(Mutex::new(Vec::new()));
        let heard = Arc::clone(&told);
        let learner = Learner::new(net.path().to_owned(), move |address| {
            heard.lock().unwrap().push(address.to_string());
        });
        for (peer, program) in [
            ("10.244.0.7", Some("kube-probe/1.34")), // another pod
            ("10.244.0.1", Some("curl/8")),          // somebody on the host
            ("10.244.0.1", None),
            ("127.0.0.1", Some("kube-probe/1.34")), // this pod itself
            ("fd00::7", Some("kube-probe/1.34")),
            ("10.244.0.1", Some("kube-probe/1.34")),
            ("10.244.0.1", Some("kube-probe/1.34")),
            ("fd00::2", Some("kube-probe/1.34")),
        ] {
            learner.probed(peer.parse().unwrap(), program);
        }
        assert_eq!(*told.lock().unwrap(), ["10.244.0.1", "fd00::2"]);
    }
}
