//! The redirector as the shims of zeropod 0.12 and later attach it: by a
//! helper process of their own, `<shim> -zeropod-attach-activator <pid>`.
//!
//! The programs are the project's own; what is the shim's is where it pins,
//! what it takes over and what it refuses.

use std::{fs, io, path::Path, process::Stdio, time::Duration};

use aya::{
    Ebpf, EbpfLoader,
    maps::{MapInfo, MapType},
    programs::{
        LinkOrder, ProgramError, SchedClassifier, TcAttachType,
        links::{FdLink, PinnedLink},
        tc::TcAttachOptions,
    },
};
use tokio::{process::Command, time::timeout};
use zeropod_ebpf_loader::REDIRECTOR;
use zeropod_redirector_abi::{
    Direction, EGRESS_PROGRAM, INGRESS_PROGRAM, MAPS, MapGeometry, MapKind, link_pin_prefix,
};
use zeropod_shim_api::names::{managed_by_shim_dir, sandbox_maps_dir};

use super::{Error, chain, netns::NetNs};

/// First argument of the helper; the pid of the sandbox and the base
/// directory of the pins follow.
pub const HELPER_ARGUMENT: &str = "-zeropod-attach-activator";

/// Interfaces of a sandbox, in the order in which a shim attaches to them.
const INTERFACES: [&str; 2] = ["lo", "eth0"];

/// Attaches the redirector to a sandbox. What is pinned already stays: links
/// as they are, maps if their geometry fits.
///
/// # Errors
/// When a pinned map does not fit, an interface is missing, or the kernel
/// refuses.
pub fn attach(maps_dir: &Path, sandbox_pid: u32) -> Result<(), Error> {
    // In this order: a manager that sees the second looks for the first.
    for dir in [managed_by_shim_dir(maps_dir, sandbox_pid), sandbox_maps_dir(maps_dir, sandbox_pid)]
    {
        fs::create_dir_all(&dir).map_err(Error::io("create", &dir))?;
    }
    let pins = sandbox_maps_dir(maps_dir, sandbox_pid);
    MAPS.iter().try_for_each(|map| check_pinned(&pins, map))?;
    let netns = NetNs::of_pid(sandbox_pid)?;
    let entered = Error::io("work in", pins.clone());
    // Interface names mean those of the thread's namespace.
    netns.run(move || attach_here(&pins)).map_err(entered)?
}

/// Runs `helper` for a sandbox, as a shim does.
///
/// # Errors
/// When it fails, with what it said.
pub async fn run_helper(helper: &Path, maps_dir: &Path, sandbox_pid: u32) -> Result<(), Error> {
    let failed = |reason| Error::Program {
        program: format!("{} {HELPER_ARGUMENT}", helper.display()),
        reason,
    };
    let output = Command::new(helper)
        .arg(HELPER_ARGUMENT)
        .arg(sandbox_pid.to_string())
        .arg(maps_dir)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    match timeout(Duration::from_mins(1), output).await {
        Ok(Ok(output)) if output.status.success() => Ok(()),
        Ok(Ok(output)) => Err(failed(String::from_utf8_lossy(&output.stderr).trim().into())),
        Ok(Err(error)) => Err(failed(error.to_string())),
        Err(_) => Err(failed("no end within a minute".into())),
    }
}

fn check_pinned(pins: &Path, geometry: &MapGeometry) -> Result<(), Error> {
    let path = pins.join(geometry.name);
    if !path.exists() {
        return Ok(());
    }
    let read = |source| Error::Map { action: "read", path: path.clone(), source: Box::new(source) };
    let map = MapInfo::from_pin(&path).map_err(read)?;
    let kind = match geometry.kind {
        MapKind::Array => MapType::Array,
        MapKind::Hash => MapType::Hash,
        MapKind::LruHash => MapType::LruHash,
        MapKind::RingBuf => MapType::RingBuf,
    };
    let found = (
        map.map_type().map_err(read)?,
        map.key_size(),
        map.value_size(),
        map.max_entries(),
        map.map_flags(),
    );
    let wanted = (kind, geometry.key_size, geometry.value_size, geometry.max_entries, 0);
    if found == wanted {
        return Ok(());
    }
    Err(Error::Invalid {
        what: "pinned map",
        value: path.display().to_string(),
        reason: format!("it is {found:?}, not {wanted:?}"),
    })
}

fn attach_here(pins: &Path) -> Result<(), Error> {
    let mut loader = EbpfLoader::new();
    // The kernel's types are of no use here and take long to read.
    loader.btf(None);
    for map in &MAPS {
        loader.map_pin_path(map.name, pins.join(map.name));
    }
    let mut object = loader.load(REDIRECTOR).map_err(|error| failed(pins, &error))?;
    for name in [INGRESS_PROGRAM, EGRESS_PROGRAM] {
        program(&mut object, name)
            .and_then(SchedClassifier::load)
            .map_err(|error| failed(pins, &error))?;
    }
    for interface in INTERFACES {
        for (direction, name) in
            [(Direction::Ingress, INGRESS_PROGRAM), (Direction::Egress, EGRESS_PROGRAM)]
        {
            let pin = pins.join(format!("{}{interface}", link_pin_prefix(direction)));
            if PinnedLink::from_pin(&pin).is_ok() {
                continue;
            }
            program(&mut object, name)
                .and_then(|program| link(program, interface, direction, &pin))
                .map_err(|error| failed(&pin, &error))?;
        }
    }
    Ok(())
}

fn program<'a>(object: &'a mut Ebpf, name: &str) -> Result<&'a mut SchedClassifier, ProgramError> {
    object.program_mut(name).ok_or(ProgramError::NotLoaded)?.try_into()
}

fn link(
    program: &mut SchedClassifier,
    interface: &str,
    direction: Direction,
    pin: &Path,
) -> Result<(), ProgramError> {
    let attach_type = match direction {
        Direction::Ingress => TcAttachType::Ingress,
        Direction::Egress => TcAttachType::Egress,
    };
    // At the tail, as a shim does.
    let options = TcAttachOptions::TcxOrder(LinkOrder::last());
    let id = program.attach_with_options(interface, attach_type, options)?;
    let link = FdLink::try_from(program.take_link(id)?).map_err(other)?;
    link.pin(pin).map(drop).map_err(other)
}

fn other(error: impl std::error::Error + Send + Sync + 'static) -> ProgramError {
    ProgramError::IOError(io::Error::other(error))
}

fn failed(what: &Path, error: &dyn std::error::Error) -> Error {
    Error::Invalid {
        what: "redirector at",
        value: what.display().to_string(),
        reason: chain(error),
    }
}
