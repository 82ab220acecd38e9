//! The page that compares with the Go implementation, defect by defect: what
//! was wrong and how it is handled here from `docs/defects.txt`, the tests from
//! the sources.

use std::{
    collections::{BTreeMap, BTreeSet},
    error::Error,
    fmt::Write as _,
    fs,
    path::Path,
};

use super::{Outcome, Outcomes, sources::Test};

/// How many defects of each kind are known.
const KNOWN: [(char, u32); 12] = [
    ('B', 20),
    ('R', 7),
    ('S', 14),
    ('K', 7),
    ('X', 5),
    ('N', 33),
    ('P', 5),
    ('T', 3),
    ('C', 10),
    ('I', 18),
    ('M', 7),
    ('H', 12),
];

/// A part of the page.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Chapter {
    title: String,
    defects: Vec<Defect>,
}

#[derive(Debug, PartialEq, Eq)]
struct Defect {
    id: String,
    wrong: String,
    here: Here,
    /// Tests that do not name it.
    tests: Vec<String>,
}

/// How it is handled.
#[derive(Debug, PartialEq, Eq)]
enum Here {
    /// So, which tests show.
    Tested(String),
    /// So, which no test can show.
    Untested(String),
    /// Not yet.
    Later(String),
}

/// Reads `defects.txt` in `dir`.
///
/// # Errors
/// When it cannot be read, with the line.
pub(crate) fn read(dir: &Path) -> Result<Vec<Chapter>, Box<dyn Error>> {
    let path = dir.join("defects.txt");
    let text = fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))?;
    parse(&text).map_err(|error| format!("{}, {error}", path.display()).into())
}

/// `= title`, `id | what was wrong | how it is handled`, `+ test`; `#` begins a
/// comment.
fn parse(text: &str) -> Result<Vec<Chapter>, String> {
    let mut chapters: Vec<Chapter> = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let at = |what: &str| format!("line {}: {what}", number + 1);
        let defects = chapters.last_mut().map(|chapter| &mut chapter.defects);
        if line.trim().is_empty() || line.starts_with('#') {
        } else if let Some(title) = line.strip_prefix("= ") {
            chapters.push(Chapter { title: title.to_owned(), defects: Vec::new() });
        } else if let Some(tests) = line.trim().strip_prefix("+ ") {
            let defect = defects.and_then(|defects| defects.last_mut());
            let defect = defect.ok_or_else(|| at("tests of no defect"))?;
            defect.tests.extend(tests.split_whitespace().map(str::to_owned));
        } else {
            let fields: Vec<_> = line.split(" | ").map(str::trim).collect();
            let &[id, wrong, here] = fields.as_slice() else {
                return Err(at("expected id | what was wrong | how it is handled"));
            };
            let here = match here.split_once(": ") {
                Some(("later", how)) => Here::Later(how.to_owned()),
                Some(("untested", how)) => Here::Untested(how.to_owned()),
                _ => Here::Tested(here.to_owned()),
            };
            let (id, wrong) = (id.to_owned(), wrong.to_owned());
            let defects = defects.ok_or_else(|| at("a defect before the first title"))?;
            defects.push(Defect { id, wrong, here, tests: Vec::new() });
        }
    }
    Ok(chapters)
}

/// Defects without a row, rows without a test or with one that is not there,
/// and ids that only tests know.
pub(crate) fn mistakes(chapters: &[Chapter], tests: &BTreeMap<String, Test>) -> Vec<String> {
    let mut mistakes = Vec::new();
    let mut rows = BTreeSet::new();
    for defect in chapters.iter().flat_map(|chapter| &chapter.defects) {
        let Defect { id, wrong: _, here, tests: named } = defect;
        if !rows.insert(id.as_str()) {
            mistakes.push(format!("{id} has two rows"));
        }
        for name in named.iter().filter(|name| !tests.contains_key(*name)) {
            mistakes.push(format!("{id}: there is no test {name}"));
        }
        let shown = !tests_of(defect, tests).is_empty();
        match here {
            Here::Tested(_) if !shown => mistakes.push(format!("{id} has no test")),
            Here::Untested(_) | Here::Later(_) if shown => {
                mistakes.push(format!("{id} has a test, but its row says otherwise"));
            }
            _ => {}
        }
    }
    for (kind, count) in KNOWN {
        let ids = (1..=count).map(|number| format!("{kind}{number}"));
        mistakes.extend(
            ids.filter(|id| !rows.contains(id.as_str())).map(|id| format!("{id} has no row")),
        );
    }
    for (name, test) in tests {
        for id in test.ids.iter().filter(|id| !rows.contains(id.as_str())) {
            mistakes.push(format!("{name} in {} names {id}, which has no row", test.file));
        }
    }
    mistakes
}

