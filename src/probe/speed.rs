//! How fast the token seals, and whether more threads make it faster. Short: a hint, and no benchmark.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::bench::Bench;
use super::seals::{CONTEXT, SEED};
use super::steps::Trial;
use crate::pkcs11::{Error, KekKeys, Session};
use crate::seal::Sealing;

/// Seals of 32 bytes.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Speed {
    /// Whether the key lay on the token, as a KEK does: a session key is up to 200 times faster.
    pub token_key: bool,
    /// Half of the seals of one thread took at most so long, in microseconds.
    pub p50_us: u64,
    /// The slowest of them, in microseconds.
    pub max_us: u64,
    /// Seals in a second, by number of threads, each with a session of its own. Absent: no session to be had.
    pub per_second: BTreeMap<usize, u64>,
}

const THREADS: [usize; 4] = [1, 2, 4, 8];

/// How long each number of threads is tried.
const TIME: Duration = Duration::from_millis(300);

pub(super) fn run(bench: &mut Bench, trial: Trial) -> Result<Speed, Error> {
    let candidate = bench.candidate(trial.candidate)?.clone();
    let keys = bench.keys(&candidate, trial.on_token)?.keys;
    let mut per_second = BTreeMap::new();
    let mut single = Vec::new();
    for count in THREADS {
        let Ok(sessions) = (0..count).map(|_| bench.token.open_session()).collect::<Result<Vec<_>, _>>() else { break };
        let begin = Instant::now();
        let times = all(sessions, keys, &candidate.sealing)?;
        let seconds = begin.elapsed().as_secs_f64();
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "a rate"
        )]
        per_second.insert(count, (times.len() as f64 / seconds) as u64);
        if count == 1 {
            single = times;
        }
    }
    bench.clear()?;
    single.sort_unstable();
    let at = |place: usize| single.get(place).map_or(0, |time| u64::try_from(time.as_micros()).unwrap_or(u64::MAX));
    Ok(Speed {
        token_key: trial.on_token,
        p50_us: at(single.len() / 2),
        max_us: at(single.len().saturating_sub(1)),
        per_second,
    })
}

/// Seals on all sessions at once; gives how long each seal took.
fn all(sessions: Vec<Session>, keys: KekKeys, sealing: &Sealing) -> Result<Vec<Duration>, Error> {
    let over = AtomicBool::new(false);
    let seal = |session: Session| {
        let mut times = Vec::new();
        let deadline = Instant::now() + TIME;
        while !over.load(Ordering::Relaxed) && Instant::now() < deadline {
            let begin = Instant::now();
            session.seal(keys, sealing, &CONTEXT, &SEED).inspect_err(|_| over.store(true, Ordering::Relaxed))?;
            times.push(begin.elapsed());
        }
        Ok(times)
    };
    let seal = &seal;
    thread::scope(|scope| {
        let running: Vec<_> = sessions.into_iter().map(|session| scope.spawn(move || seal(session))).collect();
        let mut times = Vec::new();
        for thread in running {
            let joined = thread.join().unwrap_or_else(|_| Err(Error::Unreadable("a thread panicked".to_owned())));
            times.extend(joined?);
        }
        Ok(times)
    })
}
