//! The files of the runtime itself: shim, CRIU with its libraries, and their
//! settings. Each is put in place by a rename, and only if it differs.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Read},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use sha2::{Digest as _, Sha256};

use crate::{
    Error,
    config::{Source as _, wanted::SHIM},
    host::HostRoot,
    selinux,
    state::{Owned, State},
};

/// What the runtime's files have to be.
#[derive(Debug, Clone)]
pub struct Runtime<'a> {
    /// Directories of the installer's image with `bin` and `lib`. Of two files
    /// with the same name the one in the later directory counts.
    pub assets: &'a [PathBuf],
    /// `probeBinaryName` of shim.json.
    pub probe_binary_name: &'a str,
    /// `trackerIgnoreLocalhost` of shim.json.
    pub tracker_ignore_localhost: bool,
    /// Whether containerd finds only a `tar` that CRIU cannot use (F-B5).
    pub link_tar: bool,
}

/// Where CRIU looks for the options of everyone who uses it.
const CRIU_CONFIG: &str = "/etc/criu/default.conf";

/// The options that a checkpoint of a container with open connections needs.
const CRIU_OPTIONS: &str = "tcp-close\nskip-in-flight\nnetwork-lock skip\n";

/// One file that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// Path on the host.
    pub path: PathBuf,
    /// What it will be.
    pub action: Action,
}

/// What to do with a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Copy a file of the image, with this mode and digest.
    Copy {
        /// The file.
        from: PathBuf,
        /// Permission bits.
        mode: u32,
        /// SHA-256 in hex.
        sha256: String,
    },
    /// Write a text, with this mode.
    Write {
        /// The text.
        content: String,
        /// Permission bits.
        mode: u32,
    },
    /// Make a symbolic link.
    Link {
        /// Its target.
        target: PathBuf,
    },
    /// Remove it: an older version needed it.
    Remove,
}

/// The files to change and to own.
#[derive(Debug, Clone, Default)]
pub struct FilesPlan {
    /// What differs, in the order in which to do it.
    pub steps: Vec<Step>,
    /// Everything of ours once it is done.
    pub owned: BTreeMap<PathBuf, Owned>,
    /// What the user should know.
    pub notes: Vec<String>,
}

impl Runtime<'_> {
    /// Compares the host with what should be there, `bin` and `lib` in
    /// `opt_path`.
    ///
    /// # Errors
    /// When a file cannot be read, or a foreign one is where ours should be
    /// (F-C15).
    pub fn plan(
        &self,
        host: &HostRoot,
        opt_path: &Path,
        state: &State,
    ) -> Result<FilesPlan, Error> {
        let mut plan = FilesPlan::default();
        // A shim beside it tells that the Go installer put the rest there.
        let go = host.exists(&opt_path.join("bin").join(SHIM))? && state.files.is_empty();
        for dir in ["lib", "bin"] {
            let mut sources = BTreeMap::new();
            for source in self.assets {
                sources.extend(assets(&source.join(dir))?);
            }
            for name in if dir == "bin" { &[SHIM, "criu"][..] } else { &[] } {
                if !sources.contains_key(*name) {
                    return Err(Error::NoAsset { name, dirs: self.assets.to_vec() });
                }
            }
            for (name, from) in sources {
                let to = opt_path.join(dir).join(&name);
                let action = match fs::read_link(&from) {
                    Ok(target) => Action::Link { target },
                    Err(_) => Action::Copy { sha256: digest(&from)?, mode: mode(&from)?, from },
                };
                let ours = go || name == SHIM || state.files.contains_key(&to);
                plan.want(host, to, action, ours)?;
            }
        }
        if self.link_tar && host.exists(Path::new("/bin/tar"))? {
            let action = Action::Link { target: "/bin/tar".into() };
            plan.want(host, opt_path.join("bin/tar"), action, true)?;
        }
        let settings = serde_json::json!({
            "probeBinaryName": self.probe_binary_name,
            "trackerIgnoreLocalhost": self.tracker_ignore_localhost,
        });
        let action = Action::Write { content: format!("{settings:#}\n"), mode: 0o600 };
        plan.want(host, opt_path.join("etc/shim.json"), action, true)?;
        plan.want_criu_options(host, state)?;
        for (path, owned) in &state.files {
            if !plan.owned.contains_key(path) && is_still(host, path, owned)? {
                plan.steps.push(Step { path: path.clone(), action: Action::Remove });
            }
        }
        Ok(plan)
    }
}

impl FilesPlan {
    /// The files of a node whose image has them, in a directory that cannot be
    /// written.
    ///
    /// # Errors
    /// When one is missing there.
    pub(crate) fn of_image(host: &HostRoot, opt_path: &Path) -> Result<Self, Error> {
        for name in [SHIM, "criu"] {
            let path = opt_path.join("bin").join(name);
            if !host.exists(&path)? {
                return Err(Error::Refused {
                    path,
                    reason: "it is missing, and its directory cannot be written. Put it into the node's image, as the configuration.".into(),
                });
            }
        }
        let note = format!("the files in {} come with the node's image", opt_path.display());
        Ok(Self { notes: vec![note], ..Self::default() })
    }

    fn want(
        &mut self,
        host: &HostRoot,
        path: PathBuf,
        action: Action,
        ours: bool,
    ) -> Result<(), Error> {
        let owned = action.owned();
        let still = is_still(host, &path, &owned)?;
        let labelled = match action.label() {
            Some(label) => selinux::is_labelled(host, &path, label)?,
            None => true,
        };
        if !still || !labelled {
            if !still && !ours && (host.exists(&path)? || host.link_target(&path)?.is_some()) {
                return Err(Error::Refused {
                    path,
                    reason: "it exists and is not the installer's. Move it away, or choose another directory with -host-opt-path.".into(),
                });
            }
            self.steps.push(Step { path: path.clone(), action });
        }
        self.owned.insert(path, owned);
        Ok(())
    }

