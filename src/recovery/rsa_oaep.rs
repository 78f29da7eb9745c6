//! RSA-OAEP with SHA-256 (RFC 8017 section 7.1), the public half alone. What an HSM opens begins with the binding: the label of OAEP
//! would say the same, but not every HSM takes one.

use rsa::pkcs8::{DecodePublicKey, EncodePublicKey};
use rsa::traits::PublicKeyParts;
use sha2::Sha256;
use subtle::ConstantTimeEq;
use thiserror::Error;
use zeroize::Zeroizing;

use super::{Binding, SealError};
use crate::secret::Plaintext;

pub(super) type RsaPublic = rsa::PublicKey;

/// What an HSM opened is bound to something else: the blob is of another cluster or KEK, or was made by somebody else.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
#[error("it was sealed for another cluster, KEK or recipient")]
pub struct UnboundError;

/// The seed in what an HSM opened, if it is bound to this.
pub fn unbind(opened: &[u8], binding: &Binding) -> Result<Plaintext, UnboundError> {
    let (found, seed) = opened.split_first_chunk::<BINDING_BYTES>().ok_or(UnboundError)?;
    if bool::from(found.ct_eq(binding.as_bytes())) && !seed.is_empty() {
        Ok(Plaintext::new(seed.to_vec()))
    } else {
        Err(UnboundError)
    }
}

/// The DER of the public key with these numbers (big endian). `None`: they are no RSA key.
pub(super) fn der(modulus: &[u8], exponent: &[u8]) -> Option<Vec<u8>> {
    let [modulus, exponent] = [modulus, exponent].map(rsa::BoxedUint::from_be_slice_vartime);
    let key = RsaPublic::new(modulus, exponent).ok()?;
    key.to_public_key_der().ok().map(|der| der.as_bytes().to_vec())
}

pub(super) fn read(der: &[u8], bits: usize) -> Result<RsaPublic, String> {
    let key = RsaPublic::from_public_key_der(der).map_err(|_| "expected an RSA public key as DER".to_owned())?;
    let found = key.n().bit_width();
    if usize::try_from(found) != Ok(bits) {
        return Err(format!("expected an RSA modulus of {bits} bits, found {found}"));
    }
    if key.e() != &rsa::BoxedUint::from(65537_u64) {
        return Err("expected the RSA exponent 65537".to_owned());
    }
    let is_canonical = key.to_public_key_der().is_ok_and(|again| again.as_bytes() == der);
    if is_canonical {
        Ok(key)
    } else {
        Err("expected the RSA public key in the one form that DER has for it".to_owned())
    }
}

pub(super) fn seal(key: &RsaPublic, seed: &Plaintext, binding: &Binding) -> Result<Vec<u8>, SealError> {
    let most = key.size().saturating_sub(OAEP_BYTES + BINDING_BYTES);
    if seed.len() > most {
        return Err(SealError::TooLong { bytes: seed.len(), most });
    }
    let plaintext = Zeroizing::new([binding.as_bytes().as_slice(), seed.expose()].concat());
    key.oaep_encrypt_with_rng::<Sha256, _>(&mut getrandom::SysRng, &plaintext)
        .map_err(|error| SealError::Failed(error.to_string()))
}

const BINDING_BYTES: usize = 32;

/// What OAEP adds: two digests and two bytes.
const OAEP_BYTES: usize = 2 * 32 + 2;
