//! Everything at once: each check still gives a row.

use std::fs;

use hsm_kms::doctor::GROUPS;
use serde_json::{Value, json};

use super::{Rows, Site, doctor, write};
use crate::harness::text;

/// Each check in the order of the code, with the fields that docs/doctor.md names.
fn has_each_row(rows: &Rows) {
    let checks = || GROUPS.iter().flat_map(|group| group.checks);
    let mut found: Vec<&str> = rows.all().iter().map(|row| row["check"].as_str().unwrap()).collect();
    found.dedup();
    assert_eq!(found, checks().map(|check| check.name).collect::<Vec<_>>(), "{:#}", rows.json);
    let names = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    let top = ["failed", "holds", "not_checked", "ok", "rows", "time", "tool", "version", "warnings"];
    assert_eq!(names(&rows.json), top);
    for row in rows.all() {
        assert_eq!(names(row), ["advice", "check", "found", "group", "result", "subject", "title", "why"]);
        let needs_advice = ["warning", "failed"].contains(&row["result"].as_str().unwrap());
        assert_eq!(row["advice"].is_string(), needs_advice, "{row:#}");
        let found = row["found"].as_str().unwrap();
        assert_eq!(row["result"] == "not-checked", found.starts_with("because "), "{row:#}");
    }
    let count = |result: &str| rows.all().iter().filter(|row| row["result"] == result).count();
    for (name, result) in [("failed", "failed"), ("warnings", "warning"), ("ok", "ok"), ("not_checked", "not-checked")]
    {
        assert_eq!(rows.json[name], count(result));
    }
}

#[test]
fn each_row_is_there_without_any_file() {
    let directory = tempfile::tempdir().unwrap();
    let config = directory.path().join("config.yaml");
    let arguments = ["--config", &text(&config)];
    let missing = Rows::of(&arguments);
    has_each_row(&missing);
    assert_eq!(missing.with("failed"), ["config", "config-file"]);
    fs::write(&config, "version: [\n").unwrap();
    let unreadable = Rows::of(&arguments);
    has_each_row(&unreadable);
    assert_eq!(unreadable.with("failed"), ["config"]);
    assert_eq!(missing.code, 1);
}

#[test]
fn each_row_is_there_with_everything_broken() {
    let mut site = Site::new();
    site.fault.set(&json!({"rules": [{"function": "C_Initialize", "action": "crash"}]}));
    site.config.value["kek"]["record"] = json!(site.file("none.json"));
    site.config.value["token"]["pin"] = json!({"file": site.file("none")});
    site.config.value["standby"] = json!([{"token": site.config.value["token"], "serial": "1"}]);
    site.config.value["standby"][0]["token"]["module"] = json!(site.file("none.so"));
    let garbage = site.file("encryption.yaml");
    fs::write(&garbage, b"\xff\xfe").unwrap();
    let config = text(site.config.write());
    let rows = Rows::of(&["--config", &config, "--encryption-configuration", &text(&garbage)]);
    has_each_row(&rows);
    let failed = ["pin-file", "record-file", "module-file", "module", "record", "socket", "encryption-file"];
    assert_eq!(rows.with("failed"), failed);

    let output = doctor(&["--config", &config]);
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(said.lines().all(|line| line.len() <= 80), "{said}");
    assert!(said.contains("\nFailed: pin-file, "), "{said}");
}

#[test]
fn bad_usage_ends_with_2() {
    for wrong in [&["--kubernetes-version", "2.1"][..], &["--confi", "x"], &["x"]] {
        assert_eq!(doctor(wrong).status.code(), Some(2));
    }
}

/// Text from files goes to a terminal.
#[test]
fn no_control_character_reaches_the_terminal() {
    let site = Site::new();
    let mut encryption = site.encryption();
    encryption["resources"][0]["providers"][0]["kms"]["name"] = json!("a\u{1b}[31m:b");
    encryption["resources"][0]["resources"] = json!(["secrets\r\u{7}", "secrets"]);
    let encryption = write(&site.file("encryption.yaml"), &encryption);
    let output = doctor(&["--config", &text(site.config.write()), "--encryption-configuration", &encryption]);
    assert!(!output.stdout.iter().any(|byte| byte.is_ascii_control() && *byte != b'\n'));
}
