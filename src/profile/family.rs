//! One profile file with all its variants, and the files that the program brings along.

use std::path::Path;

use thiserror::Error;

use super::{Profile, check, file, strict};
use crate::strict::{Fault, FileError};

/// A profile file: one profile, or one for each variant.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Family {
    /// The name that configuration files use.
    pub name: String,
    /// The product's own name.
    pub title: String,
    /// The variant that is meant where none is named.
    pub default_variant: Option<String>,
    /// In the order of the variants' names.
    pub profiles: Vec<Profile>,
}

impl Family {
    /// The file with this name that the program brings along.
    pub fn by_name(name: &str) -> Result<Self, ProfileError> {
        match Self::text(name) {
            Some(text) => Ok(Self::parse(text.as_bytes())?),
            None => Err(ProfileError::Unknown { nearest: strict::nearest(name, Profile::names()) }),
        }
    }

    /// The words of the file with this name that the program brings along.
    pub fn text(name: &str) -> Option<&'static str> {
        Self::built_in().find(|(built_in, _)| *built_in == name).map(|(_, text)| text)
    }

    /// The files that the program brings along: name and text, in the order of the names.
    pub fn built_in() -> impl Iterator<Item = (&'static str, &'static str)> {
        BUILT_IN.into_iter()
    }

    /// The file at this path.
    pub fn load(path: &Path) -> Result<Self, FileError> {
        let read = strict::read(path).and_then(|bytes| parse(&bytes));
        read.map_err(|fault| FileError::new(WHAT, Some(path), fault))
    }

    /// The file with these bytes, strictly read.
    pub fn parse(bytes: &[u8]) -> Result<Self, FileError> {
        parse(bytes).map_err(|fault| FileError::new(WHAT, None, fault))
    }

    /// The variant with this name; without a name, the only profile or the default.
    pub fn choose(self, variant: Option<&str>) -> Result<Profile, ProfileError> {
        let Self { name, title: _, default_variant, profiles } = self;
        let variants: Vec<String> = profiles.iter().filter_map(|profile| profile.variant.clone()).collect();
        let wanted = variant.map(str::to_owned).or(default_variant);
        match profiles.into_iter().find(|profile| profile.variant == wanted) {
            Some(profile) => Ok(profile),
            None => Err(ProfileError::Variant { name, wanted, variants }),
        }
    }
}

/// Why there is no such profile.
#[derive(Debug, Error)]
pub enum ProfileError {
    /// The file cannot be used.
    #[error(transparent)]
    File(#[from] FileError),
    /// The program brings no profile of that name along.
    #[error("unknown profile")]
    Unknown {
        /// The name that was probably meant.
        nearest: Option<&'static str>,
    },
    /// The profile has no such variant, or it has variants and none was named.
    #[error("profile {name} {}", if wanted.is_some() { "has no such variant" } else { "has variants, and none is named" })]
    Variant {
        /// The profile.
        name: String,
        /// As named.
        wanted: Option<String>,
        /// Those that there are.
        variants: Vec<String>,
    },
}

impl ProfileError {
    /// What to do about it.
    pub fn hint(&self) -> String {
        match self {
            Self::File(error) => error.hint(),
            Self::Unknown { nearest: Some(nearest) } => format!("did you mean `{nearest}`?"),
            Self::Unknown { nearest: None } => {
                let names: Vec<_> = Profile::names().collect();
                format!("use one of {}, or the absolute path of a profile file", names.join(", "))
            }
            Self::Variant { name, variants, .. } if variants.is_empty() => {
                format!("write `{name}`: it has no variants")
            }
            Self::Variant { name, variants, .. } => {
                let names: Vec<_> = variants.iter().map(|variant| format!("`{name}/{variant}`")).collect();
                format!("write {}; a file of your own says `default_variant`", names.join(" or "))
            }
        }
    }
}

fn parse(bytes: &[u8]) -> Result<Family, Fault> {
    let file: file::File = strict::yaml(bytes, file::VERSION)?;
    check::family(file).map_err(|conflict| conflict.fault(std::str::from_utf8(bytes).unwrap_or_default()))
}

const WHAT: &str = "profile";

macro_rules! built_in {
    ($($name:literal)*) => {
        [$(($name, include_str!(concat!("../../hsm-profiles/", $name, ".yaml")))),*]
    };
}

const BUILT_IN: [(&str, &str); 20] = built_in! {
    "aws-cloudhsm"
    "azure-cloudhsm"
    "entrust-nshield"
    "fortanix-dsm"
    "google-kms"
    "ibm-hpcs"
    "kryoptic"
    "nethsm"
    "nss"
    "opencryptoki-cca"
    "opencryptoki-soft"
    "securosys-primus"
    "smartcard-hsm"
    "softhsm2"
    "thales-luna"
    "thales-luna-cloud"
    "thales-protectserver3"
    "tpm2"
    "utimaco"
    "yubihsm2"
};
