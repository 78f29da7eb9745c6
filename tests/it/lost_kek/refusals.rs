//! What is refused on the way back, and why.

use std::fs;
use std::path::Path;
use std::process::Output;

use data_encoding::BASE64;
use hsm_kms::etcd::proto::EncryptedObject;
use hsm_kms::keyring::{RewrapTable, RewrappedSeed};
use hsm_kms::kms::proto::DecryptRequest;
use prost::Message;
use prost::bytes::Bytes;
use serde_json::{Value, json};
use tonic::{Code, Request};

use super::site::{FOLDER, Key, Lost, LostSite, RestoredSite, key_of, make_kek, report, start, text_of};
use crate::api_server_stack::plaintext_of;
use crate::emulator::{StoredValue, with_prefix};
use crate::etcd::Etcd;
use crate::harness::{CLUSTER, Config, Plugin, TestToken, run, text};

const OBJECTS: usize = 80;

/// The command was refused with this exit code, for this reason.
fn refused(output: &Output, code: i32, why: &str) {
    let (stdout, stderr) = (text_of(&output.stdout), text_of(&output.stderr));
    assert_eq!(output.status.code(), Some(code), "{stdout}{stderr}");
    assert!(stderr.contains(why) || stdout.contains(why), "expected {why:?}\n{stdout}{stderr}");
    assert!(!stderr.contains("hkr1"), "{stderr}");
}

fn parse(value: &[u8]) -> EncryptedObject {
    EncryptedObject::decode(value.strip_prefix(b"k8s:enc:kms:v2:kms:").unwrap()).unwrap()
}

fn write(object: &EncryptedObject) -> Vec<u8> {
    let stored: &StoredValue = object;
    with_prefix("kms", stored)
}

/// Changes every object of the store.
fn change(etcd: &Etcd, mut change: impl FnMut(usize, &mut EncryptedObject)) {
    let values: Vec<_> = (0..)
        .zip(etcd.list(FOLDER))
        .map(|(number, entry)| {
            let mut object = parse(&entry.value);
            change(number, &mut object);
            write(&object)
        })
        .collect();
    etcd.fill(FOLDER, values.len(), |number| values[number].clone());
}

async fn lost_and_restored() -> (Lost, RestoredSite) {
    let lost = LostSite::new(TestToken::new(), OBJECTS).await.lose().await;
    let site = RestoredSite::new(&lost, TestToken::new()).await;
    (lost, site)
}

#[tokio::test]
async fn a_wrong_key_cluster_or_plugin_makes_no_table() {
    let (lost, site) = lost_and_restored().await;
    let other = Key::make(lost.directory.path(), "other");
    let wrong_key = site.rewrap(&lost, "t", &["--key", &text(&other.private)]);
    refused(
        &wrong_key,
        1,
        &format!("this is another key, {}: it was sealed to {}", other.fingerprint, &lost.key.fingerprint[..16]),
    );
    let wrong_cluster = site.rewrap(&lost, "t", &["--cluster", "other"]);
    refused(&wrong_cluster, 1, "they were sealed for another cluster than \"other\"");
    fs::write(site.place("no.key"), "hkr1qqqq\n").unwrap();
    refused(&site.rewrap(&lost, "t", &["--key", &site.place("no.key")]), 2, "the checksum does not fit");
    refused(&site.rewrap(&lost, "t", &["--socket", "/no/such/socket"]), 3, "cannot be used");
    assert!(!Path::new(&site.place("t")).exists());

    // One value, by the key alone.
    let open = |more: &[&str]| {
        let (key, snapshot, object) = (text(&lost.key.private), text(&lost.snapshot), key_of(7));
        let mut arguments = vec!["recovery", "open", "--snapshot", &snapshot, "--object", &object];
        if !more.contains(&"--key") {
            arguments.extend(["--key", &key]);
        }
        run(&[&arguments[..], more].concat(), b"")
    };
    let raw = open(&["--cluster", CLUSTER, "--output", "raw"]);
    assert_eq!(raw.stdout, plaintext_of("7"), "{}", text_of(&raw.stderr));
    refused(&open(&["--cluster", "other"]), 1, "its recovery blob does not open");
    refused(&open(&["--cluster", CLUSTER, "--key", &text(&other.private)]), 1, "not to this key");

    // While the KEK lives, nothing is lost.
    let living = LostSite::new(TestToken::new(), OBJECTS).await;
    let source = ["--endpoint", living.etcd().url()];
    let socket = text(living.plugin().socket());
    refused(&site.rewrap_from(&source, &lost, "t", &["--socket", &socket]), 1, "no KEK is lost");
    // The table is made once.
    report(&site.rewrap(&lost, "t", &["--json"]));
    refused(&site.rewrap(&lost, "t", &[]), 2, "cannot write");
}

