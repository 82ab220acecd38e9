//! The workflows of GitHub Actions: what they say is right, and what they use is
//! pinned.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in helpers too")]

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use zeropod_testkit::{skip, tools};

#[test]
fn actionlint_finds_nothing() {
    let actionlint = match tools::actionlint() {
        Ok(path) => path,
        Err(error) => return skip::skip(&error.to_string()),
    };
    // Machines have different versions of the programs that it would call for scripts.
    let output = Command::new(actionlint)
        .args(["-shellcheck=", "-pyflakes=", "-no-color"])
        .args(workflows().iter().map(|(path, _)| path))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

#[test]
fn actions_are_pinned_to_a_commit_and_tell_its_version() {
    let mut seen = 0;
    for (path, text) in workflows() {
        for line in text.lines() {
            let Some((_, action)) = line.split_once("uses: ") else { continue };
            seen += 1;
            let pinned = action.split_once(" # v").is_some_and(|(action, version)| {
                action.split_once('@').is_some_and(|(_, commit)| {
                    commit.len() == 40 && commit.bytes().all(|byte| byte.is_ascii_hexdigit())
                }) && version.split('.').count() == 3
            });
            assert!(pinned, "{}: {line}", path.display());
        }
    }
    assert!(seen > 3, "{seen}");
}

#[test]
fn workflows_have_few_rights_and_a_deadline() {
    for (path, text) in workflows() {
        let top = text.lines().any(|line| line.starts_with("permissions:"));
        assert!(top && !text.contains("write-all"), "{}: permissions", path.display());
        let count =
            |part: &str| text.lines().filter(|line| line.trim_start().starts_with(part)).count();
        assert_eq!(count("runs-on:"), count("timeout-minutes:"), "{}: deadlines", path.display());
    }
}

#[test]
fn every_go_module_is_kept_up_to_date() {
    let text = fs::read_to_string(root().join(".github/dependabot.yml")).unwrap();
    for entry in fs::read_dir(root().join("crates/testkit/go")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!(text.contains(&format!("- /crates/testkit/go/{name}\n")), "{name}");
    }
}

fn workflows() -> Vec<(PathBuf, String)> {
    let entries = fs::read_dir(root().join(".github/workflows")).unwrap();
    let paths = entries.map(|entry| entry.unwrap().path());
    paths.map(|path| (path.clone(), fs::read_to_string(path).unwrap())).collect()
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}
