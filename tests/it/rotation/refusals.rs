//! What is refused: keyrings, KEKs, activations, retirements; and that everything else goes on meanwhile.

use std::fs;

use hsm_kms::kms::proto::StatusRequest;
use serde_json::{Value, json};

use super::site::Site;
use super::text_of;
use crate::failover::{SEED, decrypt, encrypt};
use crate::faults::until;
use crate::harness::text;

/// A wrong file changes nothing but what log, metric and `/keyring` say.
#[tokio::test]
async fn a_wrong_keyring_keeps_the_old_one() {
    let site = Site::start(1, 2).await;
    let node = &site.nodes[0];
    let mut client = node.plugin().client().await;
    let sealed = encrypt(&mut client).await.unwrap();
    let good = fs::read(site.keyring()).unwrap();
    site.done(&["stage", "--record", &site.record(2)]);
    let staged = fs::read_to_string(site.keyring()).unwrap();
    let (keyring, record) = (node.place().join("keyring.json"), node.place().join("kek-2.json"));
    let label = fs::read_to_string(site.record(2)).unwrap().replace("\"kek-2\"", "\"kek-9\"");
    let digest = data_encoding::HEXLOWER.encode(&<sha2::Sha256 as sha2::Digest>::digest(&label));
    let staged_digest = text_of(&site.done(&["list"])["keks"][1]["record_sha256"]);
    let truncated = staged[..staged.len() / 2].to_owned();
    let edited = staged.replacen("\"staged\"", "\"retired\"", 1);
    for (content, why) in [
        (truncated, "EOF while parsing"),
        (edited, "the states are not what the history adds up to"),
        (staged.replacen("\"uid\": ", "\"uid\": 1", 1), "an event does not follow the one before it"),
        (staged.replacen(&staged_digest, &digest, 9), "it is not the hash of the last event"),
        (
            staged.replacen(&format!("\"cluster\": \"{}\"", crate::harness::CLUSTER), "\"cluster\": \"other\"", 1),
            "does not follow",
        ),
        (staged.replace("\n}\n", "\n}\n\n"), "not in the form that it was written in"),
    ] {
        fs::write(&keyring, content).unwrap();
        refused(&site, why).await;
    }
    // The record is not there yet; it is another's; then it comes.
    fs::remove_file(&record).unwrap();
    fs::write(&keyring, &staged).unwrap();
    refused(&site, "kek-2.json: the file cannot be read").await;
    fs::write(&record, &label).unwrap();
    refused(&site, "the file is not the one that the keyring names").await;
    assert_eq!(decrypt(&mut client, &sealed).await.unwrap(), SEED);
    site.hand_out(0);
    site.followed(0).await;
    assert_eq!(node.metric("hsm_kms_keyring_current"), Some("1".to_owned()));
    // An older file is refused: the key_id would come again.
    fs::write(&keyring, &good).unwrap();
    refused(&site, "its history does not go on from the one that is served").await;
    assert_eq!(decrypt(&mut client, &sealed).await.unwrap(), SEED);
}

/// Waits until the node refuses the file for this reason, and sees that nothing else changed.
async fn refused(site: &Site, why: &str) {
    let node = &site.nodes[0];
    let before = node.report();
    node.plugin().hang_up();
    until(why, async || node.report()["refused"].as_str().is_some_and(|refused| refused.contains(why))).await;
    assert_eq!(node.metric("hsm_kms_keyring_current"), Some("0".to_owned()));
    assert!(node.metric("hsm_kms_keyring_reloads_total{outcome=\"refused\"}").is_some());
    assert!(node.plugin().log().contains(why), "{}", node.plugin().log());
    let mut client = node.plugin().client().await;
    until("health", async || client.status(StatusRequest {}).await.unwrap().into_inner().healthz == "ok").await;
    assert_eq!(node.report()["head"], before["head"]);
    assert_eq!(node.report()["key_id_hash"], before["key_id_hash"]);
}

