//! One way of sealing, really done with a throw-away key: sealed, opened, changed, bound to another context, made long.

use cryptoki_sys as sys;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::bench::Bench;
use super::candidates::Candidate;
use super::outcome::Outcome;
use crate::pkcs11::{Error, KekKeys, Sealed};
use crate::profile::Aad;
use crate::seal::{Seal, SealCall};

/// What came of one way of sealing.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct SealFinding {
    /// Whether it seals, opens, and refuses what was changed.
    pub outcome: Outcome,
    /// How a ciphertext with one bit changed was refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub changed_bit: Option<Outcome>,
    /// How another context was refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub other_context: Option<Outcome>,
    /// Whether 928 bytes, the longest plaintext, can be sealed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub longest: Option<Outcome>,
}

/// The context that everything is sealed under here.
pub(super) const CONTEXT: [u8; 32] = [0x5a; 32];

/// A plaintext as long as a seed.
pub(super) const SEED: [u8; 32] = [0xc3; 32];

/// The shortest plaintext.
const TINY: [u8; 1] = [0x3c];

/// The longest plaintext that `serve` takes, in bytes.
const LONGEST: usize = 928;

impl From<Outcome> for SealFinding {
    fn from(outcome: Outcome) -> Self {
        Self { outcome, changed_bit: None, other_context: None, longest: None }
    }
}

/// Tries the candidate.
pub(super) fn run(bench: &mut Bench, number: usize, on_token: bool) -> Result<SealFinding, Error> {
    let candidate = bench.candidate(number)?.clone();
    if let Some(missing) = missing(bench, &candidate)? {
        return Ok(missing.into());
    }
    let keys = match bench.keys(&candidate, on_token) {
        Ok(keys) => keys.keys,
        Err(error) => {
            bench.clear()?;
            return Ok(Outcome::from(&error).into());
        }
    };
    let finding = judge(bench, keys, &candidate);
    bench.clear()?;
    Ok(finding)
}

/// The mechanism that the token does not list, as it would refuse it. What is not listed is not tried: some modules crash.
fn missing(bench: &Bench, candidate: &Candidate) -> Result<Option<Outcome>, Error> {
    for (mechanism, flags) in candidate.sealing.mechanisms() {
        let Some(info) = bench.token.mechanism(mechanism)? else {
            return Ok(Some(Outcome::refused("C_GetMechanismInfo", sys::CKR_MECHANISM_INVALID)));
        };
        // A module may have message functions that do nothing; only the flags say so.
        let needed = flags & (sys::CKF_MESSAGE_ENCRYPT | sys::CKF_MESSAGE_DECRYPT);
        if info.flags & needed != needed {
            return Ok(Some(Outcome::differs("no flag for message encryption")));
        }
    }
    Ok(None)
}

fn judge(bench: &Bench, keys: KekKeys, candidate: &Candidate) -> SealFinding {
    let seal = |plaintext: &[u8]| fresh(bench, |session| session.seal(keys, &candidate.sealing, &CONTEXT, plaintext));
    let open = |context: &[u8], sealed: &Sealed| {
        let Sealed { iv, ciphertext } = sealed;
        let form = candidate.sealing.form;
        fresh(bench, |session| session.open(keys, &candidate.sealing, form, iv, context, ciphertext))
    };
    let sealed = match seal(&SEED) {
        Ok(sealed) => sealed,
        Err(error) => return Outcome::from(&error).into(),
    };
    match open(&CONTEXT, &sealed) {
        Ok(opened) if opened.as_slice() == SEED => {}
        Ok(_) => return Outcome::differs("its own seal opens to something else").into(),
        Err(error) => return Outcome::differs(format!("its own seal does not open, {}", Outcome::from(&error))).into(),
    }
    // Less than a block: one module's key wrap gives it back longer than it was.
    let tiny = seal(&TINY).and_then(|sealed| open(&CONTEXT, &sealed));
    match tiny {
        Ok(opened) if opened.as_slice() == TINY => {}
        Ok(opened) => return Outcome::differs(format!("1 byte comes back as {}", opened.len())).into(),
        Err(error) => return Outcome::differs(format!("1 byte cannot be sealed, {}", Outcome::from(&error))).into(),
    }
    let mut finding = SealFinding::from(Outcome::WORKS);
    for changed in changes(&sealed) {
        let refused = Outcome::of_forbidden(&open(&CONTEXT, &changed), "a changed seal opens");
        if !refused.is_refusal() {
            finding.outcome = refused.clone();
        }
        finding.changed_bit = Some(refused);
    }
    let refused = Outcome::of_forbidden(&open(&[0; 32], &sealed), "a seal opens under another context");
    if !refused.is_refusal() {
        finding.outcome = refused.clone();
    }
    finding.other_context = Some(refused);
    // What hsm-kms compares itself says nothing about the module.
    let by_us = Outcome::untried("hsm-kms compares it");
    match Aad::of(candidate.sealing.form.seal) {
        Aad::Plaintext => finding.other_context = Some(by_us),
        Aad::Mac => (finding.changed_bit, finding.other_context) = (Some(by_us.clone()), Some(by_us)),
        Aad::Param => {}
    }
    let long = Zeroizing::new(vec![0xa5; LONGEST]);
    let longest = seal(&long).and_then(|sealed| open(&CONTEXT, &sealed));
    finding.longest = Some(match longest {
        Ok(opened) if opened == long => Outcome::WORKS,
        Ok(_) => Outcome::differs("it opens to something else"),
        Err(error) => Outcome::from(&error),
    });
    // The same IV twice would give away what is sealed. Key wrap has none, and seals one plaintext to one ciphertext.
    let again = seal(&SEED).map(|again| again.ciphertext == sealed.ciphertext);
    if candidate.sealing.form.seal != Seal::AesKwp && again.unwrap_or(false) {
        finding.outcome = Outcome::differs("the same IV twice");
    }
    finding
}

/// The seal with one bit changed: of the first byte, of the last, of the IV.
fn changes(sealed: &Sealed) -> Vec<Sealed> {
    let flip = |bytes: &[u8], last: bool| {
        let mut bytes = bytes.to_vec();
        if let Some(byte) = if last { bytes.last_mut() } else { bytes.first_mut() } {
            *byte ^= 1;
        }
        bytes
    };
    let Sealed { iv, ciphertext } = sealed;
    let mut changed = vec![
        Sealed { iv: iv.clone(), ciphertext: flip(ciphertext, false) },
        Sealed { iv: iv.clone(), ciphertext: flip(ciphertext, true) },
    ];
    if !iv.is_empty() {
        changed.push(Sealed { iv: flip(iv, false), ciphertext: ciphertext.clone() });
    }
    changed
}

/// Runs it on a session of its own: whatever goes wrong leaves the session in a state of its own, too.
pub(super) fn fresh<T>(
    bench: &Bench,
    run: impl FnOnce(&crate::pkcs11::Session) -> Result<T, Error>,
) -> Result<T, Error> {
    run(&bench.token.open_session()?)
}

/// Whether it can be asked for sizes, which needs `C_Encrypt`.
pub(super) fn by_encrypt(candidate: &Candidate) -> Option<Outcome> {
    let only = (candidate.sealing.call != SealCall::Encrypt).then_some("only C_Encrypt is asked for sizes");
    only.map(Outcome::untried)
}
