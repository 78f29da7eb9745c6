//! The public name of a KEK in one activation.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest, Sha256};

use crate::strict;

/// The `key_id` of KMS v2: public, stored with every object, the same on every node, never used twice.
///
/// Text form: `hsm1-` and 40 lower-case hex digits, made by [`KeyId::derive`]; docs/formats.md has the layout.
#[derive(Clone, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct KeyId(String);

impl KeyId {
    /// The key_id of the KEK with this CKA_ID, made by this ceremony, in its `epoch`-th activation for `cluster`.
    pub fn derive(cluster: &str, cka_id: &[u8], ceremony_id: &str, epoch: u64) -> Self {
        let mut hash = Sha256::new();
        hash.update(b"hsm-kms/key-id/v1");
        for part in [cluster.as_bytes(), cka_id, ceremony_id.as_bytes(), &epoch.to_be_bytes()] {
            hash.update(u64::try_from(part.len()).unwrap_or(u64::MAX).to_be_bytes());
            hash.update(part);
        }
        let digest = data_encoding::HEXLOWER.encode(&hash.finalize());
        Self(format!("{PREFIX}{}", digest.get(..HEX_DIGITS).unwrap_or(&digest)))
    }

    /// Reads a key_id as it comes from the API server. `None`: not one that this plugin ever made.
    pub fn parse(text: &str) -> Option<Self> {
        let digits = text.strip_prefix(PREFIX)?;
        let well_formed =
            digits.len() == HEX_DIGITS && digits.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        well_formed.then(|| Self(text.to_owned()))
    }

    /// The text that Status and Encrypt return.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// `sha256:` and the hex SHA-256 of the text: what the API server prints in its metrics (`key_id_hash`).
    pub fn hash(&self) -> String {
        hash(&self.0)
    }
}

/// `sha256:` and the hex SHA-256 of any key_id text, as the API server's metrics print it.
pub fn hash(text: &str) -> String {
    format!("sha256:{}", data_encoding::HEXLOWER.encode(&Sha256::digest(text.as_bytes())))
}

impl FromStr for KeyId {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::parse(text).ok_or("expected a key_id: hsm1- and 40 lower-case hex digits")
    }
}

impl<'de> Deserialize<'de> for KeyId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        strict::from_text(deserializer)
    }
}

impl Serialize for KeyId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "KeyId({})", self.0)
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

const PREFIX: &str = "hsm1-";
const HEX_DIGITS: usize = 40;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_input_changes_the_key_id() {
        let base = KeyId::derive("prod", &[1; 16], "ceremony", 1);
        for other in [
            KeyId::derive("prod2", &[1; 16], "ceremony", 1),
            KeyId::derive("prod", &[2; 16], "ceremony", 1),
            KeyId::derive("prod", &[1; 16], "ceremony2", 1),
            KeyId::derive("prod", &[1; 16], "ceremony", 2),
        ] {
            assert_ne!(base, other);
        }
        assert_eq!(base, KeyId::derive("prod", &[1; 16], "ceremony", 1));
    }

    #[test]
    fn only_its_own_text_form_is_read() {
        let id = KeyId::derive("prod", &[1; 16], "ceremony", 1);
        assert_eq!(KeyId::parse(id.as_str()), Some(id.clone()));
        assert!(id.as_str().len() <= 64);
        let text = id.as_str();
        for wrong in
            ["", "hsm1-", &text[..44], &format!("{text}0"), &text.to_uppercase(), &text.replace("hsm1", "hsm2")]
        {
            assert_eq!(KeyId::parse(wrong), None, "{wrong}");
        }
    }
}
