//! The front's handle for the HSM tokens that hold the KEK: an ordered list, requests with deadlines, failover and return.
//!
//! The last floor with async code. A hung PKCS#11 call cannot be cancelled, so the request is answered at its deadline and
//! the worker process is killed and replaced.

mod choice;
mod flights;
mod gate;
mod lane;
mod launcher;
mod lifecycle;
mod member;
mod process;
#[cfg(test)]
mod simulation;
mod supervisor;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use sha2::{Digest, Sha256};
use thiserror::Error;
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep, timeout_at};

pub use self::choice::MAX_TOKENS;
use self::choice::{Choice, Standing, choose};
use self::flights::Flights;
use self::gate::Gate;
pub use self::launcher::Launcher;
use self::member::{Attempt, Member, Phase};
pub use self::process::{WorkerSpec, wire_pin};
use crate::audit::{self, Event};
use crate::class::Class;
use crate::observe::metrics::{METRICS, TokenSnapshot};
use crate::pin::PinSource;
use crate::seal::SealForm;
use crate::secret::Plaintext;
use crate::wire::link;

/// The tokens that hold the KEK, in the order of preference. Cheap to clone; the workers end with the last clone.
#[derive(Clone)]
pub struct Tokens {
    shared: Arc<Shared>,
}

struct Shared {
    members: Vec<Member>,
    /// What keeps the workers serving.
    tasks: Vec<AbortHandle>,
    /// Index of the token that requests go to while it is sound.
    current: AtomicUsize,
    /// Counts the changes of all members.
    changes: watch::Receiver<u64>,
    flights: Flights,
    waiting: AtomicUsize,
    queue_limit: usize,
}

/// The two kinds of work. Either right may be lost alone.
#[derive(Clone, Copy)]
enum Work {
    Seal = 0,
    Open = 1,
}

/// Whether the KEK can be used, as one answer over all tokens. Read from memory, never by asking an HSM.
#[derive(Clone, Debug)]
pub enum Health {
    /// On one token at least.
    Ok,
    /// Not now. It did its work until this long ago, and what stands in the way may pass by itself.
    Lost {
        /// Since something went wrong.
        trouble_for: Duration,
        /// Why not.
        failure: Failure,
    },
    /// Not before somebody does something, or it never did.
    Failed(Failure),
    /// Nothing is known yet.
    Starting,
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

/// A plaintext, and which token opened it.
#[derive(Clone)]
pub struct Opened {
    /// What was sealed.
    pub plaintext: Plaintext,
    /// Place of the token in the list, from 0.
    pub token: usize,
}

/// IV and ciphertext with its tag.
#[derive(Clone, Debug)]
pub struct Sealed {
    /// How the token that did it seals.
    pub form: SealForm,
    /// As the form of the seal says.
    pub iv: Vec<u8>,
    /// Ciphertext and tag.
    pub ciphertext: Vec<u8>,
    /// Place of the token in the list, from 0.
    pub token: usize,
}

/// Longest time of an attempt while another token could do it, too: a little more than a hung call is left.
const ATTEMPT_BUDGET: Duration = Duration::from_millis(1400);

/// How long a token must have been sound before requests go back to it from one that stands behind it in the list.
const RETURN_AFTER: Duration = Duration::from_secs(30);

impl Tokens {
    /// Starts a supervisor for each token, which starts its worker. Returns at once; at most `queue_limit` requests wait at a
    /// time. At most [`MAX_TOKENS`].
    pub fn start(specs: Vec<WorkerSpec>, queue_limit: usize) -> Self {
        let (teller, changes) = watch::channel(0);
        let mut gates: Vec<(GateKey, Arc<Gate>)> = Vec::new();
        let (mut members, mut tasks) = (Vec::new(), Vec::new());
        for (position, spec) in (0..).zip(specs.into_iter().take(MAX_TOKENS)) {
            let key = (spec.start.token_serial.clone(), spec.pin.clone());
            let known = gates.iter().find(|(other, _)| *other == key).map(|(_, gate)| Arc::clone(gate));
            let gate = known.unwrap_or_else(|| {
                let gate = Arc::new(Gate::default());
                gates.push((key, Arc::clone(&gate)));
                gate
            });
            let (member, keepers) = Member::start(spec, position, gate, teller.clone());
            members.push(member);
            tasks.extend(keepers);
        }
        let shared = Arc::new(Shared {
            members,
            tasks,
            current: AtomicUsize::new(0),
            changes,
            flights: Flights::default(),
            waiting: AtomicUsize::new(0),
            queue_limit,
        });
        tokio::spawn(go_back(Arc::downgrade(&shared)));
        Self { shared }
    }

