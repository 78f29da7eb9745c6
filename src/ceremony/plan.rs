//! The plan: the one strict file that says what a ceremony makes. No secret stands in it.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Deserializer};
use thiserror::Error;

use crate::attributes::{AttributeName, KeyUse};
use crate::cluster::Cluster;
use crate::config::{FileToken, Token};
use crate::profile::ProfileError;
use crate::seal::Sealing;
use crate::strict::{self, AbsolutePath, Fault, FileError};

/// A ceremony's only input, checked.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The cluster that the KEK is for.
    pub cluster: Cluster,
    /// The token to make the KEK in.
    pub token: Token,
    /// The KEK to make.
    pub kek: KekPlan,
    /// Directory for the record. Must exist, without a record in it.
    pub output: PathBuf,
}

/// The KEK of a plan.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KekPlan {
    /// CKA_LABEL, at most 40 bytes (a vendor's driver hangs on very long ones). Must be free on the token, as must this
    /// label with `-mac` behind it where the seal needs a MAC key.
    #[serde(deserialize_with = "label")]
    pub label: String,
    /// Attributes that may be other than the strict template asks. Those without which no key is a KEK cannot stand here.
    #[serde(default)]
    pub permit: Vec<AttributeName>,
}

/// Why there is no plan.
#[derive(Debug, Error)]
pub enum PlanError {
    /// The file cannot be used.
    #[error(transparent)]
    File(#[from] FileError),
    /// The profile that it names cannot be used.
    #[error("{WHAT} {}: `token.profile`: {error}", path.display())]
    Profile {
        /// Where the plan lies.
        path: PathBuf,
        /// What is wrong with the profile.
        error: ProfileError,
    },
}

impl PlanError {
    /// What to do about it.
    pub fn hint(&self) -> String {
        match self {
            Self::File(error) => error.hint(),
            Self::Profile { error, .. } => error.hint(),
        }
    }
}

impl Plan {
    /// Reads a plan strictly: unknown and duplicate keys are refused.
    pub fn load(path: &Path) -> Result<Self, PlanError> {
        let fault = |fault| FileError::new(WHAT, Some(path), fault);
        let file: File = strict::read(path).and_then(|bytes| strict::yaml(&bytes, VERSION)).map_err(fault)?;
        let File { _version, kind: PlanKind::Trial, cluster, token, kek, output } = file;
        let profile = token.profile().map_err(|error| PlanError::Profile { path: path.to_owned(), error })?;
        let token = token.check(profile).map_err(fault)?;
        kek.check_permit(&token.sealing).map_err(fault)?;
        Ok(Self { cluster, token, kek, output: output.0 })
    }
}

impl KekPlan {
    /// What is permitted holds for each key of the plan, so it must be negotiable for each.
    fn check_permit(&self, sealing: &Sealing) -> Result<(), Fault> {
        let mac = sealing.mac_mechanism().map(|_| KeyUse::Mac);
        let is_fixed = |name: &&AttributeName| {
            [Some(sealing.kek_use()), mac].into_iter().flatten().any(|purpose| !name.is_negotiable(purpose))
        };
        self.permit.iter().find(is_fixed).map_or(Ok(()), |name| {
            Err(Fault::Rule {
                field: "kek.permit",
                problem: format!("{name} is not negotiable"),
                hint: format!("remove {name}: without it no key is a KEK"),
            })
        })
    }
}

const VERSION: u64 = 1;
const WHAT: &str = "ceremony plan";

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(rename = "version")]
    _version: u64,
    kind: PlanKind,
    cluster: Cluster,
    token: FileToken,
    kek: KekPlan,
    output: AbsolutePath,
}

/// What a ceremony is for. This release runs unattended ceremonies only, and those are trials.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
enum PlanKind {
    Trial,
}

fn label<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let label = strict::line(deserializer)?;
    if label.len() > 40 {
        return Err(serde::de::Error::custom("expected at most 40 bytes"));
    }
    Ok(label)
}
