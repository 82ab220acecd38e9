//! Our entry in `imports`, spliced into the text of a file: printing the
//! parsed document would lose carriage returns and reorder keys.

use std::ops::Range;

use super::{ConfigFile, wanted::string};
use crate::Error;

/// The line above `imports` that says the whole key is ours. The Go installer
/// looks for lines with the word "version" and chokes on a comment after the
/// array (I9, I10), so it has neither.
const ADDED: &str = "# Next line added by zeropod-installer.";

/// Adds an entry at the end of `imports`, or the key if the file has none.
/// Everything else stays as it is. Text with the entry comes back unchanged.
///
/// # Errors
/// When the spans of the parsed file are missing, which a file that was parsed
/// from text never does.
pub(crate) fn add(file: &ConfigFile, entry: &str) -> Result<String, Error> {
    let text = file.text();
    if file.imports.iter().any(|import| import == entry) {
        return Ok(text.to_owned());
    }
    let end = line_end(text);
    if file.document().get("imports").is_some() {
        let array = array_of(file)?;
        let (at, addition) = match array.entries.last() {
            Some(last) => (last.end, format!(", {}", string(entry))),
            None => (array.span.start + 1, string(entry)),
        };
        return Ok(splice(text, at..at, &addition));
    }
    let line = format!("{ADDED}{end}imports = [{}]{end}", string(entry));
    // Below `version`, where people look for it, else above everything: a key
    // below a table header would belong to that table.
    let version = file.document().as_table().get("version").and_then(toml_edit::Item::span);
    match version.map(|span| end_of_line(text, span.end)) {
        Some(at) if text[..at].ends_with('\n') => Ok(splice(text, at..at, &line)),
        // `version` is in the last line, which has no end.
        Some(at) => Ok(splice(text, at..at, &format!("{end}{}", line.trim_end()))),
        None => Ok(splice(text, 0..0, &line)),
    }
}

/// Removes an entry from `imports`, and the key if [`add`] had added it and
/// nobody else's entry is in it. Text without the entry comes back unchanged.
///
/// # Errors
/// As [`add`].
pub(crate) fn remove(file: &ConfigFile, entry: &str) -> Result<String, Error> {
    let text = file.text();
    let Some(index) = file.imports.iter().position(|import| import == entry) else {
        return Ok(text.to_owned());
    };
    let array = array_of(file)?;
    if array.entries.len() == 1
        && let Some(lines) = added_lines(text, &array.span)
    {
        return Ok(splice(text, lines, ""));
    }
    let ours = array.entries[index].clone();
    if index > 0 {
        // `, "entry"`, as added; a comment between stays.
        let gap = array.entries[index - 1].end..ours.start;
        let from = match text[gap.clone()].find(|c: char| !c.is_whitespace()) {
            Some(comma) if text[gap.start + comma + 1..gap.end].trim().is_empty() => gap.start,
            _ => ours.start,
        };
        if from < ours.start {
            return Ok(splice(text, from..ours.end, ""));
        }
    }
    // The first entry, or one with a comment before it: the comma behind it
    // goes too.
    let rest = &text[ours.end..array.span.end];
    let until = match rest.find(|c: char| !c.is_whitespace()) {
        Some(comma) if rest[comma..].starts_with(',') => {
            let after = ours.end + comma + 1;
            // The next one moves up if it is in the same line.
            let blanks = text[after..].len() - text[after..].trim_start_matches([' ', '\t']).len();
            after + blanks
        }
        _ => ours.end,
    };
    Ok(splice(text, ours.start..until, ""))
}

struct ArraySpans {
    span: Range<usize>,
    entries: Vec<Range<usize>>,
}

fn array_of(file: &ConfigFile) -> Result<ArraySpans, Error> {
    let spans = || {
        let item = file.document().get("imports")?;
        let entries = item.as_array()?.iter().map(toml_edit::Value::span).collect::<Option<_>>()?;
        Some(ArraySpans { span: item.span()?, entries })
    };
    spans().ok_or_else(|| Error::Type {
        path: file.path.clone(),
        key: "imports",
        expected: "an array with known places",
    })
}

