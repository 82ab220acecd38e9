//! What has to change on a node, worked out before anything is touched.

use std::{
    fmt::{self, Write as _},
    path::{Path, PathBuf},
};

use zeropod_shim_api::names::RUNTIME_CLASS;

use crate::{
    Error,
    acceptance::Expectation,
    baked::{self, Baked},
    config::{
        Files, Loaded,
        decide::{Decision, Place, decide},
        effective::Effective,
        wanted::{self, Wanted},
    },
    containerd::Handler,
    distribution::Distribution,
    facts::Facts,
    ours, place, takeover,
    version::MergeRules,
};

/// What the user asks for.
#[derive(Debug, Clone)]
pub struct Options {
    /// Directory for our binaries on the host, unless containerd is configured
    /// with one already.
    pub host_opt_path: PathBuf,
    /// `SystemdCgroup` of the handler; `None` takes the default runtime's.
    pub systemd_cgroup: Option<bool>,
}

/// Changes to the files of a node, in the order in which they have to be made.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// The directory that gets `bin` and `lib`.
    pub opt_path: PathBuf,
    /// The files to change; none if everything is in place.
    pub changes: Vec<FileChange>,
    /// What the user should know.
    pub notes: Vec<String>,
    /// What containerd makes of it in the end.
    pub expected: Expectation,
    /// Whether the handler is somebody else's, part of the node's image.
    pub baked: bool,
}

/// A change of one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileChange {
    /// Its path on the host.
    pub path: PathBuf,
    /// What it holds now, `None` if it is absent.
    pub before: Option<Vec<u8>>,
    /// What it should hold, `None` if it should be absent.
    pub after: Option<Vec<u8>>,
}

impl Plan {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }
}

/// Works out how containerd gets to know the handler `zeropod`. A pure
/// function: run on the result it plans nothing.
///
/// # Errors
/// When the configuration cannot be extended without breaking something.
pub fn desired_config(facts: &Facts, options: &Options) -> Result<Plan, Error> {
    let mut files = facts.files.clone();
    let mut notes = takeover::remove_go(&mut files, &facts.layout)?;
    let loaded = without_us(&files, facts)?;
    let rules = facts.containerd.merge_rules();
    let effective = Effective::of(&loaded, rules);
    let wanted = Wanted::new(&effective, &options.host_opt_path, options.systemd_cgroup);
    let decision = decide(&facts.containerd, &loaded).map_err(|refusal| Error::Refused {
        path: refusal
            .file
            .and_then(|index| loaded.files.get(index))
            .map_or(&facts.layout.config, |file| &file.path)
            .clone(),
        reason: refusal.reason,
    })?;
    if let Some(file) = loaded.files.iter().find(|file| baked::defines(file)) {
        let baked = Baked::of(&effective).map_err(|reason| Error::Refused {
            path: file.path.clone(),
            reason: format!("it defines the runtime zeropod, which the installer did not write, and {reason}. Repair or remove the tables, then run the installer again."),
        })?;
        notes.push(format!("{} defines the handler; it stays as it is", file.path.display()));
        notes.extend(ours::undo(&mut files, facts, None)?);
        return Ok(Plan {
            changes: changes(facts, &files),
            notes,
            expected: Expectation {
                handler: Some(baked.handler),
                moves_opt: true,
                spells_out_runc: false,
            },
            opt_path: baked.opt_path,
            baked: true,
        });
    }
    if let Some(refusal) = &facts.layout.immutable {
        return Err(Error::Detection(refusal.clone()));
    }
    notes.extend(warnings(facts, &loaded, decision));
    let runc = needs_runc(&effective, rules, decision);
    place::put(&mut files, facts, &loaded, decision, &Tables { wanted: &wanted, runc })?;
    Ok(Plan {
        changes: changes(facts, &files),
        notes,
        expected: Expectation {
            handler: Some(wanted.handler()),
            moves_opt: !wanted.opt_is_set,
            spells_out_runc: runc,
        },
        opt_path: wanted.opt_path,
        baked: false,
    })
}

/// Works out how to make containerd forget the handler. Run on the result it
/// plans nothing.
///
/// # Errors
/// When a file cannot be parsed.
pub fn undo(facts: &Facts) -> Result<Plan, Error> {
    let mut files = facts.files.clone();
    let mut notes = takeover::remove_go(&mut files, &facts.layout)?;
    notes.extend(ours::undo(&mut files, facts, None)?);
    let loaded = without_us(&files, facts)?;
    let baked = loaded.files.iter().find(|file| baked::defines(file));
    let effective = Effective::of(&loaded, facts.containerd.merge_rules());
    if let Some(file) = baked {
        let path = file.path.display();
        notes.push(format!("{path} defines the handler; it is not the installer's and stays"));
    }
    let expected = Expectation {
        handler: baked.and_then(|_| effective.runtime(RUNTIME_CLASS)).map(Handler::of_table),
        moves_opt: true,
        spells_out_runc: !facts.containerd.merges_imports(),
    };
    Ok(Plan {
        opt_path: PathBuf::new(),
        changes: changes(facts, &files),
        notes,
        expected,
        baked: baked.is_some(),
    })
}

