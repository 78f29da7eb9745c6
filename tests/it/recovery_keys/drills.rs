//! `recovery drill` against a living plugin, on one machine and on two; and what the plugin says of it.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use super::{SoftKey, ceremony, fingerprint, succeeds};
use crate::handover::get;
use crate::harness::{Config, Plugin, TestToken, free_address, text};
use crate::parts;
use crate::refusal::refusal;

/// A plugin whose seeds are sealed to a recovery key, too; the configuration names a report that is not there.
struct Site {
    token: TestToken,
    key: SoftKey,
    record: String,
    report: String,
    config: Config,
}

impl Site {
    fn new() -> Self {
        let token = TestToken::new();
        let key = SoftKey::new(token.directory(), "a");
        let record = ceremony(&token, &[&key.recipient]);
        let report = text(&token.directory().join("recovery-drill.json"));
        let mut config = Config::new(&token, &record, "plugin");
        let address = free_address();
        config.value["endpoints"] = json!(address);
        config.value["kek"]["recovery_drill"] = json!(report);
        parts::record_run(token.profile);
        Self { record: text(&record), token, key, report, config }
    }

    fn drill<'a>(&'a self, socket: &'a str, key: &'a str) -> [&'a str; 10] {
        ["recovery", "drill", "--socket", socket, "--record", &self.record, "--key", key, "--output", &self.report]
    }

    fn report(&self) -> Value {
        serde_json::from_slice(&fs::read(&self.report).unwrap()).unwrap()
    }

    fn metrics(&self) -> String {
        get(self.config.value["endpoints"].as_str().unwrap(), "/metrics").1
    }
}

const DRILL: &str = "hsm_kms_recovery_drill_timestamp_seconds ";

#[tokio::test]
async fn a_drill_is_held_and_told() {
    let site = Site::new();
    let mut plugin = Plugin::start(&site.config).healthy().await;
    assert!(plugin.log().contains("whether the recovery key works is not known: no drill:"), "{}", plugin.log());
    assert!(!site.metrics().contains(DRILL));
    let labels = format!("fingerprint=\"{}\",scheme=\"x25519-ml-kem-768\"", fingerprint(&site.key.recipient));
    let line = format!("hsm_kms_recovery_recipient_info{{{labels}}} 1");
    assert!(site.metrics().lines().any(|found| found == line), "{line}\n{}", site.metrics());

    let (socket, key) = (text(plugin.socket()), text(&site.key.key));
    let output = succeeds(&site.drill(&socket, &key));
    assert!(output.starts_with("the recovery key opened what the plugin sealed\n"), "{output}");
    let report = site.report();
    assert_eq!((&report["outcome"], &report["cluster"]), (&json!("opened"), &json!("test")));
    assert_eq!(report["fingerprint"], json!(fingerprint(&site.key.recipient)));
    let time: i64 = site.metrics().lines().find_map(|line| line.strip_prefix(DRILL)).unwrap().parse().unwrap();
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs().cast_signed();
    assert!((0..60).contains(&(now - time)), "{time}");
    // Again, in place of the last one.
    succeeds(&site.drill(&socket, &key));
    let mut stopped = plugin;
    stopped.stop().await;

    for (change, warning) in [
        (("outcome", json!("opened")), None),
        (("time", json!("2020-01-01T00:00:00Z")), Some("the last drill was ")),
        (("outcome", json!("failed")), Some("failed")),
        (("cluster", json!("another")), Some("another cluster's or KEK's recovery key")),
        (("fingerprint", json!("00".repeat(32))), Some("another cluster's or KEK's recovery key")),
        (("tool", json!(7)), Some("`tool`")),
    ] {
        let mut changed = report.clone();
        changed[change.0] = change.1;
        fs::write(&site.report, changed.to_string()).unwrap();
        let log = stopped.log().len();
        plugin = Plugin::start(&site.config).healthy().await;
        let news = plugin.log()[log..].to_owned();
        match warning {
            None => assert!(!news.contains("whether the recovery key works"), "{news}"),
            Some(text) => {
                assert!(
                    news.contains("whether the recovery key works is not known: ") && news.contains(text),
                    "{news}"
                );
            }
        }
        assert_eq!(
            site.metrics().contains(DRILL),
            warning.is_none_or(|text| text.starts_with("the last")),
            "{warning:?}"
        );
        plugin.stop().await;
        stopped = plugin;
    }
}

