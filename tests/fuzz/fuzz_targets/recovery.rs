//! What recovery reads: the blob beside a seed, the file of a recipient, the text of a private key.
#![no_main]

use hsm_kms::recovery::{HybridKey, Recipient, RecoveryBlob, is_annotation};
use hsm_kms_fuzz::{bech32m, refuses_more_json};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    match RecoveryBlob::parse(bytes) {
        Ok(blob) => assert_eq!(blob.encode(), bytes),
        Err(error) => drop(error.to_string()),
    }
    match Recipient::parse(bytes) {
        Ok(recipient) => {
            let again = Recipient::parse(recipient.to_json().as_bytes()).unwrap();
            assert_eq!(again.to_json(), recipient.to_json());
            assert!(is_annotation(&recipient.fingerprint().annotation()));
            refuses_more_json(bytes, |bytes| Recipient::parse(bytes).is_ok());
        }
        Err(error) => drop((error.to_string(), error.hint())),
    }
    key_text(&String::from_utf8_lossy(bytes));
    key_text(&bech32m("hkr", &bytes[..bytes.len().min(200)]));
});

fn key_text(text: &str) {
    if let Ok(key) = HybridKey::parse(text) {
        let written = key.to_text();
        let lines: Vec<_> =
            text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')).collect();
        assert_eq!(lines, [written.as_str()]);
    }
}
