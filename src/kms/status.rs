//! The `healthz` text of Status: from memory, never by asking the HSM.

use crate::token::{Failure, Phase, State};

/// `ok`, or a short public text. The key_id beside it stays the same either way: a plugin that loses its HSM must not look
/// like one that changed its KEK.
pub fn healthz(state: &State) -> String {
    if state.is_healthy() {
        return "ok".to_owned();
    }
    match &state.phase {
        Phase::Down(failure) => text(failure),
        Phase::Ready | Phase::Starting => {
            state.fault().map_or_else(|| "starting: the HSM is being reached".to_owned(), text)
        }
    }
}

fn text(failure: &Failure) -> String {
    format!("{}: {}", failure.class.word(), failure.public)
}
