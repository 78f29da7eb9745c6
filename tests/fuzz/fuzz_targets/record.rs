//! The KEK record: what is read is written in one form, which reads as the same record.
#![no_main]

use hsm_kms::keyring::{first_key_id, wire_kek};
use hsm_kms::record::KekRecord;
use hsm_kms_fuzz::refuses_more_json;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    match KekRecord::parse(bytes) {
        Ok(record) => {
            // A file without blanks may be too long once it has them; then it must say so.
            if let Ok(text) = record.to_json() {
                let again = KekRecord::parse(text.as_bytes()).unwrap();
                assert_eq!(again, record);
                assert_eq!(again.to_json().unwrap(), text);
            } else {
                assert!(bytes.len() > 8 * 1024, "a small record cannot be written");
            }
            assert_ne!(record.key_id(1), record.key_id(2));
            assert_eq!(first_key_id(&record), record.key_id(1));
            assert_eq!(wire_kek(&record, true).proofs.len(), record.proofs.len());
            refuses_more_json(bytes, |bytes| KekRecord::parse(bytes).is_ok());
        }
        Err(error) => drop((error.to_string(), error.hint())),
    }
});
