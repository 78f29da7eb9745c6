//! AES-CBC, then HMAC-SHA-256 with a second key of the token's: for tokens without an AEAD (PKCS#11 3.1, sections 6.13.2 and
//! 6.26.2). The MAC covers context, IV and ciphertext, and is compared before anything is decrypted.

use cryptoki_sys as sys;
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use super::raw::{Mechanism, Parameter};
use super::seal::{Sealed, random};
use super::{Error, KekKeys, Key, Session};
use crate::seal::Sealing;

const BLOCK_BYTES: usize = 16;
const MAC_BYTES: usize = 32;

pub(super) fn seal(
    session: &Session,
    keys: KekKeys,
    sealing: &Sealing,
    context: &[u8],
    plaintext: &[u8],
) -> Result<Sealed, Error> {
    let mac_key = mac_key(keys, sealing)?;
    let mut iv = vec![0; BLOCK_BYTES];
    random(&mut iv)?;
    // The module may write to what it is given.
    let mut sent = iv.clone();
    let mechanism = Mechanism { code: sealing.mechanism, parameter: Parameter::Iv(&mut sent) };
    let padded = pad(plaintext);
    let mut ciphertext = session.encrypt(keys.key, mechanism, &padded, padded.len())?;
    let mac = mac(session, mac_key, context, &iv, &ciphertext)?;
    ciphertext.extend_from_slice(&mac);
    Ok(Sealed { iv, ciphertext })
}

pub(super) fn open(
    session: &Session,
    keys: KekKeys,
    sealing: &Sealing,
    iv: &[u8],
    context: &[u8],
    ciphertext: &[u8],
) -> Result<Zeroizing<Vec<u8>>, Error> {
    let mac_key = mac_key(keys, sealing)?;
    let blocks = ciphertext.len().checked_sub(MAC_BYTES).filter(|bytes| bytes.is_multiple_of(BLOCK_BYTES));
    let parts = blocks.and_then(|bytes| ciphertext.split_at_checked(bytes));
    let Some((ciphertext, stored)) = parts else { return Err(session.data_error("C_Sign")) };
    // Not C_Verify: some modules answer it with a code that means a broken device.
    if !bool::from(mac(session, mac_key, context, iv, ciphertext)?.ct_eq(stored)) {
        return Err(session.data_error("C_Sign"));
    }
    let mut iv = iv.to_vec();
    let mechanism = Mechanism { code: sealing.mechanism, parameter: Parameter::Iv(&mut iv) };
    let padded = session.decrypt(keys.key, mechanism, ciphertext, ciphertext.len()..=ciphertext.len())?;
    unpad(padded).ok_or_else(|| session.data_error("C_Decrypt"))
}

fn mac(session: &Session, key: Key, context: &[u8], iv: &[u8], ciphertext: &[u8]) -> Result<Zeroizing<Vec<u8>>, Error> {
    let mechanism = Mechanism { code: sys::CKM_SHA256_HMAC, parameter: Parameter::None };
    session.sign(key, mechanism, &[context, iv, ciphertext].concat(), MAC_BYTES)
}

fn mac_key(keys: KekKeys, sealing: &Sealing) -> Result<Key, Error> {
    keys.mac.ok_or(Error::SealUnsupported { form: sealing.form })
}

/// Padding of PKCS #7 (RFC 5652, section 6.3). Ours: that of two modules is broken.
fn pad(plaintext: &[u8]) -> Zeroizing<Vec<u8>> {
    let count = BLOCK_BYTES - plaintext.len() % BLOCK_BYTES;
    let mut padded = Zeroizing::new(Vec::with_capacity(plaintext.len() + count));
    padded.extend_from_slice(plaintext);
    padded.resize(plaintext.len() + count, u8::try_from(count).unwrap_or_default());
    padded
}

fn unpad(mut padded: Zeroizing<Vec<u8>>) -> Option<Zeroizing<Vec<u8>>> {
    let count = *padded.last()?;
    let kept = padded.len().checked_sub(count.into()).filter(|_| (1..=16).contains(&count))?;
    padded.get(kept..)?.iter().all(|byte| *byte == count).then_some(())?;
    padded.truncate(kept);
    Some(padded)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_length_comes_back_from_its_padding() {
        for length in 0..=64 {
            let plaintext = vec![7; length];
            let padded = pad(&plaintext);
            assert_eq!(padded.len(), (length / 16 + 1) * 16);
            assert_eq!(unpad(padded).unwrap().as_slice(), plaintext);
        }
    }

    #[test]
    fn a_padding_that_cannot_be_is_refused() {
        for last in [[7, 0], [7, 17], [7, 255], [1, 2]] {
            let mut padded = vec![7; 14];
            padded.extend(last);
            assert!(unpad(Zeroizing::new(padded)).is_none(), "{last:?}");
        }
        assert!(unpad(Zeroizing::new(Vec::new())).is_none());
    }
}
