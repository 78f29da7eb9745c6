//! Whether keys can be made at all: in a session, which leaves nothing behind, and on the token, as a KEK is.

use serde::{Deserialize, Serialize};

use super::bench::Bench;
use super::outcome::Outcome;
use crate::pkcs11::Error;

/// Where a key can be made.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Keys {
    /// With `CKA_TOKEN` false.
    pub session: Outcome,
    /// With `CKA_TOKEN` true.
    pub token: Outcome,
    /// Whether `C_DestroyObject` took it away again.
    pub destroy: Outcome,
}

/// Makes the first candidate's key twice.
pub(super) fn run(bench: &mut Bench) -> Result<Keys, Error> {
    let candidate = bench.candidate(0)?.clone();
    let mut make = |on_token| {
        let template = bench.template(&candidate, candidate.sealing.kek_use(), on_token);
        let made = Outcome::of(&bench.make(candidate.generate, &template));
        Ok::<_, Error>((made, bench.clear()?))
    };
    let (session, left_in_session) = make(false)?;
    let (token, left_on_token) = make(true)?;
    let destroy = match left_in_session + left_on_token {
        _ if !session.works() && !token.works() => Outcome::untried("there is no key to destroy"),
        0 => Outcome::WORKS,
        left => Outcome::differs(format!("{left} keys are still there")),
    };
    Ok(Keys { session, token, destroy })
}