    /// Whether the KEK can be used.
    pub fn health(&self) -> Health {
        let members = &self.shared.members;
        let states: Vec<_> = members.iter().map(Member::state).collect();
        if states.iter().any(member::State::is_healthy) {
            return Health::Ok;
        }
        let passing = |failure: &&Failure| failure.class != Class::PinOrConfig;
        let failures = || states.iter().filter_map(member::State::failure);
        let is_starting = states.iter().any(|state| matches!(state.phase, Phase::Starting));
        let failure = failures().find(passing).or_else(|| failures().next()).cloned();
        // Of those that have worked at all, the one that did so last.
        let worked = members.iter().zip(&states).filter(|(member, _)| member.proved_ago().is_some());
        let trouble_for = worked.filter_map(|(_, state)| state.trouble_for()).min();
        match (failure, trouble_for) {
            (Some(failure), Some(trouble_for)) if is_starting || passing(&&failure) => {
                Health::Lost { trouble_for, failure }
            }
            (Some(failure), _) => Health::Failed(failure),
            (None, Some(trouble_for)) => Health::Lost { trouble_for, failure: Failure::worker_lost() },
            (None, None) => Health::Starting,
        }
    }

    /// How each token stands.
    pub fn each(&self) -> Vec<TokenSnapshot> {
        self.shared.members.iter().map(Member::snapshot).collect()
    }

    /// Label of the token at this place in the list, from 0.
    pub fn label(&self, position: usize) -> Option<&str> {
        self.shared.members.get(position).map(Member::label)
    }

    /// Waits until each token serves, or why it does not is known: in the order of the list.
    pub async fn settled(&self) -> Vec<Result<(), Failure>> {
        let mut changes = self.shared.changes.clone();
        loop {
            changes.mark_unchanged();
            let outcome = |member: &Member| match member.state().phase {
                Phase::Starting => None,
                Phase::Ready => Some(Ok(())),
                Phase::Down(failure) => Some(Err(failure)),
            };
            if let Some(outcomes) = self.shared.members.iter().map(outcome).collect() {
                return outcomes;
            }
            if changes.changed().await.is_err() {
                return vec![Err(Failure::worker_lost()); self.shared.members.len()];
            }
        }
    }

    /// Says which KEK seals from now on: the one that is tried when sealing has failed.
    pub fn seals_with(&self, kek: u32) {
        for member in &self.shared.members {
            member.shared.seals_with.store(kek, Ordering::Relaxed);
        }
    }

    /// Requests that wait for a token or run on it now.
    pub fn load(&self) -> usize {
        self.shared.waiting.load(Ordering::Relaxed)
    }

    /// Whether every token serves without a fault.
    pub fn are_sound(&self) -> bool {
        self.shared.members.iter().all(|member| member.state().is_sound())
    }

    /// Replaces the workers: the operator's word that PIN or configuration were mended. One login attempt each. While one token is in
    /// trouble, those that serve are left alone.
    pub fn restart(&self) {
        let all_sound = self.are_sound();
        for member in self.shared.members.iter().filter(|member| all_sound || !member.state().is_sound()) {
            member.shared.restart.notify_one();
        }
    }

