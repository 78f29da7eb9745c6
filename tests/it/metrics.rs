//! The metrics: docs/metrics.md and a running plugin say the same, and nobody outside makes a series.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::TcpListener;
use std::os::unix::net::UnixStream;
use std::path::Path;

use hsm_kms::kms::proto::{DecryptRequest, EncryptRequest};
use serde_json::json;

use crate::failover::{Pair, SEED, decrypt, encrypt};
use crate::faults::until;
use crate::handover::get;
use crate::harness::{Plugin, free_address, wait_for};
use crate::refusal::serve_refuses;

/// A metric as docs/metrics.md and a scrape have it.
#[derive(Debug, Eq, PartialEq)]
struct Metric {
    kind: String,
    labels: BTreeSet<String>,
}

/// Checked by `recovery_keys::drills`, since they need a ceremony with a recipient and a drill.
const ELSEWHERE: [&str; 2] = ["hsm_kms_recovery_drill_timestamp_seconds", "hsm_kms_recovery_recipient_info"];

/// The table of docs/metrics.md, by name.
fn documented() -> BTreeMap<String, Metric> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/metrics.md");
    let document = fs::read_to_string(path).unwrap();
    let rows = document.lines().filter_map(|line| line.strip_prefix("| `"));
    rows.map(|row| {
        let cells: Vec<_> = row.split('|').map(str::trim).collect();
        let labels = cells[2].split(',').map(|label| label.trim().to_owned()).filter(|label| !label.is_empty());
        (cells[0].trim_end_matches('`').to_owned(), Metric { kind: cells[1].to_owned(), labels: labels.collect() })
    })
    .collect()
}

/// The series that docs/metrics.md promises, by name.
pub fn documented_series() -> BTreeSet<String> {
    let series = documented().into_iter().flat_map(|(name, metric)| match metric.kind.as_str() {
        "histogram" => ["bucket", "sum", "count"].map(|suffix| format!("{name}_{suffix}")).to_vec(),
        _ => vec![name],
    });
    series.collect()
}

/// What a scrape has, by the names that a query uses for it. A histogram stands for its three series.
fn scraped(text: &str) -> BTreeMap<String, Metric> {
    let mut found: BTreeMap<String, Metric> = BTreeMap::new();
    let mut kinds = BTreeMap::new();
    for line in text.lines() {
        if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) {
            kinds.insert(name.to_owned(), kind.to_owned());
        } else if !line.starts_with('#') {
            let (series, _) = line.rsplit_once(' ').unwrap();
            let (name, labels) = series.split_once('{').unwrap_or((series, ""));
            let family = ["_bucket", "_sum", "_count", "_total"].iter().find_map(|suffix| {
                let family = name.strip_suffix(suffix)?;
                kinds.contains_key(family).then_some(family)
            });
            let kind = &kinds[family.unwrap_or(name)];
            let name = if kind == "histogram" { family.unwrap() } else { name };
            let labels = labels.split("\",").filter_map(|label| Some(label.split_once('=')?.0.to_owned()));
            let metric = found.entry(name.to_owned()).or_insert(Metric { kind: kind.clone(), labels: BTreeSet::new() });
            metric.labels.extend(labels.filter(|label| label != "le"));
        }
    }
    found
}

/// Series without their values.
fn series(text: &str) -> BTreeSet<String> {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines.map(|line| line.rsplit_once(' ').unwrap().0.to_owned()).collect()
}

fn endpoints(config: &mut crate::harness::Config) -> String {
    let address = free_address();
    config.value["endpoints"] = json!(address);
    address
}

