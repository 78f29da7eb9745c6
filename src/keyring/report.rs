//! What a node says of its keyring, at `/keyring` of its endpoints, and what that is worth beside a keyring's file.

use serde::{Deserialize, Serialize};

use super::{Entry, Keyring, KeyringFile, RecordPath, State};
use crate::cluster::Cluster;
use crate::record::{Sha256Digest, UtcTime};
use crate::strict::{self, FileError};
use crate::token::Health;

/// The keyring of one running plugin. Public.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct NodeReport {
    version: u64,
    /// When it was made.
    pub time: UtcTime,
    /// Name of the machine.
    #[serde(deserialize_with = "strict::line_or_empty")]
    pub host: String,
    /// Random name of the process: two reports with one are of one node.
    #[serde(deserialize_with = "strict::line")]
    pub instance: String,
    /// The cluster whose seeds are sealed.
    pub cluster: Cluster,
    /// Hash of the last event of the keyring file that is served. None where one record is configured.
    pub head: Option<Sha256Digest>,
    /// Activations of all KEKs so far.
    pub epoch: u64,
    /// Hash of the key_id that Status announces, as the API server's metrics print it.
    #[serde(deserialize_with = "strict::line")]
    pub key_id_hash: String,
    /// Whether a worker has found and proved all KEKs on a token, and the token does its work.
    pub proved: bool,
    /// The KEKs that it opens with.
    pub keks: Vec<NodeKek>,
    /// Why the file on its disk is not the one that is served.
    pub refused: Option<String>,
}

/// One KEK of a running plugin.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct NodeKek {
    /// SHA-256 of its record's file.
    pub record_sha256: Sha256Digest,
    /// What it does there.
    pub state: State,
    /// Hash of its key_id.
    #[serde(deserialize_with = "strict::line")]
    pub key_id_hash: String,
}

/// What a node's report is worth beside a keyring's file.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct NodeVerdict {
    /// Where the node's keyring stands.
    pub place: Place,
    /// KEKs in service that it cannot open with.
    pub missing: Vec<RecordPath>,
}

/// Where a node's keyring stands beside the file.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Place {
    /// It is the file.
    Same,
    /// It is the file as it was before so many events.
    Behind(usize),
    /// It is of another history, or of none.
    Elsewhere,
}

const VERSION: u64 = 1;

impl NodeReport {
    /// The report of this process, which has this random name.
    pub fn new(instance: &str, keyring: &Keyring, head: Option<Sha256Digest>, refused: Option<String>) -> Option<Self> {
        let keks = keyring.keks().iter().map(|kek| NodeKek {
            record_sha256: kek.record_sha256,
            state: kek.state,
            key_id_hash: kek.key_id().hash(),
        });
        Some(Self {
            version: VERSION,
            time: UtcTime::now(),
            host: super::file::host(),
            instance: instance.to_owned(),
            cluster: keyring.cluster.parse().ok()?,
            head,
            epoch: keyring.epoch(),
            key_id_hash: keyring.active().hash(),
            proved: matches!(keyring.tokens().health(), Health::Ok),
            keks: keks.collect(),
            refused,
        })
    }

    /// Reads a report strictly.
    pub fn parse(bytes: &[u8]) -> Result<Self, FileError> {
        strict::json(bytes, VERSION).map_err(|fault| FileError::new("report of a node", None, fault))
    }

    /// The report as text.
    pub fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).unwrap_or_default() + "\n"
    }

    /// What it is worth beside `file`.
    pub fn judge(&self, file: &KeyringFile) -> NodeVerdict {
        let behind = self.head.filter(|_| self.cluster == *file.cluster()).and_then(|head| file.events_after(head));
        let place = match behind {
            Some(0) => Place::Same,
            Some(events) => Place::Behind(events),
            None => Place::Elsewhere,
        };
        let opens = |entry: &Entry| {
            let has = |kek: &NodeKek| kek.record_sha256 == entry.record_sha256;
            place != Place::Elsewhere && self.proved && self.keks.iter().any(has)
        };
        let entries = file.at(self.time);
        let missing = entries.iter().filter(|entry| entry.is_in_service() && !opens(entry));
        NodeVerdict { place, missing: missing.map(|entry| entry.record.clone()).collect() }
    }
}
