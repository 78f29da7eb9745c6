//! The plan: the one strict file that says what a ceremony makes. No secret stands in it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Deserializer};

use super::CeremonyError;
use crate::attributes::AttributeName;
use crate::cluster::Cluster;
use crate::pin::PinSource;
use crate::profile::Profile;
use crate::strict::{self, FileError};

/// A ceremony's only input.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    #[serde(rename = "version")]
    _version: u64,
    #[serde(rename = "kind")]
    _kind: PlanKind,
    /// The cluster that the KEK is for.
    pub cluster: Cluster,
    /// Name of the vendor profile, or path of a profile file.
    #[serde(deserialize_with = "strict::line")]
    profile: String,
    /// The PKCS#11 module, if not the first of the profile that exists.
    #[serde(default)]
    module: Option<PathBuf>,
    /// Variables that the module needs.
    #[serde(default)]
    pub environment: BTreeMap<String, String>,
    /// The token to make the KEK in.
    pub token: TokenPlan,
    /// The KEK to make.
    pub kek: KekPlan,
    /// Directory for the record. Must exist, without a record in it.
    pub output: PathBuf,
}

/// What a ceremony is for. This release runs unattended ceremonies only, and those are rehearsals.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum PlanKind {
    Rehearsal,
}

/// The token of a plan.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenPlan {
    /// Its label; slot numbers are never used.
    #[serde(deserialize_with = "strict::line")]
    pub label: String,
    /// Where the user PIN is.
    pub pin: PinSource,
}

/// The KEK of a plan.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KekPlan {
    /// CKA_LABEL, at most 40 bytes (a vendor's driver hangs on very long ones). Must be free on the token.
    #[serde(deserialize_with = "label")]
    pub label: String,
    /// Attributes that may be other than the strict template asks. SENSITIVE and EXTRACTABLE are never negotiable.
    #[serde(default)]
    pub permit: Vec<AttributeName>,
}

impl Plan {
    /// Reads a plan strictly: unknown and duplicate keys are refused.
    pub fn read(path: &Path) -> Result<Self, FileError> {
        let parse = |bytes: Vec<u8>| strict::yaml(&bytes, VERSION);
        strict::read(path).and_then(parse).map_err(|fault| FileError::new("ceremony plan", Some(path), fault))
    }

    pub(super) fn profile(&self) -> Result<Profile, CeremonyError> {
        Ok(Profile::named_or_at(&self.profile)?)
    }

    pub(super) fn module_path(&self) -> Result<PathBuf, CeremonyError> {
        match &self.module {
            Some(path) => Ok(path.clone()),
            None => Ok(self.profile()?.module_path()?),
        }
    }
}

const VERSION: u64 = 1;

fn label<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let label = strict::line(deserializer)?;
    if label.len() > 40 {
        return Err(serde::de::Error::custom("expected at most 40 bytes"));
    }
    Ok(label)
}
