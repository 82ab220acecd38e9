//! `cargo xtask test`: gets what the tests need, runs them all, and counts.

use std::{
    error::Error,
    io::{BufRead as _, BufReader},
    process::{ExitCode, Stdio},
};

use zeropod_testkit::{apiserver_build, tools};

use crate::{
    docs::{self, Outcome, Outcomes},
    host::{self, KUBERNETES, NODE, TESTS},
    say,
};

/// Options of the tests.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Only tests of this package.
    #[arg(long)]
    package: Option<String>,
    /// Passed on to the tests, such as a part of their names.
    #[arg(last = true)]
    rest: Vec<String>,
}

/// Runs the tests; the last line is `N passed, N failed, N skipped`.
///
/// # Errors
/// When something that they need cannot be had.
pub(crate) fn run(args: &Args) -> Result<ExitCode, Box<dyn Error>> {
    let Args { package, rest } = args;
    if host::is_root() {
        prepare()?;
    } else {
        say("Not root: tests that need namespaces, eBPF or CRIU skip themselves");
    }
    let chosen = match package {
        Some(package) => vec!["--package", package],
        None => vec!["--workspace"],
    };
    say("Building every program");
    build_programs()?;

    say("Running the tests");
    let mut tests = host::cargo();
    tests.arg("test").args(&chosen).args(if package.is_none() { &BOX[..] } else { &[] });
    // Shows what passing tests printed, and with it the skips.
    tests.args(["--no-fail-fast", "--", "--show-output"]).args(rest);
    let mut child = tests.stdout(Stdio::piped()).spawn()?;
    let mut count = Count::default();
    for line in BufReader::new(child.stdout.take().ok_or("no output")?).lines() {
        let line = line?;
        count.line(&line);
        say(&line);
    }
    let status = child.wait()?;

    say("");
    for skip in &count.skips {
        say(skip);
    }
    let strict = std::env::var_os("CI").is_some_and(|ci| ci == "true");
    let Count { passed, failed, skips, section: _, outcomes } = count;
    let unproved = if strict && package.is_none() && rest.is_empty() {
        docs::unproved(&outcomes)?
    } else {
        Vec::new()
    };
    for row in &unproved {
        say(&format!("docs/comparison.md is not proved: {row}"));
    }
    let skipped = skips.len();
    let passed = passed.saturating_sub(skipped);
    // A crash or a build failure leaves no line of its own.
    let failed = if failed == 0 && !status.success() { 1 } else { failed } + unproved.len();
    say(&format!("{passed} passed, {failed} failed, {skipped} skipped"));
    Ok(if failed > 0 || (strict && skipped > 0) { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Builds every program: tests start them by path, and cargo builds a package's
/// own only.
///
/// # Errors
/// When one does not build.
pub(crate) fn build_programs() -> Result<(), Box<dyn Error>> {
    host::run(host::cargo().args(["build", "--quiet", "--workspace", "--bins"]).args(BOX))
}

/// Features that the whole workspace is tested with.
const BOX: [&str; 2] = ["--features", "zeropod-testkit/box,zeropod-ebpf-loader/trace"];

/// Installs packages, and fills the cache where it would else be filled within
/// some test, without a word. What cannot be had is told; its tests then skip
/// themselves, or fail where skipping is not an option.
fn prepare() -> Result<(), Box<dyn Error>> {
    host::install(&[&NODE, &KUBERNETES, &TESTS])?;
    say("Looking for CRIU, kube-apiserver and Go peers in the cache; building takes minutes, once");
    let programs: [(&str, Result<_, Box<dyn Error>>); _] = [
        ("CRIU", tools::criu().map_err(Into::into)),
        ("kube-apiserver", apiserver_build::program().map_err(Into::into)),
        ("kubectl", tools::kubectl().map_err(Into::into)),
        ("the renderer of charts", tools::helm_template().map_err(Into::into)),
        ("the checker of workflows", tools::actionlint().map_err(Into::into)),
        ("the ttrpc peer", tools::ttrpc_peer().map_err(Into::into)),
        ("the shim", tools::zeropod_shim().map_err(Into::into)),
    ];
    for (name, program) in programs {
        if let Err(error) = program {
            say(&format!("Tests that need {name} cannot run: {error}"));
        }
    }
    Ok(())
}

#[derive(Default)]
struct Count {
    passed: usize,
    failed: usize,
    skips: Vec<String>,
    /// The test whose output is being shown.
    section: Option<String>,
    outcomes: Outcomes,
}

impl Count {
    /// Takes in one line of output: the closing line of a test binary, how a
    /// test ended, or a test's word that it was skipped.
    fn line(&mut self, line: &str) {
        if line.contains("SKIPPED:") {
            self.skips.push(line.trim().to_owned());
            if let Some(name) = self.section.clone() {
                self.outcomes.insert(name, Outcome::Skipped);
            }
        }
        // Between the dots and the "ok" of a test of libtest-mimic stands what it prints.
        if let Some((name, end)) =
            line.strip_prefix("test ").and_then(|line| line.split_once(" ... "))
            && !end.starts_with("ignored")
        {
            self.outcomes.entry(last_part(name)).or_insert(Outcome::Ran);
        }
        // The list at the end of a test binary: the line above is broken where a child of a test
        // prints at the same time.
        if let Some(name) = line.strip_prefix("    ")
            && !name.is_empty()
            && name.bytes().all(|c| c.is_ascii_alphanumeric() || b"_:".contains(&c))
        {
            self.outcomes.entry(last_part(name)).or_insert(Outcome::Ran);
        }
        if let Some(name) =
            line.strip_prefix("---- ").and_then(|line| line.strip_suffix(" stdout ----"))
        {
            self.section = Some(last_part(name));
        }
        let Some((_, counts)) = line.split_once("test result: ") else { return };
        for count in counts.split(['.', ';']) {
            match count.trim().split_once(' ') {
                Some((n, "passed")) => self.passed += n.parse().unwrap_or(0),
                Some((n, "failed")) => self.failed += n.parse().unwrap_or(0),
                _ => {}
            }
        }
    }
}

/// A test's name without its modules, by which the documentation knows it.
fn last_part(name: &str) -> String {
    name.trim().rsplit("::").next().unwrap_or(name).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn closing_lines_and_skips_are_counted() {
        let mut count = Count::default();
        for line in [
            "test result: ok. 3 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.01s",
            "test result: FAILED. 1 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.01s",
            "test a::skips_are_counted ... ok",
            "test padded_as_by_libtest_mimic   ... {\"level\":\"WARN\"}",
            "test not_run ... ignored",
            "---- a::skips_are_counted stdout ----",
            "  SKIPPED: not root",
            "    a::listed_at_the_end",
        ] {
            count.line(line);
        }
        assert_eq!((count.passed, count.failed, count.skips.len()), (4, 2, 1));
        assert_eq!(
            count.outcomes,
            Outcomes::from([
                ("listed_at_the_end".to_owned(), Outcome::Ran),
                ("padded_as_by_libtest_mimic".to_owned(), Outcome::Ran),
                ("skips_are_counted".to_owned(), Outcome::Skipped),
            ])
        );
    }
}
