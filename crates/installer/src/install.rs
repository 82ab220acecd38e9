//! Installing and uninstalling, step by step. Every step can be the last one
//! of a run that is killed: the next run starts from what is there.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    time::{Instant, SystemTime},
};

use crate::{
    Error,
    apply::{self, Loaded},
    containerd::Handler,
    files::{self, FilesPlan, Runtime},
    host::HostRoot,
    node::Node,
    pins,
    plan::{Options, Plan, desired_config, undo},
    proof::{self, Before, Served},
    state::{Owned, State},
};

/// What an installation consists of.
#[derive(Debug)]
pub struct Installation {
    /// The configuration of containerd.
    pub config: Plan,
    /// The files of the runtime.
    pub files: FilesPlan,
    state: State,
}

/// What a run has done, for people.
#[derive(Debug, Default)]
pub struct Report {
    /// What happened, in order.
    pub lines: Vec<String>,
}

impl Report {
    fn say(&mut self, line: impl Into<String>) {
        self.lines.push(line.into());
    }
}

impl Installation {
    /// Works out everything there is to do, and does nothing.
    ///
    /// # Errors
    /// When the node cannot be configured without breaking something.
    pub fn plan(node: &Node, options: &Options, runtime: &Runtime<'_>) -> Result<Self, Error> {
        let state = State::load(&node.host)?;
        let config = desired_config(&node.facts, options)?;
        let files = if config.baked && !node.host.is_writable(&config.opt_path)? {
            FilesPlan::of_image(&node.host, &config.opt_path)?
        } else {
            runtime.plan(&node.host, &config.opt_path, &state)?
        };
        Ok(Self { config, files, state })
    }

    /// Whether files have to be changed. A restart may still be owed.
    pub fn is_empty(&self) -> bool {
        self.config.is_empty() && self.files.steps.is_empty()
    }

    /// Why containerd has to be restarted once the files are in place.
    ///
    /// # Errors
    /// When a file's age cannot be told.
    pub async fn restart_reason(&self, node: &Node) -> Result<Option<String>, Error> {
        // A daemon that does not answer serves nothing.
        let served = proof::served(node).await.unwrap_or(Served::Dead);
        let loaded = Loaded {
            changed: !self.config.is_empty(),
            proven: self.state.proven,
            served: &served,
            expected: self.config.expected.handler.as_ref(),
            since: node.unit.as_ref().map(|unit| unit.since),
            written: written(node)?,
        };
        Ok(loaded.restart_reason())
    }

    /// Does it: files, configuration, restart if needed, proof.
    ///
    /// # Errors
    /// When a step fails. The configuration is then what it was before, and
    /// loaded again if it had been replaced.
    pub async fn run(mut self, node: &mut Node, deadline: Instant) -> Result<Report, Error> {
        let mut report = Report::default();
        let reason = self.restart_reason(node).await?;
        if reason.is_some() {
            // Fails before anything is touched (I18).
            node.systemd()?;
        }
        zeropod_build_info::VERSION.clone_into(&mut self.state.installer);
        self.state.socket = Some(node.facts.layout.socket.clone());
        self.own(&node.host)?;
        self.state.proven &= self.config.is_empty();
        self.state.save(&node.host)?;
        for step in &self.files.steps {
            if let Some(dir) = step.path.parent() {
                node.host.make_dirs(dir)?;
            }
            step.run(&node.host)?;
            report.say(step.describe());
        }
        // A change is a reason by itself.
        if let Some(reason) = reason {
            let before = Before::look(node, deadline).await?;
            if !self.config.is_empty() {
                report.lines.extend(apply::write(node, &self.config, &before, deadline)?);
                for change in &self.config.changes {
                    report.say(format!("{}: changed", change.path.display()));
                }
            }
            let expected = self.config.expected.handler.clone();
            report.say(format!("containerd is restarted: {reason}"));
            let notes = load(node, &self.config, &before, &reason, expected.as_ref(), deadline);
            report.lines.extend(notes.await?);
        }
        report.say("the handler zeropod is served");
        self.state.proven = true;
        self.state.files = self.files.owned;
        self.state.save(&node.host)?;
        Ok(report)
    }