#[tokio::test]
async fn blobs_that_were_swapped_altered_or_taken_away_are_named() {
    let (lost, site) = lost_and_restored().await;
    let source = ["--endpoint", site.etcd.url()];
    let values = site.etcd.list(FOLDER);
    // The first seed gets the blob of the second; both are of one KEK, so the blob opens.
    let [first, second] = [0, OBJECTS / 8].map(|number| parse(&values[number].value));
    assert!(first.key_id == second.key_id && first.encrypted_dek_source != second.encrypted_dek_source);
    change(&site.etcd, |_, object| {
        if object.encrypted_dek_source == first.encrypted_dek_source {
            object.annotations.clone_from(&second.annotations);
        }
    });
    let swapped = "none of its 10 objects with it: its recovery blob was swapped with another seed's";
    refused(&site.rewrap_from(&source, &lost, "t", &[]), 1, swapped);
    assert!(!Path::new(&site.place("t")).exists());
    let partial = site.rewrap_from(&source, &lost, "partial", &["--partial"]);
    assert!(partial.status.success() && text_of(&partial.stdout).contains(swapped), "{partial:?}");
    let table = RewrapTable::read(Path::new(&site.place("partial"))).unwrap();
    assert_eq!((table.seeds().len(), table.origin().complete), (7, false));

    for (taken, why) in [(true, "it carries no recovery blob"), (false, "its recovery blob does not open")] {
        change(&site.etcd, |_, object| {
            if object.encrypted_dek_source == first.encrypted_dek_source {
                object.annotations.clone_from(&first.annotations);
                if taken {
                    object.annotations.clear();
                } else {
                    let (name, value) = object.annotations.iter().next().unwrap();
                    let mut bytes = value.to_vec();
                    bytes[700] ^= 1;
                    object.annotations = [(name.clone(), Bytes::from(bytes))].into();
                }
            }
        });
        refused(&site.rewrap_from(&source, &lost, "t", &[]), 1, why);
        let audit = run(&["recovery", "audit", "--endpoint", site.etcd.url()], b"");
        assert_eq!(audit.status.code(), Some(taken.into()), "{}", text_of(&audit.stdout));
        assert!(!taken || text_of(&audit.stderr).contains("10 of 80 objects carry no recovery blob"), "{audit:?}");
    }
    // An object that was moved is named; its seed is good.
    change(&site.etcd, |_, object| {
        if object.encrypted_dek_source == first.encrypted_dek_source {
            object.annotations.clone_from(&first.annotations);
        }
    });
    site.etcd.put(&format!("{FOLDER}moved"), &values[3].value);
    let moved = site.rewrap_from(&source, &lost, "t", &[]);
    assert!(moved.status.success(), "{}", text_of(&moved.stderr));
    assert!(text_of(&moved.stdout).contains("does not open: /registry/secrets/default/moved"), "{moved:?}");
}