    /// Seals with the KEK of this index. What `context` gives for the form of the token that does it is bound to the result.
    pub async fn seal(
        &self,
        kek: u32,
        context: impl Fn(SealForm) -> [u8; 32],
        plaintext: &Plaintext,
        deadline: Instant,
    ) -> Result<Sealed, RequestError> {
        let work = |form| {
            let context = context(form).to_vec();
            link::request::Work::Seal(link::Seal { context, plaintext: plaintext.expose().to_vec() })
        };
        match self.request(Work::Seal, kek, work, deadline).await? {
            (token, form, link::reply::Outcome::Sealed(link::Sealed { iv, ciphertext })) => {
                Ok(Sealed { form, iv, ciphertext, token })
            }
            (_, _, other) => Err(unexpected(&other)),
        }
    }

    /// Opens with the KEK of this index. The same work at the same time is done once.
    pub async fn open(&self, kek: u32, work: link::Open, deadline: Instant) -> Result<Opened, RequestError> {
        let mut key = Sha256::new();
        for part in [&kek.to_be_bytes()[..], &work.context, &work.iv, &work.ciphertext] {
            key.update((part.len() as u64).to_be_bytes());
            key.update(part);
        }
        let run = async || match self
            .request(Work::Open, kek, |_| link::request::Work::Open(work.clone()), deadline)
            .await?
        {
            (token, _, link::reply::Outcome::Opened(link::Opened { plaintext })) => {
                Ok(Opened { plaintext: Plaintext::new(plaintext), token })
            }
            (_, _, other) => Err(unexpected(&other)),
        };
        self.shared.flights.join(key.finalize().into(), deadline, run).await
    }

    async fn request(
        &self,
        kind: Work,
        kek: u32,
        work: impl Fn(SealForm) -> link::request::Work,
        deadline: Instant,
    ) -> Result<(usize, SealForm, link::reply::Outcome), RequestError> {
        let _place = self.shared.enter()?;
        let mut tried = [Tried::default(); MAX_TOKENS];
        let mut last = None;
        // Each token once, and one of them again on a new worker.
        for _ in 0..=self.shared.members.len() {
            let index = self.shared.choice(&tried, deadline, last.as_ref()).await?;
            let Some(member) = self.shared.members.get(index) else { break };
            let generation = member.shared.state.borrow().generation;
            let form = member.shared.spec.form;
            let attempt = member.attempt(kind, kek, work(form), self.shared.budget(index, deadline)).await;
            let (error, stays) = match attempt {
                Attempt::Done(Ok(outcome)) => return Ok((index, form, outcome)),
                Attempt::Done(Err(error)) => return Err(error),
                Attempt::Lost(error) => (error, false),
                Attempt::Refused(error) => (error, true),
            };
            if let Some(tried) = tried.get_mut(index) {
                *tried = Tried { generation, stays };
            }
            if Instant::now() >= deadline {
                return Err(error);
            }
            last = Some(error);
        }
        Err(last.unwrap_or(RequestError::Deadline))
    }
}

/// On which worker of a token a request has failed.
#[derive(Clone, Copy, Default)]
struct Tried {
    /// 0: on none.
    generation: u64,
    /// The worker was not lost by it, so no other will come.
    stays: bool,
}

/// Tokens with one serial number and one PIN source.
type GateKey = (String, Option<PinSource>);

impl Shared {
    fn enter(&self) -> Result<Place<'_>, RequestError> {
        if self.waiting.fetch_add(1, Ordering::Relaxed) >= self.queue_limit {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
            return Err(RequestError::QueueFull);
        }
        Ok(Place(&self.waiting))
    }

    /// The member for a request that failed on the workers `tried`, the last time with `last`. Waits while one may come to serve;
    /// fails at once while none can.
    async fn choice(
        &self,
        tried: &[Tried; MAX_TOKENS],
        deadline: Instant,
        last: Option<&RequestError>,
    ) -> Result<usize, RequestError> {
        let mut changes: Option<watch::Receiver<u64>> = None;
        loop {
            let current = self.current.load(Ordering::Relaxed);
            let mut standings = [Standing::Down; MAX_TOKENS];
            for ((standing, member), tried) in standings.iter_mut().zip(&self.members).zip(tried) {
                *standing = standing_of(&member.shared.state.borrow(), *tried);
            }
            match choose(standings.get(..self.members.len()).unwrap_or_default(), current) {
                Choice::Use(index) => {
                    if index != current {
                        self.fail_over(current, index);
                    }
                    return Ok(index);
                }
                Choice::GiveUp => {
                    let failures = self.members.iter().filter_map(|member| member.state().failure().cloned());
                    let down = failures.min_by_key(|failure| failure.class == Class::PinOrConfig);
                    return Err(last.cloned().unwrap_or_else(|| down.unwrap_or_else(Failure::worker_lost).into()));
                }
                Choice::Wait => {
                    // Subscribed before the second look, so that no change is missed.
                    let Some(changes) = &mut changes else {
                        changes = Some(self.changes.clone());
                        continue;
                    };
                    match timeout_at(deadline, changes.changed()).await {
                        Ok(Ok(())) => {}
                        _ => return Err(last.cloned().unwrap_or(RequestError::Deadline)),
                    }
                }
            }
        }
    }

