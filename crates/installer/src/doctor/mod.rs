//! Looking at everything that zeropod needs on a node, without changing
//! anything: [`kernel`], [`runtime`] and `cluster` for a person, [`quick`] for
//! a daemon that asks again and again, or [`handler`] alone.

#[cfg(feature = "cli")]
mod cluster;
mod kernel;
mod quick;
mod runtime;

use std::fmt::Write as _;

use serde::Serialize;

#[cfg(feature = "cli")]
pub use cluster::cluster;
pub use kernel::kernel;
pub use quick::{handler, quick};
pub use runtime::runtime;

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What it is about, in a word or two.
    pub name: &'static str,
    /// How it is.
    pub status: Status,
    /// What was seen.
    pub detail: String,
    /// What to do about it; empty if nothing is.
    pub hint: &'static str,
}

/// How a thing is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// As it should be.
    Ok,
    /// Something works less well.
    Warn,
    /// Zeropods cannot work.
    Fail,
    /// It could not be looked at from here.
    Unknown,
}

/// The hint for what the installer repairs.
const REINSTALL: &str = "run the installer; -dry-run shows what it would do";

/// What a run without `-o json` prints.
pub fn table(checks: &[Check]) -> String {
    let width = checks.iter().map(|check| check.name.len()).max().unwrap_or_default();
    let mut text = String::new();
    for Check { name, status, detail, hint } in checks {
        let status = match status {
            Status::Ok => "ok",
            Status::Warn => "warn",
            Status::Fail => "FAIL",
            Status::Unknown => "?",
        };
        let _ = writeln!(text, "{status:<5} {name:<width$}  {detail}");
        if !hint.is_empty() {
            let _ = writeln!(text, "      {:<width$}  -> {hint}", "");
        }
    }
    text
}

/// Whether zeropods can work as far as can be told.
pub fn is_healthy(checks: &[Check]) -> bool {
    checks.iter().all(|check| check.status != Status::Fail)
}

fn ok(name: &'static str, detail: impl Into<String>) -> Check {
    Check { name, status: Status::Ok, detail: detail.into(), hint: "" }
}

fn fail(name: &'static str, detail: impl Into<String>, hint: &'static str) -> Check {
    Check { name, status: Status::Fail, detail: detail.into(), hint }
}

fn unknown(name: &'static str, detail: String) -> Check {
    Check { name, status: Status::Unknown, detail, hint: "" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_read_by_people() {
        let checks = [ok("a", "fine"), fail("long one", "broken", "repair it")];
        assert_eq!(
            table(&checks),
            "ok    a         fine\nFAIL  long one  broken\n                -> repair it\n"
        );
        assert!(!is_healthy(&checks) && is_healthy(&checks[..1]));
    }
}
