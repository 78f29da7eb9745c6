//! Many random outages of several tokens, with a clock of its own: what the decisions of [`super::lifecycle`] and
//! [`super::choice`] must never lead to.

use std::collections::VecDeque;
use std::time::Duration;

use super::choice::{Choice, MAX_TOKENS, Standing, choose};
use super::lifecycle::{Event, LONGEST_BACKOFF, Lifecycle, Next, Stop};
use crate::class::Class;

/// Schedules in a run of the tests. `HSM_KMS_SIMULATIONS` asks for more.
const QUICK: u64 = 10_000;

/// Time that one schedule covers.
const OUTAGES: Duration = Duration::from_mins(1);
const SPAN: Duration = Duration::from_secs(70);
const STEP: Duration = Duration::from_millis(100);

/// Longest time from the end of all outages to a token that serves: a failed start's wait, and a start.
const HEALED_WITHIN: Duration = Duration::from_secs(LONGEST_BACKOFF.as_secs() + 1);

/// A generator of numbers that anyone can repeat from its seed (xorshift64*).
struct Random(u64);

/// How the HSM behind a token is, which the plugin does not know.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Hsm {
    Well,
    /// Calls fail or hang; logins are not reached.
    Away,
    /// A login hangs or crashes.
    LoginHangs,
    /// The PIN was changed.
    OtherPin,
    /// Another key has the KEK's label.
    OtherKey,
}

/// Where the supervisor of a token stands.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Worker {
    StartsAt(Duration),
    ServesSince(Duration),
    Waits(Stop),
}

struct Token {
    hsm: Hsm,
    worker: Worker,
    lifecycle: Lifecycle,
    generation: u64,
    /// Logins with a wrong PIN, and logins that hung, since the operator's last word.
    wrong: u32,
    hung: u32,
    /// A login has succeeded since then.
    succeeded: bool,
    faulty: bool,
    /// The last start failed.
    is_down: bool,
}

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) % limit
    }

    fn one_in(&mut self, times: u64) -> bool {
        self.below(times) == 0
    }
}

impl Token {
    fn new() -> Self {
        Self {
            hsm: Hsm::Well,
            worker: Worker::StartsAt(Duration::ZERO),
            lifecycle: Lifecycle::default(),
            generation: 0,
            wrong: 0,
            hung: 0,
            succeeded: false,
            faulty: false,
            is_down: false,
        }
    }

    /// What a start meets: it serves, or fails with this class, its login unanswered or not.
    fn start(&mut self, now: Duration, random: &mut Random) {
        let failed = |class, login_unknown| Some(Event::StartFailed { class, login_unknown });
        let event = match self.hsm {
            Hsm::Well => None,
            Hsm::Away => failed(Class::Gone, false),
            Hsm::LoginHangs => {
                self.hung += u32::from(!self.succeeded);
                assert!(self.hung <= 2, "a third login without an answer");
                failed(Class::Gone, true)
            }
            Hsm::OtherPin => {
                self.wrong += 1;
                assert!(self.wrong <= 1, "a second try of a wrong PIN");
                failed(Class::PinOrConfig, false)
            }
            Hsm::OtherKey => failed(Class::PinOrConfig, false),
        };
        match event {
            None => {
                self.generation += 1;
                self.succeeded = true;
                self.faulty = false;
                self.worker = Worker::ServesSince(now);
            }
            Some(event) => self.follow(event, now, random),
        }
    }

    fn follow(&mut self, event: Event, now: Duration, random: &mut Random) {
        self.is_down = matches!(event, Event::StartFailed { .. });
        self.worker = match self.lifecycle.on(event) {
            Next::Start => Worker::StartsAt(now),
            // Between a half and the whole, as the supervisor waits.
            Next::StartAfter(wait) => {
                let part = u32::try_from(128 + random.below(128)).unwrap();
                Worker::StartsAt(now + wait * part / 256)
            }
            Next::Wait(stop) => Worker::Waits(stop),
        };
    }

