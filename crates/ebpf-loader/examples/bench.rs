//! What a packet costs in the redirector, by `BPF_PROG_TEST_RUN`:
//! `bench <object>..` prints a table with a column per object. Needs root,
//! bpftool, and an empty BPF file system of its own at `/sys/fs/bpf`.
#![expect(clippy::print_stdout, clippy::unwrap_used, reason = "a tool for developers")]

#[path = "../tests/common/packet.rs"]
#[expect(dead_code, reason = "shared with the tests, of which this uses a part")]
mod packet;

use std::{
    env, fs,
    net::IpAddr,
    path::{Path, PathBuf},
    process::Command,
};

use aya::{
    Pod,
    maps::{HashMap, Map, MapData, MapInfo},
    programs::{ProgramInfo, SchedClassifier, TestRun as _, TestRunOptions},
};
use packet::{ACK, SYN, Tcp};
use zeropod_redirector_abi::{EGRESS_PROGRAM, INGRESS_PROGRAM};

/// Two application ports, each the other's proxy: a packet that was rewritten
/// is rewritten again.
const REDIRECTED: [u16; 2] = [80, 81];
const RUNNING: u16 = 82;
/// Its own proxy: what it answers is rewritten to what it is.
const ANSWERING: u16 = 84;
const UNKNOWN: u16 = 83;
const CLIENT: u16 = 40000;
const RUNS: u32 = 200_000;
const REPEATS: u32 = 15;

fn main() {
    let bpffs = PathBuf::from("/sys/fs/bpf");
    assert!(pins(&bpffs).is_empty(), "pins of others would be removed");
    let objects: Vec<_> = env::args_os().skip(1).map(PathBuf::from).collect();
    let columns: Vec<Vec<u64>> = objects
        .iter()
        .enumerate()
        .map(|(number, object)| {
            let dir = bpffs.join(format!("bench{number}"));
            fs::create_dir(&dir).unwrap();
            let loaded = Command::new("bpftool")
                .args(["prog", "loadall"])
                .arg(object)
                .arg(dir.join("programs"))
                .args(["type", "classifier"])
                .status();
            assert!(loaded.unwrap().success(), "{}", object.display());
            let column = measure(&Redirector { programs: dir.join("programs") });
            // The original pins its maps itself.
            for path in pins(&bpffs) {
                let _a_map = fs::remove_file(&path).or_else(|_| fs::remove_dir_all(path));
            }
            column
        })
        .collect();
    let names: Vec<_> = objects.iter().map(|object| object.display().to_string()).collect();
    println!("ns per packet, minimum of {REPEATS} runs of {RUNS}: {}", names.join(", "));
    for (row, name) in SCENARIOS.iter().enumerate() {
        let times: Vec<_> = columns.iter().map(|column| format!("{:7}", column[row])).collect();
        println!("{name:47}{}", times.join(" "));
    }
}

/// What is in a BPF file system, but for the kernel's own `maps.debug` and
/// `progs.debug`.
fn pins(bpffs: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(bpffs).unwrap().map(|entry| entry.unwrap().path());
    entries.filter(|path| path.extension().is_none()).collect()
}

const SCENARIOS: [&str; 12] = [
    "ingress, UDP",
    "ingress, ARP",
    "ingress, a port that nobody registered",
    "ingress, redirected, kubelet's address known",
    "ingress, redirected, kubelet's address unknown",
    "ingress, redirected, IPv6",
    "ingress, process runs, SYN",
    "ingress, process runs, data",
    "ingress, process runs, bare ACK among others",
    "ingress, process runs, bare ACK alone",
    "egress, from the proxy",
    "egress, other",
];

struct Redirector {
    programs: PathBuf,
}

impl Redirector {
    /// Sets an entry of a map, found by its name as the kernel keeps it and
    /// the size of its values.
    fn set<K: Pod, V: Pod>(&self, map: &str, key: K, value: V) {
        for program in [INGRESS_PROGRAM, EGRESS_PROGRAM] {
            let program = ProgramInfo::from_pin(self.programs.join(program)).unwrap();
            for id in program.map_ids().unwrap().unwrap() {
                let info = MapInfo::from_id(id).unwrap();
                let is_named = info.name() == &map.as_bytes()[..map.len().min(15)];
                if is_named && usize::try_from(info.value_size()).unwrap() == size_of::<V>() {
                    let map = Map::from_map_data(MapData::from_id(id).unwrap()).unwrap();
                    let mut map: HashMap<_, K, V> = map.try_into().unwrap();
                    return map.insert(key, value, 0).unwrap();
                }
            }
        }
        panic!("no map {map}");
    }

