//! KEKs change while API servers work: no read and no write fails, and Encrypt agrees with Status.

mod load;
mod site;

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hsm_kms::kms::proto::StatusRequest;
use serde_json::{Value, json};

use self::load::{Load, Store};
use self::site::Site;
use crate::failover::{SEED, decrypt, encrypt};
use crate::faults::until;
use crate::harness::{Config, Plugin, text};
use crate::processes;

/// Rotations of a quick run. `HSM_KMS_ROTATIONS` asks for more.
const QUICK: usize = 20;

/// Three nodes and three KEKs in turn, A, B, C, A, ...: with files that come late and in any order, with a node that is down, and
/// with a spare KEK that comes and goes.
#[tokio::test]
async fn rotations_under_load_fail_nothing() {
    let rotations = std::env::var("HSM_KMS_ROTATIONS").map_or(QUICK, |text| text.parse().unwrap());
    let mut site = Site::start(3, 4).await;
    let store = Arc::new(Store::default());
    let mut loads = Vec::new();
    for (index, node) in site.nodes.iter().enumerate() {
        loads.push(Some(Load::start(index, node.plugin(), &store)));
    }
    let mut reloads = Vec::new();
    // New workers on every node, while requests run.
    for kek in [2, 3, 4] {
        site.done(&["stage", "--record", &site.record(kek)]);
        hand_out(&site, &[0, 1, 2], &mut reloads).await;
    }
    let mut key_ids = BTreeSet::new();
    for rotation in 0..rotations {
        let kek = site.record((rotation + 1) % 3 + 1);
        let is_down = rotation % 7 == 5;
        let up: &[usize] = if is_down { &[0, 1] } else { &[0, 1, 2] };
        if is_down {
            loads[2].take().unwrap().stop();
            site.nodes[2].kill();
        }
        site.done(&["activate", "--record", &kek, "--nodes", &site.addresses(up)]);
        // Each time another node is first, and the last hears of it late.
        let first = rotation % up.len();
        let order: Vec<usize> = (0..up.len()).map(|position| up[(first + position) % up.len()]).collect();
        let (last, others) = order.split_last().unwrap();
        hand_out(&site, others, &mut reloads).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
        hand_out(&site, &[*last], &mut reloads).await;
        if is_down {
            site.hand_out(2);
            site.nodes[2].start().await;
            loads[2] = Some(Load::start(2, site.nodes[2].plugin(), &store));
        }
        if rotation % 9 == 4 {
            // The spare KEK goes and comes: new workers each time.
            site.done(&["retire", "--record", &site.record(4)]);
            hand_out(&site, &[0, 1, 2], &mut reloads).await;
            site.done(&["restore", "--record", &site.record(4)]);
            hand_out(&site, &[2, 1, 0], &mut reloads).await;
        }
        let hashes: BTreeSet<_> = site.nodes.iter().map(|node| text_of(&node.report()["key_id_hash"])).collect();
        assert_eq!(hashes.len(), 1, "all nodes announce one key_id");
        assert!(key_ids.insert(hashes.into_iter().next().unwrap()), "a key_id comes again");
    }
    for load in loads.into_iter().flatten() {
        load.stop();
    }
    let tally = store.tally();
    println!("{rotations} rotations, {}", tally.figures(&reloads));
    assert!(tally.failures.is_empty(), "{:#?}", tally.failures);
    assert!(tally.writes > rotations && tally.pairs > rotations, "{tally:?}");
    let converged = site.done(&["converged", "--nodes", &site.addresses(&[0, 1, 2])]);
    assert_eq!(converged["converged"], json!(true), "{converged:#}");
    // The workers of before are gone, each with its process.
    for node in &site.nodes {
        until("one worker", async || processes::children_of(node.plugin().pid()).len() == 1).await;
    }
}

/// Hands the keyring out to these nodes and waits until each serves it.
async fn hand_out(site: &Site, nodes: &[usize], reloads: &mut Vec<(Instant, Instant)>) {
    let began = Instant::now();
    for node in nodes {
        site.hand_out(*node);
        site.nodes[*node].plugin().hang_up();
    }
    for node in nodes {
        site.followed(*node).await;
    }
    reloads.push((began, Instant::now()));
}

fn text_of(value: &Value) -> String {
    value.as_str().unwrap().to_owned()
}

