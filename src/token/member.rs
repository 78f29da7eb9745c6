//! One token of the list: what is known about it now, and one attempt at a time to use it.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::task::AbortHandle;
use tokio::time::{Instant, timeout_at};

use super::gate::Gate;
use super::lane::Lane;
use super::process::WorkerSpec;
use super::{Failure, RequestError, Work, supervisor};
use crate::class::Class;
use crate::observe::metrics::{METRICS, TokenSnapshot, TokenState};
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
    /// Place in the list, from 0.
    pub(super) position: u64,
    /// What tokens with one PIN share.
    pub(super) gate: Arc<Gate>,
    /// When the KEK last did its work, in milliseconds of [`uptime`]. 0: never.
    proved: AtomicU64,
    /// Index of the KEK that seals.
    pub(super) seals_with: AtomicU32,
}

/// What is known about the token now. Read from memory, never by asking the HSM.
#[derive(Clone)]
pub(super) struct State {
    /// Where the worker stands.
    pub(super) phase: Phase,
    /// Whether a worker has served since the last start that failed.
    pub(super) has_served: bool,
    /// Since when something has been wrong: no worker serves, or one kind of work failed and has not succeeded since.
    trouble_since: Option<Instant>,
    /// Since when nothing has been wrong.
    sound_since: Option<Instant>,
    /// What went wrong when the worker last sealed, and when it last opened.
    faults: [Option<Fault>; 2],
    pub(super) generation: u64,
    pub(super) lanes: Arc<[Arc<Lane>]>,
}

/// Why one kind of work did not succeed.
#[derive(Clone)]
struct Fault {
    failure: Failure,
    /// Of the sort that one retry or a moment mends: a worker that was lost, a busy device. Counts against the token only when it
    /// lasts.
    is_passing: bool,
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
    /// The worker is gone or will be replaced. The same work may succeed on its successor, or on another token.
    Lost(RequestError),
    /// The worker stays, and would fail again. The same work may succeed on another token.
    Refused(RequestError),
}

impl Member {
    /// Starts the supervisor, which starts the worker, and the prober. Returns at once, with both.
    pub(super) fn start(
        spec: WorkerSpec,
        position: u64,
        gate: Arc<Gate>,
        changes: watch::Sender<u64>,
    ) -> (Self, [AbortHandle; 2]) {
        let state = State {
            phase: Phase::Starting,
            has_served: false,
            trouble_since: Some(Instant::now()),
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
            position,
            gate,
            proved: AtomicU64::new(0),
            seals_with: AtomicU32::new(0),
        });
        let member = Self { shared };
        let supervisor = tokio::spawn(supervisor::supervise(Arc::clone(&member.shared)));
        let prober = tokio::spawn(supervisor::probe(member.clone()));
        (member, [supervisor.abort_handle(), prober.abort_handle()])
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

    /// How it stands, for the metrics.
    pub(super) fn snapshot(&self) -> TokenSnapshot {
        let state = self.state();
        TokenSnapshot {
            label: self.label().to_owned(),
            state: match &state.phase {
                Phase::Starting => TokenState::Starting,
                Phase::Ready if state.fault().is_some() => TokenState::Faulty,
                Phase::Ready => TokenState::Ready,
                Phase::Down(failure) if failure.class == Class::PinOrConfig => TokenState::Stopped,
                Phase::Down(_) => TokenState::Down,
            },
            is_sound: state.is_sound(),
            is_pin_held_back: self.shared.gate.is_closed.load(Ordering::Relaxed),
            sessions: state.lanes.len(),
            proved_ago: self.proved_ago(),
        }
    }