#[tokio::test]
async fn the_document_and_a_running_plugin_say_the_same() {
    let mut pair = Pair::new();
    let address = endpoints(&mut pair.config);
    pair.config.value["audit"] = json!({"to": pair.token.directory().join("audit.log")});
    let plugin = Plugin::start(&pair.config).healthy().await;
    let mut client = plugin.client().await;
    let scrape = || get(&address, "/metrics").1;
    let sealed = encrypt(&mut client).await.unwrap();
    decrypt(&mut client, &sealed).await.unwrap();
    let up = "hsm_kms_token_up{token=\"kek\",position=\"1\"} 1";
    wait_for("the second token", || scrape().contains(up).then_some(()));

    // What a peer sends, however it looks, is no label.
    let before = series(&scrape());
    let hostile = |number: u8| format!("\"}} 1\nhsm_kms_healthy 0 # {number}\u{1b}é");
    for number in 0..20 {
        let request = EncryptRequest { plaintext: SEED.to_vec().into(), uid: hostile(number) };
        client.encrypt(request).await.unwrap();
        let request = DecryptRequest {
            ciphertext: hostile(number).into_bytes().into(),
            uid: hostile(number),
            key_id: hostile(number),
            annotations: [(hostile(number), hostile(number).into_bytes().into())].into(),
        };
        client.decrypt(request).await.unwrap_err();
        let request = DecryptRequest { key_id: sealed.key_id.clone(), ..DecryptRequest::default() };
        client.decrypt(request).await.unwrap_err();
    }
    let after = series(&scrape());
    let new: Vec<_> = after.difference(&before).collect();
    let codes = ["NotFound", "InvalidArgument"]
        .map(|code| format!("hsm_kms_requests_total{{method=\"Decrypt\",code=\"{code}\"}}"));
    assert!(new.iter().all(|series| codes.contains(series)) && !new.is_empty(), "{new:#?}");

    pair.first.always("C_Encrypt", &json!({"return": "CKR_DEVICE_ERROR"}));
    until("the failover", async || {
        encrypt(&mut client).await.unwrap();
        scrape().contains("hsm_kms_failovers_total 1")
    })
    .await;
    let text = scrape();
    for line in [
        "hsm_kms_pkcs11_calls_total{position=\"0\",function=\"C_Encrypt\",code=\"CKR_DEVICE_ERROR\"} ",
        "hsm_kms_pkcs11_calls_total{position=\"1\",function=\"C_Encrypt\",code=\"CKR_OK\"} ",
        "hsm_kms_pkcs11_calls_total{position=\"0\",function=\"C_Login\",code=\"CKR_OK\"} ",
        "hsm_kms_pkcs11_call_duration_seconds_count{position=\"1\",function=\"C_EncryptInit\"} ",
        "hsm_kms_logins_total{token=\"kek\",position=\"1\",outcome=\"passed\"} 1",
        "hsm_kms_token_state{token=\"kek\",position=\"1\",state=\"ready\"} 1",
        "hsm_kms_pin_held_back{token=\"kek\",position=\"1\"} 0",
        "hsm_kms_sessions{token=\"kek\",position=\"1\"} 2",
        "hsm_kms_recovery_recipients 0",
    ] {
        assert!(text.contains(&format!("\n{line}")), "{line}\n{text}");
    }

    let (mut documented, found) = (documented(), scraped(&text));
    for name in ELSEWHERE {
        documented.remove(name).unwrap();
    }
    for (name, metric) in &documented {
        assert_eq!(found.get(name), Some(metric), "{name}");
    }
    assert_eq!(found.keys().collect::<Vec<_>>(), documented.keys().collect::<Vec<_>>());
}

#[tokio::test]
async fn a_port_that_is_taken_is_said_before_anything_else_is_done() {
    let mut pair = Pair::new();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    pair.config.value["endpoints"] = json!(address);
    let refusal = serve_refuses(pair.config.write(), &format!("{address}: Address already in use"));
    assert_eq!(refusal.error, "the endpoints cannot be served");
    assert!(refusal.hint.contains("name a free port"), "{}", refusal.text);
    assert!(UnixStream::connect(pair.config.socket()).is_err());
    assert!(!refusal.text.contains("token ready"), "{}", refusal.text);
}
