//! The keyring file: one form only. And a history that is made event by event is always one that reads back.
#![no_main]

use hsm_kms::keyring::{Change, KeyringFile, NodeReport, State};
use hsm_kms::record::Sha256Digest;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    match KeyringFile::parse(bytes) {
        Ok(file) => assert_eq!(file.to_json().as_bytes(), bytes),
        Err(error) => drop((error.to_string(), error.hint())),
    }
    if let Ok(report) = NodeReport::parse(bytes) {
        assert_eq!(NodeReport::parse(report.to_json().as_bytes()).ok(), Some(report));
    }
    history(bytes);
});

/// Each byte asks for one change; what is refused changes nothing.
fn history(bytes: &[u8]) {
    let mut file = KeyringFile::new("test.example".parse().unwrap());
    for (number, byte) in bytes.iter().take(20).enumerate() {
        let record = format!("kek-{}.json", byte >> 5).parse().unwrap();
        let forced = byte & 16 != 0;
        let change = match byte & 7 {
            _ if number == 0 => Change::Init { record, record_sha256: Sha256Digest([*byte; 32]) },
            0 => Change::Init { record, record_sha256: Sha256Digest([*byte; 32]) },
            1 => Change::Stage { record, record_sha256: Sha256Digest([*byte; 32]) },
            2 => Change::Activate { record, at: None, forced },
            3 => Change::Activate { record, at: "2200-01-01T00:00:00Z".parse().ok(), forced },
            4 => Change::Cancel { record },
            5 => Change::Retire { record, inventories: vec![Sha256Digest([*byte; 32])], forced },
            _ => Change::Restore { record },
        };
        match file.after(change, (byte & 8 != 0).then(|| format!("reason {number}"))) {
            Ok(next) => file = next,
            Err(refusal) => drop((refusal.to_string(), refusal.hint())),
        }
    }
    if file.history().is_empty() {
        return;
    }
    assert_eq!(KeyringFile::parse(file.to_json().as_bytes()).ok().as_ref(), Some(&file));
    let entries = file.at("2100-01-01T00:00:00Z".parse().unwrap());
    assert_eq!(entries.iter().filter(|entry| entry.state == State::Active).count(), 1);
}
