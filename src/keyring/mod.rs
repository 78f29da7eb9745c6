//! Which KEK does what. The keyring deals in handles, not in keys: what a KEK's state forbids does not compile.
//!
//! [`KeyringFile`] is what stands on the disk, [`Keyring`] what is served now, and [`Current`] takes one for the other.

mod current;
mod file;
mod history;
mod report;
mod rewrap_table;
#[cfg(test)]
mod tests;
mod wire;

use std::collections::BTreeMap;

use tokio::time::Instant;

pub use self::current::{Current, LINGER};
pub use self::file::{ChangeError, KeyringFile, Lock, folder};
pub use self::history::{Change, Entry, Event, Operator, RecordPath, Refusal, State};
pub use self::report::{NodeKek, NodeReport, NodeVerdict, Place};
pub use self::rewrap_table::{Origin, RewrapError, RewrapTable, RewrappedSeed};
pub use self::wire::{wire_kek, wire_sealing};
use crate::envelope::{Annotations, Blob, BlobError, Context};
use crate::key_id::KeyId;
use crate::record::{KekRecord, Sha256Digest};
use crate::recovery::{Binding, Recipient, SealError};
use crate::secret::Plaintext;
use crate::token::{Opened, RequestError, Tokens};

/// The KEKs of one cluster, on the tokens that hold them.
pub struct Keyring {
    cluster: String,
    tokens: Tokens,
    keks: Vec<Kek>,
    active: Active,
    /// Every key_id that opens, and the KEK that opens it, as the workers number them.
    opens: BTreeMap<KeyId, u32>,
    /// Activations of all KEKs so far.
    epoch: u64,
}

/// The one KEK that seals.
struct Active {
    key_id: KeyId,
    kek: u32,
    /// Each with what its blobs are bound to.
    recipients: Vec<(Recipient, Binding)>,
}

/// A KEK with its record, and what it does: what a keyring is made of.
#[derive(Clone, Debug, PartialEq)]
pub struct Kek {
    /// SHA-256 of the record's file.
    pub record_sha256: Sha256Digest,
    /// What the ceremony wrote about it.
    pub record: KekRecord,
    /// What it does.
    pub state: State,
    /// How often it has become active.
    pub activations: u64,
}

/// Can seal and open with the active KEK.
pub struct WrapHandle<'a> {
    keyring: &'a Keyring,
}

/// Can open with one KEK, and nothing else.
pub struct UnwrapHandle<'a> {
    keyring: &'a Keyring,
    key_id: &'a KeyId,
    kek: u32,
}

/// What Encrypt returns and etcd keeps.
#[derive(Clone, Debug)]
pub struct SealedSeed {
    /// The sealed blob, at most 1024 bytes.
    pub ciphertext: Vec<u8>,
    /// The KEK that sealed it.
    pub key_id: KeyId,
    /// Public, bound to the blob.
    pub annotations: Annotations,
    /// Place of the token that did it, from 0.
    pub token: usize,
}

