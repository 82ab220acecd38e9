//! A node as the installer finds it: its file system, its containerd and its
//! systemd.

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use crate::{
    Error,
    containerd::Containerd,
    distribution::{Distribution, Layout, detect},
    facts::Facts,
    host::HostRoot,
    systemd::{Systemd, Unit},
    version::ContainerdVersion,
};

/// What is known of a node beforehand, by flags.
#[derive(Debug, Clone, Default)]
pub struct Known {
    /// Who runs containerd.
    pub distribution: Option<Distribution>,
    /// containerd's configuration file.
    pub config: Option<PathBuf>,
    /// containerd's socket.
    pub socket: Option<PathBuf>,
    /// containerd's version, if it does not run.
    pub version: Option<ContainerdVersion>,
    /// How long to wait for a containerd that does not answer: it may be
    /// restarting.
    pub patience: Duration,
}

/// A node that has been looked at.
pub struct Node {
    /// Its file system.
    pub host: HostRoot,
    /// Its configuration.
    pub facts: Facts,
    /// The unit that runs containerd, if systemd runs it.
    pub unit: Option<Unit>,
    systemd: Result<Option<Systemd>, Error>,
}

impl Node {
    /// Looks at a node. systemd is asked if it is there; whether it is needed
    /// turns out later (I14).
    ///
    /// # Errors
    /// When containerd is not found or does not answer by `deadline`, or its
    /// configuration cannot be read.
    pub async fn look(host: HostRoot, known: &Known, deadline: Instant) -> Result<Self, Error> {
        let mut systemd = Systemd::connect(&host);
        let mut units = Vec::new();
        if let Ok(Some(systemd)) = &mut systemd {
            for distribution in Distribution::ALL {
                let active = systemd.active_units(&distribution.layout().units)?;
                units.extend(active.into_iter().next().map(|unit| (distribution, unit)));
            }
        }
        let mut layout = if known.config.is_some() {
            known.distribution.unwrap_or(Distribution::Containerd).layout()
        } else {
            let active: Vec<_> = units.iter().map(|(distribution, _)| *distribution).collect();
            detect(&host, known.distribution, &active)?
        };
        let unit = units
            .into_iter()
            .find(|(distribution, _)| *distribution == layout.distribution)
            .map(|(_, unit)| unit);
        if let Some(command) = unit.as_ref().map(|unit| &unit.command) {
            follow_command(&mut layout, command);
        }
        layout.config = known.config.clone().unwrap_or(layout.config);
        layout.socket = known.socket.clone().unwrap_or(layout.socket);
        let version = if let Some(version) = &known.version {
            version.clone()
        } else {
            let patience = deadline.min(Instant::now() + known.patience);
            ask_version(&host, &layout.socket, patience).await?
        };
        let facts = Facts::gather(&host, layout, version)?;
        Ok(Self { host, facts, unit, systemd })
    }

    /// A new connection to its containerd.
    ///
    /// # Errors
    /// When nobody listens.
    pub async fn containerd(&self) -> Result<Containerd, Error> {
        Containerd::connect(&self.host.resolve(&self.facts.layout.socket)?).await
    }

    /// Its systemd; `None` if it has none.
    ///
    /// # Errors
    /// When it is there but could not be connected.
    pub fn systemd(&mut self) -> Result<Option<&mut Systemd>, Error> {
        if self.systemd.is_err() {
            // Again, for the error or for another outcome.
            self.systemd = Ok(Systemd::connect(&self.host)?);
        }
        match &mut self.systemd {
            Ok(systemd) => Ok(systemd.as_mut()),
            Err(_) => Ok(None),
        }
    }
}

/// Takes configuration file and socket from the command line of containerd,
/// where they beat everything else (F-A12, F-A13). k3s and others run it as a
/// child, so their command line says nothing.
fn follow_command(layout: &mut Layout, command: &[String]) {
    let Some((program, arguments)) = command.split_first() else { return };
    if Path::new(program).file_name().is_none_or(|name| name != "containerd") {
        return;
    }
    let value = |names: [&str; 2]| {
        arguments.iter().enumerate().find_map(|(index, argument)| {
            let (name, value) = match argument.split_once('=') {
                Some((name, value)) => (name, Some(value)),
                None => (argument.as_str(), arguments.get(index + 1).map(String::as_str)),
            };
            names.contains(&name).then_some(value?).filter(|value| value.starts_with('/'))
        })
    };
    if let Some(config) = value(["--config", "-c"]) {
        layout.config = config.into();
    }
    if let Some(socket) = value(["--address", "-a"]) {
        layout.socket = socket.into();
    }
}

async fn ask_version(
    host: &HostRoot,
    socket: &Path,
    patience: Instant,
) -> Result<ContainerdVersion, Error> {
    loop {
        let ask = async { Containerd::connect(&host.resolve(socket)?).await?.version().await };
        match ask.await {
            Ok(version) => return Ok(version),
            Err(error) if Instant::now() >= patience => return Err(error),
            // It may be restarting, by us a moment ago even.
            Err(_) => tokio::time::sleep(Duration::from_millis(200)).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_of_containerd_is_followed() {
        let default = Distribution::Containerd.layout();
        for (command, config, socket) in [
            (&["/usr/bin/containerd"][..], None, None),
            (
                &["/usr/bin/containerd", "--config", "/a.toml", "-a", "/s"],
                Some("/a.toml"),
                Some("/s"),
            ),
            (&["/x/containerd", "-c=/b.toml", "--address=/t"], Some("/b.toml"), Some("/t")),
            (&["/usr/bin/containerd", "--config", ""], None, None),
            (&["/usr/local/bin/k3s", "server", "--config", "/etc/k3s.yaml"], None, None),
            (&[], None, None),
        ] {
            let mut layout = default.clone();
            let command: Vec<String> = command.iter().map(|it| (*it).to_owned()).collect();
            follow_command(&mut layout, &command);
            assert_eq!(layout.config, config.map_or(default.config.clone(), PathBuf::from));
            assert_eq!(layout.socket, socket.map_or(default.socket.clone(), PathBuf::from));
        }
    }
}
