//! The rewrap table: one form only. Its sum is no secret, so whoever can write the file can mend it; every second input has it mended.
#![no_main]

use hsm_kms::keyring::{RewrapTable, RewrappedSeed};
use libfuzzer_sys::fuzz_target;
use serde_json::Value;

fuzz_target!(|bytes: &[u8]| {
    check(bytes);
    if let Some(text) = mended(bytes) {
        check(text.as_bytes());
    }
});

fn check(bytes: &[u8]) {
    let table = match RewrapTable::parse(bytes) {
        Ok(table) => table,
        Err(error) => return drop((error.to_string(), error.hint())),
    };
    assert_eq!(table.to_json().as_bytes(), bytes);
    assert_eq!(table.lost().values().sum::<usize>(), table.seeds().len());
    for entry in table.seeds() {
        assert_eq!(table.find(&entry.seed.0), Some(entry));
        assert!(table.knows(&entry.key_id));
    }
    assert!(RewrapTable::parse(&[bytes, b"\n"].concat()).is_err());
}

/// A table of what stands there, with its sum.
fn mended(bytes: &[u8]) -> Option<String> {
    let mut value: Value = serde_json::from_slice(bytes).ok()?;
    let origin = serde_json::from_value(value.get_mut("origin")?.take()).ok()?;
    let seeds: Vec<RewrappedSeed> = serde_json::from_value(value.get_mut("seeds")?.take()).ok()?;
    Some(RewrapTable::new(origin, seeds).to_json())
}
