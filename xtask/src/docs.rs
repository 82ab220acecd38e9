//! `cargo xtask docs`: writes the generated pages of the book, or checks that
//! they are as they should be.

mod book;
mod defects;
mod flags;
mod sources;

use std::{collections::BTreeMap, error::Error, fs, path::PathBuf};

use crate::{host, say};

/// What became of a test, by the last part of its name.
pub(crate) type Outcomes = BTreeMap<String, Outcome>;

/// What became of a test.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It ran, and ended well or not.
    Ran,
    /// It said that it was skipped.
    Skipped,
}

/// Writes the generated pages, or with `check` only compares.
///
/// # Errors
/// When a page is not as generated, a defect has no row or a row no test.
pub(crate) fn run(check: bool) -> Result<(), Box<dyn Error>> {
    let pages = [("comparison.md", comparison()?), ("flags.md", flags::page()?)];
    for (name, text) in pages {
        let path = book_dir().join(name);
        if !check {
            fs::write(&path, text)?;
            say(&format!("wrote {}", path.display()));
        } else if fs::read_to_string(&path).unwrap_or_default() != text {
            return Err(format!("docs/{name} is out of date: cargo xtask docs").into());
        }
    }
    Ok(())
}

/// What speaks against the page that compares with the Go implementation, after
/// every test has been run.
///
/// # Errors
/// When the page cannot be made.
pub(crate) fn unproved(outcomes: &Outcomes) -> Result<Vec<String>, Box<dyn Error>> {
    Ok(defects::unproved(&defects::read(&book_dir())?, &sources::tests()?, outcomes))
}

fn comparison() -> Result<String, Box<dyn Error>> {
    let (defects, tests) = (defects::read(&book_dir())?, sources::tests()?);
    let mistakes = defects::mistakes(&defects, &tests);
    if mistakes.is_empty() {
        Ok(defects::page(&defects, &tests))
    } else {
        Err(mistakes.join("\n").into())
    }
}

fn book_dir() -> PathBuf {
    host::workspace().join("docs")
}
