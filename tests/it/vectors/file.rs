//! The files of Wycheproof, as far as they are used.

use std::fs;
use std::path::Path;

use data_encoding::HEXLOWER;
use serde::Deserialize;
use serde_json::Value;

/// Some bytes, in hex.
#[derive(Default, Deserialize)]
#[serde(from = "String")]
pub struct Hex(pub Vec<u8>);

/// A vector. What its file does not have is empty.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Vector {
    pub tc_id: u32,
    #[serde(default)]
    pub key: Hex,
    #[serde(default)]
    pub iv: Hex,
    #[serde(default)]
    pub aad: Hex,
    #[serde(default)]
    pub msg: Hex,
    #[serde(default)]
    pub ct: Hex,
    #[serde(default)]
    pub tag: Hex,
    #[serde(default)]
    pub label: Hex,
    result: Validity,
    /// What the vectors of its group have in common.
    #[serde(skip)]
    pub group: Value,
}

#[derive(Clone, Copy, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "lowercase")]
enum Validity {
    Valid,
    Invalid,
}

impl From<String> for Hex {
    fn from(text: String) -> Self {
        Self(HEXLOWER.decode(text.as_bytes()).unwrap())
    }
}

impl Vector {
    /// All of `NAME_test.json`.
    pub fn all(name: &str) -> Vec<Self> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors/wycheproof");
        let file: Value = serde_json::from_slice(&fs::read(folder.join(format!("{name}_test.json"))).unwrap()).unwrap();
        let mut all = Vec::new();
        for group in file["testGroups"].as_array().unwrap() {
            for vector in group["tests"].as_array().unwrap() {
                let vector: Self = serde_json::from_value(vector.clone()).unwrap();
                all.push(Self { group: group.clone(), ..vector });
            }
        }
        assert_eq!(all.len() as u64, file["numberOfTests"].as_u64().unwrap());
        all
    }

    pub fn is_valid(&self) -> bool {
        self.result == Validity::Valid
    }

    /// A number of the private key of its group.
    pub fn private(&self, name: &str) -> Vec<u8> {
        let text = self.group["privateKey"][name].as_str().unwrap();
        // Unsigned and of its own length, as PKCS#11 has it.
        let bytes = HEXLOWER.decode(text.as_bytes()).unwrap();
        bytes.into_iter().skip_while(|byte| *byte == 0).collect()
    }
}