    /// Until when an attempt may last: not to the end while another token could do it.
    fn budget(&self, index: usize, deadline: Instant) -> Instant {
        let mut others = self.members.iter().enumerate().filter(|(other, _)| *other != index);
        if others.any(|(_, member)| member.shared.state.borrow().is_sound()) {
            deadline.min(Instant::now() + ATTEMPT_BUDGET)
        } else {
            deadline
        }
    }

    /// Sends the requests that follow elsewhere, too, if it is the token that is in trouble and not this one request.
    fn fail_over(&self, from_position: usize, to_position: usize) {
        let stays = |member: &Member| {
            let state = member.shared.state.borrow();
            // At the first start the other one was ready sooner, and that is no failure.
            state.is_sound() || matches!(state.phase, Phase::Starting) && !state.has_served
        };
        if self.members.get(from_position).is_some_and(stays) {
            return;
        }
        let current = &self.current;
        let swapped = current.compare_exchange(from_position, to_position, Ordering::Relaxed, Ordering::Relaxed);
        let (from, to) = (self.members.get(from_position), self.members.get(to_position));
        if let (Ok(_), Some(from), Some(to)) = (swapped, from, to) {
            let why = from.state().failure().map_or_else(String::new, ToString::to_string);
            METRICS.failover();
            audit::record(|| Event::Failover {
                from: from.label().to_owned(),
                from_position,
                to: to.label().to_owned(),
                to_position,
            });
            tracing::warn!(from = from.label(), to = to.label(), why, "failing over to another token");
        }
    }
}

fn standing_of(state: &member::State, tried: Tried) -> Standing {
    match &state.phase {
        Phase::Ready if state.generation <= tried.generation && tried.stays => Standing::Refused,
        Phase::Ready if state.generation <= tried.generation => Standing::Tried,
        Phase::Ready if state.is_sound() => Standing::Sound,
        Phase::Ready => Standing::Faulty,
        Phase::Starting => Standing::Starting,
        Phase::Down(_) => Standing::Down,
    }
}

/// Goes back to a token nearer the front of the list once it has been sound for a while.
async fn go_back(shared: Weak<Shared>) {
    loop {
        sleep(Duration::from_secs(1)).await;
        let Some(shared) = shared.upgrade().filter(|shared| shared.members.len() > 1) else { return };
        let current = shared.current.load(Ordering::Relaxed);
        let mut before = shared.members.iter().take(current);
        let Some(index) = before.position(|member| member.state().sound_for() >= RETURN_AFTER) else { continue };
        if let (Some(from), Some(to)) = (shared.members.get(current), shared.members.get(index)) {
            shared.current.store(index, Ordering::Relaxed);
            audit::record(|| Event::Return {
                from: from.label().to_owned(),
                from_position: current,
                to: to.label().to_owned(),
                to_position: index,
            });
            tracing::info!(from = from.label(), to = to.label(), "going back to the token that is sound again");
        }
    }
}

impl Drop for Shared {
    /// A worker whose front's end of the control socket is gone ends by itself, but not amid a login.
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
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
        link::reply::Outcome::Failure(_) | link::reply::Outcome::GoesOn(_) => "the worker failed without a class",
    };
    RequestError::Failed(Failure { detail: detail.to_owned(), ..Failure::worker_lost() })
}
