//! What the record says of a ceremony that people held: who, by which plan, with which evidence.

use serde::{Deserialize, Deserializer, Serialize};

use super::{Sha256Digest, lines};
use crate::shares::SecretDigest;
use crate::strict;

/// How a ceremony that people held went. Its evidence lies beside the record (docs/formats.md).
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Witnessed {
    /// SHA-256 of `plan.lock.json`.
    pub plan_sha256: Sha256Digest,
    /// Hash of the last transcript event before the record was written.
    pub transcript_head: Sha256Digest,
    /// Where the key material came from.
    pub origin: Origin,
    /// Who took part, in the plan's order; at least one.
    #[serde(deserialize_with = "people")]
    pub people: Vec<Participant>,
    /// Further tokens that proved to hold this KEK.
    pub copies: Vec<TokenCopy>,
    /// The shares that restore the KEK: there exactly where it came from outside.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shares: Option<ShareSet>,
    /// Checks that failed and were let pass, and who decided; one text each.
    #[serde(deserialize_with = "lines")]
    pub exceptions: Vec<String>,
    /// SHA-256 of the record of the KEK that this one follows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous_record_sha256: Option<Sha256Digest>,
}

/// Where the key material came from.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Origin {
    /// Generated inside the token.
    Generated,
    /// Brought in as shares.
    Imported,
}

/// Someone who took part.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Participant {
    /// As in the plan.
    #[serde(deserialize_with = "strict::line")]
    pub name: String,
    /// In this ceremony.
    pub role: Role,
}

/// What someone does at a ceremony.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Leads, and answers for the plan.
    Administrator,
    /// Works at the machine.
    Operator,
    /// Watches, and does nothing else.
    Witness,
    /// Holds half of the PIN, or a share.
    Custodian,
}

impl Role {
    /// As files write it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Administrator => "administrator",
            Self::Operator => "operator",
            Self::Witness => "witness",
            Self::Custodian => "custodian",
        }
    }
}

/// A further token that proved to hold the KEK.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct TokenCopy {
    /// Its serial number (`C_GetTokenInfo`).
    #[serde(deserialize_with = "strict::line")]
    pub serial: String,
    /// `libraryDescription` of its module (`C_GetInfo`).
    #[serde(deserialize_with = "strict::line_or_empty")]
    pub library: String,
}

/// Shares that were read back, and restored the KEK, before it was used.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ShareSet {
    /// How many there are.
    #[serde(deserialize_with = "strict::number::<2, 16, _>")]
    pub shares: u64,
    /// How many of them restore the KEK.
    #[serde(deserialize_with = "strict::number::<2, 16, _>")]
    pub threshold: u64,
    /// Salted digest of what they restore.
    pub digest: SecretDigest,
}

/// Copies from which a KEK counts as recoverable: one may be lost as well.
pub(super) const COPIES_TO_RECOVER: usize = 2;

fn people<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Participant>, D::Error> {
    let people = Vec::deserialize(deserializer)?;
    if people.is_empty() { Err(serde::de::Error::custom("expected at least one person")) } else { Ok(people) }
}
