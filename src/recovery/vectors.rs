//! Wycheproof's vectors of ML-KEM-768 (FIPS 203): on the package that is below X-Wing, and public keys through the reading of a recipient.

use ml_kem::kem::{Decapsulate, KeyExport};
use ml_kem::{FromSeed, MlKem768};
use serde_json::Value;

use super::hybrid;

fn vectors(name: &str) -> Vec<Value> {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors/wycheproof");
    let file: Value = serde_json::from_slice(&std::fs::read(folder.join(format!("{name}.json"))).unwrap()).unwrap();
    let groups = file["testGroups"].as_array().unwrap().iter();
    groups.flat_map(|group| group["tests"].as_array().unwrap().clone()).collect()
}

fn part(vector: &Value, name: &str) -> Vec<u8> {
    data_encoding::HEXLOWER.decode(vector[name].as_str().unwrap_or_default().as_bytes()).unwrap()
}

/// What is invalid there has a seed or a ciphertext of another length, which the types do not take.
#[test]
fn a_seed_and_a_ciphertext_give_the_secret() {
    let (mut opened, mut refused) = (0, 0);
    for vector in vectors("mlkem_768_test") {
        let sizes = (part(&vector, "seed").as_slice().try_into(), part(&vector, "c").as_slice().try_into());
        if let (Ok(seed), Ok(ciphertext)) = sizes {
            assert_eq!(vector["result"], "valid", "{}", vector["tcId"]);
            let (private, public) = MlKem768::from_seed(&seed);
            assert_eq!(public.to_bytes().as_slice(), part(&vector, "ek"), "{}", vector["tcId"]);
            let secret = private.decapsulate(&ciphertext);
            assert_eq!(secret.as_slice(), part(&vector, "K"), "{}", vector["tcId"]);
            opened += 1;
        } else {
            assert_eq!(vector["result"], "invalid", "{}", vector["tcId"]);
            refused += 1;
        }
    }
    assert_eq!((opened, refused), (153, 40));
}

/// Coefficients above the modulus, or another length: no recipient. A file with such a key could come from anybody.
#[test]
fn a_public_key_that_is_none_is_no_recipient() {
    let (mut read, mut refused) = (0, 0);
    // The other half of an X-Wing key, the base point of X25519.
    let mut elliptic = [0; 32];
    elliptic[0] = 9;
    for vector in vectors("mlkem_768_encaps_test") {
        let key = [part(&vector, "ek").as_slice(), &elliptic].concat();
        assert_eq!(hybrid::read(&key).is_ok(), vector["result"] == "valid", "{}", vector["tcId"]);
        if vector["result"] == "valid" { read += 1 } else { refused += 1 }
    }
    assert_eq!((read, refused), (133, 132));
}
