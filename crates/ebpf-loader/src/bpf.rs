//! The few calls of bpf(2) that aya does not offer or that its types would
//! undo when dropped: links by pin, their device, maps of a program.
//!
//! Everything here is a file descriptor that closes when dropped and touches
//! nothing else.
#![expect(unsafe_code, reason = "bpf(2) takes pointers")]

mod raw;

use std::{
    ffi::{CStr, CString},
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
};

use aya_obj::generated::bpf_insn;
use zeropod_redirector_abi::{Direction, MapGeometry, MapKind};

use self::raw::{
    ARRAY, CGROUP_SOCK_OPS, CreateMapAttr, ElementAttr, LINK_CREATE, LINK_TYPE_TCX, LINK_UPDATE,
    LOG_LINES, LOG_SIZE, LoadAttr, MAP_CREATE, MAP_DELETE_ELEM, MAP_FREEZE, MAP_GET_FD_BY_ID,
    MAP_GET_NEXT_KEY, MAP_LOOKUP_ELEM, MAP_UPDATE_ELEM, NAME_SIZE, OBJ_GET, OBJ_PIN,
    PROG_GET_FD_BY_ID, PROG_LOAD, PinAttr, RDONLY_PROG, RawLinkInfo, RawProgramInfo, SCHED_CLS,
    SOCK_OPS, TCX_EGRESS, TCX_INGRESS, call, call_for_fd, info_of, raw, size_u32,
};

/// A TCX link, whoever made it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LinkInfo {
    /// Id of its program.
    pub(crate) program: u32,
    /// Device that it is attached to; 0 when that is gone.
    pub(crate) interface: u32,
    /// Direction that it is attached to.
    pub(crate) direction: Direction,
}

/// What tells a loaded program from another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ProgramInfo {
    /// Its number.
    pub(crate) id: u32,
    /// Hash of its instructions, without the maps they refer to.
    pub(crate) tag: [u8; 8],
    /// Ids of its maps, in no order.
    pub(crate) maps: Vec<u32>,
}

/// Geometry of a loaded map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct MapInfo {
    pub(crate) kind: u32,
    pub(crate) id: u32,
    pub(crate) key_size: u32,
    pub(crate) value_size: u32,
    pub(crate) max_entries: u32,
    pub(crate) flags: u32,
    name: [u8; NAME_SIZE],
}

impl MapInfo {
    /// Whether it is the map of a program's read-only data, in whose name
    /// libbpf and cilium/ebpf keep that of the section.
    pub(crate) fn is_read_only_data(&self) -> bool {
        let name = self.name.split(|byte| *byte == 0).next().unwrap_or_default();
        name.ends_with(b".rodata")
    }
}

/// Numbers of the map kinds.
pub(crate) fn kind_number(kind: MapKind) -> u32 {
    match kind {
        MapKind::Hash => 1,
        MapKind::Array => 2,
        MapKind::LruHash => 9,
        MapKind::RingBuf => 27,
    }
}

/// Opens what is pinned at `path`.
pub(crate) fn open(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut attr = PinAttr { path: path.as_ptr() as u64, ..PinAttr::default() };
    // SAFETY: `path` outlives the call.
    unsafe { call_for_fd(OBJ_GET, &mut attr) }
}

/// Pins an object of any kind at `path`, which must not exist.
pub(crate) fn pin(object: impl AsFd, path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut attr = PinAttr { path: path.as_ptr() as u64, fd: raw(&object), flags: 0 };
    // SAFETY: `path` outlives the call.
    unsafe { call(OBJ_PIN, &mut attr) }.map(drop)
}

/// Creates a map.
pub(crate) fn create_map(geometry: &MapGeometry) -> io::Result<OwnedFd> {
    let mut attr = CreateMapAttr {
        kind: kind_number(geometry.kind),
        key_size: geometry.key_size,
        value_size: geometry.value_size,
        max_entries: geometry.max_entries,
        ..CreateMapAttr::default()
    };
    let name = geometry.name.bytes().take(NAME_SIZE - 1);
    attr.name.iter_mut().zip(name).for_each(|(to, from)| *to = from);
    // SAFETY: no pointers in it.
    unsafe { call_for_fd(MAP_CREATE, &mut attr) }
}

