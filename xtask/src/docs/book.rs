//! What holds for every page for people: links lead somewhere, commands are
//! run by a test or say what they need, and the book lists all its pages.
#![cfg(test)]

use std::{
    collections::{BTreeMap, BTreeSet},
    error::Error,
    fs,
    path::{Component, Path, PathBuf},
    process::Command,
};

use zeropod_testkit::{skip::skip, tools};

use crate::host;

/// What the info string of a block of commands says after `sh,`.
const MARKS: [&str; 5] = [
    "run",     // this test runs it
    "ci",      // `.ci/run` or a workflow does
    "slow",    // takes longer or changes more than a test may
    "node",    // needs a node
    "cluster", // needs a cluster
];

/// Pages by their paths from the root of the workspace.
type Pages = BTreeMap<PathBuf, Page>;

#[derive(Debug, Default)]
struct Page {
    anchors: BTreeSet<String>,
    links: Vec<String>,
    blocks: Vec<Block>,
}

#[derive(Debug, Default)]
struct Block {
    line: usize,
    info: String,
    text: String,
}

fn pages() -> Result<Pages, Box<dyn Error>> {
    let root = host::workspace();
    let mut paths = Vec::new();
    for dir in ["", "docs", "deploy", "deploy/chart", "deploy/monitoring", ".github", "crates"] {
        let Ok(entries) = fs::read_dir(root.join(dir)) else { continue };
        for entry in entries {
            let path = entry?.path();
            let readme = path.join("README.md");
            paths.push(if dir == "crates" && readme.is_file() { readme } else { path });
        }
    }
    let mut pages = Pages::new();
    for path in paths.iter().filter(|path| path.extension().is_some_and(|end| end == "md")) {
        pages.insert(path.strip_prefix(&root)?.to_path_buf(), page(&fs::read_to_string(path)?));
    }
    Ok(pages)
}

fn page(text: &str) -> Page {
    let mut page = Page::default();
    let mut open: Option<Block> = None;
    for (number, line) in text.lines().enumerate() {
        if let Some(info) = line.trim_start().strip_prefix("```") {
            match open.take() {
                Some(block) => page.blocks.push(block),
                None => {
                    open = Some(Block {
                        line: number + 1,
                        info: info.to_owned(),
                        text: String::new(),
                    });
                }
            }
        } else if let Some(block) = &mut open {
            block.text += line;
            block.text += "\n";
        } else {
            if line.starts_with('#') {
                let slug = slug(line);
                let again = (1..).map(|n| format!("{slug}-{n}"));
                let free = std::iter::once(slug.clone())
                    .chain(again)
                    .find(|slug| !page.anchors.contains(slug));
                page.anchors.extend(free);
            }
            page.links.extend(links(line));
        }
    }
    page
}

/// The anchor of a heading, as mdBook and GitHub make it.
fn slug(heading: &str) -> String {
    let kept = heading.trim_start_matches('#').trim().chars().filter_map(|c| match c {
        ' ' => Some('-'),
        c if c.is_alphanumeric() || c == '-' || c == '_' => Some(c.to_ascii_lowercase()),
        _ => None,
    });
    kept.collect()
}

/// Targets of the links of a line, but not of what stands between backticks.
fn links(line: &str) -> Vec<String> {
    let prose: Vec<_> =
        line.split('`').enumerate().map(|(n, part)| if n % 2 == 0 { part } else { "" }).collect();
    let prose = prose.join("`");
    let targets = prose.split("](").skip(1).filter_map(|rest| rest.split_once(')'));
    targets.map(|(target, _)| target.to_owned()).collect()
}

/// Resolves `..`, without a look at the disk.
fn normal(path: &Path) -> PathBuf {
    let mut normal = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => drop(normal.pop()),
            Component::CurDir => {}
            part => normal.push(part),
        }
    }
    normal
}

/// What is wrong with the links of a page.
fn broken(pages: &Pages, path: &Path) -> Vec<String> {
    let mut broken = Vec::new();
    for link in &pages[path].links {
        if ["https://", "http://", "mailto:"].iter().any(|scheme| link.starts_with(scheme)) {
            continue;
        }
        let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
        let target = if file.is_empty() {
            path.to_path_buf()
        } else {
            normal(&path.parent().unwrap_or(Path::new("")).join(file))
        };
        let here = path.display();
        if !host::workspace().join(&target).exists() {
            broken.push(format!("{here}: {link} leads nowhere"));
        } else if path.starts_with("docs") && !target.starts_with("docs") {
            broken.push(format!("{here}: {link} leads out of the book"));
        } else if !anchor.is_empty()
            && !pages.get(&target).is_some_and(|page| page.anchors.contains(anchor))
        {
            broken.push(format!("{here}: {link}: no such heading"));
        }
    }
    broken
}

