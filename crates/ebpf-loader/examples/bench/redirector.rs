//! A redirector of either kind, loaded.

use std::{
    fs,
    path::{Path, PathBuf},
};

use aya::{
    Pod,
    maps::{HashMap, Map, MapData, MapInfo},
    programs::ProgramInfo,
};
use zeropod_redirector_abi::{EGRESS_PROGRAM, INGRESS_PROGRAM};

use crate::common::{node::Node, sh};

/// Both programs on maps of their own.
pub(crate) struct Redirector {
    programs: PathBuf,
}

impl Redirector {
    /// Loads an object by libbpf, as neither was made for the loader of the
    /// other.
    pub(crate) fn load(object: &Path, node: &Node) -> Self {
        let bpffs = node.bpffs();
        // Theirs pins its maps there.
        sh(&format!("mount --bind {} /sys/fs/bpf", bpffs.display()));
        let told = tempfile::NamedTempFile::with_suffix(".o").unwrap();
        fs::write(&told, tell(fs::read(object).unwrap())).unwrap();
        let programs = bpffs.join("programs");
        sh(&format!(
            "bpftool prog loadall {} {} type classifier",
            told.path().display(),
            programs.display()
        ));
        Self { programs }
    }

    /// Where a program is pinned.
    pub(crate) fn pin(&self, program: &str) -> PathBuf {
        self.programs.join(program)
    }

    /// Sets an entry of a map, found by its name as the kernel keeps it and
    /// the size of its values.
    pub(crate) fn set<K: Pod, V: Pod>(&self, map: &str, key: K, value: V) {
        for program in [INGRESS_PROGRAM, EGRESS_PROGRAM] {
            let program = ProgramInfo::from_pin(self.pin(program)).unwrap();
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

    /// An application that is scaled down, and its proxy.
    pub(crate) fn redirect(&self, application: u16, proxy: u16) {
        self.set("socket_tracker", application, 0_u64);
        self.set("ingress_redirects", application, proxy);
        self.set("egress_redirects", proxy, application);
    }

    /// An application that runs.
    pub(crate) fn run(&self, application: u16) {
        self.redirect(application, 1);
        self.set("disable_redirect", application, 1_u8);
    }

    /// Somebody who is not heard of here is the kubelet.
    pub(crate) fn know_kubelet(&self) {
        self.set("kubelet_addrs_v4", 0_u8, [192_u8, 0, 2, 1]);
        self.set("kubelet_addrs_v6", 0_u8, [0_u8; 16]);
    }
}

/// Theirs is told the name of the kubelet and where the kernel keeps that of a
/// task: without these it takes the first client for the kubelet, whose packets
/// cost less. Ours has them built in.
fn tell(mut object: Vec<u8>) -> Vec<u8> {
    use object::{Object as _, ObjectSection as _};
    const THEIRS: u64 = 24;
    let section = object::File::parse(&*object).unwrap();
    let section = section.section_by_name(".rodata").unwrap();
    let (start, size) = section.file_range().unwrap();
    if size == THEIRS {
        let start = usize::try_from(start).unwrap();
        object[start..start + 7].copy_from_slice(b"kubelet");
        object[start + 20..start + 24].copy_from_slice(&comm_offset().to_ne_bytes());
    }
    object
}

/// Where the name is in `struct task_struct`.
fn comm_offset() -> u32 {
    let types = sh("bpftool btf dump file /sys/kernel/btf/vmlinux format raw");
    let mut members = types.lines().skip_while(|line| !line.contains(" STRUCT 'task_struct' "));
    let comm = members.find(|line| line.trim_start().starts_with("'comm' ")).unwrap();
    comm.rsplit_once('=').unwrap().1.parse::<u32>().unwrap() / 8
}
