//! The page of flags: what the programs themselves say about them.

use std::{error::Error, fmt::Write as _, path::Path, process::Command};

use crate::{host, test};

const MANAGER: &str = "zeropod-manager";
const INSTALLER: &str = "zeropod-installer";

/// What is asked of which program.
const HELP: [(&str, &[&str]); 6] = [
    (MANAGER, &["-help"]),
    (MANAGER, &["status", "-help"]),
    (MANAGER, &["log-level", "-help"]),
    (INSTALLER, &["-help"]),
    (INSTALLER, &["prepare-bpf-fs", "-help"]),
    (INSTALLER, &["doctor", "-help"]),
];

/// The page.
///
/// # Errors
/// When a program can't be built or run.
pub(crate) fn page() -> Result<String, Box<dyn Error>> {
    test::build_programs()?;
    let programs = host::target("debug");
    let mut page = "<!-- generated: `cargo xtask docs`, from the programs -->\n\n# Flags\n\n\
        Flags are written as Go's: one or two dashes, `-flag=value` or `-flag value`, and for \
        booleans `-flag` or `-flag=false`. Durations are Go's: `10s`, `1m30s`. Every flag of the Go \
        programs of 0.12 is taken.\n"
        .to_owned();
    for (program, arguments) in HELP {
        let (help, words) = (help(&programs, program, arguments)?, arguments.len() - 1);
        let title = [&[program][..], &arguments[..words]].concat().join(" ");
        let _ = write!(page, "\n## {title}\n\n```text\n{}\n```\n", help.trim_end());
    }
    Ok(page)
}

fn help(programs: &Path, program: &str, arguments: &[&str]) -> Result<String, Box<dyn Error>> {
    let output = Command::new(programs.join(program)).args(arguments).output();
    let output = output.map_err(|error| format!("cannot run {program}: {error}"))?;
    let text = String::from_utf8(output.stdout)?;
    if !output.status.success() || text.is_empty() {
        return Err(
            format!("{program} {} ended with {}", arguments.join(" "), output.status).into()
        );
    }
    // Lines of Markdown have no blanks at their ends.
    Ok(text.lines().map(str::trim_end).collect::<Vec<_>>().join("\n"))
}
