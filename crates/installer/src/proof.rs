//! Proof by observation: what the running daemon serves, before and after.
//! That the files are right proves nothing (F-C3).

use std::time::{Duration, Instant};

use zeropod_shim_api::names::RUNTIME_CLASS;

use crate::{
    Error, chain,
    containerd::{CriSettings, Handler},
    distribution::Distribution,
    dump::{NoDump, dump},
    node::Node,
};

/// A node before it is changed: what has to be the same afterwards.
pub struct Before {
    /// What the daemon has loaded, if it answers.
    daemon: Option<CriSettings>,
    /// What it would load from the files as they are.
    dump: Result<String, NotJudged>,
    /// Whether containerd reads what we write, and nobody renders it first.
    is_direct: bool,
}

/// Why there is no dump to compare with.
#[derive(Debug, Clone)]
pub enum NotJudged {
    /// Nobody can be asked.
    Impossible(String),
    /// containerd says that the configuration is broken.
    Broken(String),
}

impl Before {
    /// Looks at a node.
    ///
    /// # Errors
    /// When systemd does not answer.
    pub async fn look(node: &mut Node, deadline: Instant) -> Result<Self, Error> {
        let is_direct = node.facts.layout.distribution == Distribution::Containerd;
        let dump = match dump(node, deadline) {
            Ok(dump) => Ok(dump),
            Err(NoDump::Failed(reason)) if is_direct => Err(NotJudged::Broken(reason)),
            Err(NoDump::Failed(reason) | NoDump::Impossible(reason)) => {
                Err(NotJudged::Impossible(reason))
            }
            Err(NoDump::Error(error)) => return Err(error),
        };
        let daemon = match node.containerd().await {
            Ok(containerd) => containerd.settings().await.ok().flatten(),
            Err(_) => None,
        };
        Ok(Self { daemon, dump, is_direct })
    }

    /// The dump that one of the changed files can be compared with at once.
    pub(crate) fn judged(&self) -> Result<&str, NotJudged> {
        if !self.is_direct {
            return Err(NotJudged::Impossible(
                "the distribution makes containerd's configuration itself".into(),
            ));
        }
        self.dump.as_deref().map_err(Clone::clone)
    }

    /// What the daemon has to have loaded in the end, besides our handler.
    /// What the files say counts more than what it had loaded: others may have
    /// changed them since it started. Files that are rendered say it later.
    fn expected(&self) -> CriSettings {
        let daemon = self.daemon.clone().unwrap_or_default();
        match self.dump.as_deref().ok().filter(|_| self.is_direct).map(CriSettings::of_dump) {
            Some(files) => {
                let systemd_cgroup = files.systemd_cgroup.or(daemon.systemd_cgroup);
                CriSettings { systemd_cgroup, ..files }
            }
            None => daemon,
        }
    }
}

/// Waits until the running daemon serves the handler as expected, or no longer
/// has it, and everything else as before. Returns what else is different and
/// need not be wrong.
///
/// # Errors
/// When it does not by `deadline`; the error says what it serves instead.
pub async fn prove(
    node: &mut Node,
    before: &Before,
    expected: Option<&Handler>,
    deadline: Instant,
) -> Result<Vec<String>, Error> {
    let others = before.expected();
    loop {
        let settings = match node.containerd().await {
            Ok(containerd) => containerd.settings().await,
            Err(error) => Err(error),
        };
        let reason = match &settings {
            Ok(None) => "its CRI plugin is not loaded".to_owned(),
            Ok(Some(now)) => match difference(now.handlers.get(RUNTIME_CLASS), expected) {
                // Once it is up, the rest does not get better by waiting.
                None => match others.lost(now) {
                    Some(reason) => return Err(Error::NotServed { reason }),
                    None => break,
                },
                Some(difference) => difference,
            },
            Err(error) => chain(error),
        };
        if Instant::now() >= deadline {
            return Err(Error::NotServed { reason });
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    if before.is_direct {
        return Ok(Vec::new());
    }
    // What was rendered for this start, now that it is there: 2.x does not
    // tell of its images by itself.
    let (Ok(old), Ok(new)) = (&before.dump, dump(node, deadline)) else { return Ok(Vec::new()) };
    CriSettings::of_dump(old)
        .images_changed(&CriSettings::of_dump(&new))
        .map_err(|reason| Error::NotServed { reason })
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
        Some(mut handlers) => Served::Handler(handlers.remove(RUNTIME_CLASS).map(Box::new)),
    })
}

/// In what way a handler is not the expected one.
pub(crate) fn difference(served: Option<&Handler>, expected: Option<&Handler>) -> Option<String> {
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
