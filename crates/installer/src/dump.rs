//! What containerd itself makes of the configuration on disk.

use std::{path::Path, time::Instant};

use crate::{Error, config::Source as _, node::Node, state, systemd::unit_name};

/// Why there is no dump.
pub(crate) enum NoDump {
    /// Nobody can be asked.
    Impossible(String),
    /// containerd says that the configuration is broken.
    Failed(String),
    /// Something else went wrong.
    Error(Error),
}

impl NoDump {
    pub(crate) fn into_error(self) -> Error {
        match self {
            Self::Impossible(reason) | Self::Failed(reason) => Error::Rejected { reason },
            Self::Error(error) => error,
        }
    }
}

/// `containerd config dump`, run on the host by its systemd: the program of
/// the host needs its libraries.
pub(crate) fn dump(node: &mut Node, deadline: Instant) -> Result<String, NoDump> {
    let impossible = |reason: &str| Err(NoDump::Impossible(reason.into()));
    let layout = node.facts.layout.clone();
    let from_unit = node.unit.as_ref().and_then(|unit| unit.command.first().cloned());
    let program = from_unit.filter(|it| it.ends_with("/containerd")).or_else(|| {
        // Others bring their own and run it as a child.
        let own = layout.program.as_ref().filter(|it| node.host.exists(it).unwrap_or(false));
        own.map(|it| it.to_string_lossy().into_owned())
    });
    let Some(program) = program else {
        return impossible("the program that runs as containerd is not known");
    };
    let host = node.host.clone();
    let missing = matches!(host.read(&layout.config), Ok(None));
    let Some(systemd) = node.systemd().map_err(NoDump::Error)? else {
        return impossible("the host has no systemd");
    };
    let (output, errors) =
        (Path::new(state::DIR).join("dump.toml"), Path::new(state::DIR).join("dump.log"));
    // 1.x does not accept a configuration file that is absent.
    let config = if missing { Path::new("/dev/null") } else { layout.config.as_path() };
    let script = "exec \"$1\" -c \"$2\" config dump >\"$3\" 2>\"$4\"";
    let arguments = [config, &output, &errors].map(|path| path.to_string_lossy().into_owned());
    let [config, out, err] = &arguments;
    let command = ["/bin/sh", "-c", script, "sh", &program, config, out, err];
    let result = systemd.run(&unit_name("dump"), &command, deadline);
    let read = |path: &Path| {
        let content = host.read(path).map_err(NoDump::Error)?.unwrap_or_default();
        host.remove(path).map_err(NoDump::Error)?;
        Ok(String::from_utf8_lossy(&content).into_owned())
    };
    let (output, errors) = (read(&output)?, read(&errors)?);
    match result.map_err(NoDump::Error)? {
        0 => Ok(output),
        _ => Err(NoDump::Failed(errors.lines().last().unwrap_or("no reason given").to_owned())),
    }
}