/// Rows of which a test was not run.
pub(crate) fn unproved(
    chapters: &[Chapter],
    tests: &BTreeMap<String, Test>,
    outcomes: &Outcomes,
) -> Vec<String> {
    let mut unproved = Vec::new();
    for defect in chapters.iter().flat_map(|chapter| &chapter.defects) {
        for (name, _) in tests_of(defect, tests) {
            match outcomes.get(name) {
                Some(Outcome::Ran) => {}
                Some(Outcome::Skipped) => {
                    unproved.push(format!("{}: {name} was skipped", defect.id));
                }
                None => unproved.push(format!("{}: {name} was not run", defect.id)),
            }
        }
    }
    unproved
}

fn tests_of<'a>(
    defect: &'a Defect,
    tests: &'a BTreeMap<String, Test>,
) -> BTreeMap<&'a String, &'a Test> {
    let shows =
        |name: &String, test: &Test| test.ids.contains(&defect.id) || defect.tests.contains(name);
    tests.iter().filter(|(name, test)| shows(name, test)).collect()
}

/// The page.
pub(crate) fn page(chapters: &[Chapter], tests: &BTreeMap<String, Test>) -> String {
    let (mut shown, mut untested, mut later) = (0, 0, 0);
    for defect in chapters.iter().flat_map(|chapter| &chapter.defects) {
        match defect.here {
            Here::Tested(_) => shown += 1,
            Here::Untested(_) => untested += 1,
            Here::Later(_) => later += 1,
        }
    }
    let mut page = format!(
        "<!-- generated: `cargo xtask docs`, from docs/defects.txt and the tests in the sources -->\n\n\
         # Compared with the Go implementation\n\n\
         What is known to be wrong or fragile in the Go manager and installer of zeropod 0.12.1, \
         found by reading them, and what is done about it here. The ids are those that tests and \
         comments cite; those with `F-` are lessons from issues of zeropod and of its neighbours.\n\n\
         {shown} rows are shown by tests, {untested} by none, for the reason that is given, and \
         {later} are not built yet. `cargo xtask docs --check` fails when a row's test does not \
         exist, and `CI=true cargo xtask test` when it was not run.\n"
    );
    for Chapter { title, defects } in chapters {
        let _ = write!(
            page,
            "\n## {title}\n\n| Id | There | Here | Tests |\n| --- | --- | --- | --- |\n"
        );
        for defect in defects {
            let here = match &defect.here {
                Here::Tested(how) => how.clone(),
                Here::Untested(how) => format!("{how} *(untested)*"),
                Here::Later(how) => format!("**Not built yet.** {how}"),
            };
            let names = tests_of(defect, tests);
            let names: Vec<_> = names.keys().map(|name| format!("`{name}`")).collect();
            let Defect { id, wrong, .. } = defect;
            let _ = writeln!(page, "| {id} | {wrong} | {here} | {} |", names.join(" "));
        }
    }
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    fn test(ids: &[&str]) -> Test {
        Test { file: "a.rs".into(), ids: ids.iter().map(|&id| id.into()).collect() }
    }

    #[test]
    fn mistakes_are_named() {
        let rows: Vec<_> = KNOWN
            .iter()
            .flat_map(|&(kind, count)| (1..=count).map(move |number| format!("{kind}{number}")))
            .filter(|id| id != "T3")
            .map(|id| match id.as_str() {
                "B1" => "B1 | wrong | right".to_owned(),
                "B2" => "B2 | wrong | right\n + gone".to_owned(),
                "B3" => "B3 | wrong | later: when it is".to_owned(),
                _ => format!("{id} | wrong | untested: it is documentation"),
            })
            .collect();
        let chapters = parse(&format!("= All\n{}", rows.join("\n"))).unwrap_or_default();
        let tests = BTreeMap::from([
            ("one".to_owned(), test(&["B1", "F-Z9"])),
            ("two".to_owned(), test(&["B3"])),
        ]);
        assert_eq!(
            mistakes(&chapters, &tests),
            [
                "B2: there is no test gone",
                "B2 has no test",
                "B3 has a test, but its row says otherwise",
                "T3 has no row",
                "one in a.rs names F-Z9, which has no row",
            ]
        );
        let outcomes = Outcomes::from([("two".to_owned(), Outcome::Skipped)]);
        assert_eq!(
            unproved(&chapters, &tests, &outcomes),
            ["B1: one was not run", "B3: two was skipped"]
        );
        let page = page(&chapters, &tests);
        assert!(page.contains("| B1 | wrong | right | `one` |"), "{page}");
    }

    #[test]
    fn a_line_that_is_no_row_is_named() {
        assert_eq!(
            parse("= A\nB1 | wrong"),
            Err("line 2: expected id | what was wrong | how it is handled".into())
        );
    }
}
