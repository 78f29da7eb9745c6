//! Keys and values of etcd: whatever stands there is taken apart or refused, and shown without control characters.
#![no_main]

use hsm_kms::etcd::resource::resource;
use hsm_kms::etcd::value::{Form, NAME_LIMIT, Stored, printable};
use libfuzzer_sys::fuzz_target;
use prost::Message;
use prost::bytes::Bytes;

fuzz_target!(|bytes: &[u8]| {
    check(bytes);
    // Most of what is random has no prefix.
    check(&[b"k8s:enc:kms:v2:hsm:", bytes].concat());
    let name = resource(bytes, b"/registry/");
    assert!(!name.chars().any(char::is_control));
    assert!(!resource(&[b"/registry/", bytes].concat(), b"/registry").chars().any(char::is_control));
    assert!(!printable(bytes).chars().any(char::is_control));
});

fn check(value: &[u8]) {
    match Stored::parse(&Bytes::copy_from_slice(value)) {
        Ok(Stored { form, name, object }) => {
            assert!(!name.chars().any(char::is_control));
            // A replacement character is longer than the byte it stands for.
            assert!(name.len() <= 3 * NAME_LIMIT);
            assert_eq!(form == Form::Identity, !value.starts_with(b"k8s:enc:"));
            assert_eq!(form == Form::KmsV2, object.is_some());
            if let Some(object) = object {
                assert!((1..=1024).contains(&object.key_id.len()));
                assert!((1..=1024).contains(&object.encrypted_dek_source.len()));
                let written = [b"k8s:enc:kms:v2:x:", &object.encode_to_vec()[..]].concat();
                assert_eq!(Stored::parse(&written.into()).unwrap().object, Some(object));
            }
        }
        Err(error) => assert!(!error.to_string().chars().any(char::is_control)),
    }
}
