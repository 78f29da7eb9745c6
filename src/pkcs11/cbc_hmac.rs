//! AES-CBC, then HMAC-SHA-256 with a second key in the same token, for devices without an AEAD. The MAC covers context, IV and
//! ciphertext, and is compared, in constant time, before anything is decrypted.
//!
//! Padding is ours (PKCS#7): two modules get `CKM_AES_CBC_PAD` wrong. After a good MAC it can only be what we put there.

use cryptoki_sys as sys;
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use super::raw::{Mechanism, Parameter};
use super::seal::{Sealed, random};
use super::{Error, Key, Session};
use crate::seal::Sealing;

const BLOCK: usize = 16;
const MAC_BYTES: usize = 32;

pub(super) fn seal(
    session: &Session,
    key: Key,
    sealing: &Sealing,
    context: &[u8],
    plaintext: &[u8],
) -> Result<Sealed, Error> {
    let mut iv = [0; BLOCK];
    random(&mut iv)?;
    let padding = BLOCK - plaintext.len() % BLOCK;
    let mut padded = Zeroizing::new(plaintext.to_vec());
    padded.resize(plaintext.len().saturating_add(padding), u8::try_from(padding).unwrap_or(0));
    let mechanism = Mechanism { code: sealing.mechanism, parameter: Parameter::Cbc(iv) };
    let mut ciphertext = session.encrypt(key, mechanism, &padded, padded.len())?;
    let mac = mac(session, key, context, &iv, &ciphertext)?;
    ciphertext.extend_from_slice(&mac);
    Ok(Sealed { iv: iv.to_vec(), ciphertext })
}

pub(super) fn open(
    session: &Session,
    key: Key,
    mechanism: u64,
    iv: &[u8],
    context: &[u8],
    ciphertext: &[u8],
) -> Result<Zeroizing<Vec<u8>>, Error> {
    let data = || session.data_error("C_Decrypt");
    let iv: [u8; BLOCK] = iv.try_into().map_err(|_| data())?;
    let (ciphertext, found) =
        ciphertext.len().checked_sub(MAC_BYTES).and_then(|at| ciphertext.split_at_checked(at)).ok_or_else(data)?;
    if !bool::from(mac(session, key, context, &iv, ciphertext)?.ct_eq(found)) {
        return Err(data());
    }
    let mechanism = Mechanism { code: mechanism, parameter: Parameter::Cbc(iv) };
    let mut padded = session.decrypt(key, mechanism, ciphertext, ciphertext.len()..=ciphertext.len())?;
    let padding = usize::from(padded.last().copied().unwrap_or(0));
    let length = padded.len().checked_sub(padding).filter(|_| (1..=BLOCK).contains(&padding)).ok_or_else(data)?;
    padded.truncate(length);
    Ok(padded)
}

fn mac(session: &Session, key: Key, context: &[u8], iv: &[u8], ciphertext: &[u8]) -> Result<Zeroizing<Vec<u8>>, Error> {
    let handle = key.mac.ok_or_else(|| Error::Sealing { what: "the KEK has no MAC key beside it".to_owned() })?;
    let mechanism = Mechanism { code: sys::CKM_SHA256_HMAC, parameter: Parameter::None };
    session
        .functions()
        .sign(session.session.handle(), handle.handle(), mechanism, &[context, iv, ciphertext].concat(), MAC_BYTES)
        .map_err(|failed| session.module.call_error(failed))
}
