//! A soak: steady calls, a fault every few seconds. Every RPC that fails is explained by a fault, none of those that a retry covers
//! explains any, and no answer is ever wrong.

use std::time::{Duration, Instant};

use hsm_kms::kms::proto::EncryptResponse;
use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{MissedTickBehavior, interval, sleep};
use tonic::Code;

use super::{Site, decrypt, encrypt, is_full};
use crate::failover::SEED;
use crate::faults::until;
use crate::processes::{descriptors_and_threads, signal, worker};

/// RPCs per second, half of each kind.
const RATE: u64 = 200;

/// Seeds that are opened in turn: identical opens at one time are done once.
const SEEDS: usize = 16;

/// How long a fault is on.
const LASTS: Duration = Duration::from_millis(500);

/// A fault explains the failure of what began until so long after its end: the longest wait between two starts.
const RECOVERY: Duration = Duration::from_secs(4);

/// What happens to the plugin, and whether a retry covers it, so that no request may fail.
struct Kind {
    name: &'static str,
    /// The module's, on all calls. `None`: the worker is killed.
    action: Option<Value>,
    is_covered: bool,
}

/// One fault, from beginning to end, by its place among the kinds.
struct Fault {
    kind: usize,
    began: Instant,
    ended: Instant,
}

/// One RPC.
struct Call {
    began: Instant,
    ended: Instant,
    answer: Answer,
}

enum Answer {
    Sealed(EncryptResponse),
    Opened,
    Wrong,
    Failed(Code),
}

fn kinds() -> Vec<Kind> {
    let kind = |name, action: Value, is_covered| Kind { name, action: Some(action), is_covered };
    vec![
        kind("CKR_DEVICE_REMOVED", json!({"return": "CKR_DEVICE_REMOVED"}), false),
        kind("hang", json!("hang"), true),
        kind("crash", json!("crash"), false),
        kind("200 ms per call", json!({"delay_ms": 200}), true),
        kind("sessions closed", json!("drop_sessions"), false),
        kind("CKR_GENERAL_ERROR", json!({"return": "CKR_GENERAL_ERROR"}), false),
        Kind { name: "worker killed", action: None, is_covered: true },
    ]
}

impl Fault {
    /// Whether the call ran while the fault was on, or began before its worker must have been replaced.
    fn explains(&self, call: &Call) -> bool {
        call.ended >= self.began && call.began <= self.ended + RECOVERY
    }
}

#[tokio::test]
async fn every_failure_is_explained_by_a_fault() {
    let kinds = kinds();
    // How often a fault begins, and how many such times. Half an hour, or each kind once.
    let (every, times) = if is_full() { (10, 180) } else { (8, kinds.len() + 1) };
    let every = Duration::from_secs(every);
    let mut site = Site::new().await;
    let mut seeds = Vec::new();
    for _ in 0..SEEDS {
        seeds.push(encrypt(&mut site.client).await.unwrap());
    }
    let before = descriptors_and_threads(site.plugin.pid());
    let span = every * u32::try_from(times).unwrap();
    let caller = call_for(span, &site, seeds);
    let mut faults = Vec::new();
    let mut tick = interval(every);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    tick.tick().await;
    // The last one is followed by its quiet time too.
    for number in 0..times - 1 {
        tick.tick().await;
        let kind = number % kinds.len();
        faults.push(inject(&site, kind, &kinds[kind]).await);
    }
    let calls = caller.await.unwrap();

    let (mut good, mut wrong, mut unexplained, mut checked) = (0, 0, Vec::new(), 0);
    let mut sealed_so_far = 0;
    let mut failed = vec![0; kinds.len()];
    let mut sample = Vec::new();
    for call in &calls {
        let fault = faults.iter().rev().find(|fault| fault.explains(call));
        checked += usize::from(fault.is_none());
        match (&call.answer, fault) {
            (Answer::Sealed(sealed), _) => {
                good += 1;
                sealed_so_far += 1;
                if sealed_so_far % 20 == 0 {
                    sample.push(sealed);
                }
            }
            (Answer::Opened, _) => good += 1,
            (Answer::Wrong, _) => wrong += 1,
            (Answer::Failed(_), Some(fault)) => failed[fault.kind] += 1,
            (Answer::Failed(code), None) => unexplained.push((*code, call.began)),
        }
    }
    for sealed in &sample {
        wrong += usize::from(decrypt(&mut site.client, sealed).await.unwrap() != SEED);
    }
    println!(
        "soak of {} s at {RATE} RPC/s, {} faults: {} RPCs, {good} good, {wrong} wrong, {} failed unexplained; {checked} at times when \
         no fault explains a failure; {} of the sealed seeds opened again",
        span.as_secs(),
        faults.len(),
        calls.len(),
        unexplained.len(),
        sample.len(),
    );
    for (kind, failed) in kinds.iter().zip(&failed) {
        println!("  {:<20} {failed:>5} failed{}", kind.name, if kind.is_covered { ", none may" } else { "" });
    }
    assert_eq!(wrong, 0, "wrong answers");
    assert!(unexplained.is_empty(), "{unexplained:?}");
    assert!(checked * 3 > calls.len(), "too little time without a fault: {checked} of {}", calls.len());
    for (kind, failed) in kinds.iter().zip(&failed) {
        assert!(!kind.is_covered || *failed == 0, "{failed} failed by {}, which a retry covers", kind.name);
    }
    assert!(failed[0] > 0, "a device that is gone was not noticed");
    assert!(!sample.is_empty());
    let (descriptors, threads) = before;
    until("no more descriptors than before", async || descriptors_and_threads(site.plugin.pid()).0 <= descriptors)
        .await;
    assert_eq!(descriptors_and_threads(site.plugin.pid()).1, threads, "threads");
    site.plugin.stop().await;
}

/// Calls at [`RATE`] for this long, and returns all calls. A call that panics fails the test.
fn call_for(span: Duration, site: &Site, seeds: Vec<EncryptResponse>) -> JoinHandle<Vec<Call>> {
    let client = site.client.clone();
    tokio::spawn(async move {
        let (mut calls, mut running) = (Vec::new(), JoinSet::new());
        let mut tick = interval(Duration::from_micros(1_000_000 / RATE));
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let start = Instant::now();
        let mut number = 0;
        while start.elapsed() < span {
            tick.tick().await;
            number += 1;
            let sealed = (number % 2 == 0).then(|| seeds[number / 2 % SEEDS].clone());
            let mut client = client.clone();
            running.spawn(async move {
                let began = Instant::now();
                let answer = match sealed {
                    None => encrypt(&mut client).await.map(Answer::Sealed),
                    Some(sealed) => decrypt(&mut client, &sealed)
                        .await
                        .map(|found| if found == SEED { Answer::Opened } else { Answer::Wrong }),
                };
                let answer = answer.unwrap_or_else(|status| Answer::Failed(status.code()));
                Call { began, ended: Instant::now(), answer }
            });
            while let Some(call) = running.try_join_next() {
                calls.push(call.unwrap());
            }
        }
        while let Some(call) = running.join_next().await {
            calls.push(call.unwrap());
        }
        calls
    })
}

/// Lets the fault happen, and waits until it is over.
async fn inject(site: &Site, number: usize, kind: &Kind) -> Fault {
    let began = Instant::now();
    if let Some(action) = &kind.action {
        site.fault.always("*", action);
        sleep(LASTS).await;
        site.fault.clear();
    } else {
        until("a worker", async || worker(&site.plugin).is_some()).await;
        signal(worker(&site.plugin).unwrap(), Signal::KILL);
    }
    Fault { kind: number, began, ended: Instant::now() }
}
