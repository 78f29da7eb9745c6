//! `statement.txt`: what the people of a ceremony sign.

use std::fmt;

use crate::ceremony::transcript::Event;
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
    /// All events of the transcript.
    pub events: &'a [Event],
}

impl<'a> Statement<'a> {
    /// The statement about a record, given as it was read and as bytes.
    pub fn new(record: &'a KekRecord, bytes: &[u8], plan_sha256: Sha256Digest, events: &'a [Event]) -> Self {
        Self { record, record_sha256: Sha256Digest::of(bytes), plan_sha256, events }
    }
}

impl fmt::Display for Statement<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { record, record_sha256, plan_sha256, events } = self;
        let opened = |name| events.first().and_then(|event| event.data.get(name)?.as_str()).unwrap_or_default();
        let head = events.last().map_or(Sha256Digest([0; 32]), |event| event.hash);
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
            opened("kind"),
            record.cluster.as_str(),
            opened("ceremony_id"),
            words(&head),
        )
    }
}