    /// Every user of CRIU on the host reads this file, so one that is not ours
    /// stays (I16, F-R8).
    fn want_criu_options(&mut self, host: &HostRoot, state: &State) -> Result<(), Error> {
        let path = PathBuf::from(CRIU_CONFIG);
        let action = Action::Write { content: CRIU_OPTIONS.to_owned(), mode: 0o644 };
        let untouched = match state.files.get(&path) {
            Some(owned) => is_still(host, &path, owned)?,
            None => false,
        };
        let Some(content) = host.read(&path)? else {
            return self.want(host, path, action, true);
        };
        if untouched || content == CRIU_OPTIONS.as_bytes() {
            return self.want(host, path, action, true);
        }
        let text = String::from_utf8_lossy(&content);
        let missing: Vec<&str> = CRIU_OPTIONS
            .lines()
            .filter(|option| !text.lines().any(|line| line.trim() == *option))
            .collect();
        if !missing.is_empty() {
            self.notes.push(format!(
                "{CRIU_CONFIG} is not the installer's and stays; checkpoints of open connections need: {}",
                missing.join(", ")
            ));
        }
        Ok(())
    }
}

impl Action {
    /// The `SELinux` label that the file needs, if not that of its directory.
    fn label(&self) -> Option<&'static str> {
        match self {
            Self::Copy { mode, .. } if mode & 0o111 != 0 => Some(selinux::PROGRAM),
            Self::Copy { .. } => Some(selinux::LIBRARY),
            _ => None,
        }
    }

    /// What is on the host when it is done.
    fn owned(&self) -> Owned {
        match self {
            Self::Copy { sha256, .. } => Owned::File(vec![sha256.clone()]),
            Self::Write { content, .. } => {
                Owned::File(vec![hex(&Sha256::digest(content.as_bytes()))])
            }
            Self::Link { target } => Owned::Link(target.clone()),
            Self::Remove => Owned::File(Vec::new()),
        }
    }
}

impl Step {
    /// Does it.
    ///
    /// # Errors
    /// When it cannot be done; then the old file is still there.
    pub fn run(&self, host: &HostRoot) -> Result<(), Error> {
        match &self.action {
            Action::Copy { from, mode, .. } => {
                let mut file = File::open(from).map_err(Error::io("open", from))?;
                host.replace_as(&self.path, &mut file, *mode, self.action.label())
            }
            Action::Write { content, mode } => {
                host.replace(&self.path, &mut content.as_bytes(), *mode)
            }
            Action::Link { target } => host.replace_link(&self.path, target),
            Action::Remove => host.remove(&self.path),
        }
    }

    /// In one line, for people.
    pub fn describe(&self) -> String {
        let path = self.path.display();
        match &self.action {
            Action::Copy { from, sha256, .. } => {
                format!("{path}: copy of {} (sha256 {})", from.display(), &sha256[..12])
            }
            Action::Write { content, .. } => {
                format!("{path}: {}", content.split_whitespace().collect::<Vec<_>>().join(" "))
            }
            Action::Link { target } => format!("{path}: link to {}", target.display()),
            Action::Remove => format!("{path}: remove"),
        }
    }
}

/// Removes everything that the state owns and nobody has changed since, and
/// returns what stays (F-C10, I2).
///
/// # Errors
/// When something that should go stays.
pub fn remove_all(host: &HostRoot, state: &State) -> Result<Vec<String>, Error> {
    let mut notes = Vec::new();
    for (path, owned) in &state.files {
        if is_still(host, path, owned)? {
            host.remove(path)?;
        } else if host.exists(path)? {
            notes.push(format!("{} stays: it was changed since it was installed", path.display()));
        }
    }
    for dir in state.dirs.iter().rev() {
        host.remove_empty_dir(dir);
    }
    Ok(notes)
}

/// Whether a path is as we own it.
pub(crate) fn is_still(host: &HostRoot, path: &Path, owned: &Owned) -> Result<bool, Error> {
    match owned {
        Owned::Link(target) => Ok(host.link_target(path)?.as_ref() == Some(target)),
        Owned::File(digests) => {
            if host.link_target(path)?.is_some() {
                return Ok(false);
            }
            let real = host.resolve(path)?;
            Ok(real.is_file() && digests.contains(&digest(&real)?))
        }
    }
}

/// The files in a directory of the image by name; none if it is absent.
fn assets(dir: &Path) -> Result<BTreeMap<String, PathBuf>, Error> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
        Err(source) => return Err(Error::Io { action: "list", path: dir.to_path_buf(), source }),
    };
    let mut files = BTreeMap::new();
    for entry in entries {
        let entry = entry.map_err(Error::io("list", dir))?;
        let kind = entry.file_type().map_err(Error::io("look at", entry.path()))?;
        if kind.is_file() || kind.is_symlink() {
            files.insert(entry.file_name().to_string_lossy().into_owned(), entry.path());
        }
    }
    Ok(files)
}

fn mode(path: &Path) -> Result<u32, Error> {
    let metadata = fs::metadata(path).map_err(Error::io("look at", path))?;
    Ok(metadata.permissions().mode() & 0o755)
}

fn digest(path: &Path) -> Result<String, Error> {
    let mut file = File::open(path).map_err(Error::io("open", path))?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 16];
    loop {
        let read = file.read(&mut buffer).map_err(Error::io("read", path))?;
        if read == 0 {
            return Ok(hex(&hasher.finalize()));
        }
        hasher.update(&buffer[..read]);
    }
}

/// Lower-case hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
