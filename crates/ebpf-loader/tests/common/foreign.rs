//! Programs of others: a shim's, or a CNI's.
#![expect(unsafe_code, reason = "bpf(2) takes pointers")]

use std::{
    io,
    os::fd::{AsFd, AsRawFd as _, FromRawFd as _, OwnedFd},
    path::Path,
};

use aya::{
    EbpfLoader,
    programs::{
        LinkOrder, SchedClassifier, TcAttachType,
        links::FdLink,
        tc::{SchedClassifierLink, TcAttachOptions},
    },
};
use zeropod_ebpf_loader::REDIRECTOR;
use zeropod_redirector_abi::{EGRESS_PROGRAM, INGRESS_PROGRAM, MAPS, comm_name};

use super::node::Sandbox;

/// What the attach helper of a shim from 0.12 on does: maps, then links, all
/// pinned. Its programs differ from ours in what they are told.
pub(crate) fn attach_as_shim(sandbox: &Sandbox, interfaces: &[&str], ignore_localhost: bool) {
    let (name, ignore) = (comm_name("k3s"), u8::from(ignore_localhost));
    let mut loader = EbpfLoader::new();
    loader.btf(None);
    loader.override_global("probe_binary_name", &name, true);
    loader.override_global("tracker_ignore_localhost", &ignore, true);
    for map in MAPS {
        loader.map_pin_path(map.name, sandbox.pins.join(map.name));
    }
    let mut object = loader.load(REDIRECTOR).unwrap();
    for (program, direction, pin) in [
        (INGRESS_PROGRAM, TcAttachType::Ingress, "tcx_ingress_"),
        (EGRESS_PROGRAM, TcAttachType::Egress, "tcx_egress_"),
    ] {
        let program: &mut SchedClassifier =
            object.program_mut(program).unwrap().try_into().unwrap();
        program.load().unwrap();
        for interface in interfaces {
            let pin = sandbox.pins.join(format!("{pin}{interface}"));
            sandbox.inside(|| {
                let order = TcAttachOptions::TcxOrder(LinkOrder::default());
                let link = program.attach_with_options(interface, direction, order).unwrap();
                let link: SchedClassifierLink = program.take_link(link).unwrap();
                FdLink::try_from(link).unwrap().pin(pin).unwrap();
            });
        }
    }
}

/// Puts another program behind a pinned TCX link: one that returns `verdict`
/// for every packet.
pub(crate) fn replace_by(verdict: i32, pin: &Path) {
    let program = program(verdict);
    let path = std::ffi::CString::new(pin.to_str().unwrap()).unwrap();
    let link = bpf(7, &mut [path.as_ptr() as u64, 0]).unwrap();
    // SAFETY: just opened.
    let link = unsafe { OwnedFd::from_raw_fd(link) };
    let fds = u64::from(link.as_raw_fd().unsigned_abs())
        | u64::from(program.as_raw_fd().unsigned_abs()) << 32;
    bpf(29, &mut [fds, 0]).unwrap();
}

/// Attaches a program that returns `verdict` for every packet behind those
/// that are on the way into an interface of the calling thread's namespace.
pub(crate) fn attach_behind(verdict: i32, interface: &str) -> OwnedFd {
    let index = u64::from(nix::net::if_::if_nametoindex(interface).unwrap());
    let program = program(verdict);
    let fd = u64::from(program.as_raw_fd().unsigned_abs());
    let link = bpf(28, &mut [fd | index << 32, TCX_INGRESS, 0, 0]).unwrap();
    // SAFETY: just made.
    unsafe { OwnedFd::from_raw_fd(link) }
}

/// What a program makes of a packet whose checksum is in the state COMPLETE;
/// the kernel compares that with the packet afterwards (Linux 6.15).
pub(crate) fn test_run_complete(program: impl AsFd, packet: &[u8]) -> io::Result<Vec<u8>> {
    const BPF_F_TEST_SKB_CHECKSUM_COMPLETE: u64 = 1 << 2;
    let mut out = vec![0; packet.len()];
    let sizes = u64::try_from(packet.len()).unwrap();
    let program = u64::from(program.as_fd().as_raw_fd().unsigned_abs());
    bpf(
        10,
        &mut [
            program,
            sizes | sizes << 32,
            packet.as_ptr() as u64,
            out.as_mut_ptr() as u64,
            1,
            0,
            0,
            0,
            BPF_F_TEST_SKB_CHECKSUM_COMPLETE,
            0,
        ],
    )?;
    Ok(out)
}

fn program(verdict: i32) -> OwnedFd {
    // r0 = verdict; exit
    let verdict = u64::from(verdict.cast_unsigned()) << 32;
    let instructions = [0xb7 | verdict, 0x95];
    let license = c"GPL";
    let (code, license) = (instructions.as_ptr() as u64, license.as_ptr() as u64);
    let loaded = bpf(5, &mut [SCHED_CLS | 2 << 32, code, license, 0, 0, 0]).unwrap();
    // SAFETY: just made.
    unsafe { OwnedFd::from_raw_fd(loaded) }
}

const SCHED_CLS: u64 = 3;
const TCX_INGRESS: u64 = 46;

fn bpf(command: i32, attr: &mut [u64]) -> io::Result<i32> {
    // SAFETY: what the attributes point to lives until the call is over.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, attr.as_mut_ptr(), size_of_val(attr)) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(i32::try_from(result).unwrap()) }
}
