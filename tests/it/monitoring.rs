//! docs/deploy/monitoring: the alert rules as Prometheus' own tool sees them, and every metric in rules and dashboard exists.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::metrics::documented_series;
use crate::parts;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/deploy/monitoring")
}

fn read(name: &str) -> String {
    fs::read_to_string(folder().join(name)).unwrap()
}

/// The alert rules, as they stand in the file.
fn rules() -> Vec<Value> {
    let file: Value = serde_yaml::from_str(&read("hsm-kms.rules.yaml")).unwrap();
    let groups = file["groups"].as_array().unwrap();
    groups.iter().flat_map(|group| group["rules"].as_array().unwrap().clone()).collect()
}

/// Our metrics in an expression.
fn metrics(expression: &str) -> BTreeSet<String> {
    let words = expression.split(|character: char| !character.is_ascii_alphanumeric() && character != '_');
    words.filter(|word| word.starts_with("hsm_kms_")).map(ToOwned::to_owned).collect()
}

fn of_value<'a>(value: &'a Value, key: &str, found: &mut Vec<&'a str>) {
    match value {
        Value::Object(map) => {
            found.extend(map.get(key).and_then(Value::as_str));
            map.values().for_each(|value| of_value(value, key, found));
        }
        Value::Array(list) => list.iter().for_each(|value| of_value(value, key, found)),
        _ => {}
    }
}

#[test]
fn promtool_takes_the_rules_and_runs_their_tests() {
    for arguments in [["check", "rules", "hsm-kms.rules.yaml"], ["test", "rules", "hsm-kms.rules.test.yaml"]] {
        let mut promtool = Command::new(parts::installed("/usr/bin/promtool".into()));
        let output = promtool.args(arguments).current_dir(folder()).output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {output:?}");
    }
    parts::record_run("promtool");
}

#[test]
fn every_alert_says_what_to_do_and_has_a_test() {
    let (tests, page) = (read("hsm-kms.rules.test.yaml"), read("README.md"));
    let mut listed = 0;
    for rule in rules() {
        let name = rule["alert"].as_str().unwrap();
        assert!(tests.contains(&format!("'{{alertname=\"{name}\"}}'")), "{name} has no test in which it fires");
        let row = format!("| `{name}` | {} | ", rule["labels"]["severity"].as_str().unwrap());
        assert!(page.contains(&row), "{row}");
        listed += 1;
        let text = |key: &str| rule["annotations"][key].as_str().unwrap_or_else(|| panic!("{name} has no {key}"));
        assert!(text("summary").contains("$labels.") && text("description").len() > 100, "{name}");
        let (path, anchor) = text("runbook").split_once('#').unwrap_or((text("runbook"), ""));
        let document = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap();
        let slug = |heading: &str| {
            let kept = heading.trim_start_matches('#').trim().to_lowercase();
            let kept = kept.chars().filter(|letter| letter.is_alphanumeric() || matches!(letter, ' ' | '-' | '_'));
            kept.map(|letter| if letter == ' ' { '-' } else { letter }).collect::<String>()
        };
        let mut headings = document.lines().filter(|line| line.starts_with('#'));
        assert!(anchor.is_empty() || headings.any(|heading| slug(heading) == anchor), "{name}: {path}#{anchor}");
    }
    assert_eq!(listed, page.matches("| `HsmKms").count());
}

#[test]
fn every_metric_in_rules_and_dashboard_exists() {
    let known = documented_series();
    let dashboard: Value = serde_json::from_str(&read("hsm-kms.dashboard.json")).unwrap();
    let mut shown = Vec::new();
    of_value(&dashboard, "expr", &mut shown);
    of_value(&dashboard, "query", &mut shown);
    assert!(shown.len() > 20);
    let rules = rules();
    let expressions = rules.iter().map(|rule| rule["expr"].as_str().unwrap());
    let used: BTreeSet<_> = expressions.chain(shown).flat_map(metrics).collect();
    assert!(used.len() > 20, "{used:?}");
    let unknown: Vec<_> = used.difference(&known).collect();
    assert!(unknown.is_empty(), "{unknown:?}");
    assert!(!known.contains("hsm_kms_seals"), "a name without its suffix would be taken for a metric");
}
