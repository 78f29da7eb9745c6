//! `hsm-kms profiles`, and what `serve` and `ceremony` make of a profile.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::harness::{Config, Plugin, TestToken, run, run_ceremony};

fn output(arguments: &[&str]) -> String {
    let output = run(arguments, b"");
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Exit code and error text.
fn failure(arguments: &[&str]) -> (Option<i32>, String) {
    let output = run(arguments, b"");
    assert!(output.stdout.is_empty(), "{arguments:?}");
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

#[test]
fn the_list_fits_a_terminal_and_has_every_profile() {
    let list = output(&["profiles", "list"]);
    for line in list.lines() {
        assert!(line.chars().count() <= 80, "{line}");
    }
    let json: Value = serde_json::from_str(&output(&["profiles", "list", "--json"])).unwrap();
    let families = json.as_array().unwrap();
    assert_eq!(families.len(), fs::read_dir("hsm-profiles").unwrap().count());
    for family in families {
        let name = family["name"].as_str().unwrap();
        assert!(list.contains(&format!("\n {name} ")), "{name}");
    }
    assert!(list.contains("yubico-ccm"));
    let (code, error) = failure(&["profiles", "list", "--jsn"]);
    assert_eq!(code, Some(2), "{error}");
}

#[test]
fn a_profile_is_shown_as_it_stands_and_as_it_is_read() {
    let text = output(&["profiles", "show", "thales-luna"]);
    assert_eq!(text, fs::read_to_string("hsm-profiles/thales-luna.yaml").unwrap());
    let json: Value = serde_json::from_str(&output(&["profiles", "show", "thales-luna", "--json"])).unwrap();
    let [fips, nonfips] = json["profiles"].as_array().unwrap().as_slice() else { panic!("{json}") };
    assert_eq!(fips["full_name"], "thales-luna/fips");
    assert_eq!(fips["seal"]["iv"], json!({"send": "none", "found": "suffix", "bytes": 16}));
    assert_eq!(nonfips["seal"]["iv"], json!({"send": "random", "found": "sent", "bytes": 12}));
    assert_eq!(nonfips["evidence"]["seal.iv.send"], "ci-imitated");
    assert_eq!(nonfips["evidence"]["recover.gone"], "documents");
    assert_eq!(nonfips["recover"]["call_limit_ms"], 20000);

    let (code, error) = failure(&["profiles", "show", "thales-lunar"]);
    assert_eq!(code, Some(2));
    assert!(error.contains("hint: did you mean `thales-luna`?"), "{error}");
}

#[test]
fn a_file_of_ones_own_is_checked() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("my.yaml");
    let file = path.to_str().unwrap();
    let text = output(&["profiles", "show", "softhsm2"]);
    fs::write(&path, &text).unwrap();
    let checked = output(&["profiles", "lint", file]);
    assert!(checked.starts_with("softhsm2: the file is right; this release can use it\n"), "{checked}");

    fs::write(&path, text.replacen("seal:", "key: { generate: 0x80000001 }\nseal:", 1)).unwrap();
    let checked = output(&["profiles", "lint", file]);
    assert!(checked.contains("the file is right; this release cannot use profile softhsm2 yet"), "{checked}");

    fs::write(&path, text.replace("send: random", "send: none")).unwrap();
    let (code, error) = failure(&["profiles", "lint", file]);
    assert_eq!(code, Some(2));
    assert!(error.contains("`seal.iv.found`: the IV that was sent is kept, so it must be random"), "{error}");
    assert!(error.contains("line ") && error.contains("hint: set iv.send to random"), "{error}");

    let (code, error) = failure(&["profiles", "lint", "/nonexistent/my.yaml"]);
    assert_eq!(code, Some(2), "{error}");
}

#[tokio::test]
async fn serve_says_once_what_is_not_proved() {
    let token = TestToken::new();
    let record = run_ceremony(&token, token.directory());
    let plugin = Plugin::start(&Config::new(&token, &record, "plugin")).healthy().await;
    let log = plugin.log();
    let said: Vec<_> = log.lines().filter(|line| line.contains("not proved by a test or on a device")).collect();
    let [line] = said.as_slice() else { panic!("{log}") };
    assert!(line.contains("WARN") && line.contains("backup"), "{line}");
}

/// Serve and ceremony refuse alike, before the module is loaded, with exit code 2.
fn refused(profile: &Value, reason: &str) {
    let token = TestToken::new();
    let mut section = token.section();
    section["profile"] = profile.clone();
    let mut config = Config::new(&token, Path::new("/nonexistent/kek-record.json"), "plugin");
    config.value["token"] = section.clone();
    let plan = json!({
        "version": 1,
        "kind": "trial",
        "cluster": "test",
        "token": section,
        "kek": {"label": "kek"},
        "output": token.directory(),
    });
    let plan_path = token.directory().join("plan.yaml");
    fs::write(&plan_path, plan.to_string()).unwrap();
    for arguments in [
        ["serve", "--config", config.write().to_str().unwrap()].as_slice(),
        ["ceremony", "run", "--plan", plan_path.to_str().unwrap()].as_slice(),
    ] {
        let (code, error) = failure(arguments);
        assert_eq!(code, Some(2), "{error}");
        assert!(error.contains(reason), "{error}");
        assert!(error.contains("hint: "), "{error}");
    }
}

#[test]
fn a_device_that_keeps_no_secret_is_not_served() {
    refused(&json!("nss"), "`token.profile`: profile nss refuses: its database gives non-extractable keys away");
}

#[test]
fn what_this_release_cannot_make_is_refused_before_the_login() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("mine.yaml");
    let text = output(&["profiles", "show", "softhsm2"]);
    fs::write(&path, text.replacen("seal:", "key: { generate: 0x80000001 }\nseal:", 1)).unwrap();
    refused(&json!(path), "this release cannot use profile softhsm2 yet: it cannot make a KEK as the profile says");
}

#[test]
fn a_variant_must_be_named() {
    refused(&json!("thales-luna"), "`token.profile`: profile thales-luna has variants, and none is named");
    refused(&json!("thales-luna/fipps"), "`token.profile`: profile thales-luna has no such variant");
}