/// What the audit counts: well-formed blobs to the recipients of the record.
#[tokio::test]
async fn an_audit_counts_what_a_key_would_open() {
    let site = LostSite::new(TestToken::new(), OBJECTS).await;
    let record = text(&site.directory.path().join("kek-1.json"));
    let all = report(&site.audit(&["--record", &record, "--json"]));
    assert_eq!(
        (&all["objects_covered"], &all["keks"][0]["recipients"][0]["seeds"]),
        (&OBJECTS.into(), &4.into()),
        "{all}"
    );

    // Nothing is sealed to another record's recipient.
    let other = Key::make(site.directory.path(), "other");
    let token = TestToken::new();
    let foreign = text(&make_kek(&token.section(), "kek-4", &other, token.directory()));
    refused(&site.audit(&["--record", &foreign]), 1, "80 of 80 objects carry no recovery blob");

    // One seed's blob is cut; objects of another plugin do not count.
    let first = parse(&site.etcd().list(FOLDER)[0].value);
    change(site.etcd(), |_, object| {
        if object.encrypted_dek_source == first.encrypted_dek_source {
            object.annotations.values_mut().for_each(|value| *value = value.slice(..700));
        }
    });
    let mut others = first.clone();
    others.key_id = "of-another-plugin".to_owned();
    site.etcd().put(&format!("{FOLDER}other"), &write(&others));
    let cut = site.audit(&["--json"]);
    refused(&cut, 1, "10 of 80 objects carry no recovery blob");
    refused(&cut, 1, "a recovery blob of 700 bytes, which its scheme does not make");
    let cut: Value = serde_json::from_slice(&cut.stdout).unwrap();
    assert_eq!((&cut["objects_covered"], &cut["other_objects"]), (&70.into(), &1.into()), "{cut}");
    let shown = text_of(&site.audit(&[]).stdout);
    assert!(shown.contains("objects   70 of 80: 87.5 %") && shown.contains("NONE"), "{shown}");
    assert!(shown.lines().filter(|line| line.starts_with('|')).all(|line| line.chars().count() <= 80), "{shown}");
}

#[tokio::test]
async fn a_damaged_backup_makes_a_table_only_on_purpose() {
    let (lost, site) = lost_and_restored().await;
    let mut bytes = fs::read(&lost.snapshot).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    let damaged = site.place("damaged.db");
    fs::write(&damaged, bytes).unwrap();
    let source = ["--snapshot", &*damaged];
    refused(&site.rewrap_from(&source, &lost, "t", &[]), 1, "its SHA-256 differs from the one at its end");
    let partial = site.rewrap_from(&source, &lost, "t", &["--partial", "--json"]);
    assert_eq!(report(&partial)["faults"].as_array().unwrap().len(), 1);
    assert!(!RewrapTable::read(Path::new(&site.place("t"))).unwrap().origin().complete);
}

/// Whoever writes to etcd can seal a seed of his own to the public key. The KEK refuses it while it lives, and the audit remembers.
#[tokio::test]
async fn a_planted_seed_is_known_from_the_audit() {
    let mut living = LostSite::new(TestToken::new(), OBJECTS).await;
    let socket = text(living.plugin().socket());
    let audit = text(&living.directory.path().join("audit.json"));
    let made = living.audit(&["--socket", &socket, "--output", &audit, "--json"]);
    assert_eq!(report(&made)["opened"].as_array().unwrap().len(), 8);

    let entry = &living.etcd().list(FOLDER)[0];
    let mut planted = parse(&entry.value);
    let mut ciphertext = planted.encrypted_dek_source.to_vec();
    *ciphertext.last_mut().unwrap() ^= 1;
    planted.encrypted_dek_source = ciphertext.into();
    living.etcd().put(&format!("{FOLDER}000000"), &write(&planted));
    let asked = living.audit(&["--socket", &socket]);
    refused(&asked, 1, "the KEK does not open every seed");
    let without = text(&living.directory.path().join("without.json"));
    assert!(living.audit(&["--output", &without]).status.success());

    let snapshot = living.etcd().snapshot(&living.directory.path().join("planted.db"));
    living.lose_token().await;
    let lost = living.lose_rest(snapshot);
    let site = RestoredSite::new(&lost, TestToken::new()).await;
    let output = site.rewrap(&lost, "t", &["--audit", &audit]);
    refused(&output, 1, "the audit does not know it: it was written later, or by somebody else");
    refused(&site.rewrap(&lost, "t", &["--audit", &without]), 2, "was made without --socket");
    let accepted = site.rewrap(&lost, "t", &["--audit", &audit, "--accept-unaudited", "--json"]);
    assert!(accepted.status.success(), "{}", text_of(&accepted.stderr));
    // Without an audit, nothing tells it from a real one.
    assert!(site.rewrap(&lost, "u", &[]).status.success());
}

