//! Wycheproof's vectors (tests/vectors/wycheproof) through each module, with keys that were imported for it: what is right opens, what was
//! changed is refused. What a seal of ours could be goes through the product's own code, the rest through cryptoki.
//!
//! What is skipped is counted, with the reason, and the counts are compared: a module that suddenly skips more fails.

mod file;
mod through;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::door::{in_child, when_asked};
use crate::harness::TestToken;
use crate::parts::record_run;

/// What became of the vectors of one file.
#[derive(Debug, Default, Deserialize, Serialize)]
pub struct Tally {
    /// Valid ones that gave what they must give.
    pub opened: usize,
    /// Invalid ones that were refused, and valid ones with a bit changed.
    pub refused: usize,
    /// Reason -> how many.
    pub skipped: BTreeMap<String, usize>,
    /// What is wrong, by number.
    pub wrong: Vec<String>,
}

fn vectors(name: &str, token: &TestToken, expected: &[&str]) {
    let tallies: BTreeMap<String, Tally> = in_child("vectors::vectors_when_asked", token, &());
    let mut found = Vec::new();
    for (file, tally) in &tallies {
        assert!(tally.wrong.is_empty(), "{name}, {file}: {:#?}", tally.wrong);
        found.push(format!("{file}: {} opened, {} refused", tally.opened, tally.refused));
        found.extend(tally.skipped.iter().map(|(why, count)| format!("{file}: {count} skipped: {why}")));
    }
    for line in &found {
        println!("vectors: {name}: {line}");
    }
    assert_eq!(found, expected, "{name}: {found:#?}");
    record_run(&format!("vectors: {name}"));
}

#[test]
fn softhsm2() {
    let expected = [&GCM[..], &NO_KWP, &HMAC, &NO_OAEP].concat();
    vectors("softhsm2", &TestToken::softhsm2(), &expected);
}

#[test]
fn kryoptic() {
    vectors("kryoptic", &TestToken::kryoptic(), &[&GCM[..], &KWP, &HMAC, &OAEP].concat());
}

#[test]
fn nss() {
    let sealing = ["aes_gcm: 55 skipped: sealing: the module asks cryptoki for less room than it wants"];
    vectors("nss", &TestToken::nss(), &[&GCM[..], &sealing, &KWP, &HMAC, &OAEP].concat());
}

#[test]
fn opencryptoki() {
    vectors("opencryptoki", &TestToken::opencryptoki(), &[&NO_GCM[..], &NO_KWP, &HMAC, &OAEP].concat());
}

const GCM: [&str; 4] = [
    "aes_gcm: 55 opened, 82 refused",
    "aes_gcm: 20 skipped: an IV length that no seal has",
    "aes_gcm: 3 skipped: an empty text, which nobody seals",
    "aes_gcm: 211 skipped: not a key of 256 bits, as a KEK is",
];
const NO_GCM: [&str; 2] = ["aes_gcm: 0 opened, 0 refused", "aes_gcm: 316 skipped: the module has no such mechanism"];
const KWP: [&str; 2] = ["aes_kwp: 25 opened, 69 refused", "aes_kwp: 160 skipped: not a key of 256 bits, as a KEK is"];
const NO_KWP: [&str; 2] = ["aes_kwp: 0 opened, 0 refused", "aes_kwp: 254 skipped: the module has no such mechanism"];
const HMAC: [&str; 2] =
    ["hmac_sha256: 27 opened, 54 refused", "hmac_sha256: 93 skipped: another length of key or MAC than ours"];
const OAEP: [&str; 2] = [
    "rsa_oaep_3072_sha256_mgf1sha256: 18 opened, 19 refused",
    "rsa_oaep_4096_sha256_mgf1sha256: 18 opened, 19 refused",
];
/// It has OAEP with SHA-1 alone.
const NO_OAEP: [&str; 4] = [
    "rsa_oaep_3072_sha256_mgf1sha256: 0 opened, 0 refused",
    "rsa_oaep_3072_sha256_mgf1sha256: 37 skipped: no SHA-256 in OAEP: ArgumentsBad",
    "rsa_oaep_4096_sha256_mgf1sha256: 0 opened, 0 refused",
    "rsa_oaep_4096_sha256_mgf1sha256: 37 skipped: no SHA-256 in OAEP: ArgumentsBad",
];

/// In the child it goes through all files.
#[test]
fn vectors_when_asked() {
    when_asked(|door, (): ()| through::all(door));
}
