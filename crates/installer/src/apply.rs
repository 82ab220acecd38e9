//! Carrying out a change of containerd's configuration: written, judged by
//! containerd's own parser, loaded by a restart, proven by the daemon, and
//! taken back when any of this fails.

use std::{
    path::Path,
    time::{Duration, Instant, SystemTime},
};

use crate::{
    Error,
    acceptance::accept,
    config::Source as _,
    containerd::Handler,
    distribution::Distribution,
    host::HostRoot,
    node::Node,
    plan::{FileChange, Plan},
    state,
    systemd::unit_name,
};

/// Writes the changes and lets containerd judge them. On failure everything is
/// as it was before.
///
/// Returns a note if there was nobody to judge.
///
/// # Errors
/// When a file cannot be written, or containerd would not take the result.
pub fn write(node: &mut Node, plan: &Plan, deadline: Instant) -> Result<Option<String>, Error> {
    let before = dump(node, deadline);
    let written = plan.changes.iter().try_for_each(|change| put(&node.host, change));
    let judged = written.and_then(|()| match before {
        Ok(before) => {
            let after = dump(node, deadline).map_err(NoDump::into_error)?;
            let verdict = accept(&before, &after, &plan.expected);
            verdict.map(|()| None).map_err(|reason| Error::Rejected { reason })
        }
        Err(NoDump::Impossible(reason)) => Ok(Some(format!("not validated beforehand: {reason}"))),
        // It is broken already, and the change may be the repair.
        Err(NoDump::Failed(reason)) => {
            let after = dump(node, deadline).map_err(NoDump::into_error)?;
            let verdict = accept(&after, &after, &plan.expected);
            verdict
                .map(|()| Some(format!("the configuration was broken before: {reason}")))
                .map_err(|reason| Error::Rejected { reason })
        }
        Err(NoDump::Error(error)) => Err(error),
    });
    if judged.is_err() {
        take_back(&node.host, plan)?;
    }
    judged
}

/// Restores every file that the plan has changed and nobody else since.
///
/// # Errors
/// When a file cannot be written.
pub fn take_back(host: &HostRoot, plan: &Plan) -> Result<(), Error> {
    for change in plan.changes.iter().rev() {
        if host.read(&change.path)? == change.after {
            let FileChange { path, before, after } = change.clone();
            put(host, &FileChange { path, before: after, after: before })?;
        }
    }
    Ok(())
}

/// Makes containerd load what is on disk.
///
/// # Errors
/// When nobody here can restart it, or the restart fails.
pub fn restart(node: &mut Node, why: &str, deadline: Instant) -> Result<(), Error> {
    let layout = node.facts.layout.clone();
    if layout.distribution == Distribution::K0s {
        // k0s watches its directory and restarts containerd itself.
        return Ok(());
    }
    let unit = node.unit.clone();
    match (node.systemd()?, unit) {
        (Some(systemd), Some(unit)) => systemd.restart(&unit.name, deadline),
        (systemd, _) => Err(Error::NoRestart {
            why: why.to_owned(),
            reason: if systemd.is_some() {
                format!("none of its units is active: {}", layout.units.join(", "))
            } else {
                "the host has no systemd".into()
            },
        }),
    }
}