/// Creates the map of a section of read-only data, frozen as the verifier
/// wants it to take its values for constants.
pub(crate) fn create_read_only_data(data: &[u8]) -> io::Result<OwnedFd> {
    let mut attr = CreateMapAttr {
        kind: ARRAY,
        key_size: 4,
        value_size: size_u32(data.len())?,
        max_entries: 1,
        flags: RDONLY_PROG,
        ..CreateMapAttr::default()
    };
    attr.name[..7].copy_from_slice(b".rodata");
    // SAFETY: no pointers in it.
    let map = unsafe { call_for_fd(MAP_CREATE, &mut attr) }?;
    update(&map, &[0; 4], data)?;
    // SAFETY: no pointers in it.
    unsafe { call(MAP_FREEZE, &mut [raw(&map)]) }?;
    Ok(map)
}

/// Geometry of an open map.
pub(crate) fn map_info(map: impl AsFd) -> io::Result<MapInfo> {
    let mut info = MapInfo {
        kind: 0,
        id: 0,
        key_size: 0,
        value_size: 0,
        max_entries: 0,
        flags: 0,
        name: [0; NAME_SIZE],
    };
    // SAFETY: a prefix of struct bpf_map_info, of integers only.
    unsafe { info_of(map, &mut info) }?;
    Ok(info)
}

/// Opens a map by its id.
pub(crate) fn map_by_id(id: u32) -> io::Result<OwnedFd> {
    // SAFETY: no pointers in it.
    unsafe { call_for_fd(MAP_GET_FD_BY_ID, &mut [id, 0, 0]) }
}

/// The value of a key; `None` if the map has none. Key and value must be as
/// large as the map's.
pub(crate) fn lookup(map: impl AsFd, key: &[u8], value: &mut [u8]) -> io::Result<Option<()>> {
    let mut attr = ElementAttr {
        map: raw(&map),
        key: key.as_ptr() as u64,
        value: value.as_mut_ptr() as u64,
        ..ElementAttr::default()
    };
    // SAFETY: key and value outlive the call and are as large as the map's.
    found(unsafe { call(MAP_LOOKUP_ELEM, &mut attr) })
}

/// Puts the key that follows `key` in a map, or its first, into `next`;
/// `None` at the end.
pub(crate) fn next_key(
    map: impl AsFd,
    key: Option<&[u8]>,
    next: &mut [u8],
) -> io::Result<Option<()>> {
    let mut attr = ElementAttr {
        map: raw(&map),
        key: key.map_or(0, |key| key.as_ptr() as u64),
        value: next.as_mut_ptr() as u64,
        ..ElementAttr::default()
    };
    // SAFETY: the keys outlive the call and are as large as the map's.
    found(unsafe { call(MAP_GET_NEXT_KEY, &mut attr) })
}

/// Sets the value of a key, new or not.
pub(crate) fn update(map: impl AsFd, key: &[u8], value: &[u8]) -> io::Result<()> {
    let mut attr = ElementAttr {
        map: raw(&map),
        key: key.as_ptr() as u64,
        value: value.as_ptr() as u64,
        ..ElementAttr::default()
    };
    // SAFETY: key and value outlive the call and are as large as the map's.
    unsafe { call(MAP_UPDATE_ELEM, &mut attr) }.map(drop)
}

/// Removes a key; `None` if the map had none.
pub(crate) fn remove(map: impl AsFd, key: &[u8]) -> io::Result<Option<()>> {
    let mut attr =
        ElementAttr { map: raw(&map), key: key.as_ptr() as u64, ..ElementAttr::default() };
    // SAFETY: the key outlives the call and is as large as the map's.
    found(unsafe { call(MAP_DELETE_ELEM, &mut attr) })
}

