//! Single flight: of identical requests at one time one goes to the HSM, and all get its answer. The API server has none of its
//! own: after a restart it asks for one seed as many times as there are readers.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

use super::{Opened, RequestError};
use crate::observe::metrics::METRICS;

type Outcome = Result<Opened, RequestError>;

/// A request by all that makes it what it is: SHA-256 over context and blob.
pub(super) type Key = [u8; 32];

/// The opens that run now.
#[derive(Default)]
pub(super) struct Flights {
    running: Mutex<HashMap<Key, watch::Receiver<Option<Outcome>>>>,
}

/// Ends the flight when the leader is done, also when its caller goes away.
struct Leader<'a> {
    flights: &'a Flights,
    key: Key,
    outcome: watch::Sender<Option<Outcome>>,
}

impl Flights {
    /// The outcome of `run`, or that of the same request which runs already.
    pub(super) async fn join(&self, key: Key, deadline: Instant, run: impl AsyncFnOnce() -> Outcome) -> Outcome {
        loop {
            let mut running = match self.board(key) {
                Ok(leader) => {
                    let outcome = run().await;
                    // What failed because our time was up says nothing to one who has more.
                    let is_ours = outcome.is_err() && Instant::now() >= deadline;
                    let shared = if is_ours { Err(RequestError::Deadline) } else { outcome.clone() };
                    leader.outcome.send_replace(Some(shared));
                    return outcome;
                }
                Err(running) => running,
            };
            METRICS.joined();
            let landed = timeout_at(deadline, running.wait_for(Option::is_some)).await;
            let Ok(landed) = landed else { return Err(RequestError::Deadline) };
            match landed.ok().and_then(|outcome| outcome.clone()) {
                // The leader gave up before us: its caller went away, or had less time.
                None | Some(Err(RequestError::Deadline)) if Instant::now() < deadline => {}
                None => return Err(RequestError::Deadline),
                Some(outcome) => return outcome,
            }
        }
    }

    fn board(&self, key: Key) -> Result<Leader<'_>, watch::Receiver<Option<Outcome>>> {
        let mut running = self.running();
        if let Some(flight) = running.get(&key) {
            return Err(flight.clone());
        }
        let (outcome, receiver) = watch::channel(None);
        running.insert(key, receiver);
        Ok(Leader { flights: self, key, outcome })
    }

    fn running(&self) -> MutexGuard<'_, HashMap<Key, watch::Receiver<Option<Outcome>>>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Leader<'_> {
    fn drop(&mut self) {
        self.flights.running().remove(&self.key);
    }
}
