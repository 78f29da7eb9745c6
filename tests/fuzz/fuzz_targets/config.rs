//! The configuration file: what is read takes no further key and none twice, and is read the same way again.
#![no_main]

use hsm_kms::config::Config;
use hsm_kms_fuzz::refuses_more_yaml;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    match Config::parse(bytes) {
        Ok(read) => {
            assert!(bytes.len() <= 64 * 1024);
            let again = Config::parse(bytes).map(|again| format!("{again:?}")).ok();
            assert_eq!(again, Some(format!("{read:?}")));
            refuses_more_yaml(bytes, |bytes| Config::parse(bytes).is_ok());
            drop(read.warnings());
        }
        Err(error) => drop((error.to_string(), error.hint())),
    }
});