fn found<T>(result: io::Result<T>) -> io::Result<Option<()>> {
    match result {
        Ok(_) => Ok(Some(())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// What a program is for.
#[derive(Debug, Clone, Copy)]
pub(crate) enum ProgramKind {
    /// Traffic control.
    Classifier,
    /// What the sockets of a cgroup do.
    SockOps,
}

/// Loads a program. When the verifier refuses it, the error comes with the end
/// of its log.
pub(crate) fn load_program(
    kind: ProgramKind,
    name: &str,
    instructions: &[bpf_insn],
    license: &CStr,
) -> Result<OwnedFd, (io::Error, String)> {
    let (kind, attach_type) = match kind {
        ProgramKind::Classifier => (SCHED_CLS, 0),
        ProgramKind::SockOps => (SOCK_OPS, CGROUP_SOCK_OPS),
    };
    let load = |log: &mut [u8]| {
        let mut attr = LoadAttr {
            kind,
            attach_type,
            instruction_count: size_u32(instructions.len())?,
            instructions: instructions.as_ptr() as u64,
            license: license.as_ptr() as u64,
            log_level: u32::from(!log.is_empty()),
            log_size: size_u32(log.len())?,
            log: if log.is_empty() { 0 } else { log.as_mut_ptr() as u64 },
            ..LoadAttr::default()
        };
        let name = name.bytes().take(NAME_SIZE - 1);
        attr.name.iter_mut().zip(name).for_each(|(to, from)| *to = from);
        // SAFETY: instructions, license and log outlive the call, and their
        // sizes are given.
        unsafe { call_for_fd(PROG_LOAD, &mut attr) }
    };
    load(&mut []).map_err(|error| {
        let mut log = vec![0; LOG_SIZE];
        let _failed_again = load(&mut log);
        let text = log.split(|byte| *byte == 0).next().unwrap_or_default();
        let text = String::from_utf8_lossy(text);
        let lines: Vec<_> = text.lines().rev().take(LOG_LINES).collect();
        (error, lines.into_iter().rev().collect::<Vec<_>>().join("\n"))
    })
}

/// Opens a program by its id.
pub(crate) fn program_by_id(id: u32) -> io::Result<OwnedFd> {
    // SAFETY: no pointers in it.
    unsafe { call_for_fd(PROG_GET_FD_BY_ID, &mut [id, 0, 0]) }
}

/// What tells an open program from another.
pub(crate) fn program_info(program: impl AsFd) -> io::Result<ProgramInfo> {
    // More maps than any redirector has.
    let mut maps = [0_u32; 64];
    let mut info = RawProgramInfo {
        map_count: size_u32(maps.len())?,
        maps: maps.as_mut_ptr() as u64,
        ..RawProgramInfo::default()
    };
    // SAFETY: a prefix of struct bpf_prog_info; `maps` outlives the call and
    // has room for `map_count` ids.
    unsafe { info_of(program, &mut info) }?;
    let maps = maps.into_iter().take(info.map_count as usize).collect();
    Ok(ProgramInfo { id: info.id, tag: info.tag, maps })
}

/// Attaches a program to a device of the calling thread's network namespace,
/// behind the programs that are there. Detached when the link is closed,
/// unless it is pinned.
pub(crate) fn attach_tcx(
    program: impl AsFd,
    interface: u32,
    direction: Direction,
) -> io::Result<OwnedFd> {
    let attach_type = match direction {
        Direction::Ingress => TCX_INGRESS,
        Direction::Egress => TCX_EGRESS,
    };
    let mut attr = [raw(&program), interface, attach_type, 0, 0, 0, 0, 0];
    // SAFETY: no pointers in it.
    unsafe { call_for_fd(LINK_CREATE, &mut attr) }
}

/// Attaches a program to the sockets of a cgroup. Detached when the link is
/// closed, unless it is pinned.
pub(crate) fn attach_cgroup(program: impl AsFd, cgroup: impl AsFd) -> io::Result<OwnedFd> {
    let mut attr = [raw(&program), raw(&cgroup), CGROUP_SOCK_OPS, 0, 0, 0, 0, 0];
    // SAFETY: no pointers in it.
    unsafe { call_for_fd(LINK_CREATE, &mut attr) }
}

/// Id of the program of an open link of any kind.
pub(crate) fn link_program(link: impl AsFd) -> io::Result<u32> {
    let mut info = RawLinkInfo::default();
    // SAFETY: a prefix of struct bpf_link_info, of integers only.
    unsafe { info_of(link, &mut info) }?;
    Ok(info.program)
}

/// Puts a program in the place of a link's, with no packet in between that
/// meets neither.
pub(crate) fn update_link(link: impl AsFd, program: impl AsFd) -> io::Result<()> {
    // SAFETY: no pointers in it.
    unsafe { call(LINK_UPDATE, &mut [raw(&link), raw(&program), 0, 0]) }.map(drop)
}

/// What an open link is; `None` when it is no TCX link.
pub(crate) fn link_info(link: impl AsFd) -> io::Result<Option<LinkInfo>> {
    let mut info = RawLinkInfo::default();
    // SAFETY: a prefix of struct bpf_link_info, of integers only.
    unsafe { info_of(link, &mut info) }?;
    let direction = match (info.kind, info.attach_type) {
        (LINK_TYPE_TCX, TCX_INGRESS) => Direction::Ingress,
        (LINK_TYPE_TCX, TCX_EGRESS) => Direction::Egress,
        _ => return Ok(None),
    };
    Ok(Some(LinkInfo { program: info.program, interface: info.interface, direction }))
}
