//! The sealed seeds of a store, and how one opens with a recovery key.

use data_encoding::HEXLOWER;
use thiserror::Error;

use super::private_key::PrivateKey;
use crate::cli::CliError;
use crate::cli::etcd::store::Store;
use crate::cli::etcd::walk::{Walk, walk};
use crate::cluster::Cluster;
use crate::envelope::Annotations;
use crate::etcd::inventory::Source;
use crate::etcd::seeds::Seeds;
use crate::key_id::KeyId;
use crate::recovery::{Binding, BlobError, Recipient, RecoveryBlob, is_annotation};
use crate::secret::Plaintext;

/// Every seed of a store, with what was read.
pub(super) struct Found {
    pub seeds: Seeds,
    pub source: Source,
    pub revision: u64,
}

/// Goes through the store once.
pub(super) fn collect(store: &Store, prefix: &str) -> Result<Found, CliError> {
    let mut seeds = Seeds::default();
    let walked = walk(store, prefix.as_bytes(), None, &mut |entry| seeds.add(&entry))?;
    Ok(Found::new(seeds, walked))
}

impl Found {
    /// These seeds, found on this walk.
    pub(super) fn new(mut seeds: Seeds, walked: Walk) -> Self {
        for fault in walked.faults {
            seeds.fault(fault);
        }
        seeds.faults_left_off += walked.faults_left_off;
        Self { seeds, source: walked.source, revision: walked.revision }
    }
}

/// A store in few words, without its folders: it goes into a file that others read.
pub(super) fn in_words(source: &Source, revision: u64) -> String {
    match source {
        Source::Etcd { cluster_id, .. } => format!("the etcd cluster {cluster_id}, revision {revision}"),
        Source::Snapshot { file, .. } => {
            let name = file.rsplit('/').next().unwrap_or_default();
            let name: String = name.chars().filter(|character| !character.is_control()).take(64).collect();
            format!("the snapshot {name}, revision {revision}")
        }
    }
}

/// Why a seed does not open with a recovery key.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
pub(super) enum Closed {
    /// There is no recovery blob at all.
    #[error("it carries no recovery blob: it was sealed without a recipient, or the blob was taken away")]
    Uncovered,
    /// There are blobs for other keys.
    #[error("it was sealed to {0}, not to this key")]
    OtherKey(String),
    /// The blob is none.
    #[error("its recovery blob is damaged: {0}")]
    Damaged(BlobError),
    /// It is one, and does not open.
    #[error("its recovery blob does not open: {0}")]
    Refused(String),
}

/// Opens the blob that was sealed to this key.
pub(super) fn open(
    key: &PrivateKey,
    recipient: &Recipient,
    cluster: &Cluster,
    key_id: &KeyId,
    annotations: &Annotations,
) -> Result<Plaintext, Closed> {
    let Some(blob) = annotations.get(&recipient.fingerprint().annotation()) else {
        let mut others: Vec<&str> =
            annotations.keys().filter(|name| is_annotation(name)).map(|name| short(name)).collect();
        others.sort_unstable();
        return Err(if others.is_empty() { Closed::Uncovered } else { Closed::OtherKey(others.join(", ")) });
    };
    let blob = RecoveryBlob::parse(blob).map_err(Closed::Damaged)?;
    key.open(&blob, &Binding::new(cluster.as_str(), key_id, recipient)).map_err(Closed::Refused)
}

/// The digits of a recipient's fingerprint in the name of its annotation.
pub(super) fn short(annotation: &str) -> &str {
    annotation.split('.').next().unwrap_or_default()
}

/// A digest as lines show it.
pub(super) fn short_digest(digest: &[u8; 32]) -> String {
    HEXLOWER.encode(digest.get(..8).unwrap_or_default())
}