/// No signal: the file is found within the minute, and at once by a key_id that nobody knew.
#[tokio::test]
async fn a_file_is_found_without_a_signal() {
    let site = Site::start(2, 3).await;
    let mut clients = [site.nodes[0].plugin().client().await, site.nodes[1].plugin().client().await];
    site.done(&["stage", "--record", &site.record(2)]);
    site.hand_out(0);
    site.hand_out(1);
    let began = Instant::now();
    site.followed(0).await;
    site.followed(1).await;
    println!("found after {:.1} s", began.elapsed().as_secs_f64());
    // One node is two events ahead, and seals with a KEK that the other has never heard of.
    site.done(&["stage", "--record", &site.record(3)]);
    site.done(&["activate", "--record", &site.record(3), "--force", "a test of what comes of it"]);
    site.hand_out(0);
    site.nodes[0].plugin().hang_up();
    site.followed(0).await;
    let sealed = encrypt(&mut clients[0]).await.unwrap();
    let unknown = decrypt(&mut clients[1], &sealed).await.unwrap_err();
    assert_eq!(unknown.code(), tonic::Code::NotFound);
    site.hand_out(1);
    // The look before was one, and the next comes no sooner than after 5 s.
    until("the KEK", async || decrypt(&mut clients[1], &sealed).await.is_ok_and(|seed| seed == SEED)).await;
    let last = site.done(&["history"])["history"].as_array().unwrap().last().unwrap().clone();
    assert_eq!(last["change"]["forced"], json!(true));
    assert_eq!(last["reason"], json!("a test of what comes of it"));
}

/// A configuration with one record becomes one with a keyring, and the API server sees nothing of it.
#[tokio::test]
async fn one_record_becomes_a_keyring() {
    let mut site = Site::start(1, 2).await;
    let by_keyring = site.nodes[0].report();
    let section = site.nodes[0].section();
    site.nodes[0].kill();
    let mut config = Config::on(&section, site.nodes[0].place(), std::path::Path::new(&site.record(1)), "single");
    config.value["endpoints"] = json!(site.nodes[0].address);
    let mut plugin = Plugin::start(&config).healthy().await;
    let sealed = encrypt(&mut plugin.client().await).await.unwrap();
    let by_record = site.nodes[0].report();
    assert_eq!(by_record["key_id_hash"], by_keyring["key_id_hash"]);
    assert_eq!(by_record["head"], json!(null));
    plugin.stop().await;
    site.nodes[0].start().await;
    let mut client = site.nodes[0].plugin().client().await;
    assert_eq!(decrypt(&mut client, &sealed).await.unwrap(), SEED);
    let output = site.keyring_command(&["init", "--record", &site.record(1)]);
    assert!(String::from_utf8_lossy(&output.stderr).contains("is there already"));
    site.refused(&["stage", "--record", &site.record(1)], 2, "it is the KEK of kek-1.json");
}

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

/// No call is slowed by new workers, or by an activation. What the machine does besides is in the figures too: they are printed.
#[tokio::test]
async fn the_figures_of_a_reload() {
    let site = Site::start(1, 2).await;
    let store = Arc::new(Store::default());
    let load = Load::start(0, site.nodes[0].plugin(), &store);
    let mut reloads = Vec::new();
    site.done(&["stage", "--record", &site.record(2)]);
    hand_out(&site, &[0], &mut reloads).await;
    for _ in 0..5 {
        for command in ["retire", "restore"] {
            site.done(&[command, "--record", &site.record(2)]);
            tokio::time::sleep(Duration::from_millis(300)).await;
            hand_out(&site, &[0], &mut reloads).await;
        }
    }
    for kek in [2, 1, 2, 1, 2, 1] {
        site.done(&["activate", "--record", &site.record(kek), "--nodes", &site.addresses(&[0])]);
        tokio::time::sleep(Duration::from_millis(300)).await;
        hand_out(&site, &[0], &mut reloads).await;
    }
    load.stop();
    let tally = store.tally();
    println!("{}", tally.figures(&reloads));
    let durations = "hsm_kms_request_duration_seconds";
    for method in ["Encrypt", "Decrypt"] {
        let count = |name: String| site.nodes[0].metric(&name).unwrap();
        let all = count(format!("{durations}_count{{method=\"{method}\"}}"));
        let quick = count(format!("{durations}_bucket{{le=\"0.05\",method=\"{method}\"}}"));
        println!("{method}, as the plugin saw it: {quick} of {all} within 50 ms");
    }
    assert!(tally.failures.is_empty(), "{:#?}", tally.failures);
}

