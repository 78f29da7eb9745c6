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