/// The plugin's log and exit code with this table.
fn serve(site: &RestoredSite, name: &str) -> Output {
    let mut config = Config::on(&site.config.value["token"], site.directory.path(), &site.record, name);
    config.value["kek"]["rewrap_table"] = json!(site.place(name));
    run(&["serve", "--config", &text(config.write())], b"")
}

async fn decrypt(plugin: &Plugin, object: &EncryptedObject) -> Result<Vec<u8>, tonic::Status> {
    let request = DecryptRequest {
        ciphertext: object.encrypted_dek_source.clone(),
        uid: "test".to_owned(),
        key_id: object.key_id.clone(),
        annotations: object.annotations.clone(),
    };
    let answer = plugin.client().await.decrypt(Request::new(request)).await?;
    Ok(answer.into_inner().plaintext.to_vec())
}

#[tokio::test]
async fn an_edited_table_opens_nothing() {
    let (lost, mut site) = lost_and_restored().await;
    report(&site.rewrap(&lost, "table", &["--json"]));
    let good = RewrapTable::read(Path::new(&site.place("table"))).unwrap();

    // Damage, and edits that do not care for the digest.
    let text = good.to_json();
    let first = BASE64.encode(&good.seeds()[0].ciphertext.0);
    let second = BASE64.encode(&good.seeds()[1].ciphertext.0);
    let wrong = [
        ("flipped", text.replacen('a', "b", 1), "rewrap table"),
        (
            "swapped",
            text.replacen(&first, "@", 1).replacen(&second, &first, 1).replacen('@', &second, 1),
            "`sha256`: the file is damaged, or was edited",
        ),
        ("cut", text[..text.len() / 2].to_owned(), "EOF"),
        (
            "cluster",
            RewrapTable::new(origin(&good, |origin| origin["cluster"] = json!("other")), good.seeds().to_vec())
                .to_json(),
            "it is for cluster \"other\"",
        ),
        (
            "living",
            RewrapTable::new(
                origin(&good, |_| ()),
                seeds(&good, |seed| seed.key_id = good.origin().sealed_with.clone()),
            )
            .to_json(),
            "is not lost: it is served here",
        ),
        (
            "foreign",
            RewrapTable::new(
                origin(&good, |origin| origin["sealed_with"] = json!(lost.key_ids[0])),
                good.seeds().to_vec(),
            )
            .to_json(),
            "which is not served here",
        ),
    ];
    for (name, table, why) in wrong {
        fs::write(site.place(name), table).unwrap();
        refused(&serve(&site, name), 2, why);
    }

    // With the right digest: who edits may count it anew. No entry opens for another seed, and none that was changed.
    let objects: Vec<_> = site.etcd.list(FOLDER).iter().map(|entry| parse(&entry.value)).collect();
    let count = good.seeds().len();
    let rotated = (0..count).map(|number| {
        let (seed, other) = (&good.seeds()[number], &good.seeds()[(number + 1) % count]);
        RewrappedSeed { ciphertext: other.ciphertext.clone(), annotations: other.annotations.clone(), ..seed.clone() }
    });
    let edits = [
        ("rotated", rotated.collect::<Vec<_>>()),
        ("changed", seeds(&good, |seed| *seed.ciphertext.0.last_mut().unwrap() ^= 1)),
        ("bare", seeds(&good, |seed| seed.annotations.clear())),
        ("none", seeds(&good, |seed| seed.ciphertext.0.truncate(3))),
    ];
    for (name, entries) in edits {
        let table = RewrapTable::new(good.origin().clone(), entries);
        fs::write(site.place(name), table.to_json()).unwrap();
        site.serve_with(Some(name)).await;
        for object in objects.iter().step_by(OBJECTS / 8) {
            let status = decrypt(site.plugin(), object).await.unwrap_err();
            assert_eq!(status.code(), Code::InvalidArgument, "{name}: {status}");
            assert!(status.message().contains("the rewrap table was changed"), "{name}: {status}");
        }
    }
    site.serve_with(Some("table")).await;
    assert_eq!(site.read(OBJECTS).await, OBJECTS);
}

