//! Taking whole tables out of a text.

use std::ops::Range;

use toml_edit::{Item, Table};

use super::ConfigFile;

/// Removes the tables with these paths, each written as `[a.b.c]` with its
/// keys below it. Comments and blank lines above the next header stay. `None`
/// if one of them is absent or written in another way.
pub(crate) fn remove(file: &ConfigFile, paths: &[&[&str]]) -> Option<String> {
    let text = file.text();
    let mut starts = Vec::new();
    headers(file.document().as_table(), &mut starts);
    starts.sort_unstable();
    let mut ranges = paths
        .iter()
        .map(|path| {
            let table = find(file.document().as_table(), path)?;
            if table.is_dotted() || table.is_implicit() {
                return None;
            }
            let start = table.span()?.start;
            let next = starts.iter().copied().find(|other| *other > start).unwrap_or(text.len());
            Some(lines_of(text, start, next))
        })
        .collect::<Option<Vec<_>>>()?;
    ranges.sort_unstable_by_key(|range| std::cmp::Reverse(range.start));
    let mut text = text.to_owned();
    for range in ranges {
        text.replace_range(range, "");
    }
    Some(text)
}

fn find<'a>(table: &'a Table, path: &[&str]) -> Option<&'a Table> {
    match path.split_first() {
        None => Some(table),
        Some((key, rest)) => find(table.get(key)?.as_table()?, rest),
    }
}

/// Where the headers of all tables start.
fn headers(table: &Table, starts: &mut Vec<usize>) {
    for (_, item) in table {
        match item {
            Item::Table(table) => {
                if !table.is_dotted() && !table.is_implicit() {
                    starts.extend(table.span().map(|span| span.start));
                }
                headers(table, starts);
            }
            Item::ArrayOfTables(array) => {
                for table in array {
                    starts.extend(table.span().map(|span| span.start));
                    headers(table, starts);
                }
            }
            Item::None | Item::Value(_) => {}
        }
    }
}

/// The lines from a header to the last one before `next` that is neither blank
/// nor a comment.
fn lines_of(text: &str, header: usize, next: usize) -> Range<usize> {
    let start = text[..header].rfind('\n').map_or(0, |at| at + 1);
    let limit =
        if next == text.len() { next } else { text[..next].rfind('\n').map_or(0, |at| at + 1) };
    let (mut at, mut end) = (start, start);
    for line in text[start..limit].split_inclusive('\n') {
        at += line.len();
        let content = line.trim();
        if !content.is_empty() && !content.starts_with('#') {
            end = at;
        }
    }
    start..end
}

#[cfg(test)]
mod tests {
    use super::*;

    fn removed(text: &str, paths: &[&[&str]]) -> Option<String> {
        remove(&ConfigFile::parse("/c.toml".into(), text.as_bytes()).unwrap(), paths)
    }

    #[test]
    fn tables_go_and_their_neighbours_stay() {
        let text = "x = 1\n\n[a]\n  [a.b]\n  y = [\n  2 # ]\n  ]\n# of c\n\n[c]\nz = 3\n[[d]]\n[a.b.e]\nv = 4\n";
        assert_eq!(
            removed(text, &[&["a", "b"]]).unwrap(),
            "x = 1\n\n[a]\n# of c\n\n[c]\nz = 3\n[[d]]\n[a.b.e]\nv = 4\n"
        );
        assert_eq!(
            removed(text, &[&["a", "b"], &["a", "b", "e"]]).unwrap(),
            "x = 1\n\n[a]\n# of c\n\n[c]\nz = 3\n[[d]]\n"
        );
        assert_eq!(removed("[c]\r\nz = 3\r\n[a]", &[&["c"]]).unwrap(), "[a]");
    }

    #[test]
    fn other_forms_are_left_alone() {
        for text in ["a.b.c = 1", "a = { b = { c = 1 } }", "[a.b.c]", "[a]"] {
            assert_eq!(removed(text, &[&["a", "b"]]), None, "{text}");
        }
    }
}
