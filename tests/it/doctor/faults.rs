//! Each fault alone: its row says so, and no other row fails that does not hang on it.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use serde_json::{Value, json};

use super::{Rows, Site, write};
use crate::faults::WRONG_PIN;
use crate::harness::{Plugin, text, write_secret};

fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

/// Files, KEK and socket, while the plugin runs.
#[tokio::test]
async fn each_fault_has_its_row() {
    let mut site = Site::new();
    let mut plugin = Plugin::start(&site.config).healthy().await;
    let good = site.config.value.clone();
    // Files of these rights beside the real ones.
    let secret = site.file("open-pin");
    write_secret(&secret, WRONG_PIN);
    chmod(&secret, 0o644);
    let record: Value = serde_json::from_slice(&fs::read(&site.record).unwrap()).unwrap();
    let changed = |name: &str, change: &dyn Fn(&mut Value)| {
        let mut changed = record.clone();
        change(&mut changed);
        write(&site.file(name), &changed)
    };
    let open_record = changed("open.json", &|_| {});
    chmod(Path::new(&open_record), 0o666);
    let other_serial = changed("serial.json", &|record| record["token"]["serial"] = json!("0000"));
    let other_kek = changed("other.json", &|record| record["ceremony"]["id"] = json!("0".repeat(32)));
    let open_module = site.file("open.so");
    fs::copy(good["token"]["module"].as_str().unwrap(), &open_module).unwrap();
    chmod(&open_module, 0o775);
    let no_module = site.file("text.so");
    fs::write(&no_module, "no module\n").unwrap();
    let set = |path: &'static [&'static str], to: Value| (path, to);
    for ((path, to), failed, warning, words) in [
        (set(&["kek", "allow_trial"], json!(false)), &["record"][..], None, "unattended"),
        (set(&["cluster"], json!("other")), &["record"], None, "other"),
        (set(&["kek", "record"], json!(site.file("none.json"))), &["record-file", "record"], None, "No such file"),
        (set(&["kek", "record"], json!(open_record)), &["record-file"], None, "others may write it"),
        (set(&["kek", "record"], json!(other_serial)), &["token"], None, "serial 0000"),
        (set(&["kek", "record"], json!(other_kek)), &["kek"], None, "the plugin announces"),
        (set(&["token", "pin"], json!({"file": secret})), &["pin-file"], None, "others may read or write it"),
        (set(&["token", "pin"], json!({"file": site.file("none")})), &["pin-file"], None, "No such file"),
        (set(&["token", "label"], json!("another")), &["token"], None, "no token with label"),
        (set(&["token", "module"], json!(open_module)), &["module-file"], None, "others may write it"),
        (set(&["token", "module"], json!(no_module)), &["module"], None, "cannot load"),
        (set(&["token", "module"], json!(site.file("none.so"))), &["module-file", "module"], None, "No such file"),
        (set(&["socket", "peers"], json!([1])), &[], Some("peers"), "and not root"),
        (set(&["socket", "path"], json!(site.file("none@x.sock"))), &["socket"], None, "No such file"),
        (set(&["socket", "path"], json!(secret)), &["socket"], None, "is no socket"),
        (set(&["token", "labl"], json!("x")), &["config"], None, "did you mean"),
    ] {
        site.config.value = good.clone();
        let (last, above) = path.split_last().unwrap();
        let mut place = &mut site.config.value;
        for key in above {
            place = &mut place[*key];
        }
        place[*last] = to;
        let rows = site.rows();
        assert_eq!(rows.with("failed"), failed, "{path:?}: {:#}", rows.json);
        let row = rows.row(failed.first().copied().or(warning).unwrap());
        let said = format!("{} {}", row["found"], row["advice"]);
        assert!(said.contains(words), "{path:?}: {said}");
        if failed == ["module-file"] {
            assert!(rows.row("module")["found"].as_str().unwrap().ends_with("so it is not loaded"), "{:#}", rows.json);
        }
        assert!(warning.is_none_or(|check| rows.row(check)["result"] == "warning"));
    }
    site.config.value = good;
    chmod(site.config.write(), 0o666);
    let rows = site.rows();
    assert_eq!(rows.with("failed"), ["config-file"]);
    assert!(rows.row("module")["found"].as_str().unwrap().ends_with("so it is not loaded"), "{:#}", rows.json);
    chmod(site.config.write(), 0o600);
    // A folder in which anybody exchanges files spoils each file in it.
    chmod(site.token.directory(), 0o777);
    let rows = site.rows();
    assert!(
        ["config-file", "pin-file", "record-file", "socket-folder"]
            .iter()
            .all(|check| rows.with("failed").contains(check))
    );
    chmod(site.token.directory(), 0o700);
    plugin.kill();
    let rows = site.rows();
    assert_eq!(rows.with("failed"), ["socket"]);
    assert!(rows.row("socket")["found"].as_str().unwrap().contains("nobody listens"));
    assert!(rows.row("kek")["found"].as_str().unwrap().contains("would log in"));
}

