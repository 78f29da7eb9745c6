//! When a worker is started again: the decisions of the supervisor, without clock, process or HSM, so that they can be tested
//! by themselves. docs/resilience.md draws them.

use std::time::Duration;

use crate::class::Class;

/// First and longest wait between two starts that failed.
const FIRST_BACKOFF: Duration = Duration::from_millis(250);
pub(super) const LONGEST_BACKOFF: Duration = Duration::from_secs(4);

/// Logins without a known outcome before the operator is asked. Some tokens lock at the third wrong PIN.
const UNKNOWN_LOGINS: u32 = 2;

/// What the supervisor remembers between two starts.
#[derive(Clone, Debug)]
pub(super) struct Lifecycle {
    backoff: Duration,
    /// A login has succeeded since the operator's last word: the PIN is right.
    pin_is_right: bool,
    /// Logins since then that hung or crashed, so that nobody knows whether the token counted them.
    unknown_logins: u32,
}

/// What happened to a worker.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Event {
    /// It did not come to serve.
    StartFailed {
        /// As the worker said, or [`Class::Gone`].
        class: Class,
        /// It ended, or was killed, between the beginning of `C_Login` and its answer.
        login_unknown: bool,
    },
    /// It served for this long, and ended.
    Served(Duration),
    /// The operator says that PIN or configuration were mended.
    Operator,
}

/// What the supervisor does then.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Next {
    /// Start a worker now.
    Start,
    /// Start one after a random part of this time.
    StartAfter(Duration),
    /// Start none before [`Event::Operator`].
    Wait(Stop),
}

/// Why only the operator can go on.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Stop {
    /// PIN, key or configuration is wrong: another login could lock the token, and no other mistake mends itself.
    PinOrConfig,
    /// Logins hang or crash, and the PIN has never been seen to be right.
    UnknownLogins,
}

impl Default for Lifecycle {
    fn default() -> Self {
        Self { backoff: FIRST_BACKOFF, pin_is_right: false, unknown_logins: 0 }
    }
}

impl Lifecycle {
    /// Decides what follows on `event`.
    pub(super) fn on(&mut self, event: Event) -> Next {
        match event {
            Event::StartFailed { class: Class::PinOrConfig, .. } => {
                self.pin_is_right = false;
                Next::Wait(Stop::PinOrConfig)
            }
            Event::StartFailed { login_unknown, .. } => {
                if login_unknown && !self.pin_is_right {
                    self.unknown_logins += 1;
                    if self.unknown_logins >= UNKNOWN_LOGINS {
                        return Next::Wait(Stop::UnknownLogins);
                    }
                }
                self.later()
            }
            Event::Served(time) => {
                self.pin_is_right = true;
                // A worker that served proves that token and PIN are good: only starts that fail are spaced further apart.
                self.backoff = FIRST_BACKOFF;
                if time > LONGEST_BACKOFF { Next::Start } else { self.later() }
            }
            Event::Operator => {
                *self = Self::default();
                Next::Start
            }
        }
    }

    fn later(&mut self) -> Next {
        let wait = self.backoff;
        self.backoff = (wait * 2).min(LONGEST_BACKOFF);
        Next::StartAfter(wait)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GONE: Event = Event::StartFailed { class: Class::Gone, login_unknown: false };
    const UNKNOWN: Event = Event::StartFailed { class: Class::Gone, login_unknown: true };
    const DENIED: Event = Event::StartFailed { class: Class::PinOrConfig, login_unknown: false };

    #[test]
    fn starts_that_fail_are_spaced_further_apart_up_to_4_s() {
        let mut lifecycle = Lifecycle::default();
        let waits: Vec<_> = (0..7).map(|_| lifecycle.on(GONE)).collect();
        let after = |millis| Next::StartAfter(Duration::from_millis(millis));
        assert_eq!(waits, [250, 500, 1000, 2000, 4000, 4000, 4000].map(after));
        assert_eq!(lifecycle.on(Event::Served(Duration::from_secs(1))), after(250));
        assert_eq!(lifecycle.on(Event::Served(Duration::from_mins(1))), Next::Start);
    }

    #[test]
    fn a_denial_waits_for_the_operator_each_time() {
        let mut lifecycle = Lifecycle::default();
        for _ in 0..3 {
            assert_eq!(lifecycle.on(DENIED), Next::Wait(Stop::PinOrConfig));
            assert_eq!(lifecycle.on(Event::Operator), Next::Start);
        }
    }

    #[test]
    fn logins_without_an_answer_end_at_two_unless_the_pin_is_known() {
        let mut lifecycle = Lifecycle::default();
        assert!(matches!(lifecycle.on(UNKNOWN), Next::StartAfter(_)));
        assert!(matches!(lifecycle.on(GONE), Next::StartAfter(_)));
        assert_eq!(lifecycle.on(UNKNOWN), Next::Wait(Stop::UnknownLogins));
        assert_eq!(lifecycle.on(Event::Operator), Next::Start);
        lifecycle.on(Event::Served(Duration::from_secs(9)));
        for _ in 0..100 {
            assert!(matches!(lifecycle.on(UNKNOWN), Next::StartAfter(_)));
        }
    }
}
