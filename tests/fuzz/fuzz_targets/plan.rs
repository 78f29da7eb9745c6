//! The plan of a ceremony: what is read takes no further key and none twice, and is read the same way again.
#![no_main]

use hsm_kms::ceremony::Plan;
use hsm_kms_fuzz::refuses_more_yaml;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    match Plan::parse(bytes) {
        Ok(read) => {
            assert!(bytes.len() <= 64 * 1024);
            let again = Plan::parse(bytes).map(|again| format!("{again:?}")).ok();
            assert_eq!(again, Some(format!("{read:?}")));
            refuses_more_yaml(bytes, |bytes| Plan::parse(bytes).is_ok());
            if let Some(witnessed) = read.witnessed {
                // The lock is canonical JSON: what it says is all there is, in one form.
                let value: serde_json::Value = serde_json::from_slice(&witnessed.lock.json).unwrap();
                assert_eq!(serde_json_canonicalizer::to_vec(&value).unwrap(), witnessed.lock.json);
                assert!(witnessed.check_expected(&witnessed.lock.digest.to_string()).is_ok());
            }
        }
        Err(error) => drop((error.to_string(), error.hint())),
    }
});
