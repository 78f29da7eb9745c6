//! The front's handle for one HSM token: requests with deadlines, spread over the worker's sessions, retried once.
//!
//! The last floor with async code. A hung PKCS#11 call cannot be cancelled, so the request is answered at its deadline and
//! the worker process is killed and replaced.

mod lane;
mod process;
mod supervisor;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use thiserror::Error;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, timeout_at};

use self::lane::Lane;
use crate::class::Class;
use crate::secret::Plaintext;
use crate::wire::link;

pub use self::process::{WorkerSpec, wire_pin};

/// One token, reached through its worker process. Cheap to clone.
#[derive(Clone)]
pub struct Token {
    shared: Arc<Shared>,
}

struct Shared {
    spec: WorkerSpec,
    state: watch::Sender<State>,
    restart: Notify,
    waiting: AtomicUsize,
    queue_limit: usize,
}

/// What is known about the token now. Read from memory, never by asking the HSM.
#[derive(Clone)]
pub struct State {
    /// Where the worker stands.
    pub phase: Phase,
    /// When a worker last served, or began to. `None`: the last start failed.
    served: Option<Instant>,
    /// What failed when the worker last sealed, and when it last opened, if it did not fail for the request's own sake.
    faults: [Option<Failure>; 2],
    generation: u64,
    lanes: Arc<[Arc<Lane>]>,
}

/// The two kinds of work. Either right may be lost alone.
#[derive(Clone, Copy)]
enum Work {
    Seal = 0,
    Open = 1,
}

/// Where a worker stands.
#[derive(Clone, Debug)]
pub enum Phase {
    /// A worker is being started.
    Starting,
    /// The worker serves: token found, logged in, KEKs proved.
    Ready,
    /// No worker serves. A [`Class::PinOrConfig`] failure is not tried again before [`Token::restart`].
    Down(Failure),
}

/// Why a token does not serve, for three readers.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
#[error("{detail}")]
pub struct Failure {
    /// What it means.
    pub class: Class,
    /// What any caller may see.
    pub public: String,
    /// For the log.
    pub detail: String,
    /// For the operator.
    pub hint: String,
}

/// Why a request was not done.
#[derive(Clone, Debug, Error)]
pub enum RequestError {
    /// Its deadline passed.
    #[error("the HSM did not answer in time")]
    Deadline,
    /// The token, or the request itself, is at fault.
    #[error("{0}")]
    Failed(#[from] Failure),
    /// Too many requests wait already.
    #[error("too many requests wait for the HSM")]
    QueueFull,
}

/// IV and ciphertext with its tag.
#[derive(Clone, Debug)]
pub struct Sealed {
    /// As the form of the seal says.
    pub iv: Vec<u8>,
    /// Ciphertext and tag.
    pub ciphertext: Vec<u8>,
}

/// Attempts per request: the second one goes to another worker.
const ATTEMPTS: u32 = 2;

impl Token {
    /// Starts the supervisor, which starts the worker. Returns at once; at most `queue_limit` requests wait at a time.
    pub fn start(spec: WorkerSpec, queue_limit: usize) -> Self {
        let state =
            State { phase: Phase::Starting, served: None, faults: [None, None], generation: 0, lanes: Arc::new([]) };
        let shared = Arc::new(Shared {
            spec,
            state: watch::Sender::new(state),
            restart: Notify::new(),
            waiting: AtomicUsize::new(0),
            queue_limit,
        });
        tokio::spawn(supervisor::supervise(Arc::clone(&shared)));
        tokio::spawn(supervisor::probe(Self { shared: Arc::clone(&shared) }));
        Self { shared }
    }

    /// What is known about the token now.
    pub fn state(&self) -> State {
        self.shared.state.borrow().clone()
    }

    /// Requests that wait for the token or run on it now.
    pub fn load(&self) -> usize {
        self.shared.waiting.load(Ordering::Relaxed)
    }

    /// Replaces the worker: the operator's word that PIN or configuration were mended. One login attempt.
    pub fn restart(&self) {
        self.shared.restart.notify_one();
    }

    /// Seals with the KEK of this index. `context` is bound to the result.
    pub async fn seal(
        &self,
        kek: u32,
        context: &[u8; 32],
        plaintext: &Plaintext,
        deadline: Instant,
    ) -> Result<Sealed, RequestError> {
        let work = || {
            link::request::Work::Seal(link::Seal { context: context.to_vec(), plaintext: plaintext.expose().to_vec() })
        };
        match self.request(Work::Seal, kek, work, deadline).await? {
            link::reply::Outcome::Sealed(link::Sealed { iv, ciphertext }) => Ok(Sealed { iv, ciphertext }),
            other => Err(unexpected(&other)),
        }
    }

    /// Opens with the KEK of this index.
    pub async fn open(&self, kek: u32, work: link::Open, deadline: Instant) -> Result<Plaintext, RequestError> {
        match self.request(Work::Open, kek, || link::request::Work::Open(work.clone()), deadline).await? {
            link::reply::Outcome::Opened(link::Opened { plaintext }) => Ok(Plaintext::new(plaintext)),
            other => Err(unexpected(&other)),
        }
    }

