//! `hsm-kms drill`: each against a throw-away token, and, reading only, against a plugin that runs.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::etcd::Etcd;
use crate::fault_module::FaultModule;
use crate::harness::{Config, Plugin, TestToken, free_address, program, run, text};
use crate::recovery_keys::{SoftKey, ceremony};
use crate::refusal::refusal;

/// What a drill said, and its exit code.
fn drill(arguments: &[&str]) -> (Option<i32>, Value) {
    let output = run(&[&["drill"], arguments, &["--json"]].concat(), b"");
    let errors = String::from_utf8_lossy(&output.stderr);
    let report = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {errors}"));
    (output.status.code(), report)
}

/// What was tried and did not hold.
fn failed(report: &Value) -> Vec<&str> {
    let steps = report["steps"].as_array().unwrap().iter().filter(|step| step["holds"] == false);
    steps.map(|step| step["tried"].as_str().unwrap()).collect()
}

#[test]
fn each_drill_holds_on_a_throw_away_token_and_leaves_its_report_alone() {
    for (name, steps) in [("node-theft", 9), ("hsm-loss", 8), ("lost-kek", 4)] {
        let (temporary, reports) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let mut command = program();
        command.env("TMPDIR", temporary.path()).args(["drill", name, "--output"]).arg(reports.path());
        let output = command.output().unwrap();
        let said = String::from_utf8(output.stdout).unwrap();
        assert_eq!(output.status.code(), Some(0), "{said}{}", String::from_utf8_lossy(&output.stderr));
        assert!(
            said.contains("\nEverything held.\n")
                && said.lines().all(|line| line.len() <= 80 || line.starts_with("report ")),
            "{said}"
        );
        assert_eq!(fs::read_dir(temporary.path()).unwrap().count(), 0, "something stays");
        let mut files: Vec<PathBuf> =
            fs::read_dir(reports.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
        files.sort();
        let [page, json] = files.as_slice() else { panic!("{files:?}") };
        let report: Value = serde_json::from_slice(&fs::read(json).unwrap()).unwrap();
        assert_eq!((&report["drill"], &report["holds"], &report["version"]), (&json!(name), &json!(true), &json!(1)));
        assert_eq!(report["steps"].as_array().unwrap().len(), steps, "{report:#}");
        let time = report["began"].as_str().unwrap().replace(':', "");
        assert_eq!(page.file_name().unwrap().to_str().unwrap(), format!("drill-{name}-{time}.html"));
        let page = fs::read_to_string(page).unwrap();
        assert!(
            page.contains("Everything held.")
                && !page.contains("http:")
                && !page.contains("https:")
                && !page.contains("<script")
        );
    }
}

/// A plugin with a recovery key, with the fault module in front of its token.
struct Site {
    token: TestToken,
    key: SoftKey,
    fault: FaultModule,
    config: Config,
}

impl Site {
    fn new() -> Self {
        let token = TestToken::new();
        let key = SoftKey::new(token.directory(), "a");
        let record = ceremony(&token, &[&key.recipient]);
        let mut config = Config::new(&token, &record, "plugin");
        let fault = FaultModule::new(&token, "fault");
        fault.stand_in_front(&mut config.value["token"]);
        let address = free_address();
        config.value["endpoints"] = json!(address);
        Self { token, key, fault, config }
    }

    /// The content of each file that belongs to the plugin, and not to the token or a log.
    fn files(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let entries = fs::read_dir(self.token.directory()).unwrap().map(|entry| entry.unwrap().path());
        let own = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "json" || extension == "yaml");
        entries.filter(own).map(|path| (path.clone(), fs::read(path).unwrap())).collect()
    }
}

