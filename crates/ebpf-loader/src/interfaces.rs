//! The interfaces of a sandbox that its traffic passes.

use std::fs;

use crate::Error;

/// Name and index of each: `lo`, which probes and proxied connections pass,
/// and `eth0`, or where there is none the interfaces of the default routes
/// (B13). Looks at the network namespace of the calling thread.
pub(crate) fn interfaces(pid: u32) -> Result<Vec<(String, u32)>, Error> {
    let index = |name: &str| {
        nix::net::if_::if_nametoindex(name).map(|index| (name.to_owned(), index)).map_err(|errno| {
            Error::NoInterface { pid, interface: name.to_owned(), source: errno.into() }
        })
    };
    let mut interfaces = vec![index("lo")?];
    match index("eth0") {
        Ok(eth0) => interfaces.push(eth0),
        Err(no_eth0) => {
            let read = |table| fs::read_to_string(format!("/proc/thread-self/net/{table}"));
            // IPv6 may be off.
            let mut names = ipv4_defaults(&read("route").unwrap_or_default());
            names.extend(ipv6_defaults(&read("ipv6_route").unwrap_or_default()));
            names.sort_unstable();
            names.dedup();
            if names.is_empty() {
                return Err(no_eth0);
            }
            for name in names {
                interfaces.push(index(&name)?);
            }
        }
    }
    Ok(interfaces)
}

/// Interfaces of the default routes in a `/proc/net/route`.
fn ipv4_defaults(table: &str) -> Vec<String> {
    let routes = table.lines().skip(1).map(|line| line.split_whitespace().collect::<Vec<_>>());
    let default =
        |route: &Vec<&str>| route.get(1) == Some(&"00000000") && route.get(7) == Some(&"00000000");
    routes
        .filter(default)
        .filter_map(|route| route.first().map(|name| (*name).to_owned()))
        .collect()
}

/// Interfaces of the default routes in a `/proc/net/ipv6_route`. The kernel's
/// own, which rejects, is on `lo`.
fn ipv6_defaults(table: &str) -> Vec<String> {
    let routes = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let default = |route: &Vec<&str>| {
        route.first().is_some_and(|destination| destination.bytes().all(|byte| byte == b'0'))
            && route.get(1) == Some(&"00")
    };
    let names =
        routes.filter(default).filter_map(|route| route.get(9).map(|name| (*name).to_owned()));
    names.filter(|name| name != "lo").collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_default_routes_count() {
        let table = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\n\
            net1\t00000000\t0101A8C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n\
            net1\t0001A8C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n\
            net2\t00000000\t00000000\t0001\t0\t0\t0\t000000FF\t0\t0\t0\n";
        assert_eq!(ipv4_defaults(table), ["net1"]);
        let zero = "00000000000000000000000000000000";
        let table = format!(
            "fd990001000000000000000000000000 40 {zero} 00 {zero} 00000100 00000001 00000000 00000001 net2\n\
             {zero} 00 {zero} 00 fd990001000000000000000000000001 00000400 00000001 00000000 00000003 net1\n\
             {zero} 00 {zero} 00 {zero} ffffffff 00000001 00000000 00200200       lo\n"
        );
        assert_eq!(ipv6_defaults(&table), ["net1"]);
        assert!(ipv4_defaults("").is_empty() && ipv6_defaults("\n\n").is_empty());
    }
}