/// What module and token say, without a plugin.
#[test]
fn module_and_token_are_judged_before_any_login() {
    let site = Site::new();
    let before = site.fault.calls("C_Login");
    let flag = |name: &str| json!({"function": "C_GetTokenInfo", "action": {"token_info": {"flags": [name]}}});
    let info = json!({"function": "C_GetInfo", "action": {"module_info": {"manufacturer": "Namesake Inc."}}});
    let rule = |function: &str, action: Value| json!({"function": function, "action": action});
    for (rule, check, result, words) in [
        (flag("CKF_USER_PIN_COUNT_LOW"), "pin-state", "warning", "COUNT_LOW"),
        (flag("CKF_USER_PIN_FINAL_TRY"), "pin-state", "failed", "FINAL_TRY"),
        (flag("CKF_USER_PIN_LOCKED"), "pin-state", "failed", "LOCKED"),
        (info, "profile", "failed", "Namesake"),
        (rule("C_GetMechanismInfo", json!({"return": "CKR_MECHANISM_INVALID"})), "mechanisms", "failed", "AES"),
        (rule("C_GetSlotList", json!("no_slots")), "token", "failed", "no token"),
        (rule("C_Initialize", json!({"return": "CKR_GENERAL_ERROR"})), "module", "failed", "CKR_GENERAL_ERROR"),
        (rule("C_Initialize", json!("crash")), "module", "failed", "crashed: signal 11"),
        (rule("C_GetTokenInfo", json!("abort")), "module", "failed", "crashed: signal 6"),
        (rule("C_Initialize", json!("hang_for_ever")), "module", "failed", "hung: no answer in 10 s"),
    ] {
        site.fault.set(&json!({"rules": [rule]}));
        let rows = site.rows();
        let row = rows.row(check);
        assert_eq!(row["result"], result, "{check}: {:#}", rows.json);
        assert!(row["found"].as_str().unwrap().contains(words), "{row:#}");
        assert!(row["advice"].is_string(), "{row:#}");
    }
    assert_eq!(site.fault.calls("C_Login"), before);
}

/// The plugin runs and cannot use its KEK.
#[tokio::test]
async fn a_plugin_that_is_not_well_fails() {
    let mut site = Site::new();
    let good = site.config.value["token"]["label"].clone();
    site.config.value["token"]["label"] = json!("another");
    site.config.value["sandbox"] = json!("off");
    let _plugin = Plugin::start(&site.config);
    site.config.value["token"]["label"] = good;
    let rows = site.rows();
    assert_eq!(rows.with("failed"), ["status"], "{:#}", rows.json);
    assert_eq!(rows.row("kek")["result"], "not-checked");
    assert_eq!(rows.row("sandbox")["result"], "warning", "it is off");
}

/// Files of several nodes.
#[test]
fn files_of_several_nodes_are_compared() {
    let site = Site::new();
    let config = text(site.config.write());
    let one = write(&site.file("one.yaml"), &site.encryption());
    let same = site.file("same.yaml");
    fs::write(&same, format!("# node 2\n{}\n", site.encryption())).unwrap();
    let mut other = site.encryption();
    other["resources"][0]["providers"][0]["kms"]["cachesize"] = json!(1000);
    let other = write(&site.file("other.yaml"), &other);
    let rows = |files: &[&str]| Rows::of(&[&["--config", &config, "--encryption-configuration"], files].concat());
    let equal = rows(&[&one, &text(&same)]);
    assert_eq!(equal.row("encryption-same")["result"], "ok");
    let different = rows(&[&one, &other]);
    assert_eq!(different.row("encryption-same")["result"], "failed");
    let cache: Vec<_> = different.all().iter().filter(|row| row["check"] == "encryption-cachesize").collect();
    assert_eq!(
        (&cache[0]["result"], &cache[1]["result"], &cache[1]["subject"]),
        (&json!("ok"), &json!("failed"), &json!("other.yaml"))
    );
}
