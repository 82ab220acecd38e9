//! Versions of containerd, and what they decide.

use std::{fmt, str::FromStr};

use crate::Error;

/// A version of containerd, such as `v2.1.5-k3s1` or `1.7.27+bottlerocket`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerdVersion {
    major: u32,
    minor: u32,
    text: Box<str>,
}

/// How containerd makes one configuration out of the root file and its
/// imports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MergeRules {
    /// 1.x: a plugin's section in a later file replaces the one before.
    Replace,
    /// 2.0 to 2.2: merged key by key, then migrated as a whole from the
    /// version that the last file states.
    MergeThenMigrate,
    /// From 2.3 on: every file is migrated by itself before they are merged.
    MigrateThenMerge,
}

impl ContainerdVersion {
    /// How this version merges its files.
    pub fn merge_rules(&self) -> MergeRules {
        match (self.major, self.minor) {
            (0 | 1, _) => MergeRules::Replace,
            (2, 0..=2) => MergeRules::MergeThenMigrate,
            _ => MergeRules::MigrateThenMerge,
        }
    }

    /// Whether an import can add to a section without replacing it.
    pub fn merges_imports(&self) -> bool {
        self.merge_rules() != MergeRules::Replace
    }
}

impl FromStr for ContainerdVersion {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let text = text.trim();
        let mut parts = text.strip_prefix('v').unwrap_or(text).splitn(3, '.');
        let mut number = || {
            let part = parts.next()?;
            let end = part.find(|c: char| !c.is_ascii_digit()).unwrap_or(part.len());
            part[..end].parse().ok()
        };
        match (number(), number()) {
            (Some(major), Some(minor)) => Ok(Self { major, minor, text: text.into() }),
            _ => Err(Error::Version(text.to_owned())),
        }
    }
}

impl fmt::Display for ContainerdVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_of_the_field() {
        // F-A7: prefixes and substrings are not versions.
        use MergeRules::{MergeThenMigrate, MigrateThenMerge, Replace};
        for (text, rules) in [
            ("1.6.20~ds1", Replace),
            ("1.7.27+bottlerocket", Replace),
            ("v1.7.24", Replace),
            ("2.0.14", MergeThenMigrate),
            ("v2.1.5-k3s1", MergeThenMigrate),
            ("2.2.2-bd1.34", MergeThenMigrate),
            ("2.3", MigrateThenMerge),
            ("v2.4.0-beta.0", MigrateThenMerge),
            ("2.10.1", MigrateThenMerge),
            ("12.0.1", MigrateThenMerge),
        ] {
            let version: ContainerdVersion = text.parse().unwrap();
            assert_eq!(version.merge_rules(), rules, "{text}");
            assert_eq!(version.to_string(), text);
        }
        for bad in ["", "2", "two.one", "v", ".1"] {
            bad.parse::<ContainerdVersion>().unwrap_err();
        }
    }
}