/// The configuration as the node would have it without us: that decides.
fn without_us(files: &Files, facts: &Facts) -> Result<Loaded, Error> {
    let mut bare = ours::removed(files, facts);
    if is_rendered(facts.layout.distribution)
        && let Some(root) = takeover::cleaned_root(&bare, &facts.layout)?
    {
        // Rendered before the takeover: the next start renders it anew.
        bare.insert(facts.layout.config.clone(), root.into_bytes());
    }
    Loaded::load(&bare, &facts.layout.config)
}

/// The text of our tables.
pub(crate) struct Tables<'a> {
    wanted: &'a Wanted,
    /// Whether the built-in runtime has to be spelled out.
    runc: bool,
}

impl Tables<'_> {
    pub(crate) fn text(&self, decision: Decision) -> String {
        let mut text = String::new();
        if let Some(version) = decision.version {
            let _ = write!(text, "version = {version}\n\n");
        }
        if self.runc {
            text.push_str(&wanted::built_in_runc(decision.family));
            text.push('\n');
        }
        text.push_str(&self.wanted.tables(decision.family));
        text
    }
}

/// On 1.x a `runtimes` table in a file replaces the built-in one.
fn needs_runc(effective: &Effective, rules: MergeRules, decision: Decision) -> bool {
    rules == MergeRules::Replace
        && decision.place != Place::DropIn
        && effective.default_runtime == "runc"
        && effective.runtime("runc").is_none()
}

/// What is wrong with the node already and not ours to repair.
fn warnings(facts: &Facts, loaded: &Loaded, decision: Decision) -> Vec<String> {
    let mut warnings = Vec::new();
    let root_version = loaded.root_file().and_then(|root| root.version).unwrap_or(1);
    if facts.containerd.merge_rules() == MergeRules::MergeThenMigrate
        && root_version <= 2
        && let Some(file) =
            loaded.files.iter().skip(1).find(|file| file.version.is_some_and(|version| version > 2))
    {
        warnings.push(format!(
            "{} states a higher version than {}: containerd {} ignores the CRI settings of the latter",
            file.path.display(),
            loaded.root.display(),
            facts.containerd
        ));
    }
    if facts.layout.distribution == Distribution::Containerd
        && let Place::Append(index) = decision.place
        && index > 0
        && let Some(file) = loaded.files.get(index)
    {
        warnings.push(format!(
            "containerd {} uses the CRI settings of {} only, so the handler goes there; whoever writes that file may remove it again",
            facts.containerd,
            file.path.display()
        ));
    }
    warnings
}

/// The differences, in a safe order: what is imported before what imports it,
/// and what is no longer imported last (F-A9).
fn changes(facts: &Facts, after: &Files) -> Vec<FileChange> {
    let mut changes: Vec<FileChange> = after
        .iter()
        .filter(|(path, content)| facts.files.get(path) != Some(content))
        .map(|(path, content)| FileChange {
            path: path.to_path_buf(),
            before: facts.files.get(path).map(<[u8]>::to_vec),
            after: Some(content.to_vec()),
        })
        .collect();
    changes.sort_by_key(|change| change.path == facts.layout.config);
    changes.extend(facts.files.iter().filter(|(path, _)| after.get(path).is_none()).map(
        |(path, content)| FileChange {
            path: path.to_path_buf(),
            before: Some(content.to_vec()),
            after: None,
        },
    ));
    changes
}

impl fmt::Display for Plan {
    /// Notes, then diffs.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for note in &self.notes {
            writeln!(f, "note: {note}")?;
        }
        self.changes.iter().try_for_each(|change| change.fmt(f))
    }
}

impl fmt::Display for FileChange {
    /// A unified diff, as `diff -u` prints it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = |content: &Option<Vec<u8>>| {
            String::from_utf8_lossy(content.as_deref().unwrap_or_default()).into_owned()
        };
        let name = |content: &Option<Vec<u8>>, path: &Path| match content {
            Some(_) => path.display().to_string(),
            None => "/dev/null".to_owned(),
        };
        let (before, after) = (text(&self.before), text(&self.after));
        similar::TextDiff::from_lines(&before, &after)
            .unified_diff()
            .header(&name(&self.before, &self.path), &name(&self.after, &self.path))
            .fmt(f)
    }
}

/// Distributions whose containerd reads a file that is rendered from another.
pub(crate) fn is_rendered(distribution: Distribution) -> bool {
    matches!(distribution, Distribution::K3s | Distribution::Rke2 | Distribution::Microk8s)
}
