//! `statement.txt`: what the people of a ceremony sign.

use std::fmt;

use super::sha256;
use crate::ceremony::words;
use crate::record::{KekRecord, Sha256Digest};

/// The text that is signed: it names everything else by its hash.
#[derive(Clone, Debug)]
pub struct Statement<'a> {
    /// The record, as read.
    pub record: &'a KekRecord,
    /// SHA-256 of its file.
    pub record_sha256: Sha256Digest,
    /// SHA-256 of `plan.lock.json`.
    pub plan_sha256: Sha256Digest,
    /// Hash of the transcript's last event.
    pub head: Sha256Digest,
}

impl<'a> Statement<'a> {
    /// The statement about a record, given as it was read and as bytes.
    pub fn new(record: &'a KekRecord, bytes: &[u8], plan_sha256: Sha256Digest, head: Sha256Digest) -> Self {
        Self { record, record_sha256: sha256(bytes), plan_sha256, head }
    }
}

impl fmt::Display for Statement<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { record, record_sha256, plan_sha256, head } = self;
        write!(
            formatter,
            "hsm-kms ceremony: what the undersigned took part in\n\
             kind: {}\n\
             cluster: {}\n\
             ceremony: {}\n\
             plan: {plan_sha256}\n\
             record: {record_sha256}\n\
             transcript: {head}\n\
             words: {}\n",
            record.kind.word(),
            record.cluster.as_str(),
            record.ceremony.id,
            words(head),
        )
    }
}
