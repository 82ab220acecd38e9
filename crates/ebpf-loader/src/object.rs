//! The embedded object, and its programs once the kernel has taken them.
//!
//! Not by `aya::EbpfLoader`: every one of those parses the BTF of the whole
//! kernel (B20), which these programs do not need.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    io,
    os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd},
};

use tracing::debug;
use zeropod_redirector_abi::{
    Direction, EGRESS_PROGRAM, INGRESS_PROGRAM, NO_TASK_COMM, PROBE_BINARY_NAME, TASK_COMM_OFFSET,
    TRACKER_IGNORE_LOCALHOST, comm_name,
};

use crate::{
    Error,
    bpf::{self, ProgramKind},
    btf,
    maps::Maps,
};

/// The object that is loaded for each sandbox: an ELF file for BPF, made by
/// `cargo xtask build-ebpf`. Other loaders take it as well (aya, libbpf).
///
/// Aligned to 8 bytes: parsers of ELF read words in place.
pub static REDIRECTOR: &[u8] = {
    #[repr(C, align(8))]
    struct Aligned<const N: usize>([u8; N]);

    static ALIGNED: &Aligned<{ include_bytes!("redirector.o").len() }> =
        &Aligned(*include_bytes!("redirector.o"));
    &ALIGNED.0
};

/// What the programs are told when they are loaded.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Globals {
    pub(crate) probe_binary_name: String,
    pub(crate) ignore_localhost: bool,
    pub(crate) comm: Comm,
}

/// How the programs learn the name of the current task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Comm {
    /// By a helper.
    Helper,
    /// From an offset in the task's structure.
    Offset(u32),
    /// Not at all.
    Unknown,
}

impl Comm {
    /// The first way that the kernel allows.
    pub(crate) fn detect(object: &[u8], maps: &Maps) -> Result<Self, Error> {
        let globals =
            |comm| Globals { probe_binary_name: String::new(), ignore_localhost: false, comm };
        let helper = Programs::load(object, &globals(Self::Helper), maps);
        let Err(Error::Program { .. }) = helper else { return helper.map(|_| Self::Helper) };
        let by_offset = btf::task_comm_offset().map(Self::Offset);
        match by_offset {
            Ok(by_offset) if Programs::load(object, &globals(by_offset), maps).is_ok() => {
                Ok(by_offset)
            }
            other => {
                debug!(?other, "the programs cannot learn the names of tasks");
                Ok(Self::Unknown)
            }
        }
    }

    /// What the programs are told of it.
    pub(crate) fn offset(self) -> u32 {
        match self {
            Self::Helper => 0,
            Self::Offset(offset) => offset,
            Self::Unknown => NO_TASK_COMM,
        }
    }
}

impl Globals {
    /// What a loaded redirector was told, of ours or of zeropod 0.12's.
    pub(crate) fn of(program: &bpf::ProgramInfo, comm: Comm) -> io::Result<Option<Self>> {
        let Some(data) = read_only_data(program)? else { return Ok(None) };
        // Both begin with 16 bytes of a name. Then C keeps the order of the
        // source, and rustc that of the alphabet.
        let ignore_localhost = match data.len() {
            24 => data.get(16),
            21 => data.get(20),
            _ => None,
        };
        let (Some(name), Some(ignore_localhost)) = (data.get(..16), ignore_localhost) else {
            return Ok(None);
        };
        let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
        Ok(Some(Self {
            probe_binary_name: String::from_utf8_lossy(name).into_owned(),
            ignore_localhost: *ignore_localhost != 0,
            comm,
        }))
    }
}

/// Both programs in the kernel, attached to nothing.
pub(crate) struct Programs {
    ingress: OwnedFd,
    egress: OwnedFd,
}

impl Programs {
    /// Loads both programs on the given maps.
    pub(crate) fn load(object: &[u8], globals: &Globals, maps: &Maps) -> Result<Self, Error> {
        let comm = comm_name(&globals.probe_binary_name);
        let ignore_localhost = [u8::from(globals.ignore_localhost)];
        let comm_offset = globals.comm.offset().to_ne_bytes();
        let globals = [
            (TASK_COMM_OFFSET, comm_offset.as_slice()),
            (PROBE_BINARY_NAME, comm.as_slice()),
            (TRACKER_IGNORE_LOCALHOST, ignore_localhost.as_slice()),
        ];
        with_linked(object, &globals, maps, |object| {
            Ok(Self {
                ingress: load_program(object, ProgramKind::Classifier, INGRESS_PROGRAM)?,
                egress: load_program(object, ProgramKind::Classifier, EGRESS_PROGRAM)?,
            })
        })
    }