/// Activation at a time: every node at once, without a hand-out then; and a plan can be cancelled.
#[tokio::test]
async fn an_activation_comes_at_its_time() {
    let site = Site::start(2, 2).await;
    site.done(&["stage", "--record", &site.record(2)]);
    for node in [0, 1] {
        site.hand_out(node);
        site.nodes[node].plugin().hang_up();
        site.followed(node).await;
    }
    let before = site.nodes[0].report()["key_id_hash"].clone();
    let nodes = site.addresses(&[0, 1]);
    let at = |seconds: i64| {
        let now = jiff::Timestamp::now();
        jiff::Timestamp::from_second(now.as_second() + seconds).unwrap().to_string()
    };
    site.refused(&["activate", "--record", "kek-2.json", "--nodes", &nodes, "--at", &at(-5)], 2, "is past");
    site.done(&["activate", "--record", "kek-2.json", "--nodes", &nodes, "--at", &at(3600)]);
    site.done(&["activate", "--record", "kek-2.json", "--cancel"]);
    let planned = site.done(&["activate", "--record", "kek-2.json", "--nodes", &nodes, "--at", &at(4)]);
    assert_eq!(planned["state"], json!("staged"));
    for node in [0, 1] {
        site.hand_out(node);
        site.nodes[node].plugin().hang_up();
        site.followed(node).await;
        assert_eq!(site.nodes[node].report()["key_id_hash"], before);
    }
    for node in &site.nodes {
        until("the time", async || node.report()["key_id_hash"] != before).await;
        assert_eq!(node.metric("hsm_kms_keyring_epoch"), Some("2".to_owned()));
    }
    assert_eq!(site.nodes[0].report()["key_id_hash"], site.nodes[1].report()["key_id_hash"]);
    assert_eq!(site.done(&["list"])["keks"][1]["state"], json!("active"));
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
    let inventory = |name: &str, key_id: &str, made: &str, complete: bool| {
        let path = site.keyring().with_file_name(name).with_extension("inventory");
        let group = json!({"resource": "secrets", "form": "kms-v2", "provider": "kms", "key_id": key_id, "objects": 3});
        let value = json!({"version": 1, "made": made, "complete": complete, "groups": [group]});
        fs::write(&path, value.to_string()).unwrap();
        text(&path)
    };
    let [now, later] = [0, 601]
        .map(|seconds| jiff::Timestamp::from_second(jiff::Timestamp::now().as_second() + seconds).unwrap().to_string());
    let unused = inventory("unused", &second, &later, true);
    let nodes = site.addresses(&[0]);
    let retire = |files: &str, why: &str| {
        site.refused(&["retire", "--record", "kek-1.json", "--inventory", files, "--nodes", &nodes], 1, why);
    };
    // The node has not heard of the new KEK, and goes on sealing.
    retire(&unused, "seals with it");
    site.hand_out(0);
    site.nodes[0].plugin().hang_up();
    site.followed(0).await;
    let needed = inventory("backup", &first, "2026-01-01T00:00:00Z", true);
    retire(&format!("{unused},{needed}"), "shows 3 objects that need it: secrets (kms)");
    retire(&inventory("partial", &second, &later, false), "does not cover all of its store");
    retire(&inventory("old", &second, "2026-01-01T00:00:00Z", true), "no inventory is younger than 24 h");
    retire(&inventory("early", &second, &now, true), "10 min or more after a KEK last became active");
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

#[test]
fn the_demo_shows_a_whole_rotation() {
    let demo = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/demo-rotation");
    let shown = Command::new(demo).args(["--bin", env!("CARGO_BIN_EXE_hsm-kms")]).output().unwrap();
    let text = String::from_utf8_lossy(&shown.stdout);
    assert!(shown.status.success(), "{text}{}", String::from_utf8_lossy(&shown.stderr));
    assert!(text.contains("the old seed opens no more"), "{text}");
}

/// Killed at each system call of a write, a command leaves the old keyring or the new one, and the next command works.
#[tokio::test]
async fn a_crash_in_each_write_leaves_a_whole_keyring() {
    let mut site = Site::start(1, 2).await;
    let before = fs::read(site.keyring()).unwrap();
    let mut crashes = 0;
    for call in ["write:when=1", "fsync:when=1", "rename:when=1", "fsync:when=2"] {
        let (call, when) = call.split_once(':').unwrap();
        let status = Command::new("strace")
            .args(["-f", "-qq", "-o", "/dev/null", "-P"])
            .arg(site.keyring().with_extension("json.new"))
            .arg("-P")
            .arg(site.keyring().parent().unwrap())
            .arg(format!("--inject={call}:signal=KILL:{when}"))
            .arg(env!("CARGO_BIN_EXE_hsm-kms"))
            .args(["keyring", "stage", "--keyring", &text(&site.keyring()), "--record", &site.record(2)])
            .output()
            .expect("strace is installed");
        let is_killed = !status.status.success();
        crashes += usize::from(is_killed);
        let after = fs::read(site.keyring()).unwrap();
        println!("{call} {when}: killed {is_killed}, new {}", after != before);
        assert!(is_killed, "{call} {when}: {}", String::from_utf8_lossy(&status.stderr));
        let count = site.done(&["list"])["keks"].as_array().unwrap().len();
        assert_eq!(count, if after == before { 1 } else { 2 });
        fs::write(site.keyring(), &before).unwrap();
    }
    assert_eq!(crashes, 4);
    // A temporary file that is half written stands in nobody's way.
    fs::write(site.keyring().with_extension("json.new"), &before[..before.len() / 2]).unwrap();
    site.done(&["stage", "--record", &site.record(2)]);
    site.hand_out(0);
    site.nodes[0].kill();
    site.nodes[0].start().await;
    site.followed(0).await;
}
