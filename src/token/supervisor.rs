//! Keeps one worker serving: starts it, watches it, kills it when it hangs, replaces it, and proves the KEK.

use std::sync::Arc;
use std::time::Duration;

use sha2::{Digest, Sha256};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};

use super::lane::Lane;
use super::process::Worker;
use super::{Failure, Phase, Shared, State, Token};
use crate::class::Class;
use crate::secret::Plaintext;

/// A worker that has work and answers nothing for this long is hung. Leaves room for a retry within the API server's 3 s.
const CALL_LIMIT: Duration = Duration::from_millis(1200);

/// How often hung workers are looked for.
const WATCH_INTERVAL: Duration = Duration::from_millis(200);

/// First and longest wait between two starts that failed.
const FIRST_BACKOFF: Duration = Duration::from_millis(250);
const LONGEST_BACKOFF: Duration = Duration::from_secs(5);

/// Runs for the life of the process.
pub(super) async fn supervise(shared: Arc<Shared>) {
    let mut backoff = FIRST_BACKOFF;
    loop {
        match Worker::start(&shared.spec).await {
            Ok((worker, token)) => {
                tracing::info!(
                    label = token.label,
                    manufacturer = token.manufacturer,
                    model = token.model,
                    serial = token.serial,
                    library = token.library,
                    "token ready: logged in, KEK found and proved"
                );
                let began = Instant::now();
                serve(&shared, worker).await;
                // A worker that served proves that token and PIN are good: only starts that fail are spaced further apart.
                backoff = FIRST_BACKOFF;
                if began.elapsed() > LONGEST_BACKOFF {
                    continue;
                }
            }
            Err(failure) => {
                log_down(&shared, &failure);
                let stop = failure.class == Class::PinOrConfig;
                shared.set_down(failure);
                if stop {
                    // Another login could lock the token, and no other mistake mends itself.
                    shared.restart.notified().await;
                    tracing::info!("operator asked for a new try");
                    backoff = FIRST_BACKOFF;
                    shared.set_phase(Phase::Starting);
                    continue;
                }
            }
        }
        tokio::select! {
            () = sleep(jitter(backoff)) => backoff = (backoff * 2).min(LONGEST_BACKOFF),
            () = shared.restart.notified() => backoff = FIRST_BACKOFF,
        }
    }
}

/// Proves the KEK again and again, so that a token that went away is noticed before the API server needs it.
pub(super) async fn probe(token: Token) {
    let keks = token.shared.spec.start.keks.clone();
    loop {
        sleep(token.shared.spec.probe_interval).await;
        let state = token.state();
        if !matches!(state.phase, Phase::Ready) {
            continue;
        }
        if state.faults.iter().any(Option::is_some) {
            // The API server seals about once in its life: nobody but us would find out that sealing works again.
            let trial = Plaintext::new(vec![0; 32]);
            let _ = token.seal(0, &[0; 32], &trial, Instant::now() + CALL_LIMIT * 2).await;
        }
        for (index, kek) in (0..).zip(&keks) {
            let Some(proof) = kek.proofs.first() else { continue };
            let Some(open) = proof.open.clone() else { continue };
            match token.open(index, open, Instant::now() + CALL_LIMIT * 2).await {
                Ok(challenge) if Sha256::digest(challenge.expose()).as_slice() == proof.digest => {}
                Ok(_) => tracing::error!("the KEK opened its proof blob to another challenge"),
                Err(error) => tracing::warn!(%error, "the KEK could not be proved"),
            }
        }
    }
}

/// Serves until the worker ends, hangs, gives up a session, or is to be replaced. Returns when it is dead and reaped.
async fn serve(shared: &Shared, mut worker: Worker) {
    let mut tasks = JoinSet::new();
    let lanes: Arc<[Arc<Lane>]> = worker
        .sessions
        .drain(..)
        .map(|stream| {
            let lane = Arc::new(Lane::new());
            let runner = Arc::clone(&lane);
            tasks.spawn(async move { runner.run(stream).await });
            lane
        })
        .collect();
    shared.state.send_modify(|state| {
        state.generation += 1;
        state.phase = Phase::Ready;
        state.served = Some(Instant::now());
        state.lanes = Arc::clone(&lanes);
    });
    let mut watch = interval(WATCH_INTERVAL);
    watch.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            status = worker.child.wait() => {
                let status = status.map_or_else(|error| error.to_string(), |status| status.to_string());
                tracing::error!(status, "the worker process ended; it is replaced");
                break;
            }
            _ = tasks.join_next() => {
                tracing::warn!("the worker gave up a session; it is replaced");
                break;
            }
            () = shared.restart.notified() => {
                tracing::info!("operator asked for a new worker");
                break;
            }
            _ = watch.tick() => {
                if lanes.iter().any(|lane| lane.silent_for() >= CALL_LIMIT) {
                    let limit = CALL_LIMIT.as_millis();
                    tracing::error!("a PKCS#11 call has hung for {limit} ms; the worker is killed and replaced");
                    break;
                }
            }
        }
    }
    shared.state.send_modify(|state| {
        state.phase = Phase::Starting;
        // It served until now.
        state.served = Some(Instant::now());
        state.lanes = Arc::new([]);
    });
    worker.kill().await;
    // Closing the lanes tells every request that still waits, so only after the new phase is known.
    tasks.shutdown().await;
    for lane in lanes.iter() {
        lane.close();
    }
}

impl Shared {
    fn set_down(&self, failure: Failure) {
        self.state.send_modify(|state: &mut State| {
            state.phase = Phase::Down(failure);
            // What served before does not count any more: the next start must not look healthy by it.
            state.served = None;
        });
    }

    fn set_phase(&self, phase: Phase) {
        self.state.send_modify(|state: &mut State| state.phase = phase);
    }
}

fn log_down(shared: &Shared, failure: &Failure) {
    let known = matches!(&shared.state.borrow().phase, Phase::Down(before) if before == failure);
    // Once per reason: the retries of a long outage must not fill the disk.
    if !known {
        tracing::error!(class = failure.class.word(), hint = failure.hint, "token down: {failure}");
    }
}

/// Full jitter between a half and the whole, so that the nodes of a fleet do not knock at one time.
fn jitter(longest: Duration) -> Duration {
    let mut byte = [0];
    let _ = getrandom::fill(&mut byte);
    let [byte] = byte;
    longest / 2 + longest / 2 * u32::from(byte) / 256
}
