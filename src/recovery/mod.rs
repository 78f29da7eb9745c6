//! Recovery recipients: offline public keys that every seed is also sealed to, so that a lost KEK loses no data.
//!
//! The plugin has only the public halves. What it seals to them lies in an annotation beside the sealed blob, which the KEK binds. Whoever
//! has the private half opens every such seed without the HSM: docs/recovery.md says what that means.

mod blob;
mod hybrid;
mod key_text;
mod recipient;
mod rsa_oaep;
mod seed;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod vectors;

use std::fmt;

use sha2::{Digest, Sha256};
use thiserror::Error;

pub use self::blob::{BlobError, RecoveryBlob};
pub use self::hybrid::HybridKey;
pub use self::key_text::KeyTextError;
pub use self::recipient::{Fingerprint, Recipient, Scheme, is_annotation};
pub use self::rsa_oaep::{UnboundError, unbind};
pub use self::seed::{OtherSeed, rewrapped, seed_digest, unwrapped};
use crate::envelope::update_prefixed;
use crate::key_id::KeyId;

/// Most recipients of one KEK: all their annotations must fit beside each object.
pub const MAX_RECIPIENTS: usize = 4;

/// Whether these may be the recipients of one KEK; if not, why.
pub fn check_recipients(recipients: &[Recipient]) -> Result<(), String> {
    if recipients.len() > MAX_RECIPIENTS {
        return Err(format!("expected at most {MAX_RECIPIENTS} recipients, found {}", recipients.len()));
    }
    let mut annotations: Vec<_> = recipients.iter().map(|recipient| recipient.fingerprint().annotation()).collect();
    annotations.sort_unstable();
    annotations.dedup();
    if annotations.len() == recipients.len() { Ok(()) } else { Err("a recipient stands there twice".to_owned()) }
}

/// What a recovery blob is bound to, 32 bytes: cluster, `key_id` and recipient. Public.
///
/// The `key_id` stands for the record too: it is derived from the KEK's `CKA_ID`, the ceremony and the activation.
#[derive(Clone, Copy, Eq, PartialEq)]
pub struct Binding([u8; 32]);

impl Binding {
    /// For a seed of this cluster that the KEK of this `key_id` sealed.
    pub fn new(cluster: &str, key_id: &KeyId, recipient: &Recipient) -> Self {
        let mut hash = Sha256::new();
        hash.update(DOMAIN);
        for part in [cluster.as_bytes(), key_id.as_str().as_bytes(), recipient.fingerprint().as_bytes()] {
            update_prefixed(&mut hash, part);
        }
        Self(hash.finalize().into())
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Debug for Binding {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Binding({})", data_encoding::HEXLOWER.encode(&self.0))
    }
}

/// Why a seed was not sealed to a recipient.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
pub enum SealError {
    /// The scheme takes no plaintext so long.
    #[error("a plaintext of {bytes} bytes is too long for the recovery recipient, which takes at most {most}")]
    TooLong {
        /// Its length.
        bytes: usize,
        /// What the scheme takes.
        most: usize,
    },
    /// The library failed, or the kernel gave no randomness.
    #[error("the seed cannot be sealed to the recovery recipient: {0}")]
    Failed(String),
}

const DOMAIN: &[u8] = b"hsm-kms/recovery/v1";
