//! Vendor profiles: how one kind of HSM differs from the others, as data. The files lie in hsm-profiles/.

mod codes;
mod file;

use std::path::{Path, PathBuf};

use thiserror::Error;

pub use self::codes::{code_name, code_number, function_name};
use crate::class::Class;
use crate::seal::Sealing;
use crate::strict::{self, Fault, FileError};

/// A vendor profile.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Profile {
    /// The name that configuration files and KEK records use.
    pub name: String,
    /// The product's own name.
    pub title: String,
    /// The PKCS#11 module.
    pub module: Module,
    /// How seeds are sealed.
    pub seal: Sealing,
    /// Return codes that mean something else here than in the default table.
    pub codes: Vec<CodeOverride>,
    /// How the profile is known to be true.
    pub evidence: Evidence,
}

/// The PKCS#11 module of a vendor.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Module {
    /// Where the vendor's packages put it, in the order of trying.
    pub paths: Vec<PathBuf>,
    /// `manufacturerID` of `C_GetInfo`, without the blanks at the end. Another text: it is not this vendor's module.
    pub manufacturer: String,
    /// The variable that names the module's own configuration file.
    pub environment: Option<String>,
}

/// A return code that means something else than in the default table.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct CodeOverride {
    /// `CK_RV`.
    pub code: u64,
    /// The PKCS#11 function that returned it. `None`: any.
    pub function: Option<&'static str>,
    /// What it means.
    pub class: Class,
}

/// How something in a profile is known to be true.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Evidence {
    /// This project's tests run against the module.
    Ci,
    /// Somebody ran it on the device and wrote down what came out.
    Device,
    /// The vendor's documents say so.
    Documents,
    /// Nobody has confirmed it.
    Unconfirmed,
}

impl Profile {
    /// The profile with this name that the program brings along.
    pub fn by_name(name: &str) -> Result<Self, ProfileError> {
        match BUILT_IN.into_iter().find(|(built_in, _)| *built_in == name) {
            Some((_, text)) => Ok(Self::parse(text.as_bytes())?),
            None => Err(ProfileError::Unknown { nearest: strict::nearest(name, Self::names()) }),
        }
    }

    /// The profile in this file.
    pub fn load(path: &Path) -> Result<Self, ProfileError> {
        let read = strict::read(path).and_then(|bytes| parse(&bytes));
        Ok(read.map_err(|fault| FileError::new(WHAT, Some(path), fault))?)
    }

    /// The profile in these bytes, strictly read.
    pub fn parse(bytes: &[u8]) -> Result<Self, FileError> {
        parse(bytes).map_err(|fault| FileError::new(WHAT, None, fault))
    }

    /// The names of the profiles that the program brings along.
    pub fn names() -> impl Iterator<Item = &'static str> {
        BUILT_IN.into_iter().map(|(name, _)| name)
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
        }
    }
}

fn parse(bytes: &[u8]) -> Result<Profile, Fault> {
    strict::yaml::<file::File>(bytes, file::VERSION)?.check()
}

const BUILT_IN: [(&str, &str); 2] = [
    ("kryoptic", include_str!("../../hsm-profiles/kryoptic.yaml")),
    ("softhsm2", include_str!("../../hsm-profiles/softhsm2.yaml")),
];
const WHAT: &str = "profile";

#[cfg(test)]
mod tests {
    use super::*;

    const SOFTHSM2: &str = BUILT_IN[1].1;

    fn error_after(old: &str, new: &str) -> FileError {
        assert!(SOFTHSM2.contains(old), "{old}");
        Profile::parse(SOFTHSM2.replacen(old, new, 1).as_bytes()).unwrap_err()
    }