    /// Adds what is about to be put on the host to the state, beside what is
    /// there now.
    fn own(&mut self, host: &HostRoot) -> Result<(), Error> {
        for (path, owned) in &self.files.owned {
            let before = self.state.files.get(path);
            let both = match (before, owned) {
                (Some(Owned::File(before)), Owned::File(after)) => {
                    let digests: BTreeSet<&String> = before.iter().chain(after).collect();
                    Owned::File(digests.into_iter().cloned().collect())
                }
                _ => owned.clone(),
            };
            self.state.files.insert(path.clone(), both);
        }
        let steps = self.files.steps.iter().map(|step| &step.path);
        let changes = self.config.changes.iter().map(|change| &change.path);
        for path in steps.chain(changes) {
            for dir in path.ancestors().skip(1) {
                if host.exists(dir)? {
                    break;
                }
                self.state.dirs.insert(dir.to_path_buf());
            }
        }
        Ok(())
    }
}

/// Takes everything of ours off a node.
///
/// # Errors
/// When zeropods run on it and `force` is not set, or a step fails.
pub async fn uninstall(node: &mut Node, force: bool, deadline: Instant) -> Result<Report, Error> {
    let mut report = Report::default();
    let state = State::load(&node.host)?;
    let plan = undo(&node.facts)?;
    let pods = match node.containerd().await {
        Ok(containerd) => containerd.sandboxes().await,
        Err(error) => Err(error),
    };
    // Whoever forces it may do so because containerd is broken.
    let unused = match pods {
        Ok(pods) if pods.is_empty() => true,
        Ok(pods) if !force => return Err(Error::InUse { pods: pods.join(", ") }),
        Err(error) if !force => return Err(error),
        _ => false,
    };
    let served = proof::served(node).await.unwrap_or(Served::Dead);
    let loaded = Loaded {
        changed: !plan.is_empty(),
        proven: true,
        served: &served,
        expected: plan.expected.handler.as_ref(),
        since: None,
        written: None,
    };
    report.lines.extend(plan.notes.iter().cloned());
    if let Some(reason) = loaded.restart_reason() {
        let before = Before::look(node, deadline).await?;
        if !plan.is_empty() {
            report.lines.extend(apply::write(node, &plan, &before, deadline)?);
            for change in &plan.changes {
                report.say(format!("{}: changed back", change.path.display()));
            }
        }
        report.say(format!("containerd is restarted: {reason}"));
        let expected = plan.expected.handler.as_ref();
        report.lines.extend(load(node, &plan, &before, &reason, expected, deadline).await?);
    }
    // Only now: containerd needs the shim of a handler that it has loaded
    // (F-C8).
    let configs = node.facts.files.iter().map(|(path, _)| path);
    let files = configs.chain(state.files.keys().map(PathBuf::as_path));
    let dirs: BTreeSet<&Path> =
        files.filter_map(Path::parent).chain(state.dirs.iter().map(PathBuf::as_path)).collect();
    for dir in dirs {
        node.host.sweep(dir)?;
    }
    report.lines.extend(files::remove_all(&node.host, &state)?);
    if unused {
        report.lines.extend(pins::remove(&node.host)?);
    }
    State::forget(&node.host)?;
    report.say(if plan.baked {
        "nothing of the installer's is left"
    } else {
        "nothing of zeropod is left"
    });
    Ok(report)
}

/// Restarts containerd and sees to it that it serves what it should; if not,
/// the old configuration comes back.
async fn load(
    node: &mut Node,
    plan: &Plan,
    before: &Before,
    why: &str,
    expected: Option<&Handler>,
    deadline: Instant,
) -> Result<Vec<String>, Error> {
    let restarted = apply::restart(node, why, deadline);
    let loaded = match restarted {
        // Nobody tried: what is on disk is right, and the next start loads it.
        Err(error @ Error::NoRestart { .. }) => return Err(error),
        Err(error) => Err(error),
        Ok(()) => proof::prove(node, before, expected, deadline).await,
    };
    let error = match loaded {
        Ok(notes) => return Ok(notes),
        Err(error) => error,
    };
    if plan.is_empty() {
        return Err(error);
    }
    apply::take_back(&node.host, plan)?;
    // The deadline may have passed, but containerd must come back.
    apply::restart(node, "to load what was taken back", Instant::now() + RECOVERY)?;
    Err(Error::TakenBack { source: Box::new(error) })
}

/// How long containerd may take to start with its old configuration.
const RECOVERY: std::time::Duration = std::time::Duration::from_secs(30);

/// When our tables were last written; `None` if they are nowhere.
fn written(node: &Node) -> Result<Option<SystemTime>, Error> {
    let mut newest = None;
    let ours: Vec<PathBuf> = crate::ours::files(&node.facts);
    for path in ours {
        let real = node.host.resolve(&path)?;
        let modified = real.metadata().and_then(|metadata| metadata.modified());
        newest = newest.max(Some(modified.map_err(Error::io("look at", path))?));
    }
    Ok(newest)
}
