//! What tokens with one serial number and one PIN source share: a PIN that one of them refused is not tried on the next, since
//! they may be one device behind several connectors.

use tokio::sync::Mutex;

use super::Failure;

/// Passed by one start at a time.
#[derive(Default)]
pub(super) struct Gate {
    /// Why no login is tried before the operator's word.
    pub(super) closed: Mutex<Option<Failure>>,
}
