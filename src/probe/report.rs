//! All findings of a run. Its JSON form is described in docs/probe.md, and is stable: fields are added, never changed.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

use super::attributes::AttributeFinding;
use super::compare::Comparison;
use super::errors::SmallBuffer;
use super::identity::{ModuleIdentity, TokenIdentity};
use super::kek::KekFinding;
use super::keys::Keys;
use super::mechanisms::Mechanisms;
use super::outcome::{Outcome, Verdict};
use super::seals::SealFinding;
use super::sessions::Sessions;
use super::sizes::Sizes;
use super::speed::Speed;
use crate::profile;
use crate::seal::Sealing;

/// Everything that a probe found out.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Report {
    /// Of this format: 1.
    pub version: u8,
    /// Name and version of the program.
    pub tool: String,
    /// When, RFC 3339, in UTC.
    pub time: String,
    /// Path of the module.
    pub path: PathBuf,
    /// SHA-256 of that file, in hex. Empty: it cannot be read.
    pub sha256: String,
    /// What the module says of itself.
    pub module: ModuleIdentity,
    /// What the token says of itself.
    pub token: TokenIdentity,
    /// How often the user was logged in: once, and once more after each step that the process did not survive.
    pub logins: u32,
    /// Name and version of each interface of the module. Empty before PKCS#11 3.0.
    pub interfaces: Section<Vec<String>>,
    /// What the token lists.
    pub mechanisms: Section<Mechanisms>,
    /// Whether throw-away keys can be made.
    pub keys: Section<Keys>,
    /// Each way of sealing, by name.
    pub seals: BTreeMap<String, SealFinding>,
    /// The way of sealing that the rest was tried with: the profile's, or else the best that works.
    pub chosen: Option<String>,
    /// Each attribute in the template of a key.
    pub attributes: Section<BTreeMap<String, AttributeFinding>>,
    /// Attributes of a key of which nothing was said.
    pub defaults: Section<BTreeMap<String, Option<bool>>>,
    /// What must be refused of a key that cannot be extracted.
    pub secrecy: Section<BTreeMap<String, Outcome>>,
    /// Answers to size queries.
    pub sizes: Section<Sizes>,
    /// A buffer that is too small.
    pub small_buffer: Section<SmallBuffer>,
    /// A ciphertext of 8 bytes.
    pub short_ciphertext: Outcome,
    /// How many sessions can be open.
    pub sessions: Section<Sessions>,
    /// How fast it seals.
    pub speed: Section<Speed>,
    /// A KEK as a ceremony makes it.
    pub kek: Section<KekFinding>,
    /// Steps in which the module's process died or hung.
    pub faults: Vec<Fault>,
    /// What is left on the token.
    pub clean_up: CleanUp,
    /// Where the module differs from the profile, if it was held against one.
    pub profile: Option<Comparison>,
}

/// The finding of a step, or why there is none.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Section<T> {
    /// The finding.
    Found(T),
    /// Why there is none.
    Not(Outcome),
}

/// A step that the process did not survive.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Fault {
    /// The step.
    pub step: String,
    /// What became of it.
    pub outcome: Outcome,
}

/// What became of the throw-away keys.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct CleanUp {
    /// `CKA_LABEL` of every key that was made.
    pub label: String,
    /// How many of them are still there. `None`: it is not known.
    pub left: Option<usize>,
    /// How many objects the user saw before and afterwards, of any sort. Others may make and destroy some meanwhile.
    pub objects: Option<(usize, usize)>,
    /// Whether the token is as it was.
    pub outcome: Outcome,
}

// By hand: an untagged enum cannot read numbers as the keys of a map.
impl<'de, T: DeserializeOwned> Deserialize<'de> for Section<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Value::deserialize(deserializer)? {
            Value::String(text) => text.parse().map(Self::Not).map_err(D::Error::custom),
            finding => serde_json::from_value(finding).map(Self::Found).map_err(D::Error::custom),
        }
    }
}

impl<T> Section<T> {
    /// The finding.
    pub fn found(&self) -> Option<&T> {
        if let Self::Found(finding) = self { Some(finding) } else { None }
    }
}

impl Report {
    /// Whether the token lists all mechanisms of this way of sealing.
    pub(super) fn lists(&self, sealing: &Sealing) -> bool {
        let known = self.mechanisms.found().map(|mechanisms| &mechanisms.known);
        sealing.mechanisms().iter().all(|(number, _)| {
            let name = profile::mechanism_name(*number);
            known.and_then(|known| known.get(&name)?.as_ref()).is_some()
        })
    }