/// The mark of a block of commands; `None` for another block.
fn mark(block: &Block) -> Result<Option<&str>, String> {
    let (language, mark) = block.info.split_once(',').unwrap_or((&block.info, ""));
    match language {
        "" => Err("a block without a language".into()),
        "sh" if MARKS.contains(&mark) => Ok(Some(mark)),
        "sh" => Err(format!("a block of commands without one of the marks {MARKS:?}")),
        "bash" | "console" | "shell" => Err("commands are written as sh".into()),
        _ => Ok(None),
    }
}

fn marked<'a>(pages: &'a Pages, wanted: &'a str) -> impl Iterator<Item = (String, &'a Block)> {
    pages.iter().flat_map(move |(path, page)| {
        let blocks = page.blocks.iter().filter(move |block| mark(block) == Ok(Some(wanted)));
        blocks.map(|block| (format!("{}, line {}", path.display(), block.line), block))
    })
}

#[test]
fn links_and_anchors_lead_somewhere() -> Result<(), Box<dyn Error>> {
    let pages = pages()?;
    let broken: Vec<_> = pages.keys().flat_map(|path| broken(&pages, path)).collect();
    assert!(broken.is_empty(), "{}", broken.join("\n"));
    Ok(())
}

#[test]
fn every_block_of_commands_says_who_runs_it() -> Result<(), Box<dyn Error>> {
    let mut unmarked = Vec::new();
    for (path, page) in pages()? {
        for block in page.blocks {
            if let Err(error) = mark(&block) {
                unmarked.push(format!("{}, line {}: {error}", path.display(), block.line));
            }
        }
    }
    assert!(unmarked.is_empty(), "{}", unmarked.join("\n"));
    Ok(())
}

#[test]
fn the_book_lists_its_pages() -> Result<(), Box<dyn Error>> {
    let pages = pages()?;
    let listed: BTreeSet<_> = pages[Path::new("docs/SUMMARY.md")]
        .links
        .iter()
        .map(|link| Path::new("docs").join(link))
        .collect();
    let there =
        pages.keys().filter(|path| path.starts_with("docs") && !path.ends_with("SUMMARY.md"));
    assert_eq!(listed, there.cloned().collect());
    Ok(())
}

#[test]
fn commands_of_ci_are_in_ci() -> Result<(), Box<dyn Error>> {
    let root = host::workspace();
    let mut ci = fs::read_to_string(root.join(".ci/run"))?;
    for entry in fs::read_dir(root.join(".github/workflows"))? {
        ci += &fs::read_to_string(entry?.path())?;
    }
    let pages = pages()?;
    for (at, block) in marked(&pages, "ci") {
        for line in block.text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
            assert!(ci.contains(line), "{at}: CI does not run {line:?}");
        }
    }
    Ok(())
}

#[test]
fn commands_run() -> Result<(), Box<dyn Error>> {
    let programs = host::target("debug");
    let kubectl = match tools::kubectl() {
        Ok(kubectl) => kubectl,
        Err(error) => {
            skip(&error.to_string());
            return Ok(());
        }
    };
    if !["zeropod-manager", "zeropod-installer"].iter().all(|name| programs.join(name).is_file()) {
        skip("the programs are not built: cargo build --bins");
        return Ok(());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let directories = [programs.as_path(), kubectl.parent().unwrap_or(Path::new("/"))];
    let directories =
        directories.map(Path::to_path_buf).into_iter().chain(std::env::split_paths(&path));
    let path = std::env::join_paths(directories)?;
    let pages = pages()?;
    let mut ran = 0;
    for (at, block) in marked(&pages, "run") {
        let shell = ["120", "bash", "-euo", "pipefail", "-c", &block.text];
        let output = Command::new("timeout")
            .args(shell)
            .current_dir(host::workspace())
            .env("PATH", &path)
            .output()?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{at}: {}: {said}", output.status);
        ran += 1;
    }
    assert!(ran > 0, "no page has a command that can be run");
    Ok(())
}

#[test]
fn pages_are_read_as_markdown() {
    let page = page(
        "# A `b` (c)\n## D\n## D\n[x](y.md#z) and `[not](this)`\n```sh,run\n[nor](this)\n```\n",
    );
    assert_eq!(page.anchors, ["a-b-c", "d", "d-1"].map(str::to_owned).into());
    assert_eq!(page.links, ["y.md#z"]);
    assert_eq!(page.blocks[0].text, "[nor](this)\n");
    assert_eq!((page.blocks[0].line, mark(&page.blocks[0])), (5, Ok(Some("run"))));
}
