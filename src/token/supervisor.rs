//! Keeps one worker serving: starts it, watches it, kills it when it hangs, replaces it, and proves the KEK.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use sha2::{Digest, Sha256};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};

use super::lane::Lane;
use super::lifecycle::{Event, Lifecycle, Next, Stop};
use super::member::{Attempt, Member, Phase, Shared};
use super::process::{Login, StartFailure, Worker};
use super::{Failure, Work};
use crate::audit::{self, LoginOutcome};
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
        let (label, position) = (&shared.spec.start.token_label, shared.position);
        let event = match start(&shared).await {
            Ok((worker, token)) => {
                METRICS.worker_start(label, position, true);
                tracing::info!(
                    label = token.label,
                    manufacturer = token.manufacturer,
                    model = token.model,
                    serial = token.serial,
                    library = token.library,
                    sandbox = token.sandbox,
                    "token ready: logged in, KEK found and proved"
                );
                let began = Instant::now();
                match serve(&shared, worker).await {
                    End::Operator => operator(&shared).await,
                    End::Lost => Event::Served(began.elapsed()),
                }
            }
            Err(StartFailure { failure, login }) => {
                METRICS.worker_start(label, position, false);
                METRICS.hsm_failure(label, position, failure.class.word());
                log_down(&shared, &failure);
                let class = failure.class;
                set_down(&shared, failure);
                Event::StartFailed { class, login_unknown: login == Login::Unknown }
            }
        };
        match lifecycle.on(event) {
            Next::Start => {}
            Next::StartAfter(wait) => tokio::select! {
                () = sleep(jitter(wait)) => {}
                () = shared.restart.notified() => drop(lifecycle.on(operator(&shared).await)),
            },
            Next::Wait(stop) => {
                if stop == Stop::UnknownLogins {
                    let failure = unknown_logins();
                    shared.gate.close(&mut *shared.gate.closed.lock().await, Some(failure.clone()));
                    log_down(&shared, &failure);
                    set_down(&shared, failure);
                }
                shared.restart.notified().await;
                tracing::info!("operator asked for a new try");
                lifecycle.on(operator(&shared).await);
                shared.change(|state| state.phase = Phase::Starting);
            }
        }
    }
}

/// Starts a worker, one at a time of those that share a PIN, and none while the PIN is known to be refused.
async fn start(shared: &Shared) -> Result<(Worker, link::TokenInfo), StartFailure> {
    let mut closed = shared.gate.closed.lock().await;
    if let Some(failure) = closed.clone() {
        return Err(StartFailure { failure, login: Login::NotTried });
    }
    let started = Worker::start(&shared.spec, shared.position).await;
    let (login, failure) = match &started {
        Ok(_) => (Login::Passed, None),
        Err(StartFailure { failure, login }) => (*login, Some(failure.public.clone())),
    };
    let outcome = match login {
        _ if shared.spec.pin.is_none() => None,
        Login::NotTried => None,
        Login::Passed => Some(LoginOutcome::Passed),
        Login::Refused => Some(LoginOutcome::Refused),
        Login::Unknown => Some(LoginOutcome::Unknown),
    };
    if let Some(outcome) = outcome {
        METRICS.login(&shared.spec.start.token_label, shared.position, outcome.word());
        let token = shared.spec.start.token_label.clone();
        audit::record(|| audit::Event::Login { token, position: shared.position, outcome, failure });
    }
    if let Err(StartFailure { failure, login: Login::Refused }) = &started
        && failure.class == Class::PinOrConfig
    {
        shared.gate.close(&mut closed, Some(failure.clone()));
    }
    started
}

/// The operator's word: what stopped the starts may be mended.
async fn operator(shared: &Shared) -> Event {
    shared.gate.close(&mut *shared.gate.closed.lock().await, None);
    Event::Operator
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
            let kek = member.shared.seals_with.load(Ordering::Relaxed);
            let _ = member.attempt(Work::Seal, kek, link::request::Work::Seal(trial), deadline).await;
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
                        let failure = another_challenge();
                        log_down(&member.shared, &failure);
                        member.shared.learn(Work::Open, Some((&failure, false)));
                    }
                }
                Attempt::Done(Ok(_)) => {}
                Attempt::Done(Err(error)) | Attempt::Lost(error) | Attempt::Refused(error) => {
                    tracing::warn!(token = member.label(), %error, "the KEK could not be proved");
                }
            }
        }
    }
}

/// Serves until the worker ends, hangs, gives up a session, or is to be replaced. Returns when it is dead and reaped.
async fn serve(shared: &Shared, mut worker: Worker) -> End {
    let mut tasks = JoinSet::new();
    let lanes: Arc<[Arc<Lane>]> = worker
        .sessions
        .drain(..)
        .map(|stream| {
            let lane = Arc::new(Lane::new(shared.position));
            let runner = Arc::clone(&lane);
            tasks.spawn(async move { runner.run(stream).await });
            lane
        })
        .collect();
    shared.proved();
    shared.change(|state| {
        state.generation += 1;
        state.phase = Phase::Ready;
        state.has_served = true;
        state.lanes = Arc::clone(&lanes);
    });
    let mut watch = interval(WATCH_INTERVAL);
    watch.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let end = loop {
        tokio::select! {
            status = worker.process.ended() => {
                tracing::error!(status, "the worker process ended; it is replaced");
                break End::Lost;
            }
            _ = tasks.join_next() => {
                tracing::warn!("the worker gave up a session; it is replaced");
                break End::Lost;
            }
            () = shared.restart.notified() => {
                tracing::info!("operator asked for a new worker");
                break End::Operator;
            }
            _ = watch.tick() => {
                if lanes.iter().any(|lane| lane.silent_for() >= CALL_LIMIT) {
                    let limit = CALL_LIMIT.as_millis();
                    tracing::error!("a PKCS#11 call has hung for {limit} ms; the worker is killed and replaced");
                    break End::Lost;
                }
            }
        }
    };
    shared.change(|state| {
        state.phase = Phase::Starting;
        state.lanes = Arc::new([]);
    });
    // Closing the lanes tells every request that still waits, so only after the new phase is known; and before the kill, since a
    // process that is stuck in the kernel may not die.
    tasks.shutdown().await;
    for lane in lanes.iter() {
        lane.close();
    }
    worker.kill().await;
    end
}

/// Why a worker serves no more.
enum End {
    /// It ended, hung, or gave up a session.
    Lost,
    /// The operator asked for another.
    Operator,
}

fn set_down(shared: &Shared, failure: Failure) {
    shared.change(|state| {
        state.phase = Phase::Down(failure);
        // What served before does not count any more: the next start must not look healthy by it.
        state.has_served = false;
    });
}

fn another_challenge() -> Failure {
    Failure {
        class: Class::PinOrConfig,
        public: "the key on the token is not the KEK of the record".to_owned(),
        detail: "the KEK opened its proof blob to another challenge".to_owned(),
        hint: "do not use this token; call whoever held the ceremony".to_owned(),
    }
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