    fn time(&self, program: &str, packet: &[u8]) -> u64 {
        let program = SchedClassifier::from_pin(self.programs.join(program)).unwrap();
        let once = || {
            let mut options = TestRunOptions::new();
            options.data_in = Some(packet);
            options.repeat = RUNS;
            u64::try_from(program.test_run(options).unwrap().duration.as_nanos()).unwrap()
        };
        (0..REPEATS).map(|_| once()).min().unwrap()
    }
}

fn measure(redirector: &Redirector) -> Vec<u64> {
    let (client, pod) = ("192.0.2.7".parse().unwrap(), "192.0.2.80".parse().unwrap());
    let (client6, pod6): (IpAddr, IpAddr) =
        ("2001:db8::7".parse().unwrap(), "2001:db8::80".parse().unwrap());
    let to = |port| Tcp::syn((client, CLIENT), (pod, port));
    let mut udp = to(UNKNOWN).bytes();
    udp[23] = 17;
    let mut arp = to(UNKNOWN).bytes();
    arp[12..14].copy_from_slice(&[8, 6]);
    for port in [REDIRECTED[0], REDIRECTED[1], RUNNING, ANSWERING] {
        redirector.set("socket_tracker", port, 0_u64);
    }
    for (port, proxy) in
        [(REDIRECTED[0], REDIRECTED[1]), (REDIRECTED[1], REDIRECTED[0]), (ANSWERING, ANSWERING)]
    {
        redirector.set("ingress_redirects", port, proxy);
        redirector.set("egress_redirects", port, proxy);
    }
    redirector.set("ingress_redirects", RUNNING, 35000_u16);
    redirector.set("disable_redirect", RUNNING, 1_u8);

    let request = to(REDIRECTED[0]).bytes();
    let unknown = redirector.time(INGRESS_PROGRAM, &request);
    redirector.set("kubelet_addrs_v4", 0_u8, [192_u8, 0, 2, 1]);
    redirector.set("kubelet_addrs_v6", 0_u8, [0_u8; 16]);
    // The client's next connection, which no proxy ever saw.
    let running = |flags, payload: &[u8]| Tcp {
        flags,
        payload: payload.to_vec(),
        ..to(RUNNING).ports(CLIENT + 1, RUNNING)
    };
    // The answer to a connection that was sent to the proxy.
    let opening = to(ANSWERING).ports(CLIENT + 2, ANSWERING);
    redirector.time(INGRESS_PROGRAM, &opening.bytes());
    let answer = Tcp::syn((pod, ANSWERING), (client, CLIENT + 2));
    vec![
        redirector.time(INGRESS_PROGRAM, &udp),
        redirector.time(INGRESS_PROGRAM, &arp),
        redirector.time(INGRESS_PROGRAM, &to(UNKNOWN).bytes()),
        redirector.time(INGRESS_PROGRAM, &request),
        unknown,
        redirector
            .time(INGRESS_PROGRAM, &Tcp::syn((client6, CLIENT), (pod6, REDIRECTED[0])).bytes()),
        redirector.time(INGRESS_PROGRAM, &running(SYN, b"").bytes()),
        redirector.time(INGRESS_PROGRAM, &running(ACK, b"data").bytes()),
        redirector.time(INGRESS_PROGRAM, &running(ACK, b"").bytes()),
        {
            // Long ago: the socket is looked for.
            redirector.set("socket_tracker", RUNNING, 0_u64);
            redirector.time(INGRESS_PROGRAM, &running(ACK, b"").bytes())
        },
        redirector.time(EGRESS_PROGRAM, &answer.bytes()),
        redirector.time(EGRESS_PROGRAM, &answer.ports(UNKNOWN, CLIENT).bytes()),
    ]
}
