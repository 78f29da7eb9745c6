//! A profile file: what is read takes no further key and none twice, and is read the same way again.
#![no_main]

use hsm_kms::profile::Family;
use hsm_kms_fuzz::refuses_more_yaml;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    match Family::parse(bytes) {
        Ok(read) => {
            assert!(bytes.len() <= 64 * 1024);
            let again = Family::parse(bytes).map(|again| format!("{again:?}")).ok();
            assert_eq!(again, Some(format!("{read:?}")));
            refuses_more_yaml(bytes, |bytes| Family::parse(bytes).is_ok());
            for profile in read.profiles {
                drop((
                    profile.full_name(),
                    profile.usable().map_err(|unusable| (unusable.to_string(), unusable.hint())),
                ));
            }
        }
        Err(error) => drop((error.to_string(), error.hint())),
    }
});
