//! Mechanisms without an AAD whose output only the module can take apart: AES key wrap with padding (RFC 5649) and Yubico's
//! AES-CCM wrap. The context goes in front of the plaintext and is compared after opening.

use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use super::raw::{Mechanism, Parameter};
use super::seal::Sealed;
use super::{Error, Key, Session};
use crate::seal::{Seal, SealCall, Sealing};

/// Bytes that Yubico's driver adds: algorithm 1, nonce 13, tag 16.
const CCM_OVERHEAD: usize = 30;

/// Bytes of one half block, the unit of RFC 5649.
const SEMIBLOCK: usize = 8;

pub(super) fn seal(
    session: &Session,
    key: Key,
    sealing: &Sealing,
    context: &[u8],
    plaintext: &[u8],
) -> Result<Sealed, Error> {
    let bound = Zeroizing::new([context, plaintext].concat());
    let expected = match sealing.form.seal {
        Seal::YubicoCcm => bound.len().saturating_add(CCM_OVERHEAD),
        _ => bound.len().next_multiple_of(SEMIBLOCK).saturating_add(SEMIBLOCK),
    };
    let ciphertext = match sealing.call {
        SealCall::Wrap => session.wrap_bytes(key, sealing.mechanism, &bound, expected)?,
        SealCall::Encrypt | SealCall::Message => session.encrypt(key, mechanism(sealing), &bound, expected)?,
    };
    Ok(Sealed { iv: Vec::new(), ciphertext })
}

pub(super) fn open(
    session: &Session,
    key: Key,
    sealing: &Sealing,
    context: &[u8],
    ciphertext: &[u8],
) -> Result<Zeroizing<Vec<u8>>, Error> {
    let expected = if sealing.form.seal == Seal::YubicoCcm {
        let exact = ciphertext.len().saturating_sub(CCM_OVERHEAD);
        exact..=exact
    } else {
        let padded = ciphertext.len().saturating_sub(SEMIBLOCK);
        padded.saturating_sub(SEMIBLOCK - 1)..=padded
    };
    let bound = match sealing.call {
        SealCall::Wrap => session.unwrap_bytes(key, sealing.mechanism, ciphertext, &expected)?,
        SealCall::Encrypt | SealCall::Message => session.decrypt(key, mechanism(sealing), ciphertext, expected)?,
    };
    match bound.split_at_checked(context.len()) {
        Some((found, plaintext)) if bool::from(found.ct_eq(context)) => Ok(Zeroizing::new(plaintext.to_vec())),
        _ => Err(session.data_error("C_Decrypt")),
    }
}

fn mechanism(sealing: &Sealing) -> Mechanism<'static> {
    Mechanism { code: sealing.mechanism, parameter: Parameter::None }
}
