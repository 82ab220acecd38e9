//! Patterns of Go's `filepath.Glob`, as containerd expands `imports`.

use std::{
    ffi::OsStr,
    os::unix::ffi::OsStrExt as _,
    path::{Component, Path, PathBuf},
};

use crate::{Error, config::Source};

/// Whether containerd treats an entry of `imports` as a pattern. Only `*`
/// does it: `conf.d/rt?.toml` is a file name with a question mark.
pub(crate) fn is_pattern(entry: &Path) -> bool {
    entry.as_os_str().as_bytes().contains(&b'*')
}

/// The files that match an absolute pattern, in the order of their names.
pub(crate) fn expand(source: &dyn Source, pattern: &Path) -> Result<Vec<PathBuf>, Error> {
    let mut found = vec![PathBuf::from("/")];
    for component in pattern.components() {
        let Component::Normal(pattern) = component else { continue };
        if !pattern.as_bytes().iter().any(|byte| b"*?[\\".contains(byte)) {
            for path in &mut found {
                path.push(pattern);
            }
            continue;
        }
        let mut next = Vec::new();
        for dir in found {
            next.extend(
                source
                    .list(&dir)?
                    .into_iter()
                    .filter(|name| matches(pattern, name))
                    .map(|name| dir.join(name)),
            );
        }
        found = next;
    }
    Ok(found)
}

/// Whether a name matches a pattern without `/`, after Go's `filepath.Match`.
pub(crate) fn matches(pattern: &OsStr, name: &OsStr) -> bool {
    matches_bytes(pattern.as_bytes(), name.as_bytes())
}

fn matches_bytes(pattern: &[u8], name: &[u8]) -> bool {
    let Some((first, rest)) = pattern.split_first() else { return name.is_empty() };
    match first {
        b'*' => (0..=name.len()).any(|skip| matches_bytes(rest, &name[skip..])),
        b'?' => !name.is_empty() && matches_bytes(rest, &name[1..]),
        b'[' => match (class(rest), name.split_first()) {
            (Some((class, rest)), Some((byte, name))) => {
                class_contains(class, *byte) && matches_bytes(rest, name)
            }
            _ => false,
        },
        b'\\' => match (rest.split_first(), name.split_first()) {
            (Some((literal, rest)), Some((byte, name))) => {
                literal == byte && matches_bytes(rest, name)
            }
            _ => false,
        },
        literal => name
            .split_first()
            .is_some_and(|(byte, name)| literal == byte && matches_bytes(rest, name)),
    }
}

/// Splits `a-z]rest` into the class and the rest.
fn class(pattern: &[u8]) -> Option<(&[u8], &[u8])> {
    // The first character of a class may be a bracket.
    let end = pattern.iter().skip(1).position(|byte| *byte == b']')? + 1;
    Some((&pattern[..end], &pattern[end + 1..]))
}

fn class_contains(class: &[u8], byte: u8) -> bool {
    let (negated, mut class) = match class.strip_prefix(b"^") {
        Some(class) => (true, class),
        None => (false, class),
    };
    let mut contains = false;
    while let [first, rest @ ..] = class {
        if let [b'-', last, rest @ ..] = rest {
            contains |= (*first..=*last).contains(&byte);
            class = rest;
        } else {
            contains |= *first == byte;
            class = rest;
        }
    }
    contains != negated
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Files;

    #[test]
    fn names_match_as_in_go() {
        for (pattern, name, expected) in [
            ("*.toml", "50-zeropod.toml", true),
            ("*.toml", ".toml", true),
            ("*.toml", "x.toml.bak", false),
            ("5?-*.toml", "50-zeropod.toml", true),
            ("[0-4]*.toml", "50-zeropod.toml", false),
            ("[^0-4]*.toml", "50-zeropod.toml", true),
            ("a\\*b*", "a*bc", true),
            ("[", "[", false),
            ("*", "", true),
        ] {
            assert_eq!(
                matches(OsStr::new(pattern), OsStr::new(name)),
                expected,
                "{pattern} {name}"
            );
        }
    }

    #[test]
    fn only_a_star_makes_a_pattern() {
        assert!(is_pattern(Path::new("conf.d/*.toml")));
        assert!(!is_pattern(Path::new("conf.d/rt?.toml")));
    }

    #[test]
    fn directories_may_be_patterns_too() {
        let mut files = Files::default();
        for path in ["/etc/a/x.toml", "/etc/b/y.toml", "/etc/b/z.conf", "/etc/c"] {
            files.insert(path.into(), Vec::new());
        }
        let found = expand(&files, Path::new("/etc/*/*.toml")).unwrap();
        assert_eq!(found, [Path::new("/etc/a/x.toml"), Path::new("/etc/b/y.toml")]);
    }
}
