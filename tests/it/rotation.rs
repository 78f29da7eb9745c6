//! KEKs change while API servers work: no read and no write fails, and Encrypt agrees with Status.

mod load;
mod on_a_store;
mod refusals;
pub mod site;
mod skewed_clocks;

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

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
        until("one worker", async || processes::workers(node.plugin()).len() == 1).await;
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
