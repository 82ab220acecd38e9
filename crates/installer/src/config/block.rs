//! Our part of a file that has other owners: a block of lines between two
//! comments. What stands outside of it stays as it is, byte by byte.

const BEGIN: &str = "# BEGIN zeropod-installer";
const END: &str = "# END zeropod-installer";
/// In the first line if the file did not exist before.
const CREATED: &str = " (new file)";
/// In the first line if the line before it had no end.
const JOINED: &str = " (end of line added)";

/// A file that has our block.
#[derive(Debug, PartialEq, Eq)]
struct Found<'a> {
    before: &'a str,
    /// The end of line that was added to the text before.
    joint: &'a str,
    created: bool,
    body: &'a str,
    after: &'a str,
}

/// The lines of our block, if the file has one.
pub(crate) fn body(text: &str) -> Option<&str> {
    find(text).map(|found| found.body)
}

/// Puts `body` into our block, where it is, or else at the end.
///
/// `None` stands for a file that does not exist. Lines end as those of the
/// file do.
pub(crate) fn set(text: Option<&str>, body: &str) -> String {
    let empty = text.is_none();
    let text = text.unwrap_or("");
    let end = if text.contains("\r\n") { "\r\n" } else { "\n" };
    let joint = if text.is_empty() || text.ends_with('\n') { "" } else { end };
    let found =
        find(text).unwrap_or(Found { before: text, joint, created: empty, body: "", after: "" });
    let mut result = format!("{}{}", found.before, found.joint);
    let created = if found.created { CREATED } else { "" };
    let joined = if found.joint.is_empty() { "" } else { JOINED };
    result.extend([BEGIN, created, joined, end]);
    for line in body.lines() {
        result.push_str(line);
        result.push_str(end);
    }
    result.push_str(END);
    result.push_str(end);
    result.push_str(found.after);
    result
}

/// Takes our block out. `None` if nothing is left of a file that did not exist
/// before.
pub(crate) fn remove(text: &str) -> Option<String> {
    let Some(found) = find(text) else { return Some(text.to_owned()) };
    if found.created && found.before.is_empty() && found.after.is_empty() {
        return None;
    }
    let mut result = found.before.to_owned();
    if !found.after.is_empty() {
        result.push_str(found.joint);
    }
    result.push_str(found.after);
    Some(result)
}

/// Takes away the comments around our block and leaves its lines.
pub(crate) fn unmark(text: &str) -> String {
    match find(text) {
        Some(Found { before, joint, body, after, .. }) => format!("{before}{joint}{body}{after}"),
        None => text.to_owned(),
    }
}

fn find(text: &str) -> Option<Found<'_>> {
    let mut at = 0;
    let mut begin = None;
    for line in text.split_inclusive('\n') {
        let content = line.trim_end();
        let end_of_line = at + line.len();
        if let Some(flags) = content.strip_prefix(BEGIN) {
            begin = Some((at, end_of_line, flags));
        } else if let Some((start, body, flags)) = begin
            && content == END
        {
            let mut before = &text[..start];
            if flags.contains(JOINED) {
                before = before.strip_suffix('\n').unwrap_or(before);
                before = before.strip_suffix('\r').unwrap_or(before);
            }
            return Some(Found {
                before,
                joint: &text[before.len()..start],
                created: flags.contains(CREATED),
                body: &text[body..at],
                after: &text[end_of_line..],
            });
        }
        at = end_of_line;
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_block_comes_and_goes(
            text in prop::option::of("([ -~]{0,9}(\n|\r\n)){0,4}[ -~]{0,5}"),
            one in "([ -~]{0,9}\n){0,3}",
            two in "([ -~]{0,9}\n){0,3}",
        ) {
            let with = set(text.as_deref(), &one);
            prop_assert_eq!(body(&with).unwrap().replace('\r', ""), one.as_str());
            // Setting it again changes only the block.
            prop_assert_eq!(set(Some(&with), &one), with.as_str());
            prop_assert_eq!(set(Some(&set(Some(&with), &two)), &one), with.as_str());
            prop_assert_eq!(remove(&with), text);
        }

        #[test]
        fn what_others_add_stays(
            text in "([ -~]{0,9}\n){0,3}[ -~]{0,5}",
            added in "([ -~]{0,9}\n){1,3}",
        ) {
            let with = set(Some(&text), "x = 1\n") + &added;
            let joint = if text.is_empty() || text.ends_with('\n') { "" } else { "\n" };
            prop_assert_eq!(remove(&with).unwrap(), format!("{text}{joint}{added}"));
        }
    }

    #[test]
    fn half_a_block_is_no_block() {
        for text in ["# BEGIN zeropod-installer\nx = 1\n", "# END zeropod-installer\n"] {
            assert_eq!(body(text), None);
            assert_eq!(remove(text).as_deref(), Some(text));
        }
    }
}
