//! A planned activation where the nodes' clocks do not agree.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;

use super::hand_out;
use super::load::{Load, Store};
use super::site::{Node, Site};
use crate::faults::until;
use crate::harness::program;
use crate::parts::installed;

/// The program with a clock of its own, off by what stands in this file. Time goes on as fast as elsewhere.
fn with_clock(offset: &Path) -> Command {
    let mut command = program();
    command
        .env("LD_PRELOAD", installed("/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1".into()))
        .env("FAKETIME_TIMESTAMP_FILE", offset)
        .env("FAKETIME_CACHE_DURATION", "1")
        .env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
    command
}

/// How many seconds the node's clock is ahead.
fn ahead(node: &Node) -> i64 {
    let time: jiff::Timestamp = super::text_of(&node.report()["time"]).parse().unwrap();
    time.as_second() - jiff::Timestamp::now().as_second()
}

/// The first node's clock is right, the second's 45 s behind and the third's 45 s ahead: each activates by its own, and what one
/// seals the others open meanwhile. The clock that is behind is set right in the end, so that nobody waits for it.
#[tokio::test]
async fn clocks_90_s_apart_fail_nothing() {
    let mut site = Site::start(3, 2).await;
    let offset = |node: &Node| -> PathBuf { node.place().join("clock") };
    for (node, seconds) in [(1, "-45"), (2, "+45")] {
        let node = &mut site.nodes[node];
        fs::write(offset(node), seconds).unwrap();
        node.kill();
        node.start_by(with_clock(&offset(node))).await;
    }
    for (node, seconds) in site.nodes.iter().zip([0, -45, 45]) {
        assert!((ahead(node) - seconds).abs() < 5, "{} is {} s ahead", node.address, ahead(node));
    }
    let store = Arc::new(Store::default());
    let loads: Vec<Load> =
        site.nodes.iter().enumerate().map(|(index, node)| Load::start(index, node.plugin(), &store)).collect();
    let mut reloads = Vec::new();
    site.done(&["stage", "--record", &site.record(2)]);
    hand_out(&site, &[0, 1, 2], &mut reloads).await;
    let hash = |node: usize| site.nodes[node].report()["key_id_hash"].clone();
    let before = hash(0);
    let at = jiff::Timestamp::from_second(jiff::Timestamp::now().as_second() + 15).unwrap().to_string();
    site.done(&["activate", "--record", "kek-2.json", "--nodes", &site.addresses(&[0, 1, 2]), "--at", &at]);
    hand_out(&site, &[0, 1, 2], &mut reloads).await;
    let mut order = Vec::new();
    for node in [2, 0, 1] {
        if node == 1 {
            // Some seconds in which only the last seals with the old KEK.
            tokio::time::sleep(Duration::from_secs(3)).await;
            assert_eq!(hash(1), before);
            fs::write(offset(&site.nodes[1]), "+0").unwrap();
        }
        until("the time on a node", async || hash(node) != before).await;
        order.push((node, [0, 1, 2].map(|node| hash(node) != before)));
    }
    let expected = [(2, [false, false, true]), (0, [true, false, true]), (1, [true; 3])];
    assert_eq!(order, expected, "the clock that is ahead comes first");
    assert!(hash(0) == hash(1) && hash(1) == hash(2));
    loads.into_iter().for_each(Load::stop);
    let tally = store.tally();
    println!("clocks 90 s apart: {}", tally.figures(&reloads));
    assert!(tally.failures.is_empty(), "{:#?}", tally.failures);
    assert_eq!(site.done(&["list"])["keks"][1]["state"], json!("active"));
}
