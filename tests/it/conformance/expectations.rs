//! What a module's expectations file says.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use hsm_kms::seal::{IvLayout, Seal, SealForm};
use serde::Deserialize;
use serde_json::Value;

/// What is expected of one module.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Expectations {
    /// What `scripts/test` looks for in the evidence.
    pub component: String,
    /// The form of every blob.
    form: Form,
    /// Length of the blob by length of the plaintext, both in bytes.
    pub blob_bytes: BTreeMap<usize, usize>,
    /// `kek.permit` of the plan.
    #[serde(default)]
    permit: Vec<String>,
    /// What the token does though it must refuse it, in the order in which a ceremony finds it.
    #[serde(default)]
    pub gives: Vec<Given>,
    /// How it refuses the rest, by the first word of the attempt.
    pub refuses: BTreeMap<String, BTreeSet<String>>,
    /// What stands in the KEK record, among other things.
    pub record: Value,
    pub wrong_pin: WrongPin,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Form {
    seal: Seal,
    iv_layout: IvLayout,
    iv_bytes: u8,
}

/// Something that a token must refuse, and does not. A ceremony stops at it, rightly. To go on, the suite hides the function.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Given {
    /// In the words of the ceremony.
    pub attempt: String,
    pub function: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WrongPin {
    /// A PIN of the right form.
    pub pin: String,
    /// What `C_Login` returns for it.
    pub code: String,
}

impl Expectations {
    /// Reads `expectations/NAME.yaml`.
    pub fn read(name: &str) -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/it/expectations/{name}.yaml"));
        let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        serde_yaml::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    }

    /// `kek.permit` of the plan.
    pub fn permit(&self) -> Vec<&str> {
        self.permit.iter().map(String::as_str).collect()
    }

    /// The form of every blob.
    pub fn form(&self) -> SealForm {
        let Form { seal, iv_layout, iv_bytes } = self.form;
        SealForm { seal, iv_layout, iv_length: iv_bytes }
    }
}

/// Where `found`, which may say more, does not say what `expected` says.
pub fn differences(expected: &Value, found: &Value, place: &str) -> Vec<String> {
    match expected {
        Value::Object(fields) => {
            let inside = |(name, value)| differences(value, &found[name], &format!("{place}.{name}"));
            fields.iter().flat_map(inside).collect()
        }
        value if value == found => Vec::new(),
        value => vec![format!("{place}: {found}, expected {value}")],
    }
}