/// A KEK that the token does not have, or another key under its name.
#[tokio::test]
async fn a_kek_that_is_not_on_the_token_is_not_served() {
    let site = Site::start(1, 1).await;
    let other = Site::start(0, 2).await;
    let mut client = site.nodes[0].plugin().client().await;
    let sealed = encrypt(&mut client).await.unwrap();
    let stranger = text(&site.keyring().with_file_name("kek-2.json"));
    fs::copy(other.record(2), &stranger).unwrap();
    site.done(&["stage", "--record", &stranger]);
    site.hand_out(0);
    refused(&site, "no key with label \"kek-2\"").await;
    assert_eq!(decrypt(&mut client, &sealed).await.unwrap(), SEED);
    let address = site.addresses(&[0]);
    let why = format!("the node {address} cannot open with kek-2.json: it refuses the file on its disk");
    site.refused(&["activate", "--record", &stranger, "--nodes", &address], 1, &why);
    assert_eq!(site.keyring_command(&["converged", "--nodes", &address]).status.code(), Some(1));
}

/// Two tokens: a KEK that the second does not have is not served, since that would lose the second.
#[tokio::test]
async fn every_token_must_have_every_kek() {
    let mut site = Site::prepare(1);
    let without = site.clone_token();
    site.make_kek(2);
    site.add_node(site.clone_token(), Some(without)).await;
    site.add_node(site.clone_token(), Some(site.clone_token())).await;
    for node in &site.nodes {
        until("both tokens", async || node.plugin().log().matches("token ready").count() == 2).await;
    }
    site.done(&["stage", "--record", &site.record(2)]);
    site.hand_out(0);
    refused(&site, "no key with label \"kek-2\"").await;
    assert_eq!(site.nodes[0].report()["proved"], json!(true));
    site.hand_out(1);
    site.nodes[1].plugin().hang_up();
    site.followed(1).await;
    site.done(&["activate", "--record", "kek-2.json", "--nodes", &site.addresses(&[1])]);
    site.hand_out(1);
    site.nodes[1].plugin().hang_up();
    site.followed(1).await;
    let mut client = site.nodes[1].plugin().client().await;
    let sealed = encrypt(&mut client).await.unwrap();
    // The second token opens with the new KEK while the first is away.
    site.nodes[1].lose_token();
    site.nodes[1].plugin().hang_up();
    until("the second token", async || decrypt(&mut client, &sealed).await.is_ok_and(|seed| seed == SEED)).await;
    let again = encrypt(&mut client).await.unwrap();
    assert_eq!(again.key_id, sealed.key_id);
}

/// A node that cannot open the KEK, is not there, or was named twice, stands in the way.
#[tokio::test]
async fn an_activation_waits_for_every_node() {
    let site = Site::start(2, 2).await;
    site.done(&["stage", "--record", &site.record(2)]);
    site.hand_out(0);
    site.nodes[0].plugin().hang_up();
    site.followed(0).await;
    let activate = |nodes: &str, code, why: &str| {
        site.refused(&["activate", "--record", "kek-2.json", "--nodes", nodes], code, why);
    };
    activate(&site.addresses(&[0, 1]), 1, "cannot open with kek-2.json: its keyring is 1 event behind");
    activate(&format!("{},127.0.0.1:1", site.addresses(&[0])), 3, "Connection refused");
    activate(&site.addresses(&[0, 0]), 2, "is the same process");
    site.refused(&["activate", "--record", "kek-2.json"], 2, "--nodes");
    site.refused(&["activate", "--record", "kek-1.json", "--nodes", "x"], 1, "is active: it seals already");
    // What a node says may be collected by any way, while it is fresh.
    site.hand_out(1);
    site.nodes[1].plugin().hang_up();
    site.followed(1).await;
    let collected = site.nodes[1].place().join("collected.json");
    let mut report = site.nodes[1].report();
    fs::write(&collected, report.to_string()).unwrap();
    let both = format!("{},{}", site.addresses(&[0]), collected.display());
    assert_eq!(site.done(&["converged", "--nodes", &both])["converged"], json!(true));
    report["time"] = json!("2026-01-01T00:00:00Z");
    let old = site.nodes[1].place().join("old.json");
    fs::write(&old, report.to_string()).unwrap();
    activate(&format!("{},{}", site.addresses(&[0]), old.display()), 1, "min old");
    let activated = site.done(&["activate", "--record", "kek-2.json", "--nodes", &both]);
    assert_eq!(activated["state"], json!("active"));
}