/// Why a handle could not do its work.
#[derive(Debug, thiserror::Error)]
pub enum HandleError {
    /// The bytes are no sealed blob of a known version.
    #[error(transparent)]
    Blob(#[from] BlobError),
    /// The seed was not sealed to a recovery recipient, so not at all.
    #[error(transparent)]
    Recipient(#[from] SealError),
    /// The token did not do it.
    #[error(transparent)]
    Request(#[from] RequestError),
}

/// KEKs that make no keyring.
#[derive(Debug, thiserror::Error)]
pub enum KeyringError {
    /// None is active, or more than one.
    #[error("exactly one KEK must be active")]
    Active,
    /// Two records are of one KEK.
    #[error("the KEK of label {0:?} stands in the keyring twice")]
    Twice(String),
}

/// The activation of a KEK that has only ever been activated once.
const FIRST_EPOCH: u64 = 1;

impl Keyring {
    /// The keyring of these KEKs, which `tokens` know in this order.
    pub fn new(cluster: &str, keks: Vec<Kek>, tokens: Tokens) -> Result<Self, KeyringError> {
        let (mut opens, mut active, mut epoch) = (BTreeMap::new(), None, 0);
        for (index, kek) in (0..).zip(&keks) {
            for key_id in kek.opens() {
                if opens.insert(key_id, index).is_some() {
                    return Err(KeyringError::Twice(kek.record.kek.label.clone()));
                }
            }
            epoch += kek.activations;
            if kek.state == State::Active {
                let key_id = kek.record.key_id(kek.activations);
                let bound = |recipient: &Recipient| (recipient.clone(), Binding::new(cluster, &key_id, recipient));
                let recipients = kek.record.recipients.iter().map(bound).collect();
                let now = Active { key_id, kek: index, recipients };
                if active.replace(now).is_some() {
                    return Err(KeyringError::Active);
                }
            }
        }
        let active = active.ok_or(KeyringError::Active)?;
        tokens.seals_with(active.kek);
        Ok(Self { cluster: cluster.to_owned(), tokens, keks, active, opens, epoch })
    }

    /// The key_id that Status announces.
    pub fn active(&self) -> &KeyId {
        &self.active.key_id
    }

    /// The KEKs, as the workers number them.
    pub fn keks(&self) -> &[Kek] {
        &self.keks
    }

    /// The offline keys that the active KEK's seeds are also sealed to.
    pub fn recipients(&self) -> impl Iterator<Item = &Recipient> {
        self.active.recipients.iter().map(|(recipient, _)| recipient)
    }

    /// Activations of all KEKs so far.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// The tokens that hold the KEKs.
    pub fn tokens(&self) -> &Tokens {
        &self.tokens
    }

    /// The handle of the active KEK.
    pub fn wrap(&self) -> WrapHandle<'_> {
        WrapHandle { keyring: self }
    }

    /// The handle of the KEK with this key_id, if this keyring has it.
    pub fn unwrap(&self, key_id: &KeyId) -> Option<UnwrapHandle<'_>> {
        let (key_id, kek) = self.opens.get_key_value(key_id)?;
        Some(UnwrapHandle { keyring: self, key_id, kek: *kek })
    }
}

impl Kek {
    /// The one KEK of a configuration without a keyring: active, for the first time.
    pub fn only(record: KekRecord, record_sha256: Sha256Digest) -> Self {
        Self { record_sha256, record, state: State::Active, activations: FIRST_EPOCH }
    }

    /// The key_id that it has, had last, or will have when it becomes active.
    pub fn key_id(&self) -> KeyId {
        self.record.key_id(self.activations.max(FIRST_EPOCH))
    }

    /// The `key_id`s of all its activations so far.
    pub fn key_ids(&self) -> impl Iterator<Item = KeyId> {
        (FIRST_EPOCH..=self.activations).map(|epoch| self.record.key_id(epoch))
    }

    /// The `key_id`s that it opens. One more than it has had: another node may activate it before this one hears of it.
    pub fn opens(&self) -> impl Iterator<Item = KeyId> {
        (FIRST_EPOCH..=self.activations.saturating_add(1)).map(|epoch| self.record.key_id(epoch))
    }
}

impl WrapHandle<'_> {
    /// Seals `plaintext`, bound to cluster, key_id and annotations. In these it is sealed to each recovery recipient.
    pub async fn seal(&self, plaintext: &Plaintext, deadline: Instant) -> Result<SealedSeed, HandleError> {
        let Keyring { cluster, tokens, active: Active { key_id, kek, recipients }, .. } = self.keyring;
        let mut annotations = Annotations::new();
        for (recipient, binding) in recipients {
            annotations.insert(recipient.fingerprint().annotation(), recipient.seal(plaintext, binding)?.into());
        }
        // The form is bound, and tokens may differ in it.
        let context = |form| *Context::seed(form, cluster, key_id, &annotations).as_bytes();
        let sealed = tokens.seal(*kek, context, plaintext, deadline).await?;
        let ciphertext = Blob::new(sealed.form, &sealed.iv, &sealed.ciphertext)?.encode();
        Ok(SealedSeed { ciphertext, key_id: key_id.clone(), annotations, token: sealed.token })
    }
}

impl UnwrapHandle<'_> {
    /// Opens a sealed blob. Any change to blob, key_id, annotations or cluster is refused.
    pub async fn open(&self, blob: &[u8], annotations: &Annotations, deadline: Instant) -> Result<Opened, HandleError> {
        let blob = Blob::parse(blob)?;
        let context = Context::seed(blob.form(), &self.keyring.cluster, self.key_id, annotations);
        Ok(self.keyring.tokens.open(self.kek, wire::wire_open(&blob, &context), deadline).await?)
    }
}

/// The key_id of the KEK of `record` in its first activation.
pub fn first_key_id(record: &KekRecord) -> KeyId {
    record.key_id(FIRST_EPOCH)
}
