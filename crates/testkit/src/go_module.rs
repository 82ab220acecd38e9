//! Test tools in Go, built from modules below `go/`, once, into the cache.

use std::{
    fs,
    hash::{DefaultHasher, Hash, Hasher},
    path::{Path, PathBuf},
    process::{Command, Output},
};

use crate::cache::{self, CacheError};

/// Taken from the Go module proxy where the installed Go is older than [`OLDEST_GO`].
const TOOLCHAIN: &str = "go1.24.11";
/// What the modules ask for: major and minor.
const OLDEST_GO: (u32, u32) = (1, 24);

/// A module of one program.
#[derive(Debug, Clone, Copy, Hash)]
pub(crate) struct GoModule {
    /// Name of the cache entry and of the program.
    pub(crate) name: &'static str,
    /// Its files: name and text. Part of this crate, so that a build needs no checkout.
    pub(crate) sources: &'static [(&'static str, &'static str)],
    /// What to build: `.`, or a program of a module that it requires.
    pub(crate) package: &'static str,
    /// Arguments that only print something, to see whether the program runs.
    pub(crate) check: &'static [&'static str],
}

impl GoModule {
    /// The program, built if the cache has none.
    ///
    /// # Errors
    /// When there is no Go or the module does not build, with what `go` said.
    pub(crate) fn program(&self) -> Result<PathBuf, CacheError> {
        let check = |dir: &Path| run(Command::new(dir.join(self.name)).args(self.check)).map(drop);
        let entry = cache::entry(self.name, &self.key(), |dir| self.build(dir), check)?;
        Ok(entry.join(self.name))
    }

    /// Decided by the sources and the machine only: any Go that is new enough makes the same
    /// program.
    fn key(&self) -> String {
        let mut hasher = DefaultHasher::new();
        (self.sources, std::env::consts::ARCH).hash(&mut hasher);
        format!("{:016x}", hasher.finish())
    }

    fn build(&self, dir: &Path) -> Result<(), String> {
        let source = dir.join("source");
        fs::create_dir(&source)
            .map_err(|error| format!("cannot create {}: {error}", source.display()))?;
        for (name, text) in self.sources {
            fs::write(source.join(name), text)
                .map_err(|error| format!("cannot write {name}: {error}"))?;
        }
        run(Command::new(new_enough_go()?)
            .args(["build", "-trimpath", "-ldflags=-s -w", "-o"])
            .arg(dir.join(self.name))
            .arg(self.package)
            .current_dir(&source)
            .env("CGO_ENABLED", "0"))?;
        fs::remove_dir_all(&source)
            .map_err(|error| format!("cannot remove {}: {error}", source.display()))
    }
}

/// The `go` to build with: the installed one, or, if that is too old, one it
/// downloads as a module. Go before 1.21 can't switch toolchains by itself,
/// and Debian 12 has 1.19.
fn new_enough_go() -> Result<PathBuf, String> {
    let installed = go_text(&["env", "GOVERSION"])?;
    if version(&installed).is_some_and(|found| found >= OLDEST_GO) {
        return Ok("go".into());
    }
    let platform = format!("{}-{}", go_text(&["env", "GOOS"])?, go_text(&["env", "GOARCH"])?);
    let module = format!("golang.org/toolchain@v0.0.1-{TOOLCHAIN}.{platform}");
    run(Command::new("go").args(["mod", "download", &module]).current_dir("/"))?;
    let root = Path::new(&go_text(&["env", "GOMODCACHE"])?).join(module);
    // The zip of a module carries no file modes.
    for programs in ["bin", &format!("pkg/tool/{}", platform.replace('-', "_"))] {
        make_executable(&root.join(programs))?;
    }
    Ok(root.join("bin/go"))
}

fn make_executable(dir: &Path) -> Result<(), String> {
    use std::os::unix::fs::PermissionsExt;
    let failed =
        |error| format!("cannot make the programs in {} executable: {error}", dir.display());
    for file in fs::read_dir(dir).map_err(failed)? {
        let path = file.map_err(failed)?.path();
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).map_err(failed)?;
    }
    Ok(())
}

fn go_text(args: &[&str]) -> Result<String, String> {
    let output = run(Command::new("go").args(args).current_dir("/"))?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Major and minor of "go1.24.11".
fn version(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.strip_prefix("go")?.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn run(command: &mut Command) -> Result<Output, String> {
    let name = command.get_program().to_owned();
    let output = command.output().map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound if name == "go" => {
            "go is not installed (Debian and Ubuntu: apt-get install golang)".to_owned()
        }
        _ => format!("cannot run {}: {error}", name.display()),
    })?;
    if output.status.success() {
        return Ok(output);
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(format!("{} ended with {}: {}", name.display(), output.status, last_lines(&said)))
}

fn last_lines(text: &str) -> String {
    let lines: Vec<_> = text.trim_end().lines().collect();
    lines[lines.len().saturating_sub(20)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_version_of_go() {
        assert_eq!(version("go1.26.8"), Some((1, 26)));
        assert_eq!(version("go1.19"), Some((1, 19)));
        assert_eq!(version("go1.25rc1"), Some((1, 25)));
        assert_eq!(version("devel +abc"), None);
    }
}