/// The comment and the `imports` line below it, as [`add`] wrote them.
fn added_lines(text: &str, array: &Range<usize>) -> Option<Range<usize>> {
    let line = text[..array.start].rfind('\n').map_or(0, |at| at + 1);
    let above = text[..line].strip_suffix('\n').map(|above| above.trim_end_matches('\r'))?;
    let start = above.len().checked_sub(ADDED.len())?;
    if !above.ends_with(ADDED) || !(start == 0 || above[..start].ends_with('\n')) {
        return None;
    }
    let end = end_of_line(text, array.end);
    if !text[array.end..end].trim().is_empty() {
        return None;
    }
    // Without an end of line it was added to a line without one.
    let joined = !text[..end].ends_with('\n');
    let start = if joined {
        let before = text[..start].strip_suffix('\n').unwrap_or(&text[..start]);
        before.strip_suffix('\r').unwrap_or(before).len()
    } else {
        start
    };
    Some(start..end)
}

fn splice(text: &str, range: Range<usize>, with: &str) -> String {
    format!("{}{with}{}", &text[..range.start], &text[range.end..])
}

/// The start of the line after the one with `at` in it.
fn end_of_line(text: &str, at: usize) -> usize {
    text[at..].find('\n').map_or(text.len(), |length| at + length + 1)
}

fn line_end(text: &str) -> &'static str {
    if text.contains("\r\n") { "\r\n" } else { "\n" }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> ConfigFile {
        ConfigFile::parse("/c.toml".into(), text.as_bytes()).unwrap()
    }

    #[test]
    fn an_entry_is_added_and_removed_without_a_trace() {
        // F-A8, I9, I10: comments, commas, forms of the array and of `version`.
        for (before, after) in [
            ("", "# Next line added by zeropod-installer.\nimports = [\"x\"]\n"),
            (
                "# config version 2\nversion=2 # n\n[a]\n",
                "# config version 2\nversion=2 # n\n# Next line added by zeropod-installer.\nimports = [\"x\"]\n[a]\n",
            ),
            (
                "version = 2",
                "version = 2\n# Next line added by zeropod-installer.\nimports = [\"x\"]",
            ),
            (
                "version = 2\r\n[a]\r\n",
                "version = 2\r\n# Next line added by zeropod-installer.\r\nimports = [\"x\"]\r\n[a]\r\n",
            ),
            (
                "[a]\nversion = 1",
                "# Next line added by zeropod-installer.\nimports = [\"x\"]\n[a]\nversion = 1",
            ),
            ("imports = []\n", "imports = [\"x\"]\n"),
            ("imports = [ ] # none\n", "imports = [\"x\" ] # none\n"),
            ("imports = [ # none\n]\n", "imports = [\"x\" # none\n]\n"),
            ("imports = ['a']", "imports = ['a', \"x\"]"),
            (
                "imports = [\n  'a', # one\n  'b', # two\n] # end\n[t]\n",
                "imports = [\n  'a', # one\n  'b', \"x\", # two\n] # end\n[t]\n",
            ),
            ("imports = [\r\n'a'\r\n# ]\r\n]", "imports = [\r\n'a', \"x\"\r\n# ]\r\n]"),
        ] {
            let added = add(&parse(before), "x").unwrap();
            assert_eq!(added, after);
            assert_eq!(add(&parse(&added), "x").unwrap(), added, "added once");
            assert_eq!(remove(&parse(&added), "x").unwrap(), before);
            assert_eq!(remove(&parse(before), "x").unwrap(), before);
        }
    }

    #[test]
    fn the_entries_of_others_stay_when_ours_goes() {
        for (before, after) in [
            (
                "# Next line added by zeropod-installer.\nimports = [\"x\", 'b']\n",
                "# Next line added by zeropod-installer.\nimports = ['b']\n",
            ),
            ("imports = ['a', 'x', 'b']", "imports = ['a', 'b']"),
            ("imports = [\n'x',\n'b']", "imports = [\n\n'b']"),
            ("imports = ['a', # c\n'x', # d\n'b']", "imports = ['a', # c\n# d\n'b']"),
            ("imports = ['a', # c\n'x']", "imports = ['a', # c\n]"),
            ("imports = ['x',]", "imports = []"),
        ] {
            assert_eq!(remove(&parse(before), "x").unwrap(), after, "{before}");
            parse(after);
        }
    }
}