#[tokio::test]
async fn the_key_need_not_come_near_the_plugin() {
    let site = Site::new();
    let mut plugin = Plugin::start(&site.config).healthy().await;
    let (socket, key) = (text(plugin.socket()), text(&site.key.key));
    let challenge = text(&site.token.directory().join("challenge.json"));
    succeeds(&["recovery", "drill", "--socket", &socket, "--record", &site.record, "--challenge", &challenge]);
    plugin.stop().await;

    let answer = |challenge: &str, key: &str| {
        ["recovery", "drill", "--offline", "--challenge", challenge, "--key", key, "--output", &site.report]
            .map(str::to_owned)
    };
    let arguments = answer(&challenge, &key);
    succeeds(&arguments.each_ref().map(String::as_str));
    assert_eq!(site.report()["outcome"], json!("opened"));

    // Another key, another cluster, another seed: each is told, and the report says that it failed.
    let other = SoftKey::new(site.token.directory(), "b");
    let failed = |challenge: &str, key: &str, why: &str| {
        fs::remove_file(&site.report).unwrap();
        let refused = refusal(&answer(challenge, key).each_ref().map(String::as_str), b"");
        assert!(refused.code == 1 && refused.why.contains(why), "{}", refused.text);
        assert_eq!(site.report()["outcome"], json!("failed"));
    };
    failed(&challenge, &text(&other.key), "the plugin sealed nothing to this key");
    let content: Value = serde_json::from_slice(&fs::read(&challenge).unwrap()).unwrap();
    let changed = text(&site.token.directory().join("changed.json"));
    let change = |name: &str, value: Value, why: &str| {
        let mut content = content.clone();
        content[name] = value;
        fs::write(&changed, content.to_string()).unwrap();
        failed(&changed, &key, why);
    };
    change("cluster", json!("another"), "for another cluster or KEK, or it was changed");
    let digest = content["digest"].as_str().unwrap();
    let flipped = if digest.ends_with('0') { "1" } else { "0" };
    change("digest", json!(format!("{}{flipped}", &digest[..digest.len() - 1])), "it opened to another seed");
    fs::write(&changed, "{}").unwrap();
    let refused = refusal(&answer(&changed, &key).each_ref().map(String::as_str), b"");
    assert!(refused.code == 2 && refused.why.contains("missing key `version`"), "{}", refused.text);
}

#[tokio::test]
async fn a_drill_that_cannot_be_held_says_why() {
    let site = Site::new();
    let key = text(&site.key.key);
    let nowhere = text(&site.token.directory().join("nowhere.sock"));
    let refused = refusal(&site.drill(&nowhere, &key), b"");
    assert!(refused.code == 3 && !Path::new(&site.report).exists(), "{}", refused.text);

    let other = SoftKey::new(site.token.directory(), "b");
    let refused = refusal(&site.drill(&nowhere, &text(&other.key)), b"");
    assert!(refused.code == 1 && refused.why.contains("the record has"), "{}", refused.text);

    // A record without recipients, and arguments that do not go together.
    let bare = TestToken::new();
    let record = text(&ceremony(&bare, &[]));
    let mut arguments = site.drill(&nowhere, &key);
    arguments[5] = &record;
    let refused = refusal(&arguments, b"");
    assert!(refused.code == 1 && refused.why.contains("names no recovery recipient"), "{}", refused.text);
    let arguments = ["recovery", "drill", "--offline", "--challenge", "a", "--output", "b"];
    let refused = refusal(&arguments, b"");
    assert!(refused.code == 2 && refused.hint.contains("On two: first"), "{}", refused.text);
}
