use std::collections::HashMap;

use super::*;
use crate::secret::Plaintext;

fn key_id(epoch: u64) -> KeyId {
    KeyId::derive("prod", &[7; 16], "00112233445566778899aabbccddeeff", epoch)
}

#[test]
fn what_is_sealed_opens_under_the_same_binding_alone() {
    let (key, other) = (HybridKey::from_bytes(&[1; 32]), HybridKey::from_bytes(&[2; 32]));
    let recipient = key.recipient().unwrap();
    let binding = Binding::new("prod", &key_id(1), &recipient);
    let annotation = recipient.seal(&Plaintext::new(vec![9; 32]), &binding).unwrap();
    assert_eq!(annotation.len(), 1170);
    let blob = RecoveryBlob::parse(&annotation).unwrap();
    assert_eq!((blob.scheme(), blob.encode()), (Scheme::Hybrid, annotation.clone()));
    assert_eq!(key.open(blob.sealed(), &binding).unwrap().expose(), [9; 32]);
    assert!(other.open(blob.sealed(), &binding).is_none());
    for wrong in [
        Binding::new("prod2", &key_id(1), &recipient),
        Binding::new("prod", &key_id(2), &recipient),
        Binding::new("prod", &key_id(1), &other.recipient().unwrap()),
    ] {
        assert!(key.open(blob.sealed(), &wrong).is_none());
    }
    for place in 0..blob.sealed().len() {
        let mut changed = blob.sealed().to_vec();
        changed[place] ^= 1;
        assert!(key.open(&changed, &binding).is_none(), "{place}");
    }
}

#[test]
fn a_recipient_is_read_as_it_was_written() {
    let recipient = HybridKey::from_bytes(&[1; 32]).recipient().unwrap();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("recipient.json");
    std::fs::write(&path, recipient.to_json()).unwrap();
    assert_eq!(Recipient::read(&path).unwrap(), recipient);
    let annotation = recipient.fingerprint().annotation();
    assert!(is_annotation(&annotation) && !is_annotation("a.recovery.hsm-kms"));
    let annotations = [(annotation, vec![].into())].into();
    crate::envelope::annotations::check(&annotations).unwrap();

    let exchanged = recipient.to_json().replacen("\"fingerprint\": \"", "\"fingerprint\": \"00", 1);
    let text = exchanged.replace(&recipient.fingerprint().to_string(), &recipient.fingerprint().to_string()[..62]);
    std::fs::write(&path, text).unwrap();
    let error = Recipient::read(&path).unwrap_err().to_string();
    assert!(error.contains("the fingerprint is not that of this public key"), "{error}");
}

/// The fields of a vector of docs/formats.md, which another program has made.
fn vector(kind: &str) -> HashMap<&'static str, &'static str> {
    let blocks = include_str!("../../docs/formats.md").split("```vector\n").skip(1);
    let vectors = blocks.map(|block| block.split("```").next().unwrap().lines());
    let mut fields = vectors.map(|lines| lines.map(|line| line.split_once(": ").unwrap()).collect::<HashMap<_, _>>());
    fields.find(|fields| fields["kind"] == kind).unwrap()
}

fn hex(text: &str) -> Vec<u8> {
    data_encoding::HEXLOWER.decode(text.as_bytes()).unwrap()
}

#[test]
fn a_seed_opens_as_written() {
    let vector = vector("recovery");
    let key = HybridKey::from_bytes(&hex(vector["private_key"]).try_into().unwrap());
    let recipient = key.recipient().unwrap();
    assert_eq!(recipient.fingerprint().to_string(), vector["fingerprint"]);
    assert_eq!(recipient.fingerprint().annotation(), vector["annotation_name"]);
    let binding = Binding::new(vector["cluster"], &KeyId::parse(vector["key_id"]).unwrap(), &recipient);
    assert_eq!(binding.as_bytes().to_vec(), hex(vector["binding"]));
    let annotation = hex(vector["blob"]);
    let blob = RecoveryBlob::parse(&annotation).unwrap();
    assert_eq!(key.open(blob.sealed(), &binding).unwrap().expose(), hex(vector["plaintext"]));
}

#[test]
fn proofs_are_bound_to_recipients_as_written() {
    let vector = vector("proof_recipients");
    let fingerprint: Fingerprint = vector["recipient"].parse().unwrap();
    let cka_id = hex(vector["cka_id"]);
    let context = crate::envelope::Context::proof(
        crate::seal::SealForm::AES_GCM_SENT,
        vector["ceremony"],
        &cka_id,
        [fingerprint.as_bytes()],
    );
    assert_eq!(context.as_bytes().to_vec(), hex(vector["context"]));
}
