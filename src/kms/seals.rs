//! How often each KEK has sealed in this process, and an end to it before random IVs could meet.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use tonic::Status;

use crate::keyring::{Keyring, State};
use crate::observe::metrics::METRICS;

/// Seals by KEK. A restart begins anew: docs/design.md says why that is enough.
#[derive(Default)]
pub(super) struct Seals(Mutex<BTreeMap<String, u64>>);

/// Under one key, 2^32 seals with random IVs of 96 bits are the most (NIST SP 800-38D, section 8.3). Eight nodes that each try every
/// request twice reach it together with so many.
const MOST: u64 = 1 << 28;

/// Time for a rotation.
const WARN_AT: u64 = MOST / 2;

impl Seals {
    /// To be called before the active KEK seals.
    pub(super) fn count(&self, keyring: &Keyring) -> Result<(), Status> {
        let Some(kek) = keyring.keks().iter().find(|kek| kek.state == State::Active) else { return Ok(()) };
        let id = kek.record.kek.id.to_string();
        let count = self.next(&id).ok_or_else(|| {
            Status::failed_precondition("the KEK has sealed as often as it may in one run; rotate to another KEK")
        })?;
        METRICS.seal(&id);
        if count == WARN_AT {
            tracing::warn!(
                cka_id = id,
                seals = count,
                most = MOST,
                hint = "no API server seals so often: find out who does, and rotate to another KEK",
                "the KEK has sealed half as often as it may"
            );
        }
        Ok(())
    }

    /// Which seal of this KEK is the next; `None`: there is no further one.
    fn next(&self, id: &str) -> Option<u64> {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(id.to_owned()).or_default();
        let next = count.checked_add(1).filter(|next| *next <= MOST)?;
        *count = next;
        Some(next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kek_has_its_count_and_its_end() {
        let seals = Seals(Mutex::new([("old".to_owned(), MOST - 1)].into()));
        assert_eq!(seals.next("old"), Some(MOST));
        assert_eq!((seals.next("old"), seals.next("old")), (None, None));
        assert_eq!((seals.next("new"), seals.next("new")), (Some(1), Some(2)));
        assert_eq!(MOST * 8 * 2, 1 << 32);
    }
}
