//! Control groups of containers, which runc makes and removes. When a test or
//! a whole box is killed nobody removes them.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

/// Name of a container's group, one level below the root of each hierarchy:
/// runc removes just the last.
pub(super) fn name(id: &str) -> String {
    format!("{PREFIX}{id}")
}

/// Removes groups without processes that others have left behind.
pub(super) fn sweep() {
    for group in groups(Path::new("/sys/fs/cgroup")) {
        // A younger one may be about to get its first process.
        let age = fs::metadata(&group).and_then(|metadata| metadata.modified());
        if age.is_ok_and(|since| since.elapsed().is_ok_and(|age| age > OLD)) {
            // Fails for one that has processes, and that is as it should be.
            let _ = fs::remove_dir(&group);
        }
    }
}

const PREFIX: &str = "zeropod-testkit-";

const OLD: Duration = Duration::from_mins(2);

/// Below the root itself with control groups of version 2, below each
/// controller's with version 1.
fn groups(root: &Path) -> Vec<PathBuf> {
    let entries = |dir: &Path| fs::read_dir(dir).into_iter().flatten().filter_map(Result::ok);
    let hierarchies = entries(root).map(|entry| entry.path()).chain([root.to_path_buf()]);
    hierarchies
        .flat_map(|hierarchy| entries(&hierarchy))
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(PREFIX))
        .map(|entry| entry.path())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_of_both_versions_are_found_and_no_others() {
        let root = tempfile::tempdir().unwrap();
        for dir in ["cpu/zeropod-testkit-a", "zeropod-testkit-b", "cpu/other", "system.slice/x"] {
            fs::create_dir_all(root.path().join(dir)).unwrap();
        }
        let mut found = groups(root.path());
        found.sort();
        let expected = ["cpu/zeropod-testkit-a", "zeropod-testkit-b"];
        assert_eq!(found, expected.map(|group| root.path().join(group)));
    }
}