/// What needs a KEK keeps it in service.
#[tokio::test]
async fn a_kek_that_is_needed_is_not_retired() {
    let site = Site::start(1, 2).await;
    site.done(&["stage", "--record", &site.record(2)]);
    site.done(&["activate", "--record", "kek-2.json", "--force", "one node, which follows"]);
    let list = site.done(&["list"]);
    let [first, second] = [0, 1].map(|index| text_of(&list["keks"][index]["key_ids"][0]));
    let inventory = |name: &str, key_id: Value, made: &str, edit: &dyn Fn(&mut Value)| {
        let path = site.keyring().with_file_name(name).with_extension("inventory");
        let mut value = json!({
            "version": 1,
            "made": made,
            "source": {"kind": "etcd", "endpoint": "https://127.0.0.1:2379", "cluster_id": "1"},
            "prefix": "/registry/",
            "revision": 9,
            "complete": true,
            "objects": 3,
            "bytes": 300,
            "groups": [{
                "resource": "secrets",
                "form": "kms-v2",
                "provider": "kms",
                "key_id": key_id,
                "key_id_hash": null,
                "seed": null,
                "objects": 3,
                "bytes": 300,
                "oldest_revision": 1,
                "newest_revision": 9,
                "covered": 0,
            }],
            "faults": [],
            "faults_left_off": 0,
        });
        edit(&mut value);
        fs::write(&path, value.to_string()).unwrap();
        text(&path)
    };
    let whole = |_: &mut Value| {};
    let [now, later] = [0, 601]
        .map(|seconds| jiff::Timestamp::from_second(jiff::Timestamp::now().as_second() + seconds).unwrap().to_string());
    let unused = inventory("unused", json!(second), &later, &whole);
    let nodes = site.addresses(&[0]);
    let retire = |files: &str, why: &str| {
        site.refused(&["retire", "--record", "kek-1.json", "--inventory", files, "--nodes", &nodes], 1, why);
    };
    // The node has not heard of the new KEK, and goes on sealing.
    retire(&unused, "seals with it");
    site.hand_out(0);
    site.nodes[0].plugin().hang_up();
    site.followed(0).await;
    let needed = inventory("backup", json!(first), "2026-01-01T00:00:00Z", &whole);
    retire(&format!("{unused},{needed}"), "shows 3 objects (secrets of provider kms) that need it");
    for (key_id, made, edit, why) in [
        (
            json!(second),
            &*later,
            &(|it: &mut Value| it["complete"] = json!(false)) as &dyn Fn(&mut Value),
            "does not cover all",
        ),
        (
            json!(second),
            &later,
            &|it| it["prefix"] = json!("/registry/pods/"),
            "covers only the keys under /registry/pods/",
        ),
        (json!(null), &later, &whole, "too damaged to say which KEK they need"),
        (json!(second), "2026-01-01T00:00:00Z", &whole, "no inventory of a running etcd is younger than 24 h"),
        (
            json!(second),
            &later,
            &|it| it["source"] = json!({"kind": "snapshot", "file": "x", "size": 1, "digest": "matches"}),
            "no inventory of a running etcd is younger than 24 h",
        ),
        (json!(second), &now, &whole, "was made 10 min or more after a KEK became active"),
    ] {
        retire(&inventory("other", key_id, made, edit), why);
    }
    site.refused(&["retire", "--record", "kek-1.json"], 2, "nothing shows that nobody needs it");
    site.refused(&["retire", "--record", "kek-2.json", "--force", "x"], 1, "activate another one first");
    let retired = site.done(&["retire", "--record", "kek-1.json", "--inventory", &unused, "--nodes", &nodes]);
    assert_eq!(retired["state"], json!("destroyed"));
    let history = site.done(&["history"]);
    assert_eq!(history["history"][3]["change"]["inventories"].as_array().unwrap().len(), 1);
    assert_eq!(site.done(&["restore", "--record", "kek-1.json"])["state"], json!("retired"));
    // It comes back under a key_id that it never had.
    site.done(&["activate", "--record", "kek-1.json", "--nodes", &nodes]);
    let ids = site.done(&["list"])["keks"][0]["key_ids"].as_array().unwrap().len();
    assert_eq!(ids, 2);
}
