//! Which KEK does what. The keyring deals in handles, not in keys: what a KEK's state forbids does not compile.

use tokio::time::Instant;

use crate::attributes::{AttributeName, AttributeValue};
use crate::envelope::{Annotations, Blob, BlobError, Context};
use crate::key_id::KeyId;
use crate::record::{KekRecord, TokenKey};
use crate::seal::{SealForm, Sealing};
use crate::secret::Plaintext;
use crate::token::{RequestError, Tokens};
use crate::wire::link;

/// The KEKs of one cluster, on the tokens that hold them.
pub struct Keyring {
    cluster: String,
    tokens: Tokens,
    active: KeyId,
}

/// Can seal and open with the active KEK.
pub struct WrapHandle<'a> {
    keyring: &'a Keyring,
}

/// Can open with one KEK, and nothing else.
pub struct UnwrapHandle<'a> {
    keyring: &'a Keyring,
    key_id: &'a KeyId,
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
}

/// Why a handle could not do its work.
#[derive(Debug, thiserror::Error)]
pub enum HandleError {
    /// The bytes are no sealed blob of a known version.
    #[error(transparent)]
    Blob(#[from] BlobError),
    /// The token did not do it.
    #[error(transparent)]
    Request(#[from] RequestError),
}

/// The activation of a KEK that has only ever been activated once.
const FIRST_EPOCH: u64 = 1;

/// Index of the KEK in what the worker was told: there is one.
const ACTIVE_INDEX: u32 = 0;

impl Keyring {
    /// A keyring with the one KEK of `record`, active.
    pub fn new(record: &KekRecord, tokens: Tokens) -> Self {
        Self { cluster: record.cluster.as_str().to_owned(), tokens, active: first_key_id(record) }
    }

    /// The key_id that Status announces.
    pub fn active(&self) -> &KeyId {
        &self.active
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
        (*key_id == self.active).then_some(UnwrapHandle { keyring: self, key_id: &self.active })
    }
}

impl WrapHandle<'_> {
    /// Seals `plaintext`, bound to cluster, key_id and annotations.
    pub async fn seal(&self, plaintext: &Plaintext, deadline: Instant) -> Result<SealedSeed, HandleError> {
        let Keyring { cluster, tokens, active } = self.keyring;
        let annotations = Annotations::new();
        // The form is bound, and tokens may differ in it.
        let context = |form| *Context::seed(form, cluster, active, &annotations).as_bytes();
        let sealed = tokens.seal(ACTIVE_INDEX, context, plaintext, deadline).await?;
        let ciphertext = Blob::new(sealed.form, &sealed.iv, &sealed.ciphertext)?.encode();
        Ok(SealedSeed { ciphertext, key_id: active.clone(), annotations })
    }
}

impl UnwrapHandle<'_> {
    /// Opens a sealed blob. Any change to blob, key_id, annotations or cluster is refused.
    pub async fn open(
        &self,
        blob: &[u8],
        annotations: &Annotations,
        deadline: Instant,
    ) -> Result<Plaintext, HandleError> {
        let blob = Blob::parse(blob)?;
        let context = Context::seed(blob.form(), &self.keyring.cluster, self.key_id, annotations);
        Ok(self.keyring.tokens.open(ACTIVE_INDEX, wire_open(&blob, &context), deadline).await?)
    }
}

/// The key_id of the KEK of `record` in its first activation.
pub fn first_key_id(record: &KekRecord) -> KeyId {
    record.key_id(FIRST_EPOCH)
}

/// How a worker seals.
pub fn wire_sealing(sealing: &Sealing) -> link::Sealing {
    link::Sealing {
        form: Some(wire_form(sealing.form)),
        mechanism: sealing.mechanism,
        send: sealing.send as u32,
        call: sealing.call as u32,
    }
}

/// What a worker must know of the KEK of `record`; `is_copy`: on a token that it was not made in, where the attributes that tell
/// of its birth read otherwise.
pub fn wire_kek(record: &KekRecord, is_copy: bool) -> link::Kek {
    let proofs = record
        .proofs
        .iter()
        .map(|proof| {
            let blob = proof.blob();
            let context = Context::proof(blob.form(), &record.ceremony.id.to_string(), record.kek.id.as_bytes());
            link::Proof { open: Some(wire_open(&blob, &context)), digest: proof.challenge_sha256.0.to_vec() }
        })
        .collect();
    let key = |key| wire_key(key, is_copy);
    link::Kek { key: Some(key(&record.kek)), proofs, mac: record.mac_key.as_ref().map(key) }
}

fn wire_key(key: &TokenKey, is_copy: bool) -> link::TokenKey {
    let counts = |name: &AttributeName| !(is_copy && name.tells_of_birth());
    let attributes = key.attributes.iter().filter(|(name, _)| counts(name));
    let attributes = attributes.map(|(name, value)| wire_attribute(*name, value)).collect();
    link::TokenKey { cka_id: key.id.as_bytes().to_vec(), label: key.label.clone(), attributes }
}

fn wire_open(blob: &Blob<'_>, context: &Context) -> link::Open {
    link::Open {
        form: Some(wire_form(blob.form())),
        iv: blob.iv().to_vec(),
        context: context.as_bytes().to_vec(),
        ciphertext: blob.ciphertext().to_vec(),
    }
}

fn wire_form(form: SealForm) -> link::Form {
    link::Form {
        seal: form.seal.code().into(),
        iv_layout: form.iv_layout.code().into(),
        iv_length: form.iv_length.into(),
    }
}

fn wire_attribute(name: AttributeName, value: &AttributeValue) -> link::ExpectedAttribute {
    use link::expected_attribute::Value;
    let value = match value {
        AttributeValue::Bool(flag) => Some(Value::Flag(*flag)),
        AttributeValue::Number(number) => Some(Value::Number(*number)),
        AttributeValue::Mechanisms(list) => Some(Value::Mechanisms(link::Mechanisms { list: list.clone() })),
        AttributeValue::Unavailable(_) => None,
    };
    link::ExpectedAttribute { name: name as u32, value }
}
