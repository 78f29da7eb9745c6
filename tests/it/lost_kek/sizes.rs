//! What a recipient costs in etcd, by scheme.

use std::process::Command;

use hsm_kms::etcd::proto::EncryptedObject;
use hsm_kms::key_id::KeyId;
use hsm_kms::recovery::{Binding, HybridKey, Recipient, Scheme};
use hsm_kms::secret::Plaintext;
use prost::Message;

/// The public half of a new RSA key, as OpenSSL writes it.
fn rsa(scheme: Scheme) -> Recipient {
    let directory = tempfile::tempdir().unwrap();
    let key = directory.path().join("key.pem");
    let bits = scheme.modulus_bits().unwrap().to_string();
    let made = Command::new("openssl").args(["genrsa", "-out"]).arg(&key).arg(bits).output().unwrap();
    assert!(made.status.success(), "{made:?}");
    let mut public = Command::new("openssl");
    let public = public.args(["rsa", "-pubout", "-outform", "DER", "-in"]).arg(&key).output().unwrap();
    Recipient::new(scheme, public.stdout).unwrap()
}

#[test]
fn each_scheme_costs_so_many_bytes_in_every_object() {
    let key_id = KeyId::derive("prod", &[7; 16], "00112233445566778899aabbccddeeff", 1);
    let object = |recipient: Option<&Recipient>| {
        let sealed = |recipient: &Recipient| {
            let binding = Binding::new("prod", &key_id, recipient);
            recipient.seal(&Plaintext::new(vec![9; 32]), &binding).unwrap()
        };
        let annotations = recipient.map(|recipient| (recipient.fingerprint().annotation(), sealed(recipient).into()));
        let object = EncryptedObject { annotations: annotations.into_iter().collect(), ..EncryptedObject::default() };
        object.encoded_len()
    };
    let mut found = Vec::new();
    for scheme in Scheme::ALL {
        let recipient = match scheme {
            Scheme::Hybrid => HybridKey::generate().unwrap().recipient().unwrap(),
            rsa_scheme => rsa(rsa_scheme),
        };
        let bytes = object(Some(&recipient)) - object(None);
        println!("{scheme}: {bytes} bytes more in every object");
        found.push(bytes);
    }
    assert_eq!(found, [427, 555, 1211]);
}
