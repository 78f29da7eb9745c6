//! Ceremonies whose plan names recovery recipients: who they are is compared, and no KEK serves others.

use std::fs;

use hsm_kms::key_id::KeyId;
use hsm_kms::kms::proto::{DecryptRequest, EncryptRequest, EncryptResponse};
use hsm_kms::recovery::{Binding, HybridKey, RecoveryBlob};
use serde_json::{Value, json};
use tonic::Code;

use super::custodians::{second_opinion, verdict};
use super::staged::{Staged, with};
use super::terminal::Terminal;
use super::whole::{arguments, is_plain, pin};
use crate::harness::{CLUSTER, Config, Plugin};
use crate::refusal::{refusal, serve_refuses};

#[tokio::test]
async fn a_kek_with_a_recipient_is_served_and_its_seeds_open_without_it() {
    let mut staged = Staged::new();
    let key = staged.with_recipient();
    let fingerprint = key.recipient().unwrap().fingerprint().to_string();
    let mut terminal = Terminal::start(&arguments(&staged, &[]));
    for (name, _) in super::staged::PEOPLE {
        terminal.answer(&format!("{name}, "), name);
    }
    terminal.answer("time on the wall clock", &super::staged::clock());
    terminal.answer("the same as on every printed script?", "yes");
    // Once mistyped, then in upper case and in groups.
    terminal.answer("the first 16 digits", "0123456789abcdef");
    let groups = format!("{} {}", &fingerprint[..8], &fingerprint[8..16]).to_uppercase();
    terminal.answer("the first 16 digits", &groups);
    terminal.answer("the release that was agreed to?", "yes");
    pin(&mut terminal, &staged);
    for bag in ["A 0017", "none"] {
        terminal.answer("number of bag", bag);
        terminal.answer("the same again", bag);
    }
    let (status, screen) = terminal.end();
    assert_eq!(status.code(), Some(0), "{screen}");
    is_plain(&screen, &staged);
    assert!(!screen.contains("NO-RECOVERY"), "{screen}");
    let record = staged.record();
    assert_eq!((&record["kind"], &record["recovery"]), (&json!("production"), &json!("recipients")));
    assert_eq!(record["recipients"][0]["fingerprint"], json!(fingerprint));
    let report = fs::read_to_string(staged.output().join("report.html")).unwrap();
    assert!(report.contains("x25519-ml-kem-768"));

    let config = served(&staged);
    let mut plugin = Plugin::start(&config).healthy().await;
    let mut client = plugin.client().await;
    let plaintext = b"0123456789abcdef0123456789abcdef";
    let request = EncryptRequest { plaintext: plaintext.as_slice().into(), uid: "test".to_owned() };
    let sealed = client.encrypt(request).await.unwrap().into_inner();
    assert_eq!(opened_without_kek(&key, &sealed), plaintext);
    let decrypt = |sealed: &EncryptResponse| DecryptRequest {
        ciphertext: sealed.ciphertext.clone(),
        uid: "test".to_owned(),
        key_id: sealed.key_id.clone(),
        annotations: sealed.annotations.clone(),
    };
    let answer = client.decrypt(decrypt(&sealed)).await.unwrap().into_inner();
    assert_eq!(answer.plaintext.as_ref(), plaintext);

    // An annotation that is gone, or of another seed, is noticed while the KEK lives.
    let request = EncryptRequest { plaintext: vec![7; 32].into(), uid: "test".to_owned() };
    let other = client.encrypt(request).await.unwrap().into_inner();
    let mut changed = sealed.clone();
    changed.annotations.clear();
    let swapped = EncryptResponse { annotations: other.annotations.clone(), ..sealed.clone() };
    for wrong in [changed, swapped] {
        assert_eq!(client.decrypt(decrypt(&wrong)).await.unwrap_err().code(), Code::InvalidArgument);
    }
    plugin.stop().await;
}

#[test]
fn the_evidence_says_who_the_recipients_are() {
    let mut staged = Staged::new();
    staged.with_recipient();
    staged.hold(&staged.answers(), &[]);
    // Nobody has signed yet.
    let unsigned = |failed: &[String]| failed.iter().all(|check| check.starts_with("signatures"));
    let (_, failed) = verdict(&staged.output());
    assert!(unsigned(&failed), "{failed:?}");

    // Both verifiers see an exchanged recipient, though the record itself is well formed.
    let path = staged.output().join("kek-record.json");
    let mut record = staged.record();
    record["recipients"] = json!([exchanged()]);
    fs::write(&path, serde_json::to_string_pretty(&record).unwrap() + "\n").unwrap();
    let (code, failed) = verdict(&staged.output());
    assert!(code == 1 && failed.iter().any(|check| check == "record and plan"), "{failed:?}");
    let (code, said) = second_opinion(&staged.output());
    assert_eq!(code, 1, "{said}");
}