/// Waits until the running daemon serves the handler as expected, or no longer
/// has it.
///
/// # Errors
/// When it does not by `deadline`; the error says what it serves instead.
pub async fn prove(
    node: &Node,
    expected: Option<&Handler>,
    deadline: Instant,
) -> Result<(), Error> {
    loop {
        let reason = match served(node).await {
            Ok(Served::Dead) => "its CRI plugin is not loaded".to_owned(),
            Ok(Served::Handler(handler)) => match difference(handler.as_deref(), expected) {
                None => return Ok(()),
                Some(difference) => difference,
            },
            Err(error) => error.to_string(),
        };
        if Instant::now() >= deadline {
            return Err(Error::NotServed { reason });
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// What the daemon serves.
#[derive(Debug, PartialEq)]
pub enum Served {
    /// The CRI plugin is not loaded.
    Dead,
    /// The handler, if it has it.
    Handler(Option<Box<Handler>>),
}

/// Asks the daemon for our handler.
///
/// # Errors
/// When it does not answer.
pub async fn served(node: &Node) -> Result<Served, Error> {
    let handlers = node.containerd().await?.handlers().await?;
    Ok(match handlers {
        None => Served::Dead,
        Some(mut handlers) => {
            Served::Handler(handlers.remove(zeropod_shim_api::names::RUNTIME_CLASS).map(Box::new))
        }
    })
}

/// What has to be known to decide about a restart.
#[derive(Debug)]
pub struct Loaded<'a> {
    /// Whether this run changed the configuration.
    pub changed: bool,
    /// Whether an earlier run saw its last change served.
    pub proven: bool,
    /// What the daemon serves.
    pub served: &'a Served,
    /// What it should serve.
    pub expected: Option<&'a Handler>,
    /// Since when the daemon runs, if systemd tells.
    pub since: Option<SystemTime>,
    /// When our tables were last written.
    pub written: Option<SystemTime>,
}

impl Loaded<'_> {
    /// Why containerd has to be restarted; `None` if it need not be (F-C1,
    /// F-C2).
    pub fn restart_reason(&self) -> Option<String> {
        if self.changed {
            return Some("its configuration has changed".into());
        }
        match self.served {
            Served::Dead => return Some("its CRI plugin is not loaded".into()),
            Served::Handler(handler) => {
                if let Some(difference) = difference(handler.as_deref(), self.expected) {
                    return Some(difference);
                }
            }
        }
        // The opt directory is not among what it tells about itself.
        let older = self.since.zip(self.written).is_some_and(|(since, written)| since < written);
        (!self.proven && older)
            .then(|| "it runs since before its configuration was last written".into())
    }
}

/// In what way a handler is not the expected one.
fn difference(served: Option<&Handler>, expected: Option<&Handler>) -> Option<String> {
    let (served, expected) = match (served, expected) {
        (None, None) => return None,
        (None, Some(_)) => return Some("it does not serve the handler zeropod".into()),
        (Some(_), None) => return Some("it still serves the handler zeropod".into()),
        (Some(served), Some(expected)) => (served, expected),
    };
    let option_differs = expected.options.iter().flatten().any(|(key, value)| {
        served.options.as_ref().and_then(|options| options.get(key)) != Some(value)
    });
    let what = if served.runtime_path != expected.runtime_path {
        "runtime_path"
    } else if served.runtime_type != expected.runtime_type {
        "runtime_type"
    } else if served.pod_annotations != expected.pod_annotations {
        "pod_annotations"
    } else if option_differs {
        "options"
    } else {
        return None;
    };
    Some(format!("it serves the handler zeropod with other {what}"))
}

fn put(host: &HostRoot, change: &FileChange) -> Result<(), Error> {
    match &change.after {
        Some(content) => {
            if let Some(dir) = change.path.parent() {
                host.make_dirs(dir)?;
            }
            host.replace(&change.path, &mut content.as_slice(), 0o644)
        }
        None => host.remove(&change.path),
    }
}

/// Why there is no dump.
enum NoDump {
    /// Nobody can be asked.
    Impossible(String),
    /// containerd says that the configuration is broken.
    Failed(String),
    /// Something else went wrong.
    Error(Error),
}

impl NoDump {
    fn into_error(self) -> Error {
        match self {
            Self::Impossible(reason) | Self::Failed(reason) => Error::Rejected { reason },
            Self::Error(error) => error,
        }
    }
}

/// `containerd config dump`, run on the host by its systemd: the program of
/// the host needs its libraries.
fn dump(node: &mut Node, deadline: Instant) -> Result<String, NoDump> {
    let impossible = |reason: &str| Err(NoDump::Impossible(reason.into()));
    let layout = node.facts.layout.clone();
    if layout.distribution != Distribution::Containerd {
        return impossible("the distribution makes containerd's configuration itself");
    }
    let program = node.unit.as_ref().and_then(|unit| unit.command.first().cloned());
    let Some(program) = program.filter(|it| it.ends_with("/containerd")) else {
        return impossible("no active unit runs containerd");
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

#[cfg(test)]
mod tests {
    use super::*;

    fn handler(path: &str) -> Handler {
        Handler {
            runtime_path: path.into(),
            runtime_type: "t".into(),
            pod_annotations: Some(vec!["a".into()]),
            options: None,
        }
    }

    #[test]
    fn a_restart_happens_only_when_something_is_not_loaded() {
        // F-C1, F-C2.
        let at = |seconds| Some(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds));
        let ours = handler("/shim");
        let good = Served::Handler(Some(Box::new(ours.clone())));
        let old = Served::Handler(Some(Box::new(handler("/old"))));
        let none = Served::Handler(None);
        for (changed, proven, served, since, written, restarts) in [
            (false, true, &good, at(1), at(2), false),
            (false, false, &good, at(3), at(2), false),
            (false, false, &good, None, at(2), false),
            (true, true, &good, at(3), at(2), true),
            (false, false, &good, at(1), at(2), true),
            (false, true, &none, at(3), at(2), true),
            (false, true, &old, at(3), at(2), true),
            (false, true, &Served::Dead, at(3), at(2), true),
        ] {
            let loaded = Loaded { changed, proven, served, expected: Some(&ours), since, written };
            assert_eq!(loaded.restart_reason().is_some(), restarts, "{loaded:?}");
        }
        let gone = Loaded {
            changed: false,
            proven: false,
            served: &none,
            expected: None,
            since: at(3),
            written: None,
        };
        assert_eq!(gone.restart_reason(), None);
    }
}