    #[test]
    fn every_profile_is_read_by_its_name() {
        for name in Profile::names() {
            let profile = Profile::by_name(name).unwrap();
            assert_eq!(profile.name, name);
            assert_eq!(profile.seal, Sealing::AES_GCM_SENT);
            assert_eq!(profile.evidence, Evidence::Ci);
        }
        assert!(Profile::names().is_sorted());
        let files = std::fs::read_dir("hsm-profiles").unwrap().count();
        assert_eq!(Profile::names().count(), files, "each file in hsm-profiles/ is built in");
    }

    #[test]
    fn softhsm2_says_what_differs() {
        let profile = Profile::by_name("softhsm2").unwrap();
        assert_eq!(profile.module.environment.as_deref(), Some("SOFTHSM2_CONF"));
        assert_eq!(profile.codes, [CodeOverride { code: 5, function: Some("C_Decrypt"), class: Class::Data }]);
    }

    #[test]
    fn an_unknown_name_gets_the_nearest() {
        let hint = |name| Profile::by_name(name).unwrap_err().hint();
        assert_eq!(hint("softhsm"), "did you mean `softhsm2`?");
        assert_eq!(hint("luna"), "use one of kryoptic, softhsm2, or the absolute path of a profile file");
    }

    #[test]
    fn codes_are_names_or_numbers() {
        let read = |line: &str| {
            let text = SOFTHSM2.replacen("CKR_GENERAL_ERROR@C_Decrypt: data", line, 1);
            Profile::parse(text.as_bytes()).unwrap().codes
        };
        assert_eq!(
            read("0x80000123: pin-or-config"),
            [CodeOverride { code: 0x8000_0123, function: None, class: Class::PinOrConfig }]
        );
        assert_eq!(read("CKR_DEVICE_ERROR: session")[0].code, 0x30);
        assert_eq!(read("{}").len(), 0);
    }

    #[test]
    fn faults_are_named() {
        for (old, new, error) in [
            ("title:", "tittle:", "unknown key `tittle`"),
            ("version: 1", "version: 2", "version 2 is not known"),
            ("name: softhsm2", "name: Soft HSM", "`name`: expected 1 to 63 of a-z, 0-9 and '-'"),
            ("- /usr/lib/softhsm", "- usr/lib/softhsm", "`module.paths[0]`: expected an absolute path"),
            ("manufacturer: SoftHSM", "manufacturer: ''", "`module.manufacturer`: must not be empty"),
            ("mechanism: aes-gcm", "mechanism: aes-kwp", "`seal.mechanism`: expected `aes-gcm`"),
            ("bytes: 12", "bytes: 16", "`seal.iv.bytes`: expected a whole number from 12 to 12"),
            ("layout: sent", "layout: suffix", "`seal.iv.layout`: expected `sent`"),
            ("CKR_GENERAL_ERROR@C_Decrypt: data", "CKR_GENERAL_EROR: data", "not a return code of PKCS#11"),
            ("CKR_GENERAL_ERROR@C_Decrypt: data", "0xZZ: data", "not a return code of PKCS#11"),
            ("CKR_GENERAL_ERROR@C_Decrypt: data", "CKR_OK: data", "CKR_OK is no failure"),
            ("CKR_GENERAL_ERROR@C_Decrypt: data", "CKR_GENERAL_ERROR@C_Decript: data", "not a function of PKCS#11"),
            ("@C_Decrypt: data", "@C_Decrypt: dead", "expected one of `busy`, `data`, `gone`"),
            (
                "@C_Decrypt: data",
                "@C_Decrypt: data\n  0x5@C_Decrypt: gone",
                "`codes`: CKR_GENERAL_ERROR@C_Decrypt stands twice",
            ),
            ("evidence: ci", "evidence: ce", "`evidence`: expected one of"),
        ] {
            let found = error_after(old, new).to_string();
            assert!(found.contains(error), "{found}\n{error}");
        }
    }

    #[test]
    fn a_missing_file_is_named() {
        let error = Profile::load(Path::new("/nonexistent/profile.yaml")).unwrap_err();
        assert!(error.to_string().starts_with("profile /nonexistent/profile.yaml: the file cannot be read"));
    }
}
