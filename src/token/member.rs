//! One token of the list: what is known about it now, and one attempt at a time to use it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::{Instant, timeout_at};

use super::lane::Lane;
use super::process::WorkerSpec;
use super::{Failure, RequestError, Work, supervisor};
use crate::class::Class;
use crate::observe::metrics::METRICS;
use crate::wire::link;

/// One token, reached through its worker process. Cheap to clone.
#[derive(Clone)]
pub(super) struct Member {
    pub(super) shared: Arc<Shared>,
}

pub(super) struct Shared {
    pub(super) spec: WorkerSpec,
    pub(super) state: watch::Sender<State>,
    pub(super) restart: Notify,
    /// Told of every change that a waiting request could wait for.
    changes: watch::Sender<u64>,
    /// When the KEK last did its work, in milliseconds of [`uptime`]. 0: never.
    proved: AtomicU64,
}

/// What is known about the token now. Read from memory, never by asking the HSM.
#[derive(Clone)]
pub(super) struct State {
    /// Where the worker stands.
    pub(super) phase: Phase,
    /// When a worker last served, or began to. `None`: the last start failed.
    pub(super) served: Option<Instant>,
    /// Since when the worker has served without a fault.
    sound_since: Option<Instant>,
    /// What failed when the worker last sealed, and when it last opened, if it did not fail for the request's own sake.
    faults: [Option<Failure>; 2],
    pub(super) generation: u64,
    pub(super) lanes: Arc<[Arc<Lane>]>,
}

/// Where a worker stands.
#[derive(Clone, Debug)]
pub(super) enum Phase {
    /// A worker is being started.
    Starting,
    /// The worker serves: token found, logged in, KEKs proved.
    Ready,
    /// No worker serves. A [`Class::PinOrConfig`] failure is not tried again before the operator asks for it.
    Down(Failure),
}

/// What came of one attempt.
pub(super) enum Attempt {
    /// The answer, or a refusal that no other token would change.
    Done(Result<link::reply::Outcome, RequestError>),
    /// The token failed. The same work may succeed on another worker or token.
    Failed(RequestError),
}

impl Member {
    /// Starts the supervisor, which starts the worker. Returns at once.
    pub(super) fn start(spec: WorkerSpec, changes: watch::Sender<u64>) -> Self {
        let state = State {
            phase: Phase::Starting,
            served: None,
            sound_since: None,
            faults: [None, None],
            generation: 0,
            lanes: Arc::new([]),
        };
        let shared = Arc::new(Shared {
            spec,
            state: watch::Sender::new(state),
            restart: Notify::new(),
            changes,
            proved: AtomicU64::new(0),
        });
        let member = Self { shared };
        tokio::spawn(supervisor::supervise(Arc::clone(&member.shared)));
        tokio::spawn(supervisor::probe(member.clone()));
        member
    }

    /// What is known about the token now.
    pub(super) fn state(&self) -> State {
        self.shared.state.borrow().clone()
    }

    /// Label of the token, as configured.
    pub(super) fn label(&self) -> &str {
        &self.shared.spec.start.token_label
    }

    /// How long ago the KEK last did its work here.
    pub(super) fn proved_ago(&self) -> Option<Duration> {
        let at = self.shared.proved.load(Ordering::Relaxed);
        (at != 0).then(|| Duration::from_millis(uptime().saturating_sub(at)))
    }