    async fn request(
        &self,
        kind: Work,
        kek: u32,
        work: impl Fn() -> link::request::Work,
        deadline: Instant,
    ) -> Result<link::reply::Outcome, RequestError> {
        let _place = self.shared.enter()?;
        let mut last = RequestError::Deadline;
        let mut generation = 0;
        for _ in 0..ATTEMPTS {
            let ready = match timeout_at(deadline, self.shared.ready_after(generation)).await {
                Err(_) => return Err(last),
                Ok(ready) => ready?,
            };
            generation = ready.generation;
            let Some(lane) = ready.lanes.iter().min_by_key(|lane| lane.load()) else { continue };
            let Some(reply) = lane.send(kek, work(), deadline) else { continue };
            match timeout_at(deadline, reply).await {
                Err(_) => return Err(RequestError::Deadline),
                // The lane closed: the worker is gone, and with it the answer. Both kinds of work are safe to repeat.
                Ok(Err(_)) => last = RequestError::Failed(Failure::worker_lost()),
                Ok(Ok(link::reply::Outcome::Failure(failure))) => {
                    let failure = Failure::from(failure);
                    self.shared.learn(kind, Some(&failure));
                    if !failure.class.ends_worker() {
                        return Err(failure.into());
                    }
                    tracing::warn!(class = failure.class.word(), detail = %failure, hint = failure.hint, "HSM call failed");
                    last = failure.into();
                }
                Ok(Ok(outcome)) => {
                    self.shared.learn(kind, None);
                    return Ok(outcome);
                }
            }
        }
        Err(last)
    }
}

impl State {
    /// Why one of the two kinds of work does not succeed, though the worker serves.
    pub fn fault(&self) -> Option<&Failure> {
        self.faults.iter().flatten().next()
    }

    /// Whether the KEK is known to work, or did so a moment ago while a worker is being replaced.
    pub fn is_healthy(&self) -> bool {
        self.fault().is_none()
            && match self.phase {
                Phase::Ready => true,
                Phase::Starting => self.served.is_some_and(|served| served.elapsed() < REPLACEMENT_GRACE),
                Phase::Down(_) => false,
            }
    }
}

/// How long a token still counts as healthy while its worker is replaced: a respawn takes milliseconds, and an unhealthy
/// Status takes the API server out of service for at least 3 s.
const REPLACEMENT_GRACE: Duration = Duration::from_secs(5);

impl Shared {
    fn enter(&self) -> Result<Place<'_>, RequestError> {
        if self.waiting.fetch_add(1, Ordering::Relaxed) >= self.queue_limit {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
            return Err(RequestError::QueueFull);
        }
        Ok(Place(&self.waiting))
    }

    /// Keeps what a piece of work showed. A blob that does not open and a device that is busy say nothing about the token.
    fn learn(&self, kind: Work, failure: Option<&Failure>) {
        if failure.is_some_and(|failure| matches!(failure.class, Class::Data | Class::Busy)) {
            return;
        }
        let fault = |state: &State| state.faults.get(kind as usize).is_some_and(Option::is_some);
        if fault(&self.state.borrow()) != failure.is_some() {
            // Nobody waits for this, so nobody is woken.
            self.state.send_if_modified(|state| {
                if let Some(fault) = state.faults.get_mut(kind as usize) {
                    *fault = failure.cloned();
                }
                false
            });
        }
    }

    /// The state of a worker that serves, and is newer than `generation`. Fails at once while the token is down.
    async fn ready_after(&self, generation: u64) -> Result<State, Failure> {
        if let Some(outcome) = settled(&self.state.borrow(), generation) {
            return outcome;
        }
        let mut changes = self.state.subscribe();
        loop {
            if let Some(outcome) = settled(&changes.borrow_and_update(), generation) {
                return outcome;
            }
            if changes.changed().await.is_err() {
                return Err(Failure::worker_lost());
            }
        }
    }
}

fn settled(state: &State, generation: u64) -> Option<Result<State, Failure>> {
    match &state.phase {
        Phase::Ready if state.generation > generation => Some(Ok(state.clone())),
        Phase::Ready | Phase::Starting => None,
        Phase::Down(failure) => Some(Err(failure.clone())),
    }
}

/// A place in the bounded queue, given back on drop, also when the caller goes away.
struct Place<'a>(&'a AtomicUsize);

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Failure {
    fn worker_lost() -> Self {
        Self {
            class: Class::Gone,
            public: "the HSM does not answer as it should".to_owned(),
            detail: "the worker process ended during the request".to_owned(),
            hint: "see the log for what the worker or the vendor module printed; it is replaced by itself".to_owned(),
        }
    }
}

impl From<link::Failure> for Failure {
    fn from(failure: link::Failure) -> Self {
        let link::Failure { class, public, detail, hint } = failure;
        Self { class: Class::from_number(class), public, detail, hint }
    }
}

fn unexpected(outcome: &link::reply::Outcome) -> RequestError {
    let detail = match outcome {
        link::reply::Outcome::Sealed(_) => "the worker sealed where it was asked to open",
        link::reply::Outcome::Opened(_) => "the worker opened where it was asked to seal",
        link::reply::Outcome::Failure(_) => "the worker failed without a class",
    };
    RequestError::Failed(Failure { detail: detail.to_owned(), ..Failure::worker_lost() })
}
