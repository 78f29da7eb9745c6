//! What tokens with one serial number and one PIN source share: a PIN that one of them refused is not tried on the next, since
//! they may be one device behind several connectors.

use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::Mutex;

use super::Failure;

/// Passed by one start at a time.
#[derive(Default)]
pub(super) struct Gate {
    /// Why no login is tried before the operator's word.
    pub(super) closed: Mutex<Option<Failure>>,
    /// The same, for those who must not wait.
    pub(super) is_closed: AtomicBool,
}

impl Gate {
    /// Closes it, or opens it again; `closed` is what is locked.
    pub(super) fn close(&self, closed: &mut Option<Failure>, why: Option<Failure>) {
        self.is_closed.store(why.is_some(), Ordering::Relaxed);
        *closed = why;
    }
}