#[tokio::test]
async fn a_record_with_an_exchanged_recipient_is_refused_by_its_kek() {
    let mut staged = Staged::new();
    staged.with_recipient();
    staged.hold(&staged.answers(), &[]);
    let config = served(&staged);
    let path = staged.output().join("kek-record.json");
    let good = fs::read(&path).unwrap();
    let mut added = staged.record();
    added["recipients"].as_array_mut().unwrap().push(exchanged());
    let mut replaced = staged.record();
    replaced["recipients"] = json!([exchanged()]);
    let mut removed = staged.record();
    removed.as_object_mut().unwrap().remove("recipients");
    removed["recovery"] = json!("none");
    for changed in [added, replaced] {
        fs::write(&path, serde_json::to_string_pretty(&changed).unwrap() + "\n").unwrap();
        let mut plugin = Plugin::start(&config);
        let why = "does not open the proof blob of its record: it is another key, or the record was changed";
        crate::harness::wait_for("the KEK to be refused", || plugin.log().contains(why).then_some(()));
        let mut client = plugin.client().await;
        let request = EncryptRequest { plaintext: vec![7; 32].into(), uid: "test".to_owned() };
        assert_eq!(client.encrypt(request).await.unwrap_err().code(), Code::FailedPrecondition);
        plugin.stop().await;
    }
    fs::write(&path, serde_json::to_string_pretty(&removed).unwrap() + "\n").unwrap();
    serve_refuses(config.write(), "names no recovery recipient");
    fs::write(&path, good).unwrap();
    let mut plugin = Plugin::start(&config).healthy().await;
    plugin.stop().await;
}

#[test]
fn plans_with_wrong_recipients_are_refused() {
    let mut staged = Staged::new();
    staged.with_recipient();
    let good = staged.plan.clone();
    let mut refuses = |edit: &dyn Fn(&mut Value), why: &str| {
        staged.plan = good.clone();
        edit(&mut staged.plan);
        let refusal = refusal(&["ceremony", "plan", "lint", &staged.plan_file()], b"");
        assert!(refusal.why.contains(why), "not {why:?}: {}", refusal.text);
    };
    let other = json!("00".repeat(32));
    refuses(&|plan| plan["recipients"][0]["fingerprint"] = other.clone(), "the plan says 0000000000");
    refuses(&|plan| plan["recipients"][0]["file"] = json!("/nowhere/recipient.json"), "the file cannot be read");
    refuses(&|plan| plan["recipients"][0]["fingerprint"] = json!("00"), "expected 64 lower-case hex digits");
    refuses(&|plan| plan["recipients"] = json!([plan["recipients"][0], plan["recipients"][0]]), "stands there twice");
    refuses(
        &|plan| {
            plan["destroys"] = json!("00".repeat(32));
        },
        "a plan that destroys a KEK makes none",
    );

    // Three times the wrong digits: there is no ceremony, and no key.
    staged.plan = good;
    let wrong = with(staged.answers(), "recipient-1", "0123456789abcdef");
    let mut answers = wrong.clone();
    let position = answers.iter().position(|(question, _)| question == "recipient-1").unwrap();
    for _ in 0..2 {
        answers.insert(position, wrong[position].clone());
    }
    staged.rehearse_with(&staged.answers());
    let output = staged.try_to_hold(&answers, &[]);
    assert!(!output.status.success(), "{}", super::staged::written(&output));
    staged.has_no_key();
}

fn served(staged: &Staged) -> Config {
    let record = staged.output().join("kek-record.json");
    let mut config = Config::on(&staged.token.section(), staged.token.directory(), &record, "plugin");
    config.value["kek"].as_object_mut().unwrap().remove("allow_trial");
    config
}

/// A recipient that nobody agreed to, as records have it.
fn exchanged() -> Value {
    let file = HybridKey::generate().unwrap().recipient().unwrap().to_json();
    serde_json::from_str::<Value>(&file).unwrap()["recipient"].clone()
}

/// The seed in the annotation.
fn opened_without_kek(key: &HybridKey, sealed: &EncryptResponse) -> Vec<u8> {
    let recipient = key.recipient().unwrap();
    let annotation = &sealed.annotations[&recipient.fingerprint().annotation()];
    let binding = Binding::new(CLUSTER, &KeyId::parse(&sealed.key_id).unwrap(), &recipient);
    let blob = RecoveryBlob::parse(annotation).unwrap();
    key.open(blob.sealed(), &binding).unwrap().expose().to_vec()
}