    /// One attempt on the worker that serves now.
    pub(super) async fn attempt(&self, kind: Work, kek: u32, work: link::request::Work, deadline: Instant) -> Attempt {
        let lanes = Arc::clone(&self.shared.state.borrow().lanes);
        let lane = lanes.iter().min_by_key(|lane| lane.load());
        let Some(reply) = lane.and_then(|lane| lane.send(kek, work, deadline)) else {
            return Attempt::Failed(Failure::worker_lost().into());
        };
        match timeout_at(deadline, reply).await {
            Err(_) => Attempt::Done(Err(RequestError::Deadline)),
            // The lane closed: the worker is gone, and with it the answer. Both kinds of work are safe to repeat.
            Ok(Err(_)) => Attempt::Failed(Failure::worker_lost().into()),
            Ok(Ok(link::reply::Outcome::Failure(failure))) => {
                let failure = Failure::from(failure);
                self.shared.learn(kind, Some(&failure));
                if failure.class != Class::Data {
                    METRICS.hsm_failure(self.label(), 0, failure.class.word());
                }
                if failure.class.ends_worker() {
                    tracing::warn!(
                        token = self.label(),
                        class = failure.class.word(),
                        detail = %failure,
                        hint = failure.hint,
                        "HSM call failed"
                    );
                }
                // Another token may have room, or the right that this one lost; no token opens a corrupt blob.
                match failure.class {
                    Class::Data => Attempt::Done(Err(failure.into())),
                    _ => Attempt::Failed(failure.into()),
                }
            }
            Ok(Ok(outcome)) => {
                self.shared.learn(kind, None);
                Attempt::Done(Ok(outcome))
            }
        }
    }
}

impl State {
    /// Why one of the two kinds of work does not succeed, though the worker serves.
    pub(super) fn fault(&self) -> Option<&Failure> {
        self.faults.iter().flatten().next()
    }

    /// Whether a worker serves, and both kinds of work last succeeded.
    pub(super) fn is_sound(&self) -> bool {
        matches!(self.phase, Phase::Ready) && self.fault().is_none()
    }

    /// For how long it has been sound without a break.
    pub(super) fn sound_for(&self) -> Duration {
        self.sound_since.filter(|_| self.is_sound()).map_or(Duration::ZERO, |since| since.elapsed())
    }

    /// Whether the KEK is known to work, or did so a moment ago while a worker is being replaced.
    pub(super) fn is_healthy(&self) -> bool {
        self.fault().is_none()
            && match self.phase {
                Phase::Ready => true,
                Phase::Starting => self.served.is_some_and(|served| served.elapsed() < REPLACEMENT_GRACE),
                Phase::Down(_) => false,
            }
    }

    /// Why it does not work. `None`: it does, or nothing is known yet.
    pub(super) fn failure(&self) -> Option<&Failure> {
        match &self.phase {
            Phase::Down(failure) => Some(failure),
            Phase::Ready | Phase::Starting => self.fault(),
        }
    }
}

/// How long a token still counts as healthy while its worker is replaced: a respawn takes milliseconds, and an unhealthy
/// Status takes the API server out of service for at least 3 s.
const REPLACEMENT_GRACE: Duration = Duration::from_secs(5);

impl Shared {
    /// Changes the state, and tells whoever waits for a change.
    pub(super) fn change(&self, change: impl FnOnce(&mut State)) {
        self.state.send_modify(|state| {
            let was_sound = state.is_sound();
            change(state);
            if !was_sound && state.is_sound() {
                state.sound_since = Some(Instant::now());
            }
        });
        self.changes.send_modify(|count| *count += 1);
    }

    /// The KEK did its work, or a worker proved it at its start.
    pub(super) fn proved(&self) {
        self.proved.store(uptime(), Ordering::Relaxed);
    }

    /// Keeps what a piece of work showed. A blob that does not open and a device that is busy say nothing about the token.
    fn learn(&self, kind: Work, failure: Option<&Failure>) {
        if failure.is_some_and(|failure| matches!(failure.class, Class::Data | Class::Busy)) {
            return;
        }
        if failure.is_none() {
            self.proved();
        }
        let has_fault = |state: &State| state.faults.get(kind as usize).is_some_and(Option::is_some);
        if has_fault(&self.state.borrow()) != failure.is_some() {
            self.change(|state| {
                if let Some(fault) = state.faults.get_mut(kind as usize) {
                    *fault = failure.cloned();
                }
            });
        }
    }
}

/// Milliseconds since the first call, plus one.
fn uptime() -> u64 {
    static BEGAN: OnceLock<Instant> = OnceLock::new();
    let began = BEGAN.get_or_init(Instant::now);
    u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX).saturating_add(1)
}
