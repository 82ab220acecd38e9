//! bpf(2) itself: numbers and structures of include/uapi/linux/bpf.h, cut to
//! what is used. The kernel takes what is missing at the end as zero.

use std::{
    io,
    os::fd::{AsFd, AsRawFd as _, FromRawFd as _, OwnedFd, RawFd},
};

pub(super) const MAP_CREATE: libc::c_int = 0;
pub(super) const MAP_LOOKUP_ELEM: libc::c_int = 1;
pub(super) const MAP_UPDATE_ELEM: libc::c_int = 2;
pub(super) const MAP_DELETE_ELEM: libc::c_int = 3;
pub(super) const MAP_GET_NEXT_KEY: libc::c_int = 4;
pub(super) const PROG_LOAD: libc::c_int = 5;
pub(super) const OBJ_PIN: libc::c_int = 6;
pub(super) const OBJ_GET: libc::c_int = 7;
pub(super) const PROG_GET_FD_BY_ID: libc::c_int = 13;
pub(super) const MAP_GET_FD_BY_ID: libc::c_int = 14;
pub(super) const OBJ_GET_INFO_BY_FD: libc::c_int = 15;
pub(super) const MAP_FREEZE: libc::c_int = 22;
pub(super) const LINK_CREATE: libc::c_int = 28;
pub(super) const LINK_UPDATE: libc::c_int = 29;
pub(super) const ARRAY: u32 = 2;
pub(super) const RDONLY_PROG: u32 = 1 << 7;
pub(super) const SCHED_CLS: u32 = 3;
pub(super) const SOCK_OPS: u32 = 13;
pub(super) const CGROUP_SOCK_OPS: u32 = 3;
pub(super) const TCX_INGRESS: u32 = 46;
pub(super) const TCX_EGRESS: u32 = 47;
pub(super) const LINK_TYPE_TCX: u32 = 11;
pub(super) const NAME_SIZE: usize = 16;

/// Bytes of the verifier's log that are asked for: on error it keeps the end.
pub(super) const LOG_SIZE: usize = 64 * 1024;
pub(super) const LOG_LINES: usize = 20;

#[derive(Default)]
#[repr(C)]
pub(super) struct PinAttr {
    pub(super) path: u64,
    pub(super) fd: u32,
    pub(super) flags: u32,
}

#[derive(Default)]
#[repr(C)]
pub(super) struct CreateMapAttr {
    pub(super) kind: u32,
    pub(super) key_size: u32,
    pub(super) value_size: u32,
    pub(super) max_entries: u32,
    pub(super) flags: u32,
    pub(super) inner_map: u32,
    pub(super) numa_node: u32,
    pub(super) name: [u8; NAME_SIZE],
}

#[derive(Default)]
#[repr(C)]
pub(super) struct LoadAttr {
    pub(super) kind: u32,
    pub(super) instruction_count: u32,
    pub(super) instructions: u64,
    pub(super) license: u64,
    pub(super) log_level: u32,
    pub(super) log_size: u32,
    pub(super) log: u64,
    pub(super) kernel_version: u32,
    pub(super) flags: u32,
    pub(super) name: [u8; NAME_SIZE],
    pub(super) interface: u32,
    pub(super) attach_type: u32,
}

#[derive(Default)]
#[repr(C)]
pub(super) struct ElementAttr {
    pub(super) map: u32,
    pub(super) padding: u32,
    pub(super) key: u64,
    pub(super) value: u64,
    pub(super) flags: u64,
}

#[repr(C)]
pub(super) struct InfoAttr {
    pub(super) fd: u32,
    pub(super) size: u32,
    pub(super) info: u64,
}

#[derive(Default)]
#[repr(C)]
pub(super) struct RawProgramInfo {
    pub(super) kind: u32,
    pub(super) id: u32,
    pub(super) tag: [u8; 8],
    pub(super) jited_size: u32,
    pub(super) translated_size: u32,
    pub(super) jited: u64,
    pub(super) translated: u64,
    pub(super) load_time: u64,
    pub(super) user: u32,
    pub(super) map_count: u32,
    pub(super) maps: u64,
}

#[derive(Default)]
#[repr(C)]
pub(super) struct RawLinkInfo {
    pub(super) kind: u32,
    pub(super) id: u32,
    pub(super) program: u32,
    pub(super) padding: u32,
    pub(super) interface: u32,
    pub(super) attach_type: u32,
}

pub(super) fn size_u32(size: usize) -> io::Result<u32> {
    u32::try_from(size).map_err(io::Error::other)
}

pub(super) fn raw(object: &impl AsFd) -> u32 {
    // An open descriptor is not negative.
    object.as_fd().as_raw_fd().unsigned_abs()
}

/// # Safety
/// `info` is a prefix of the kernel's structure for this kind of object.
pub(super) unsafe fn info_of<T>(object: impl AsFd, info: &mut T) -> io::Result<()> {
    let mut attr = InfoAttr {
        fd: raw(&object),
        size: size_u32(size_of::<T>())?,
        info: std::ptr::from_mut(info) as u64,
    };
    // SAFETY: `info` outlives the call, and its size is given.
    unsafe { call(OBJ_GET_INFO_BY_FD, &mut attr) }.map(drop)
}

/// # Safety
/// As [`call`], for a command that returns a new file descriptor.
pub(super) unsafe fn call_for_fd<T>(command: libc::c_int, attr: &mut T) -> io::Result<OwnedFd> {
    // SAFETY: by the caller.
    let fd = unsafe { call(command, attr) }?;
    // SAFETY: the kernel has just made it for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// # Safety
/// `attr` is what the command takes, and what it points to outlives the call.
pub(super) unsafe fn call<T>(command: libc::c_int, attr: &mut T) -> io::Result<RawFd> {
    // SAFETY: the kernel reads `size_of::<T>()` bytes, and takes what it
    // knows of more as zero.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), size_of::<T>()) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    RawFd::try_from(result).map_err(io::Error::other)
}
