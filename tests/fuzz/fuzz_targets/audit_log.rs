//! An audit log: whatever was written into the file, `audit verify` ends with a place and a reason, and a whole chain reads so again.
#![no_main]

use hsm_kms::audit::verify;
use hsm_kms_fuzz::file;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let path = file(bytes);
    match verify(std::slice::from_ref(&path), None) {
        Ok(verified) => {
            let lines = bytes.iter().filter(|byte| **byte == b'\n').count();
            assert!(verified.lines <= lines as u64);
            if let Some(head) = &verified.head {
                // The head that it tells is found.
                assert!(verify(&[path], Some(head)).is_ok_and(|again| again.has_head));
            }
        }
        Err(fault) => assert!(!fault.to_string().chars().any(char::is_control)),
    }
});
