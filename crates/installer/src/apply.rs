//! Carrying out a change of containerd's configuration: written, judged by
//! containerd's own parser, loaded by a restart, proven by the daemon, and
//! taken back when any of this fails.

use std::time::{Instant, SystemTime};

use crate::{
    Error,
    acceptance::accept,
    config::Source as _,
    containerd::Handler,
    distribution::Distribution,
    dump::{NoDump, dump},
    host::HostRoot,
    node::Node,
    plan::{FileChange, Plan},
    proof::{Before, NotJudged, Served, difference},
};

/// Writes the changes and lets containerd judge them. On failure everything is
/// as it was before.
///
/// Returns a note if there was nobody to judge.
///
/// # Errors
/// When a file cannot be written, or containerd would not take the result.
pub fn write(
    node: &mut Node,
    plan: &Plan,
    before: &Before,
    deadline: Instant,
) -> Result<Option<String>, Error> {
    let written = plan.changes.iter().try_for_each(|change| put(&node.host, change));
    let judged = written.and_then(|()| match before.judged() {
        Ok(before) => {
            let after = dump(node, deadline).map_err(NoDump::into_error)?;
            let verdict = accept(before, &after, &plan.expected);
            verdict.map(|()| None).map_err(|reason| Error::Rejected { reason })
        }
        Err(NotJudged::Impossible(reason)) => {
            Ok(Some(format!("not validated beforehand: {reason}")))
        }
        // It is broken already, and the change may be the repair.
        Err(NotJudged::Broken(reason)) => {
            let after = dump(node, deadline).map_err(NoDump::into_error)?;
            let verdict = accept(&after, &after, &plan.expected);
            verdict
                .map(|()| Some(format!("the configuration was broken before: {reason}")))
                .map_err(|reason| Error::Rejected { reason })
        }
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

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
