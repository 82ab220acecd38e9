//! Every case of `tests/matrix`: a host, the versions of containerd it may
//! run, and the plan that is right for it (`plan.txt`; rewritten when
//! `UPDATE_GOLDEN` is set). Covers I4, I5, I8 to I12, I15 and F-A1 to F-A18.

use std::{fs, path::PathBuf};

use crate::bed::case::{Case, all, apply};
use zeropod_installer::{
    config::Loaded,
    facts::Facts,
    plan::{Plan, undo},
};

#[test]
fn every_case_plans_what_is_right_for_it() {
    for case in all() {
        check(&case);
    }
}

fn check(case: &Case) {
    let mut first: Option<Plan> = None;
    for containerd in case.strings("containerd") {
        let at = format!("{} on containerd {containerd}", case.name);
        let result = case.facts(containerd).and_then(|facts| Ok((case.plan(&facts)?, facts)));
        if let Some(needle) = case.string("refused") {
            let error = result.map(|(plan, _)| plan.to_string()).expect_err(&at);
            assert!(error.contains(needle), "{at}: {error}");
            continue;
        }
        let (plan, facts) = result.unwrap_or_else(|error| panic!("{at}: {error}"));
        assert!(!plan.is_empty(), "{at}");
        installs_once_and_leaves_no_trace(case, &at, &facts, &plan);
        match &first {
            Some(first) => {
                assert!(first.changes == plan.changes, "{at}: another plan\n{plan}");
            }
            None => first = Some(plan),
        }
    }
    if let Some(plan) = first {
        compare(case, &plan.to_string());
    }
}

fn installs_once_and_leaves_no_trace(case: &Case, at: &str, facts: &Facts, plan: &Plan) {
    let mut after = facts.clone();
    apply(&mut after.files, plan);
    let loaded = Loaded::load(&after.files, &after.layout.config).unwrap();
    assert_eq!(loaded.missing, [""; 0].map(PathBuf::from), "{at}");

    let again = case.plan(&after).unwrap();
    assert!(again.is_empty(), "{at}: planned again\n{again}");

    // I5, F-A16: an upgrade rewrites what is there.
    let mut outdated = after.clone();
    for change in &plan.changes {
        let Some(text) = &change.after else { continue };
        let text = String::from_utf8(text.clone()).unwrap();
        let old = text.replace("  \"zeropod.ctrox.dev/disable-migrate-data\",\n", "");
        outdated.files.insert(change.path.clone(), old.into_bytes());
    }
    let upgrade = case.plan(&outdated).unwrap();
    if outdated.files != after.files {
        apply(&mut outdated.files, &upgrade);
        assert!(outdated.files == after.files, "{at}: upgraded\n{upgrade}");
    }

    let undone = undo(&after).unwrap();
    apply(&mut after.files, &undone);
    assert!(undo(&after).unwrap().is_empty(), "{at}: undone twice");
    if case.settings.get("takes_over").is_none() {
        assert!(after.files == facts.files, "{at}: a trace is left\n{undone}");
    } else {
        for (path, content) in after.files.iter() {
            // The next start of k3s renders it anew, without the import.
            let rendered = path.starts_with("/var/lib/rancher");
            let text = String::from_utf8_lossy(content);
            assert!(rendered || !text.contains("zeropod"), "{at}: {}", path.display());
        }
    }
}

fn compare(case: &Case, plan: &str) {
    let path = case.dir.join("plan.txt");
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        fs::write(&path, plan).unwrap();
    }
    let golden = fs::read_to_string(&path).unwrap_or_default();
    assert!(golden == plan, "{}: the plan is now\n{plan}\nand was\n{golden}", case.name);
}
