//! How the module takes what goes wrong in a call: a buffer that is too small, a ciphertext that is too short.

use serde::{Deserialize, Serialize};

use super::bench::Bench;
use super::outcome::Outcome;
use super::seals::{CONTEXT, SEED, by_encrypt, fresh};
use super::steps::Trial;
use crate::pkcs11::{Error, OneByte};

/// What came of an encryption into one byte.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct SmallBuffer {
    /// The answer; `CKR_BUFFER_TOO_SMALL` is right.
    pub outcome: Outcome,
    /// Whether the operation lives on, so that a call with enough room succeeds.
    pub lives_on: Option<bool>,
}

pub(super) fn small_buffer(bench: &mut Bench, trial: Trial) -> Result<SmallBuffer, Error> {
    let candidate = bench.candidate(trial.candidate)?.clone();
    if let Some(outcome) = by_encrypt(&candidate) {
        return Ok(SmallBuffer { outcome, lives_on: None });
    }
    let key = bench.keys(&candidate, trial.on_token)?.keys.key;
    let answer = fresh(bench, |session| session.encrypt_into_one_byte(key, &candidate.sealing, &CONTEXT, &SEED));
    bench.clear()?;
    Ok(match answer {
        Ok(OneByte { first, then }) => SmallBuffer {
            outcome: Outcome::of_forbidden(&first, "it wrote more than it was told"),
            lives_on: first.is_err().then_some(then.is_ok()),
        },
        Err(error) => SmallBuffer { outcome: Outcome::from(&error), lives_on: None },
    })
}

/// Decrypts 8 bytes, fewer than any ciphertext has. Some modules crash on it.
pub(super) fn short_ciphertext(bench: &mut Bench, trial: Trial) -> Result<Outcome, Error> {
    let candidate = bench.candidate(trial.candidate)?.clone();
    if let Some(outcome) = by_encrypt(&candidate) {
        return Ok(outcome);
    }
    let key = bench.keys(&candidate, trial.on_token)?.keys.key;
    let iv = vec![7; candidate.sealing.form.iv_length.into()];
    let sealing = &candidate.sealing;
    let answer = fresh(bench, |session| session.decrypt_anything(key, sealing, &iv, &CONTEXT, &[7; 8]));
    bench.clear()?;
    Ok(Outcome::of_forbidden(&answer, "8 bytes were decrypted"))
}
