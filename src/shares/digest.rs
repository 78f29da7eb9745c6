//! What tells a secret from any other, and gives nothing of it away.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::strict;

/// The salted SHA-256 of a secret. Public. Written as 32 hex digits of salt, a colon and 64 hex digits of hash, lower case.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct SecretDigest {
    salt: [u8; 16],
    hash: [u8; 32],
}

impl SecretDigest {
    /// The digest of `secret` with this random salt.
    pub fn new(salt: [u8; 16], secret: &[u8]) -> Self {
        Self { salt, hash: hash(&salt, secret) }
    }

    /// Whether it is this secret. In constant time.
    pub fn is_of(&self, secret: &[u8]) -> bool {
        self.hash.ct_eq(&hash(&self.salt, secret)).into()
    }
}

/// Keeps it apart from every other hash of the same bytes.
const DOMAIN: &str = "hsm-kms/shares/v1";

fn hash(salt: &[u8; 16], secret: &[u8]) -> [u8; 32] {
    Sha256::new().chain_update(DOMAIN).chain_update(salt).chain_update(secret).finalize().into()
}

impl FromStr for SecretDigest {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parse = || {
            let (salt, hash) = text.split_once(':')?;
            let hex = |text: &str| data_encoding::HEXLOWER.decode(text.as_bytes()).ok();
            Some(Self { salt: hex(salt)?.try_into().ok()?, hash: hex(hash)?.try_into().ok()? })
        };
        parse().ok_or("expected 32 lower-case hex digits, a colon and 64 more")
    }
}

impl fmt::Display for SecretDigest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hex = |bytes: &[u8]| data_encoding::HEXLOWER.encode(bytes);
        formatter.pad(&format!("{}:{}", hex(&self.salt), hex(&self.hash)))
    }
}

impl<'de> Deserialize<'de> for SecretDigest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        strict::from_text(deserializer)
    }
}

impl Serialize for SecretDigest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}
