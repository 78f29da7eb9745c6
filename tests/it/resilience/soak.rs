//! A soak: steady calls, a fault every few seconds. Every RPC that fails is explained by a fault that lasted longer than its
//! deadline allows, and no answer is ever wrong.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, sleep};

use super::{Site, decrypt, encrypt, is_full};
use crate::failover::SEED;
use crate::processes::{descriptors_and_threads, signal, worker};

/// RPCs per second, half of each kind.
const RATE: u64 = 200;

/// What happened so far.
#[derive(Default)]
struct Count {
    good: AtomicUsize,
    failed: AtomicUsize,
    /// Failed though no fault was on in the last [`EXPLAINED`].
    unexplained: AtomicUsize,
}

/// A fault explains failures until so long after its end: the longest wait between two starts, and a deadline.
const EXPLAINED: Duration = Duration::from_secs(8);

#[tokio::test]
async fn every_failure_is_explained_by_a_fault() {
    let (span, pause) = if is_full() {
        (Duration::from_mins(30), Duration::from_secs(10))
    } else {
        (Duration::from_secs(20), Duration::from_secs(3))
    };
    let site = Site::new().await;
    let before = descriptors_and_threads(site.plugin.pid());
    let (began, count) = (Instant::now(), Arc::new(Count::default()));
    // Milliseconds since `began` at which the last fault ended, or `usize::MAX` while one is on.
    let faulty = Arc::new(AtomicUsize::new(0));
    let caller = tokio::spawn({
        let (client, sealed, count, faulty) =
            (site.client.clone(), site.sealed.clone(), Arc::clone(&count), Arc::clone(&faulty));
        async move {
            let mut calls = JoinSet::new();
            let mut tick = interval(Duration::from_micros(1_000_000 / RATE));
            tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
            for number in 0_u64.. {
                tick.tick().await;
                if began.elapsed() > span {
                    break;
                }
                let (mut client, sealed, count, faulty) =
                    (client.clone(), sealed.clone(), Arc::clone(&count), Arc::clone(&faulty));
                calls.spawn(async move {
                    let good = if number % 2 == 0 {
                        encrypt(&mut client).await.is_ok()
                    } else {
                        match decrypt(&mut client, &sealed).await {
                            Ok(found) => {
                                assert_eq!(found, SEED, "a wrong plaintext");
                                true
                            }
                            Err(_) => false,
                        }
                    };
                    if good {
                        count.good.fetch_add(1, Ordering::Relaxed);
                        return;
                    }
                    count.failed.fetch_add(1, Ordering::Relaxed);
                    let ended = faulty.load(Ordering::Relaxed);
                    let since = usize::try_from(began.elapsed().as_millis()).unwrap().saturating_sub(ended);
                    if ended != usize::MAX && since > usize::try_from(EXPLAINED.as_millis()).unwrap() {
                        count.unexplained.fetch_add(1, Ordering::Relaxed);
                    }
                });
                while calls.try_join_next().is_some_and(|call| call.is_ok()) {}
            }
            while let Some(call) = calls.join_next().await {
                call.unwrap();
            }
        }
    });
    let actions = [
        json!({"return": "CKR_DEVICE_REMOVED"}),
        json!("hang"),
        json!("crash"),
        json!({"delay_ms": 200}),
        json!("drop_sessions"),
        json!({"return": "CKR_GENERAL_ERROR"}),
    ];
    let mut injected = 0;
    while began.elapsed() + pause < span {
        sleep(pause).await;
        faulty.store(usize::MAX, Ordering::Relaxed);
        let fault = &actions[injected % actions.len()];
        injected += 1;
        if injected % 7 == 0 {
            if let Some(worker) = worker(&site.plugin) {
                signal(worker, rustix::process::Signal::KILL);
            }
        } else {
            site.fault.always("*", fault);
            sleep(Duration::from_millis(500)).await;
            site.fault.clear();
        }
        faulty.store(usize::try_from(began.elapsed().as_millis()).unwrap(), Ordering::Relaxed);
    }
    caller.await.unwrap();
    let found = |number: &AtomicUsize| number.load(Ordering::Relaxed);
    println!(
        "soak of {} s at {RATE} RPC/s, {injected} faults: {} good, {} failed while a fault was on or its worker being replaced, {} failed unexplained, 0 wrong",
        span.as_secs(),
        found(&count.good),
        found(&count.failed) - found(&count.unexplained),
        found(&count.unexplained),
    );
    assert_eq!(found(&count.unexplained), 0);
    assert!(found(&count.good) > found(&count.failed), "more failed than succeeded");
    crate::faults::until("descriptors and threads as before", async || {
        descriptors_and_threads(site.plugin.pid()) <= before
    })
    .await;
}
