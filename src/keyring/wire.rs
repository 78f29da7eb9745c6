//! What workers are told of the KEKs.

use crate::attributes::{AttributeName, AttributeValue};
use crate::envelope::{Blob, Context};
use crate::record::{KekRecord, TokenKey};
use crate::seal::{SealForm, Sealing};
use crate::wire::link;

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
            let context = record.proof_context(blob.form());
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

pub(super) fn wire_open(blob: &Blob<'_>, context: &Context) -> link::Open {
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