    /// Whether a KEK can be kept and used there, and nothing went wrong: what the exit code says where there is no profile.
    pub fn is_fit(&self) -> bool {
        let secret = self.secrecy.found().is_some_and(|findings| {
            findings.values().all(|outcome| matches!(outcome.verdict, Verdict::Refused | Verdict::Untried))
        });
        let kek = self.kek.found().is_some_and(|kek| kek.outcome.works());
        secret && kek && self.faults.is_empty() && self.clean_up.outcome.works()
    }
}

#[cfg(test)]
pub(super) mod tests {
    use serde_json::json;

    use super::*;

    /// The report of a token that is as it should be.
    pub(in crate::probe) fn sample() -> Value {
        json!({
            "version": 1, "tool": "hsm-kms 0.1.0", "time": "2026-01-02T03:04:05Z", "path": "/usr/lib/a.so", "sha256": "00",
            "module": {
                "manufacturer": "SoftHSM", "library": "l", "library_version": "2.6", "cryptoki_version": "2.40",
            },
            "token": {
                "label": "kek", "manufacturer": "m", "model": "d", "serial": "1", "firmware": "2.6", "flags": [],
                "pin_bytes": [4, 255], "sessions": null,
            },
            "logins": 1,
            "interfaces": [],
            "mechanisms": {"count": 1, "known": {"CKM_AES_GCM": {"key_size": [16, 32], "flags": ["encrypt"]}}},
            "keys": {"session": "works", "token": "works", "destroy": "works"},
            "seals": {"aes-gcm/random-sent-12": {
                "outcome": "works", "changed_bit": "refused: C_Decrypt CKR_GENERAL_ERROR",
                "other_context": "refused: C_Decrypt CKR_GENERAL_ERROR", "longest": "works",
            }},
            "chosen": "aes-gcm/random-sent-12",
            "attributes": {"CKA_COPYABLE": {
                "value": false, "generate": "works", "reads": false, "forbidden": "refused: C_CopyObject CKR_ACTION_PROHIBITED",
            }},
            "defaults": {"CKA_WRAP": true},
            "secrecy": {"wrap-out": "refused: C_WrapKey CKR_KEY_UNEXTRACTABLE"},
            "sizes": {"encrypt": {"says": 48, "is": 48}, "decrypt": {"says": "refused: C_Decrypt CKR_DEVICE_ERROR", "is": 32}},
            "small_buffer": {"outcome": "refused: C_Encrypt CKR_BUFFER_TOO_SMALL", "lives_on": true},
            "short_ciphertext": "refused: C_Decrypt CKR_GENERAL_ERROR",
            "sessions": {"open": 65, "refused": null},
            "speed": {"token_key": true, "p50_us": 10, "max_us": 20, "per_second": {"1": 100, "2": 200}},
            "kek": {"outcome": "works", "attributes": {"CKA_LOCAL": true}, "permit": [], "refusals": {}},
            "faults": [],
            "clean_up": {"label": "hsm-kms-probe-00", "left": 0, "objects": [1, 1], "outcome": "works"},
            "profile": null,
        })
    }

    /// The sample with this value at this place.
    pub(in crate::probe) fn with(place: &str, value: Value) -> Report {
        let mut sample = sample();
        *sample.pointer_mut(place).unwrap() = value;
        serde_json::from_value(sample).unwrap()
    }

    #[test]
    fn a_report_comes_back_from_its_json() {
        let report = with("/version", json!(1));
        assert_eq!(serde_json::to_value(&report).unwrap(), sample());
        let crashed = with("/speed", json!("crashed: signal 11"));
        assert_eq!(crashed.speed, Section::Not("crashed: signal 11".parse().unwrap()));
    }

    #[test]
    fn what_speaks_against_a_kek_makes_it_unfit() {
        assert!(with("/version", json!(1)).is_fit());
        assert!(with("/secrecy/wrap-out", json!("untried: no mechanism wraps")).is_fit());
        for (place, value) in [
            ("/secrecy/wrap-out", json!("differs: the key was given away")),
            ("/secrecy", json!("crashed: signal 11")),
            ("/kek", json!("crashed: signal 11")),
            ("/kek/outcome", json!("refused: C_GenerateKey CKR_DEVICE_ERROR")),
            ("/faults", json!([{"step": "speed", "outcome": "hung: no answer in 30 s"}])),
            ("/clean_up/outcome", json!("differs: 1 could not be destroyed")),
        ] {
            assert!(!with(place, value).is_fit(), "{place}");
        }
    }
}
