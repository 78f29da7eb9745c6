//! Keeps one worker serving: starts it, watches it, kills it when it hangs, replaces it, and proves the KEK.

use std::sync::Arc;
use std::time::Duration;

use sha2::{Digest, Sha256};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};

use super::lane::Lane;
use super::lifecycle::{Event, Lifecycle, Next, Stop};
use super::member::{Attempt, Member, Phase, Shared};
use super::process::{StartFailure, Worker};
use super::{Failure, Work};
use crate::class::Class;
use crate::observe::metrics::METRICS;
use crate::wire::link;

/// A worker that has work and answers nothing for this long is hung. Leaves room for a retry within the API server's 3 s.
const CALL_LIMIT: Duration = Duration::from_millis(1200);

/// How often hung workers are looked for.
const WATCH_INTERVAL: Duration = Duration::from_millis(200);

/// A proof that found no real work done for this long makes sure of the KEK.
const TRIAL_LIMIT: Duration = Duration::from_millis(2400);

/// Runs for the life of the process.
pub(super) async fn supervise(shared: Arc<Shared>) {
    let mut lifecycle = Lifecycle::default();
    loop {
        let label = &shared.spec.start.token_label;
        let event = match Worker::start(&shared.spec).await {
            Ok((worker, token)) => {
                METRICS.worker_start(label, 0, true);
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
                Event::Served(began.elapsed())
            }
            Err(StartFailure { failure, login_unknown }) => {
                METRICS.worker_start(label, 0, false);
                METRICS.hsm_failure(label, 0, failure.class.word());
                log_down(&shared, &failure);
                let class = failure.class;
                set_down(&shared, failure);
                Event::StartFailed { class, login_unknown }
            }
        };
        match lifecycle.on(event) {
            Next::Start => {}
            Next::StartAfter(wait) => tokio::select! {
                () = sleep(jitter(wait)) => {}
                () = shared.restart.notified() => drop(lifecycle.on(Event::Operator)),
            },
            Next::Wait(stop) => {
                if stop == Stop::UnknownLogins {
                    let failure = unknown_logins();
                    log_down(&shared, &failure);
                    set_down(&shared, failure);
                }
                shared.restart.notified().await;
                tracing::info!("operator asked for a new try");
                lifecycle.on(Event::Operator);
                shared.change(|state| state.phase = Phase::Starting);
            }
        }
    }
}

/// Proves the KEK again and again while no real work does, so that a token that went away is noticed before the API server needs
/// it.
pub(super) async fn probe(member: Member) {
    let keks = member.shared.spec.start.keks.clone();
    let interval = member.shared.spec.probe_interval;
    loop {
        sleep(interval).await;
        let state = member.state();
        if !matches!(state.phase, Phase::Ready) {
            continue;
        }
        if state.fault().is_some() {
            // The API server seals about once in its life: nobody but us would find out that sealing works again.
            let trial = link::Seal { context: vec![0; 32], plaintext: vec![0; 32] };
            let deadline = Instant::now() + TRIAL_LIMIT;
            let _ = member.attempt(Work::Seal, 0, link::request::Work::Seal(trial), deadline).await;
        } else if member.proved_ago().is_some_and(|ago| ago < interval) {
            continue;
        }
        for (index, kek) in (0..).zip(&keks) {
            let Some(proof) = kek.proofs.first() else { continue };
            let Some(open) = proof.open.clone() else { continue };
            let deadline = Instant::now() + TRIAL_LIMIT;
            match member.attempt(Work::Open, index, link::request::Work::Open(open), deadline).await {
                Attempt::Done(Ok(link::reply::Outcome::Opened(link::Opened { plaintext: challenge }))) => {
                    if Sha256::digest(&challenge).as_slice() != proof.digest {
                        tracing::error!("the KEK opened its proof blob to another challenge");
                    }
                }
                Attempt::Done(Ok(_)) => {}
                Attempt::Done(Err(error)) | Attempt::Failed(error) => {
                    tracing::warn!(token = member.label(), %error, "the KEK could not be proved");
                }
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
    shared.proved();
    shared.change(|state| {
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
    shared.change(|state| {
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

fn set_down(shared: &Shared, failure: Failure) {
    shared.change(|state| {
        state.phase = Phase::Down(failure);
        // What served before does not count any more: the next start must not look healthy by it.
        state.served = None;
    });
}

fn unknown_logins() -> Failure {
    Failure {
        class: Class::PinOrConfig,
        public: "logins end without an answer; no more is tried".to_owned(),
        detail: "two logins hung or crashed before any had succeeded: the token may have counted them, and some lock at the third"
            .to_owned(),
        hint: "look at the HSM and at the PIN's counter there, then send SIGHUP".to_owned(),
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