    fn operator(&mut self, now: Duration, random: &mut Random) {
        (self.wrong, self.hung, self.succeeded) = (0, 0, false);
        self.follow(Event::Operator, now, random);
    }

    fn step(&mut self, now: Duration, random: &mut Random) {
        match self.worker {
            Worker::StartsAt(at) if at <= now => self.start(now, random),
            // The prober's look: within 2 s and a call's limit it knows.
            Worker::ServesSince(since) if self.hsm != Hsm::Well && random.one_in(20) => {
                self.follow(Event::Served(now.saturating_sub(since)), now, random);
            }
            _ => {}
        }
    }

    fn standing(&self, tried: u64) -> Standing {
        match self.worker {
            Worker::ServesSince(_) if self.generation <= tried => Standing::Tried,
            Worker::ServesSince(_) if self.faulty => Standing::Faulty,
            Worker::ServesSince(_) => Standing::Sound,
            Worker::StartsAt(_) if !self.is_down => Standing::Starting,
            Worker::StartsAt(_) | Worker::Waits(_) => Standing::Down,
        }
    }
}

/// One schedule: some tokens, random outages and operators, then all is well again.
fn run(seed: u64) {
    let mut random = Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
    let count = usize::try_from(1 + random.below(MAX_TOKENS as u64)).unwrap();
    let mut tokens: Vec<_> = (0..count).map(|_| Token::new()).collect();
    let mut current = 0;
    let mut outages: VecDeque<Duration> = VecDeque::new();
    let mut now = Duration::ZERO;
    let mut operator_done = false;
    while now < SPAN {
        for token in &mut tokens {
            if now < OUTAGES && random.one_in(60) {
                token.hsm = match random.below(8) {
                    0 => Hsm::OtherPin,
                    1 => Hsm::OtherKey,
                    2 => Hsm::LoginHangs,
                    3 | 4 => Hsm::Away,
                    _ => Hsm::Well,
                };
            }
            if random.one_in(300) {
                token.operator(now, &mut random);
            }
            token.step(now, &mut random);
        }
        if now >= OUTAGES && !operator_done {
            operator_done = true;
            for token in &mut tokens {
                token.hsm = Hsm::Well;
                if matches!(token.worker, Worker::Waits(_)) {
                    token.operator(now, &mut random);
                }
            }
            outages.push_back(now);
        }
        if random.one_in(3) {
            request(&mut tokens, &mut current, &mut random);
        }
        if outages.front().is_some_and(|since| now > *since + HEALED_WITHIN) {
            for token in &tokens {
                assert!(matches!(token.worker, Worker::ServesSince(_)), "seed {seed}: {:?} at {now:?}", token.worker);
            }
        }
        now += STEP;
    }
}

/// One request: at most two attempts, each on a token that serves and on no worker twice.
fn request(tokens: &mut [Token], current: &mut usize, random: &mut Random) {
    let mut tried = [0; MAX_TOKENS];
    for _ in 0..2 {
        let standings: Vec<_> = tokens.iter().zip(tried).map(|(token, tried)| token.standing(tried)).collect();
        let Choice::Use(index) = choose(&standings, *current) else { return };
        let token = &mut tokens[index];
        assert!(matches!(token.worker, Worker::ServesSince(_)), "a request went where nothing was proved");
        assert!(token.generation > tried[index], "a request went twice to one worker");
        *current = index;
        // A worker that serves has proved the KEK at its start: a key that was exchanged since fails, and opens nothing else.
        token.faulty = token.hsm != Hsm::Well && random.one_in(2);
        if token.hsm == Hsm::Well {
            return;
        }
        tried[index] = token.generation;
    }
}

#[test]
fn no_schedule_breaks_a_rule() {
    let schedules = std::env::var("HSM_KMS_SIMULATIONS").ok().and_then(|count| count.parse().ok()).unwrap_or(QUICK);
    for seed in 1..=schedules {
        run(seed);
    }
}