    /// The program for a direction.
    pub(crate) fn program(&self, direction: Direction) -> BorrowedFd<'_> {
        match direction {
            Direction::Ingress => self.ingress.as_fd(),
            Direction::Egress => self.egress.as_fd(),
        }
    }

    /// What tells them from other programs.
    pub(crate) fn identity(&self) -> io::Result<Identity> {
        let ingress = bpf::program_info(&self.ingress)?;
        let egress = bpf::program_info(&self.egress)?;
        Ok(Identity {
            ingress: (ingress.tag, read_only_data(&ingress)?),
            egress: (egress.tag, read_only_data(&egress)?),
        })
    }
}

/// What tells our programs, told our globals, from others: tags of the
/// instructions and read-only data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Identity {
    ingress: ([u8; 8], Option<Vec<u8>>),
    egress: ([u8; 8], Option<Vec<u8>>),
}

impl Identity {
    /// That of the programs that would be loaded.
    pub(crate) fn ours(object: &[u8], globals: &Globals) -> Result<Self, Error> {
        Programs::load(object, globals, &Maps::unpinned()?)?.identity().map_err(Error::Maps)
    }

    /// Whether a loaded program is ours, on maps with these ids.
    pub(crate) fn is(
        &self,
        direction: Direction,
        program: &bpf::ProgramInfo,
        maps: &BTreeSet<u32>,
    ) -> io::Result<bool> {
        let (tag, data) = match direction {
            Direction::Ingress => &self.ingress,
            Direction::Egress => &self.egress,
        };
        let others = program.maps.iter().filter(|id| !maps.contains(id)).count();
        Ok(program.tag == *tag
            && others == usize::from(data.is_some())
            && read_only_data(program)? == *data)
    }
}

/// Links an object to maps, found by name; what it has else is its read-only
/// data, with globals set. That is open only as long as its programs are being
/// loaded.
pub(crate) fn with_linked<T>(
    object: &[u8],
    globals: &[(&str, &[u8])],
    maps: &Maps,
    load: impl FnOnce(&aya_obj::Object) -> Result<T, Error>,
) -> Result<T, Error> {
    let mut object = aya_obj::Object::parse(object).map_err(Error::object)?;
    let globals = globals.iter().map(|(name, value)| (*name, (*value, true)));
    object.patch_map_data(globals.collect()).map_err(Error::object)?;
    let definitions: Vec<_> = object.maps.drain().collect();
    let mut sections = HashMap::new();
    for (name, definition) in &definitions {
        if maps.get(name).is_none() {
            let data = bpf::create_read_only_data(definition.data()).map_err(Error::Maps)?;
            sections.insert(name.as_str(), data);
        }
    }
    let text: HashSet<_> = object.functions.keys().map(|(section, _)| *section).collect();
    let fds = definitions.iter().filter_map(|(name, definition)| {
        let map = maps.get(name).or_else(|| sections.get(name.as_str()).map(OwnedFd::as_fd));
        Some((name.as_str(), map?.as_raw_fd(), definition))
    });
    object.relocate_maps(fds, &text).map_err(Error::object)?;
    object.relocate_calls(&text).map_err(Error::object)?;
    load(&object)
}

/// Loads a program of an object that is linked.
pub(crate) fn load_program(
    object: &aya_obj::Object,
    kind: ProgramKind,
    name: &'static str,
) -> Result<OwnedFd, Error> {
    let program = object.programs.get(name).ok_or(Error::NoProgram { program: name })?;
    let function = object.functions.get(&program.function_key());
    let instructions = &function.ok_or(Error::NoProgram { program: name })?.instructions;
    bpf::load_program(kind, name, instructions, &program.license)
        .map_err(|(source, log)| Error::Program { program: name, log, source })
}

/// The read-only data of a loaded program, if it has any.
pub(crate) fn read_only_data(program: &bpf::ProgramInfo) -> io::Result<Option<Vec<u8>>> {
    for id in &program.maps {
        let map = bpf::map_by_id(*id)?;
        let info = bpf::map_info(&map)?;
        if info.is_read_only_data() {
            let mut value = vec![0; info.value_size as usize];
            return Ok(bpf::lookup(&map, &[0; 4], &mut value)?.map(|()| value));
        }
    }
    Ok(None)
}
