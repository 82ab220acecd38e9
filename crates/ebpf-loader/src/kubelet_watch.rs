//! Knows which connections the kubelet opens, by one program for the node
//! (B5): the node's other processes have the kubelet's address too.
//!
//! By a hook on the sockets of the root cgroup, which needs neither BTF nor
//! function tracing. What it cannot see: connections whose ports change on the
//! way, and probes that are no connections of the kubelet (exec).

use std::{
    fs::{self, File},
    io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};
use zeropod_redirector_abi::{
    CONNECT_PROGRAM, CommName, HOST_NETNS_COOKIE, KUBELET_WATCHED, NODE_MAPS, NOT_SEEN_ON_HOST,
    PROBE_BINARY_NAME, TASK_COMM_OFFSET, comm_name,
};

use crate::{
    Error,
    bpf::{self, ProgramKind},
    hook::pin_over,
    maps::Maps,
    object::{Comm, load_program, read_only_data, with_linked},
};

/// The object, aligned as [`crate::REDIRECTOR`].
static CONNECTIONS: &[u8] = {
    #[repr(C, align(8))]
    struct Aligned<const N: usize>([u8; N]);

    static ALIGNED: &Aligned<{ include_bytes!("connections.o").len() }> =
        &Aligned(*include_bytes!("connections.o"));
    &ALIGNED.0
};

/// Directory of the nodes' pins, beside that of the sandboxes', where every
/// name is a sandbox's.
const DIR: &str = "zeropod_node";
/// Name of the pin of the program's link.
const LINK: &str = "connect_link";

/// The watch over a node's connections.
#[derive(Debug)]
pub(crate) struct KubeletWatch {
    /// Maps for the programs of the sandboxes, filled or not.
    pub(crate) maps: Maps,
    /// Why connections are not watched: the kubelet is known by its address
    /// only.
    pub(crate) failure: Option<Error>,
}

impl KubeletWatch {
    /// Begins to watch, or goes on with what another process began. Stays when
    /// this process ends.
    ///
    /// Watches the sockets of a cgroup of version 2 and of all below it. With
    /// the maps comes the log of programs that are traced.
    pub(crate) fn start(
        maps_dir: &Path,
        cgroup: &Path,
        probe_binary_name: &str,
        comm: Comm,
        host_netns: u64,
        is_traced: bool,
    ) -> Result<Self, Error> {
        // Nodes that share a BPF file system (kind) have cgroups of their own.
        let cgroup_id = fs::metadata(cgroup).map_or(0, |cgroup| cgroup.ino());
        let base = maps_dir.parent().unwrap_or(maps_dir).join(DIR);
        let dir = base.join(cgroup_id.to_string());
        let mkdir = |dir: &Path| match fs::create_dir(dir) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                Err(Error::io("create", dir)(error))
            }
            _ => Ok(()),
        };
        let made = mkdir(&base).and_then(|()| mkdir(&dir));
        let maps = Maps::of_node(&dir, is_traced)?;
        let failure = made
            .and_then(|()| {
                let told = Told { name: comm_name(probe_binary_name), comm, host_netns };
                watch(&dir, cgroup, &maps, &told)
            })
            .err();
        if failure.is_some() {
            // Of a watch that ended.
            maps.forget(&KUBELET_WATCHED, &[0]).map_err(Error::Maps)?;
        }
        Ok(Self { maps, failure })
    }
}

/// What the program is told.
struct Told {
    name: CommName,
    comm: Comm,
    /// Cookie of the host's network namespace, or 0.
    host_netns: u64,
}

fn watch(dir: &Path, cgroup: &Path, maps: &Maps, told: &Told) -> Result<(), Error> {
    let pin = dir.join(LINK);
    if is_watched(&pin, maps, told).map_err(Error::io("examine", &pin))? {
        return Ok(());
    }
    let comm_offset = told.comm.offset().to_ne_bytes();
    let load = |host_netns: u64| {
        let globals = [
            (PROBE_BINARY_NAME, told.name.as_slice()),
            (TASK_COMM_OFFSET, &comm_offset),
            (HOST_NETNS_COOKIE, &host_netns.to_ne_bytes()),
        ];
        with_linked(CONNECTIONS, &globals, maps, |object| {
            load_program(object, ProgramKind::SockOps, CONNECT_PROGRAM)
        })
    };
    // Instead of what a program before knew, which was told something else.
    // Linux before 5.15 has no cookies for such programs.
    let program = match load(told.host_netns) {
        Ok(program) if told.host_netns != 0 => {
            maps.set(&KUBELET_WATCHED, &[0], &[NOT_SEEN_ON_HOST]).map_err(Error::Maps)?;
            program
        }
        _ => {
            maps.forget(&KUBELET_WATCHED, &[0]).map_err(Error::Maps)?;
            load(0)?
        }
    };
    let opened = File::open(cgroup).map_err(Error::io("open", cgroup))?;
    let link =
        bpf::attach_cgroup(&program, opened).map_err(Error::io("watch the sockets of", cgroup))?;
    pin_over(link, &pin)
}

/// The root of the host's control groups of version 2. That of a container is
/// another: the kubelet is not below it.
pub(crate) fn root_cgroup(host_proc: &Path) -> PathBuf {
    let root = host_proc.join("1/root/sys/fs/cgroup");
    // Beside groups of version 1 it is mounted below.
    let beside = root.join("unified");
    let is_version_2 =
        statfs(beside.as_path()).is_ok_and(|mount| mount.filesystem_type() == CGROUP2_SUPER_MAGIC);
    if is_version_2 { beside } else { root }
}

/// Whether a program that was told this fills these maps already.
fn is_watched(pin: &Path, maps: &Maps, told: &Told) -> io::Result<bool> {
    let link = match bpf::open(pin) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        link => link?,
    };
    let program = bpf::program_by_id(bpf::link_program(link)?)?;
    let program = bpf::program_info(&program)?;
    let fills = |map| maps.id(map).is_some_and(|id| program.maps.contains(&id));
    Ok(NODE_MAPS.iter().all(fills)
        && read_only_data(&program)?.is_some_and(|data| {
            let is_told = |what: &[u8]| data.windows(what.len()).any(|told| told == what);
            is_told(&told.name) && is_told(&told.host_netns.to_ne_bytes())
        }))
}