/// The living plugin is asked to seal and to open, and its token is not logged in to once more.
#[tokio::test]
async fn drills_on_the_real_thing_only_read() {
    let mut site = Site::new();
    let mut plugin = Plugin::start(&site.config).healthy().await;
    let config = text(site.config.write());
    let (files, logins) = (site.files(), site.fault.calls("C_Login"));

    // SoftHSM2 and Kryoptic keep the KEK in files of the node: the drill says so, and it is all that fails.
    let etcd = Etcd::start(site.token.directory());
    etcd.put("/registry/secrets/default/sealed", b"k8s:enc:aescbc:v1:key1:0123456789abcdef");
    let good = etcd.snapshot(&site.token.directory().join("good.db"));
    etcd.put("/registry/secrets/default/plain", b"k8s\x00 in clear text");
    let bad = etcd.snapshot(&site.token.directory().join("bad.db"));
    drop(etcd);
    let theft = |snapshot: &Path| drill(&["node-theft", "--config", &config, "--snapshot", &text(snapshot)]);
    let (code, report) = theft(&good);
    assert_eq!((code, failed(&report).as_slice()), (Some(1), &["where the KEK lies"][..]), "{report:#}");
    assert_eq!(report["steps"].as_array().unwrap().len(), 11, "{report:#}");
    let notes = report["notes"].to_string();
    assert!(notes.contains("The PIN of token") && notes.contains("was not copied"), "{notes}");
    let (_, report) = theft(&bad);
    assert_eq!(failed(&report), ["where the KEK lies", "look for Secrets in clear text in the snapshot"], "{report:#}");

    // One token, and nothing to take its place.
    let (code, report) = drill(&["hsm-loss", "--config", &config]);
    assert_eq!((code, failed(&report).as_slice()), (Some(1), &["standby tokens"][..]), "{report:#}");
    assert!(report["steps"].to_string().contains("1 of 1 serve"), "{report:#}");

    let key = |name: &Path| drill(&["lost-kek", "--config", &config, "--key", &text(name)]);
    let (code, report) = key(&site.key.key);
    assert_eq!((code, failed(&report).len()), (Some(0), 0), "{report:#}");
    let other = SoftKey::new(site.token.directory(), "b");
    let (code, report) = key(&other.key);
    assert_eq!((code, failed(&report).len()), (Some(1), 1), "{report:#}");

    assert_eq!(site.fault.calls("C_Login"), logins);
    let mut after = site.files();
    after.retain(|path, _| files.contains_key(path));
    assert!(after == files, "a file was changed");

    // What the doctor says of the drill of the recovery key.
    let drilled = text(&site.token.directory().join("recovery-drill.json"));
    site.config.value["kek"]["recovery_drill"] = json!(drilled);
    let row = |site: &Site| {
        let output = run(&["doctor", "--json", "--config", &text(site.config.write())], b"");
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        let row = report["rows"].as_array().unwrap().iter().find(|row| row["check"] == "drill").unwrap().clone();
        (row["result"].as_str().unwrap().to_owned(), row["found"].as_str().unwrap().to_owned())
    };
    let (result, found) = row(&site);
    assert!(result == "warning" && found.starts_with("no drill"), "{found}");
    let record = site.config.value["kek"]["record"].as_str().unwrap();
    let (socket, key) = (text(plugin.socket()), text(&site.key.key));
    let held =
        run(&["recovery", "drill", "--socket", &socket, "--record", record, "--key", &key, "--output", &drilled], b"");
    assert!(held.status.success());
    assert_eq!(row(&site).0, "ok");
    let mut report: Value = serde_json::from_slice(&fs::read(&drilled).unwrap()).unwrap();
    report["time"] = json!("2026-01-01T00:00:00Z");
    fs::write(&drilled, report.to_string()).unwrap();
    assert_eq!(row(&site).0, "warning");

    plugin.stop().await;
    for name in ["node-theft", "hsm-loss"] {
        assert_eq!(refusal(&["drill", name, "--config", &config], b"").code, 3);
    }
}

#[test]
fn what_cannot_be_held_says_why() {
    assert_eq!(run(&["drill", "lost-kek", "--config", "x"], b"").status.code(), Some(2), "no recovery key");
    assert_eq!(refusal(&["drill", "node-theft", "--config", "/none"], b"").code, 2);
    let missing = refusal(&["drill", "lost-kek", "--output", "/none"], b"");
    assert_eq!(missing.code, 2, "{}", missing.text);
    let output = program().env("PATH", "/none").args(["drill", "hsm-loss"]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(2) && said.contains("hint: apt-get install -y softhsm2"), "{said}");
}
