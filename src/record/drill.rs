//! Two small public files about a drill of the recovery key: the challenge that is carried to it, and the report on how it went.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::UtcTime;
use crate::cluster::Cluster;
use crate::key_id::KeyId;
use crate::recovery::{Fingerprint, Recipient, Scheme};
use crate::shares::SecretDigest;
use crate::strict::{self, Base64, FileError};

/// `recovery-drill.json`: when a recovery key last opened what the living plugin had sealed, or failed to. It reminds, and proves nothing:
/// nobody signs it.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct DrillReport {
    version: u64,
    /// When.
    pub time: UtcTime,
    /// The cluster of the plugin.
    pub cluster: Cluster,
    /// What the plugin sealed with.
    pub key_id: KeyId,
    /// The recovery key that was tried.
    pub fingerprint: Fingerprint,
    /// Its scheme.
    pub scheme: Scheme,
    /// What came of it.
    pub outcome: DrillOutcome,
    /// Program and version.
    #[serde(deserialize_with = "strict::line")]
    pub tool: String,
}

/// What came of a drill.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum DrillOutcome {
    /// The recovery key gave the seed back.
    Opened,
    /// It did not.
    Failed,
}

/// What is carried to a recovery key that never comes near a cluster: a seed that nobody keeps, as the plugin sealed it, and its digest.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct DrillChallenge {
    version: u64,
    /// When it was made.
    pub time: UtcTime,
    /// The cluster of the plugin.
    pub cluster: Cluster,
    /// What the plugin sealed with.
    pub key_id: KeyId,
    /// The annotations of its answer.
    pub annotations: BTreeMap<String, Base64>,
    /// What tells the seed from any other.
    pub digest: SecretDigest,
}

impl DrillReport {
    /// A report of a drill that has just been held.
    pub fn new(challenge: &DrillChallenge, key: (Fingerprint, Scheme), outcome: DrillOutcome) -> Self {
        Self {
            version: VERSION,
            time: UtcTime::now(),
            cluster: challenge.cluster.clone(),
            key_id: challenge.key_id.clone(),
            fingerprint: key.0,
            scheme: key.1,
            outcome,
            tool: TOOL.to_owned(),
        }
    }

    /// Reads a report strictly.
    pub fn read(path: &Path) -> Result<Self, FileError> {
        read(path, "drill report")
    }

    /// The text of the file.
    pub fn to_json(&self) -> String {
        json(self)
    }
}

impl DrillChallenge {
    /// A challenge that has just been made.
    pub fn new(cluster: Cluster, key_id: KeyId, annotations: BTreeMap<String, Base64>, digest: SecretDigest) -> Self {
        Self { version: VERSION, time: UtcTime::now(), cluster, key_id, annotations, digest }
    }

    /// Reads a challenge strictly.
    pub fn read(path: &Path) -> Result<Self, FileError> {
        read(path, "drill challenge")
    }

    /// The text of the file.
    pub fn to_json(&self) -> String {
        json(self)
    }
}

/// When a key of these recipients last opened a seed, by the report that the configuration names. `Err`: why that is not known.
pub fn last_drill(path: Option<&Path>, cluster: &Cluster, recipients: &[&Recipient]) -> Result<UtcTime, String> {
    let path = path.ok_or("no drill: the configuration has no kek.recovery_drill")?;
    if path.symlink_metadata().is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound) {
        return Err(format!("no drill: {} is not there", path.display()));
    }
    let report = DrillReport::read(path).map_err(|error| error.to_string())?;
    let is_recipient = recipients.iter().any(|recipient| recipient.fingerprint() == report.fingerprint);
    if report.cluster != *cluster || !is_recipient {
        return Err(format!("the drill of {} was of another cluster's or KEK's recovery key", path.display()));
    }
    match report.outcome {
        DrillOutcome::Opened => Ok(report.time),
        DrillOutcome::Failed => Err(format!("the drill of {} failed", report.time)),
    }
}

const VERSION: u64 = 1;
const TOOL: &str = concat!("hsm-kms ", env!("CARGO_PKG_VERSION"));

fn read<T: serde::de::DeserializeOwned>(path: &Path, what: &'static str) -> Result<T, FileError> {
    let read = strict::read(path).and_then(|bytes| strict::json(&bytes, VERSION));
    read.map_err(|fault| FileError::new(what, Some(path), fault))
}

fn json(value: &impl Serialize) -> String {
    let mut text = serde_json::to_string_pretty(value).unwrap_or_default();
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recovery::HybridKey;

    #[test]
    fn both_files_are_read_as_they_were_written_and_nothing_else_is() {
        let key_id = KeyId::derive("prod", &[7; 16], "00112233445566778899aabbccddeeff", 1);
        let digest = SecretDigest::new([3; 16], &[9; 32]);
        let annotations = [("a.recovery.hsm-kms".to_owned(), Base64(vec![1, 2]))].into();
        let challenge = DrillChallenge::new("prod".parse().unwrap(), key_id, annotations, digest);
        let recipient = HybridKey::from_bytes(&[1; 32]).recipient().unwrap();
        let report = DrillReport::new(&challenge, (recipient.fingerprint(), recipient.scheme()), DrillOutcome::Opened);
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file.json");
        std::fs::write(&path, report.to_json()).unwrap();
        assert_eq!(DrillReport::read(&path).unwrap(), report);
        assert!(DrillChallenge::read(&path).is_err());
        std::fs::write(&path, report.to_json().replace("opened", "maybe")).unwrap();
        assert!(DrillReport::read(&path).unwrap_err().to_string().contains("`outcome`"));
        std::fs::write(&path, challenge.to_json()).unwrap();
        assert_eq!(DrillChallenge::read(&path).unwrap(), challenge);
    }
}
