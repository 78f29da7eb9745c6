//! What a checked profile holds.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::class::Class;
pub use crate::pin::PinForm;
use crate::sandbox::{Connect, RulePath};
use crate::seal::{Seal, Sealing};

/// The PKCS#11 module of a vendor.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Module {
    /// Where the vendor's packages put it, in the order of trying.
    pub paths: Vec<PathBuf>,
    /// `manufacturerID` of `C_GetInfo`, without the blanks at the end; any of these. None: nobody has read it yet.
    pub manufacturers: Vec<String>,
    /// The variables that name the module's own configuration files.
    pub environment: Vec<String>,
    /// Files that the module needs, unless one of the variables names others.
    pub files: Vec<PathBuf>,
    /// The service that must run beside it.
    pub daemon: Option<String>,
}

/// How the user logs in.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Login {
    /// As whom.
    pub user: UserKind,
    /// What a PIN looks like.
    pub pin: PinForm,
}

/// The user type of `C_Login`.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum UserKind {
    /// The vendor's limited user, 0x80000001, who uses keys and cannot change them.
    CryptoUser,
    /// No login: the module has other means.
    None,
    /// `CKU_USER`.
    User,
}

impl UserKind {
    /// The value with this number.
    pub fn from_number(number: u32) -> Option<Self> {
        [Self::CryptoUser, Self::None, Self::User].into_iter().find(|user| *user as u32 == number)
    }
}

/// How seeds are sealed, and what the mechanism takes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct ProfileSeal {
    /// Mechanism, IV and functions.
    pub sealing: Sealing,
    /// Most bytes that the mechanism takes in one call. `None`: more than any seed needs.
    pub max_bytes: Option<u64>,
}

/// The mechanism's parameter.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Params {
    /// `CK_GCM_PARAMS`.
    Gcm,
    /// The IV alone.
    Iv,
    /// None.
    None,
}

/// Where the context of a seed goes.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Aad {
    /// Into the MAC.
    Mac,
    /// Into the mechanism's parameter, as additional authenticated data.
    Param,
    /// In front of the plaintext; compared after opening.
    Plaintext,
}

impl Params {
    /// What the seal takes.
    pub fn of(seal: Seal) -> Self {
        match seal {
            Seal::AesGcm => Self::Gcm,
            Seal::AesKwp | Seal::YubicoCcm => Self::None,
            Seal::AesCbcHmac => Self::Iv,
        }
    }
}

impl Aad {
    /// What the seal does. A blob records the seal only, so nothing else may decide it.
    pub fn of(seal: Seal) -> Self {
        match seal {
            Seal::AesGcm => Self::Param,
            Seal::AesKwp | Seal::YubicoCcm => Self::Plaintext,
            Seal::AesCbcHmac => Self::Mac,
        }
    }
}

/// What the KEK is made of, beside what every KEK has.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Key {
    /// `CK_KEY_TYPE`.
    pub kind: u64,
    /// How it is made.
    pub generate: KeyGeneration,
    /// Attributes that the template has here, by `CK_ATTRIBUTE_TYPE`.
    pub add: Vec<(u64, AttributeSetting)>,
    /// Attributes that the module refuses, by `CK_ATTRIBUTE_TYPE`.
    pub omit: Vec<u64>,
}

impl Default for Key {
    /// An AES key by `CKM_AES_KEY_GEN`, with the usual template.
    fn default() -> Self {
        let generate = KeyGeneration::Mechanism(cryptoki_sys::CKM_AES_KEY_GEN);
        Self { kind: cryptoki_sys::CKK_AES, generate, add: Vec::new(), omit: Vec::new() }
    }
}

impl Key {
    /// Whether this release can make such a key.
    pub fn is_supported(&self) -> bool {
        let generate = [cryptoki_sys::CKM_AES_KEY_GEN, cryptoki_sys::CKM_GENERIC_SECRET_KEY_GEN];
        match self.generate {
            KeyGeneration::Mechanism(mechanism) => generate.contains(&mechanism),
            KeyGeneration::Tool => true,
        }
    }
}

/// How a KEK is made.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum KeyGeneration {
    /// `C_GenerateKey` with this `CK_MECHANISM_TYPE`.
    Mechanism(u64),
    /// The vendor's own tool: `C_GenerateKey` cannot.
    Tool,
}

/// The value of an attribute.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum AttributeSetting {
    /// `CK_BBOOL`.
    Flag(bool),
    /// `CK_ULONG`.
    Number(u64),
}

/// The module's sessions.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Sessions {
    /// Most sessions that one program may open, the login session included. `None`: no limit that matters.
    pub max: Option<u64>,
    /// All calls wait for one lock or one line: a second session makes nothing faster.
    pub serial: bool,
}

/// What brings a lost token back.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Recover {
    /// The least that must be done anew.
    pub gone: Gone,
    /// Longest idle time: the device forgets its session after it. `None`: it does not.
    pub probe: Option<Duration>,
    /// Longest that the vendor's library keeps a call to a device that is away. `None`: not known.
    pub call_limit: Option<Duration>,
}

/// What must be done anew when a token was lost.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Gone {
    /// Nothing: the module itself comes back.
    Module,
    /// `C_Finalize` and `C_Initialize`, or a new process.
    Reinit,
    /// A new session and login.
    Session,
}

/// What the module needs of files and network beside what every worker has.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Sandbox {
    /// Read.
    pub read: Vec<RulePath>,
    /// Read and written.
    pub write: Vec<RulePath>,
    /// Connected to, beside the ports that the module's configuration names.
    pub connect: Connect,
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

/// Who takes over when a device fails.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum HighAvailability {
    /// The module: its token stands for several devices.
    Module,
    /// Nobody.
    None,
    /// The service behind the module.
    Service,
    /// Several slots, one a device: whoever uses them must change over.
    Slots,
}

/// How a KEK that cannot be read out is kept twice.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Backup {
    /// From device to device, by the vendor's cloning.
    Clone,
    /// As encrypted files of the vendor's.
    Files,
    /// Not at all.
    None,
    /// By the service that runs the HSM.
    Service,
    /// Nobody has confirmed how.
    Unknown,
    /// Wrapped by another key in the device.
    Wrapped,
}
