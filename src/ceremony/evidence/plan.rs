//! What a verifier needs of `plan.lock.json`. It neither looks for modules nor reads profiles.

use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::ceremony::{People, Person};
use crate::cluster::Cluster;
use crate::record::Sha256Digest;
use crate::recovery::Fingerprint;
use crate::strict;

/// The plan of a ceremony that people held.
#[derive(Debug)]
pub(super) struct LockedPlan {
    pub(super) digest: Sha256Digest,
    pub(super) cluster: Cluster,
    /// `serialNumber` of the token.
    pub(super) serial: String,
    pub(super) people: People,
    /// Serial numbers of the tokens that are to hold a copy.
    pub(super) copies: Vec<String>,
    pub(super) previous: Option<Sha256Digest>,
    pub(super) is_import: bool,
    /// Fingerprints of the recovery recipients.
    pub(super) recipients: Vec<Fingerprint>,
    /// SHA-256 of the record of the KEK that it destroys.
    pub(super) destroys: Option<Sha256Digest>,
}

impl LockedPlan {
    /// Reads the lock, whose bytes must be canonical; the error is in words.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, String> {
        let content: serde_json::Value = strict::json(bytes, 1).map_err(|fault| fault.to_string())?;
        let canonical = serde_json_canonicalizer::to_vec(&content).map_err(|error| error.to_string())?;
        if canonical != bytes {
            return Err("it is not in canonical form (RFC 8785)".to_owned());
        }
        let file: File = strict::json(bytes, 1).map_err(|fault| fault.to_string())?;
        let File {
            kind: Kind::Production,
            cluster,
            serial,
            people,
            copies,
            recipients,
            previous,
            import,
            destroys,
            ..
        } = file;
        Ok(Self {
            digest: Sha256Digest::of(bytes),
            cluster,
            serial,
            people: People::new(people).map_err(|fault| fault.to_string())?,
            copies: copies.into_iter().map(|copy| copy.serial).collect(),
            previous,
            is_import: import.is_some(),
            recipients: recipients.into_iter().map(|recipient| recipient.fingerprint).collect(),
            destroys,
        })
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(rename = "version")]
    _version: u64,
    kind: Kind,
    cluster: Cluster,
    #[serde(rename = "site")]
    _site: IgnoredAny,
    #[serde(deserialize_with = "strict::line")]
    serial: String,
    #[serde(rename = "token")]
    _token: IgnoredAny,
    #[serde(rename = "kek")]
    _kek: IgnoredAny,
    people: Vec<Person>,
    #[serde(default)]
    copies: Vec<Copy>,
    #[serde(default)]
    recipients: Vec<Recipient>,
    previous: Option<Sha256Digest>,
    import: Option<IgnoredAny>,
    destroys: Option<Sha256Digest>,
    #[serde(rename = "output")]
    _output: IgnoredAny,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Copy {
    #[serde(deserialize_with = "strict::line")]
    serial: String,
    #[serde(rename = "token")]
    _token: IgnoredAny,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Recipient {
    #[serde(rename = "file")]
    _file: IgnoredAny,
    fingerprint: Fingerprint,
}

/// A rehearsal goes by the production plan; trials have no evidence.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Kind {
    Production,
}