    /// One attempt on the worker that serves now.
    pub(super) async fn attempt(&self, kind: Work, kek: u32, work: link::request::Work, deadline: Instant) -> Attempt {
        let lanes = Arc::clone(&self.shared.state.borrow().lanes);
        let lane = lanes.iter().min_by_key(|lane| lane.load());
        let Some(reply) = lane.and_then(|lane| lane.send(kek, work, deadline)) else {
            return Attempt::Lost(Failure::worker_lost().into());
        };
        match timeout_at(deadline, reply).await {
            Err(_) => Attempt::Refused(RequestError::Deadline),
            // The lane closed: the worker is gone, and with it the answer. Both kinds of work are safe to repeat.
            Ok(Err(_)) => {
                let failure = Failure::worker_lost();
                METRICS.hsm_failure(self.label(), self.shared.position, failure.class.word());
                self.shared.learn(kind, Some((&failure, true)));
                Attempt::Lost(failure.into())
            }
            Ok(Ok(link::reply::Outcome::Failure(failure))) => {
                let failure = Failure::from(failure);
                self.shared.learn(kind, Some((&failure, failure.class == Class::Busy)));
                if failure.class != Class::Data {
                    METRICS.hsm_failure(self.label(), self.shared.position, failure.class.word());
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
                    class if class.ends_worker() => Attempt::Lost(failure.into()),
                    _ => Attempt::Refused(failure.into()),
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
        self.faults.iter().flatten().next().map(|fault| &fault.failure)
    }

    /// For how long something has been wrong.
    pub(super) fn trouble_for(&self) -> Option<Duration> {
        self.trouble_since.map(|since| since.elapsed())
    }

    /// Whether the KEK is known to work, or did so a moment ago and what is wrong may pass in another moment: a respawn takes
    /// milliseconds, and an unhealthy Status takes the API server out of service for at least 3 s.
    pub(super) fn is_healthy(&self) -> bool {
        let may_pass = self.faults.iter().flatten().all(|fault| fault.is_passing);
        let is_young = || self.trouble_for().is_none_or(|time| time < GRACE);
        match self.phase {
            Phase::Ready => self.trouble_since.is_none() || may_pass && is_young(),
            Phase::Starting => self.has_served && may_pass && is_young(),
            Phase::Down(_) => false,
        }
    }

    /// Whether a worker serves, and requests had better go there.
    pub(super) fn is_sound(&self) -> bool {
        matches!(self.phase, Phase::Ready) && self.is_healthy()
    }

    /// For how long nothing has been wrong.
    pub(super) fn sound_for(&self) -> Duration {
        self.sound_since.map_or(Duration::ZERO, |since| since.elapsed())
    }

    /// Why it does not work. `None`: it does, or nothing is known yet.
    pub(super) fn failure(&self) -> Option<&Failure> {
        match &self.phase {
            Phase::Down(failure) => Some(failure),
            Phase::Ready | Phase::Starting => self.fault(),
        }
    }
}

/// How long a token still counts as healthy while what is wrong may pass.
const GRACE: Duration = Duration::from_secs(5);

impl Shared {
    /// Changes the state, and tells whoever waits for a change.
    pub(super) fn change(&self, change: impl FnOnce(&mut State)) {
        self.state.send_modify(|state| {
            change(state);
            let is_well = matches!(state.phase, Phase::Ready) && state.fault().is_none();
            if is_well {
                state.trouble_since = None;
                state.sound_since.get_or_insert_with(Instant::now);
            } else {
                state.trouble_since.get_or_insert_with(Instant::now);
                state.sound_since = None;
            }
        });
        self.changes.send_modify(|count| *count += 1);
    }

    /// The KEK did its work, or a worker proved it at its start.
    pub(super) fn proved(&self) {
        self.proved.store(uptime(), Ordering::Relaxed);
    }

    /// Keeps what a piece of work showed: success, or a failure and whether it may pass. A blob that does not open says nothing
    /// about the token.
    pub(super) fn learn(&self, kind: Work, failure: Option<(&Failure, bool)>) {
        if failure.is_some_and(|(failure, _)| failure.class == Class::Data) {
            return;
        }
        if failure.is_none() {
            self.proved();
        }
        let known = self.state.borrow().faults.get(kind as usize).and_then(Clone::clone);
        // A failure of the passing sort does not excuse one that is known to last.
        let is_news = match (&known, failure) {
            (None, None) => false,
            (Some(known), Some((failure, is_passing))) => {
                known.is_passing && (!is_passing || known.failure != *failure)
            }
            _ => true,
        };
        if is_news {
            self.change(|state| {
                if let Some(fault) = state.faults.get_mut(kind as usize) {
                    *fault = failure.map(|(failure, is_passing)| Fault { failure: failure.clone(), is_passing });
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
