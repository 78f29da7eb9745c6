//! Vendor profiles: how one kind of HSM differs from the others, as data. The files lie in hsm-profiles/, and
//! docs/profiles.md describes every key.

mod check;
mod codes;
#[cfg(test)]
mod documents;
mod evidence;
mod family;
mod file;
mod fitting;
mod json;
mod settings;
#[cfg(test)]
mod tests;
mod words;

use std::path::Path;
use std::time::Duration;

pub use self::codes::{code_name, code_number, function_name};
pub use self::evidence::{Evidence, FIELDS};
pub use self::family::{Family, ProfileError};
pub use self::fitting::fitting;
pub use self::settings::{
    Aad, AttributeSetting, Backup, CodeOverride, Gone, HighAvailability, Key, KeyGeneration, Login, Module, Params,
    PinForm, ProfileSeal, Recover, Sandbox, Sessions, UserKind,
};
pub use self::words::{
    attribute_word as attribute_name, key_type_word as key_type_name, mechanism_word as mechanism_name,
};
use crate::seal::Sealing;
use crate::strict;

/// A vendor profile: one variant of a profile file, checked.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Profile {
    /// The name that configuration files use.
    pub name: String,
    /// The variant of it, if the file has variants.
    pub variant: Option<String>,
    /// The product's own name.
    pub title: String,
    /// Why no KEK may be served with this profile, if so.
    pub refuse: Option<String>,
    /// The PKCS#11 module.
    pub module: Module,
    /// How the user logs in.
    pub login: Login,
    /// How seeds are sealed. `None` only where `refuse` says why.
    pub seal: Option<ProfileSeal>,
    /// What the KEK is made of.
    pub key: Key,
    /// How many sessions, and whether they work at the same time.
    pub sessions: Sessions,
    /// What brings a lost token back.
    pub recover: Recover,
    /// Return codes that mean something else here than in the default table.
    pub codes: Vec<CodeOverride>,
    /// Who takes over when a device fails.
    pub ha: HighAvailability,
    /// How long a new key needs until it is everywhere.
    pub key_settle: Duration,
    /// How a KEK that cannot be read out is kept twice.
    pub backup: Backup,
    /// What the worker may do beside what each may.
    pub sandbox: Sandbox,
    /// How each field of [`FIELDS`] is known to be true, in that order.
    pub evidence: Vec<(&'static str, Evidence)>,
}

/// Why a profile cannot be used to serve or to make a KEK.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Unusable {
    /// The profile refuses.
    #[error("profile {profile} refuses: {reason}")]
    Refused {
        /// Its full name.
        profile: String,
        /// Its own words.
        reason: String,
    },
    /// This release lacks something that the profile needs.
    #[error("this release cannot use profile {profile} yet: {what}")]
    Unsupported {
        /// Its full name.
        profile: String,
        /// What is missing.
        what: &'static str,
    },
}

impl Unusable {
    /// What to do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Refused { .. } => "use another HSM; `hsm-kms profiles list` shows those that have a seal",
            Self::Unsupported { .. } => {
                "choose another profile or variant that fits the HSM (`hsm-kms profiles list`), or use a later release"
            }
        }
    }
}

impl Profile {
    /// The profile with this name, `NAME` or `NAME/VARIANT`, that the program brings along.
    pub fn by_name(name: &str) -> Result<Self, ProfileError> {
        let (name, variant) = name.split_once('/').map_or((name, None), |(name, variant)| (name, Some(variant)));
        Family::by_name(name)?.choose(variant)
    }

    /// The profile that a configuration would name so: `NAME`, `NAME/VARIANT`, or the absolute path of a file.
    pub fn named(source: &str) -> Result<Self, ProfileError> {
        if source.starts_with('/') { Self::load(Path::new(source)) } else { Self::by_name(source) }
    }

    /// The profile in this file. A file with variants must say which one is the default.
    pub fn load(path: &Path) -> Result<Self, ProfileError> {
        Family::load(path)?.choose(None)
    }

    /// The profile in these bytes, strictly read.
    pub fn parse(bytes: &[u8]) -> Result<Self, ProfileError> {
        Family::parse(bytes)?.choose(None)
    }

    /// The names of the profiles that the program brings along.
    pub fn names() -> impl Iterator<Item = &'static str> {
        Family::built_in().map(|(name, _)| name)
    }

    /// `NAME` or `NAME/VARIANT`, as in configuration files and KEK records.
    pub fn full_name(&self) -> String {
        let variant = self.variant.as_ref().map(|variant| format!("/{variant}")).unwrap_or_default();
        format!("{}{variant}", self.name)
    }

    /// How to seal, if this profile may be used and this release can do what it asks for.
    ///
    /// Everything that must not be silently ignored is looked at here, and nowhere else.
    pub fn usable(&self) -> Result<Sealing, Unusable> {
        if let Some(reason) = self.refuse.clone() {
            return Err(Unusable::Refused { profile: self.full_name(), reason });
        }
        let unsupported = |what| Unusable::Unsupported { profile: self.full_name(), what };
        let sealing = self.seal.map(|seal| seal.sealing).filter(Sealing::is_supported);
        let sealing = sealing.ok_or_else(|| unsupported("it cannot seal as the profile says"))?;
        if !self.key.is_supported() {
            return Err(unsupported("it cannot make a KEK as the profile says"));
        }
        Ok(sealing)
    }

    /// The fields that neither a test nor a device has proved, in the order of [`FIELDS`]. A section of which nothing is
    /// proved is named as a whole.
    pub fn unproved(&self) -> Vec<&'static str> {
        let mut names: Vec<&str> = Vec::new();
        for (field, evidence) in &self.evidence {
            let section = field.split('.').next().unwrap_or(field);
            let of_section = |other: &&str| evidence::is_within(other, section);
            let all_open =
                self.evidence.iter().filter(|(other, _)| of_section(other)).all(|(_, known)| !known.is_proof());
            let name = if all_open { section } else { field };
            if !evidence.is_proof() && names.last() != Some(&name) {
                names.push(name);
            }
        }
        names
    }
}
