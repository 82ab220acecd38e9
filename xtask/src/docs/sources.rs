//! The tests of the workspace, as their sources have them, and the ids of the
//! defects that each names.

use std::{
    collections::{BTreeMap, BTreeSet},
    error::Error,
    fs,
    path::Path,
};

use crate::host;

/// A test.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Test {
    /// Its file, from the root of the workspace.
    pub(crate) file: String,
    /// Ids in its name, in the comment above it, in those within, and in those
    /// above what it calls.
    pub(crate) ids: BTreeSet<String>,
}

/// All tests, by the last part of their names.
///
/// # Errors
/// When a source cannot be read.
pub(crate) fn tests() -> Result<BTreeMap<String, Test>, Box<dyn Error>> {
    let root = host::workspace();
    let mut tests = BTreeMap::new();
    walk(&root.join("crates"), &mut |path| {
        let source = fs::read_to_string(path)
            .map_err(|error| format!("cannot read {}: {error}", path.display()))?;
        let file = path.strip_prefix(&root).unwrap_or(path).display().to_string();
        // One case may be a test of several servers, in files of their own.
        for (name, ids) in in_source(&source) {
            let test: &mut Test = tests.entry(name).or_default();
            test.file.clone_from(&file);
            test.ids.extend(ids);
        }
        Ok(())
    })?;
    Ok(tests)
}

type Done = Result<(), Box<dyn Error>>;

fn walk(dir: &Path, each: &mut dyn FnMut(&Path) -> Done) -> Done {
    let mut paths: Vec<_> =
        fs::read_dir(dir)?.map(|entry| Ok(entry?.path())).collect::<Result<_, std::io::Error>>()?;
    paths.sort();
    for path in paths {
        if path.is_dir() {
            walk(&path, each)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            each(&path)?;
        }
    }
    Ok(())
}

/// Tests in one source: functions with an attribute for it, functions that take
/// a cluster and are run by a macro, and trials of libtest-mimic. A test has
/// also the ids in the comments above functions of the source that it calls.
fn in_source(text: &str) -> Vec<(String, BTreeSet<String>)> {
    let lines: Vec<_> = text.lines().collect();
    let (mut tests, mut helpers) = (Vec::new(), Vec::new());
    let mut above = Vec::new();
    for (number, &whole) in lines.iter().enumerate() {
        let line = whole.trim_start();
        if line.starts_with("//") || line.starts_with("#[") {
            above.push(line);
            continue;
        }
        if let Some((name, is_test)) = name_in(line, &above) {
            let end = format!("{}}}", &whole[..whole.len() - line.len()]);
            let more = if whole.ends_with(['{', '(']) { lines.len() } else { 0 };
            let body = lines[number + 1..].iter().take_while(|line| **line != end).take(more);
            let body: Vec<_> = body.map(|line| line.trim_start()).collect();
            let above = above.iter().copied().filter(|line| line.starts_with("//"));
            let ids: BTreeSet<_> = above.flat_map(ids_in_comment).collect();
            if is_test {
                tests.push((name, ids, body));
            } else {
                helpers.push((format!("{name}("), ids));
            }
        }
        above.clear();
    }
    let all_ids = |(name, mut ids, body): (String, BTreeSet<String>, Vec<&str>)| {
        ids.extend(ids_in_name(&name));
        for line in body {
            if line.starts_with("//") {
                ids.extend(ids_in_comment(line));
            }
            for (_, of_helper) in helpers.iter().filter(|(call, _)| line.contains(call.as_str())) {
                ids.extend(of_helper.iter().cloned());
            }
        }
        (name, ids)
    };
    tests.into_iter().map(all_ids).collect()
}

/// The name of the function or trial that a line begins, and whether it is a
/// test.
fn name_in(line: &str, above: &[&str]) -> Option<(String, bool)> {
    let word = |text: &str| {
        let end = text.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(text.len());
        (end > 0).then(|| text[..end].to_owned())
    };
    for call in ["trial(\"", "Trial::test(\""] {
        if let Some((_, name)) = line.split_once(call) {
            return Some((word(name)?, true));
        }
    }
    let (before, name) = line.split_once("fn ")?;
    let is_test = above.iter().any(|line| *line == "#[test]" || line.starts_with("#[tokio::test"));
    let is_case =
        before.starts_with("pub(crate) async") && line.contains("(cluster: &dyn Cluster)");
    Some((word(name)?, is_test || is_case))
}

/// `B1` of `b1_the_same_by_clsact`, `F-K4` of `f_k4_..`.
fn ids_in_name(name: &str) -> Vec<String> {
    let parts: Vec<_> = name.split('_').collect();
    let id = |index: usize| {
        let part = parts[index].to_uppercase();
        let field = index > 0 && parts[index - 1] == "f";
        is_id(&part).then(|| if field { format!("F-{part}") } else { part })
    };
    (0..parts.len()).filter_map(id).collect()
}

fn ids_in_comment(line: &str) -> Vec<String> {
    let words = line.split(|c: char| !c.is_ascii_alphanumeric() && c != '-');
    // D- is how one of the lists refers to its own ids.
    let words = words.map(|word| word.strip_prefix("D-").unwrap_or(word));
    words.filter(|word| is_id(word.strip_prefix("F-").unwrap_or(word))).map(str::to_owned).collect()
}

/// A capital and a number.
fn is_id(word: &str) -> bool {
    word.strip_prefix(|c: char| c.is_ascii_uppercase())
        .is_some_and(|number| !number.is_empty() && number.bytes().all(|c| c.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tests_and_their_ids_are_found() {
        let text = r#"
            /// Of B1 and D-R2.
            #[tokio::test]
            async fn a_sandbox() {
                // F-E5, on K8s.
                let x = 1; // S1
                if x > 0 {
                    // S2
                }
            }
            fn no_test_x1() {}
            /// I2.
            fn steps() {
            }
            #[test]
            fn a_whole_run() {
                steps();
            }
            // H1
            pub(crate) async fn f_k1_guaranteed_k3(cluster: &dyn Cluster) {
            }
            trial("x1_hung", |criu| down),
        "#;
        let found = in_source(text);
        let found: Vec<(&str, Vec<&str>)> = found
            .iter()
            .map(|(name, ids)| (name.as_str(), ids.iter().map(String::as_str).collect()))
            .collect();
        assert_eq!(
            found,
            [
                ("a_sandbox", vec!["B1", "F-E5", "R2", "S2"]),
                ("a_whole_run", vec!["I2"]),
                ("f_k1_guaranteed_k3", vec!["F-K1", "H1", "K3"]),
                ("x1_hung", vec!["X1"]),
            ]
        );
    }
}
