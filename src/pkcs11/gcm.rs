//! AES-GCM: the context is the AAD (NIST SP 800-38D; PKCS#11 3.1, section 6.13.3). Who makes the IV, and where it is found,
//! differs between modules.

use std::ops::RangeInclusive;

use zeroize::Zeroizing;

use super::raw::{Mechanism, Message, Parameter, TAG_BYTES};
use super::seal::{Sealed, random};
use super::{Error, Key, Session};
use crate::seal::{IvLayout, IvSend, SealCall, Sealing};

/// Bytes of an IV that stays in the ciphertext.
const IV_INSIDE: RangeInclusive<usize> = 12..=16;

pub(super) fn seal(
    session: &Session,
    key: Key,
    sealing: &Sealing,
    context: &[u8],
    plaintext: &[u8],
) -> Result<Sealed, Error> {
    let length = usize::from(sealing.form.iv_length);
    let mut iv = match sealing.send {
        IvSend::Null => Vec::new(),
        IvSend::Random | IvSend::Zeros => vec![0; length],
    };
    if sealing.send == IvSend::Random {
        random(&mut iv)?;
    }
    let sent = iv.clone();
    let mechanism = Mechanism { code: sealing.mechanism, parameter: Parameter::Gcm { iv: &mut iv, aad: context } };
    let with_tag = plaintext.len().saturating_add(TAG_BYTES);
    match sealing.form.iv_layout {
        IvLayout::Sent => {
            let ciphertext = session.encrypt(key, mechanism, plaintext, with_tag)?;
            // A module that writes an IV of its own would have used that one.
            if iv != sent {
                return Err(unexpected("it wrote an IV of its own; the profile says that it uses ours"));
            }
            Ok(Sealed { iv, ciphertext })
        }
        IvLayout::Param => {
            let ciphertext = match sealing.call {
                SealCall::Message => {
                    let message = Message { mechanism: sealing.mechanism, iv: &mut iv, aad: context };
                    session.encrypt_message(key, message, plaintext)?
                }
                SealCall::Encrypt | SealCall::Wrap => session.encrypt(key, mechanism, plaintext, with_tag)?,
            };
            if iv == sent {
                return Err(unexpected("it wrote no IV of its own; the profile says that it does"));
            }
            Ok(Sealed { iv, ciphertext })
        }
        IvLayout::Suffix => {
            let mut ciphertext = session.encrypt(key, mechanism, plaintext, with_tag.saturating_add(length))?;
            let iv = ciphertext.split_off(with_tag);
            Ok(Sealed { iv, ciphertext })
        }
        IvLayout::Prefix => {
            let mut iv = session.encrypt(key, mechanism, plaintext, with_tag.saturating_add(length))?;
            let ciphertext = iv.split_off(length);
            Ok(Sealed { iv, ciphertext })
        }
        IvLayout::Inside => {
            let lengths = with_tag.saturating_add(*IV_INSIDE.start())..=with_tag.saturating_add(*IV_INSIDE.end());
            let ciphertext = session.encrypt_to(key, mechanism, plaintext, lengths)?;
            Ok(Sealed { iv: Vec::new(), ciphertext })
        }
    }
}

pub(super) fn open(
    session: &Session,
    key: Key,
    sealing: &Sealing,
    iv: &[u8],
    context: &[u8],
    ciphertext: &[u8],
) -> Result<Zeroizing<Vec<u8>>, Error> {
    // Only the module knows where in the ciphertext it is.
    let is_inside = iv.is_empty();
    let mut iv = iv.to_vec();
    if sealing.call == SealCall::Message {
        let message = Message { mechanism: sealing.mechanism, iv: &mut iv, aad: context };
        return session.decrypt_message(key, message, ciphertext);
    }
    let mechanism = Mechanism { code: sealing.mechanism, parameter: Parameter::Gcm { iv: &mut iv, aad: context } };
    let without_tag = ciphertext.len().saturating_sub(TAG_BYTES);
    let expected = if is_inside {
        without_tag.saturating_sub(*IV_INSIDE.end())..=without_tag.saturating_sub(*IV_INSIDE.start())
    } else {
        without_tag..=without_tag
    };
    session.decrypt(key, mechanism, ciphertext, expected)
}

fn unexpected(what: &str) -> Error {
    Error::Sealing { what: what.to_owned() }
}
