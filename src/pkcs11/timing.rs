//! How long PKCS#11 calls took, and what they returned: kept for each thread until somebody takes it.

use std::cell::RefCell;
use std::time::{Duration, Instant};

/// A call that returned.
#[derive(Clone, Copy, Debug)]
pub struct TimedCall {
    /// PKCS#11 name, `C_...`.
    pub function: &'static str,
    /// `CK_RV`.
    pub code: u64,
    /// Time in the module.
    pub duration: Duration,
}

/// Calls that are kept, at most. One RPC makes no more than some dozen, and where nobody takes them they must not pile up.
const MOST: usize = 64;

thread_local! {
    static CALLS: RefCell<Vec<TimedCall>> = const { RefCell::new(Vec::new()) };
}

/// The calls of this thread since this was last asked.
pub fn take_calls() -> Vec<TimedCall> {
    CALLS.take()
}

/// Runs a call, and keeps what it took. `None`: the module does not have the function.
pub(super) fn time(function: &'static str, call: impl FnOnce() -> Option<u64>) -> Option<u64> {
    let began = Instant::now();
    let code = call();
    if let Some(code) = code {
        let duration = began.elapsed();
        CALLS.with_borrow_mut(|calls| {
            if calls.len() < MOST {
                calls.push(TimedCall { function, code, duration });
            }
        });
    }
    code
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_kept_until_they_are_taken_and_no_more_than_some() {
        for code in 0..200 {
            assert_eq!(time("C_Encrypt", || Some(code)), Some(code));
        }
        assert_eq!(time("C_WrapKey", || None), None);
        let calls = take_calls();
        assert_eq!((calls.len(), calls[7].function, calls[7].code), (MOST, "C_Encrypt", 7));
        assert!(take_calls().is_empty());
    }
}