fn origin(table: &RewrapTable, change: impl FnOnce(&mut Value)) -> hsm_kms::keyring::Origin {
    let mut value = serde_json::to_value(table.origin()).unwrap();
    change(&mut value);
    serde_json::from_value(value).unwrap()
}

fn seeds(table: &RewrapTable, change: impl Fn(&mut RewrappedSeed)) -> Vec<RewrappedSeed> {
    let mut seeds = table.seeds().to_vec();
    seeds.iter_mut().for_each(change);
    seeds
}

/// An older table lacks the seeds that came later; a newer one than the store has them all.
#[tokio::test]
async fn a_table_of_another_day_opens_what_it_has() {
    let mut living = LostSite::new(TestToken::new(), OBJECTS).await;
    let old = living.etcd().snapshot(&living.directory.path().join("old.db"));
    let mut server = start(living.plugin()).await;
    let key = key_of(0);
    living.etcd().put(&key, &server.write(&key, &plaintext_of("0")).unwrap());
    // The first seed is needed by nothing any more, once its other objects are gone.
    (1..OBJECTS / 8).for_each(|number| living.etcd().delete(&key_of(number)));
    let new = living.etcd().snapshot(&living.directory.path().join("new.db"));
    living.lose_token().await;
    let lost = living.lose_rest(new.clone());
    let mut site = RestoredSite::new(&lost, TestToken::new()).await;
    for (name, snapshot) in [("of-old", &old), ("of-new", &new)] {
        report(&site.rewrap_from(&["--snapshot", &text(snapshot)], &lost, name, &["--json"]));
    }
    let objects = |snapshot: &Path| {
        let directory = tempfile::tempdir().unwrap();
        let etcd = Etcd::restored(directory.path(), snapshot);
        etcd.list(FOLDER).iter().map(|entry| parse(&entry.value)).collect::<Vec<_>>()
    };
    // A new snapshot with an old table, and an old snapshot with a new table.
    for (name, store) in [("of-old", &new), ("of-new", &old)] {
        site.serve_with(Some(name)).await;
        let objects = objects(store);
        let status = decrypt(site.plugin(), &objects[0]).await.unwrap_err();
        assert_eq!(status.code(), Code::NotFound, "{name}: {status}");
        assert!(status.message().contains("is not in the rewrap table, which was made 20"), "{status}");
        assert!(status.message().contains("make it again from the store of today"), "{status}");
        assert!(decrypt(site.plugin(), objects.last().unwrap()).await.is_ok());
    }
}

/// A recipient that was exchanged in the record is not one that the KEK proved: nothing is sealed to it.
#[tokio::test]
async fn a_recipient_that_was_exchanged_in_the_record_is_refused() {
    let token = TestToken::new();
    let [key, other] = ["key", "other"].map(|name| Key::make(token.directory(), name));
    let record = make_kek(&token.section(), "kek-1", &key, token.directory());
    let mut value: Value = serde_json::from_slice(&fs::read(&record).unwrap()).unwrap();
    let public: Value = serde_json::from_slice(&fs::read(&other.public).unwrap()).unwrap();
    let forged = token.directory().join("forged.json");
    let text_of_record = fs::read_to_string(&record).unwrap();
    let mut forged_text = text_of_record;
    for field in ["public_key", "fingerprint"] {
        let (old, new) = (value["recipients"][0][field].take(), &public["recipient"][field]);
        forged_text = forged_text.replace(old.as_str().unwrap(), new.as_str().unwrap());
    }
    fs::write(&forged, forged_text).unwrap();
    let config = Config::new(&token, &forged, "forged");
    let plugin = Plugin::start(&config);
    crate::faults::until("the refusal", async || plugin.log().contains("does not open the proof blob of its record"))
        .await;
    let sealed = run(&["call", "encrypt", "--socket", &text(plugin.socket())], b"0123456789abcdef0123456789abcdef");
    assert!(!sealed.status.success());
}
