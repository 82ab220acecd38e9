//! The dashboard and the alerts in `deploy/monitoring`: they use only metrics
//! that are documented (which the manager's own tests hold against the code),
//! and promtool understands and tests them.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::{Value, json};
use zeropod_testkit::skip::skip;

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn read(path: &str) -> String {
    fs::read_to_string(repository().join("deploy/monitoring").join(path)).unwrap()
}

/// Every expression of the dashboard, with Grafana's variables filled in.
fn panels() -> Vec<String> {
    let board: Value = serde_json::from_str(&read("grafana/zeropod.json")).unwrap();
    let panels = board["panels"].as_array().unwrap();
    let targets = panels.iter().filter_map(|panel| panel["targets"].as_array()).flatten();
    targets
        .map(|target| target["expr"].as_str().unwrap())
        .map(|expr| expr.replace("$__rate_interval", "5m").replace("$node", ".*"))
        .map(|expr| expr.replace("$namespace", ".*"))
        .collect()
}

fn rules() -> Value {
    let rule: Value = serde_saphyr::from_str(&read("prometheus-operator/rules.yaml")).unwrap();
    rule["spec"].clone()
}

fn alerts() -> Vec<String> {
    let rules = rules()["groups"][0]["rules"].as_array().unwrap().clone();
    rules.iter().map(|rule| rule["expr"].as_str().unwrap().to_owned()).collect()
}

/// The metrics that an expression names: ours have a prefix.
fn metrics(expr: &str) -> BTreeSet<&str> {
    expr.split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
        .filter(|word| word.starts_with("zeropod_") || word.starts_with("process_"))
        .collect()
}

#[test]
fn dashboard_and_alerts_use_documented_metrics() {
    let docs = fs::read_to_string(repository().join("docs/metrics.md")).unwrap();
    let documented: BTreeSet<String> = docs
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split_once("` | "))
        .flat_map(|(name, rest)| {
            let parts: &[&str] =
                if rest.starts_with("histogram") { &["_bucket", "_sum", "_count"] } else { &[""] };
            parts.iter().map(move |part| format!("{name}{part}"))
        })
        .collect();
    assert!(documented.len() > 20, "the table of metrics is not found: {documented:?}");
    let mut used = BTreeSet::new();
    for expr in panels().into_iter().chain(alerts()) {
        for metric in metrics(&expr) {
            assert!(documented.contains(metric), "{metric} is not documented: {expr}");
            used.insert(metric.to_owned());
        }
    }
    assert!(used.len() > 15, "{used:?}");
}

#[test]
fn promtool_understands_and_tests_them() {
    if Command::new("promtool").arg("--version").output().is_err() {
        skip("promtool is not installed; it is in Debian's package prometheus");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
    // JSON is YAML.
    write("alerts.yaml", &rules().to_string());
    let recorded: Vec<Value> = panels()
        .into_iter()
        .enumerate()
        .map(|(n, expr)| json!({ "record": format!("panel:{n}"), "expr": expr }))
        .collect();
    let groups = json!({ "groups": [{ "name": "dashboard", "rules": recorded }] });
    write("dashboard.yaml", &groups.to_string());
    write("tests.yaml", &read("prometheus-operator/rules_test.yaml"));
    for args in [
        ["check", "rules", "alerts.yaml"],
        ["check", "rules", "dashboard.yaml"],
        ["test", "rules", "tests.yaml"],
    ] {
        let output = Command::new("promtool").args(args).current_dir(&dir).output().unwrap();
        let said = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap());
        assert!(output.status.success(), "{args:?}: {}", said.concat());
    }
}

#[test]
fn every_alert_has_a_test_that_raises_it_and_one_that_does_not() {
    let tests: Value =
        serde_saphyr::from_str(&read("prometheus-operator/rules_test.yaml")).unwrap();
    let expectations = || {
        let tests = tests["tests"].as_array().unwrap().iter();
        tests.flat_map(|test| test["alert_rule_test"].as_array().unwrap())
    };
    for rule in rules()["groups"][0]["rules"].as_array().unwrap() {
        let alert = &rule["alert"];
        for raised in [true, false] {
            let found = expectations().any(|expected| {
                let alerts = expected["exp_alerts"].as_array().unwrap();
                expected["alertname"] == *alert && alerts.is_empty() != raised
            });
            assert!(found, "{alert}, raised: {raised}");
        }
    }
}

#[test]
fn the_components_render_beside_an_overlay() {
    if Command::new("kubectl").args(["version", "--client"]).output().is_err() {
        skip("kubectl is not installed");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let deploy = repository().join("deploy").canonicalize().unwrap();
    // Kustomize takes no absolute paths.
    let up = "../".repeat(dir.path().canonicalize().unwrap().components().count() - 1);
    let path = |name: &str| format!("{up}{}/{name}", deploy.strip_prefix("/").unwrap().display());
    let components = ["prometheus-operator", "scrape-annotations", "grafana"];
    let components = components.map(|name| path(&format!("monitoring/{name}")));
    let all = json!({ "resources": [path("production")], "components": components });
    fs::write(dir.path().join("kustomization.yaml"), all.to_string()).unwrap();
    let output = Command::new("kubectl").arg("kustomize").arg(dir.path()).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{error}");
    let manifests = String::from_utf8(output.stdout).unwrap();
    for part in [
        "kind: PodMonitor",
        "kind: PrometheusRule",
        "prometheus.io/port: \"8080\"",
        "grafana_dashboard: \"1\"",
    ] {
        assert!(manifests.contains(part), "{part} is missing");
    }
}

#[test]
fn the_dashboard_has_no_hole_and_no_overlap() {
    let board: Value = serde_json::from_str(&read("grafana/zeropod.json")).unwrap();
    let mut taken = BTreeSet::new();
    let mut ids = BTreeSet::new();
    for panel in board["panels"].as_array().unwrap() {
        assert!(ids.insert(panel["id"].as_u64().unwrap()), "{panel}");
        let place = |key: &str| panel["gridPos"][key].as_u64().unwrap();
        for x in place("x")..place("x") + place("w") {
            for y in place("y")..place("y") + place("h") {
                assert!(x < 24 && taken.insert((x, y)), "{} overlaps", panel["title"]);
            }
        }
    }
    let height = taken.iter().map(|(_, y)| y + 1).max().unwrap();
    assert_eq!(u64::try_from(taken.len()).unwrap(), 24 * height);
}
