//! An EncryptionConfiguration, as `doctor` reads it: each rule has one finding, whatever the file says, and none a control character.
#![no_main]

use hsm_kms::kubernetes::{CHECKS, EncryptionConfiguration, Surroundings, lint, unread};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let findings = match EncryptionConfiguration::parse(bytes) {
        Ok(read) => {
            assert!(bytes.len() <= 64 * 1024);
            let again = EncryptionConfiguration::parse(bytes).map(|again| again.digest().to_string()).ok();
            assert_eq!(again, Some(read.digest().to_string()));
            lint(&read, &Surroundings::default())
        }
        Err(error) => unread(&error),
    };
    // All but the one that compares files.
    assert_eq!(findings.len(), CHECKS.len() - 1);
});
