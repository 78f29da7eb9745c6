//! What can go wrong below the link, for three readers: the caller (class), the log (text), the operator (hint).

use std::path::PathBuf;

use cryptoki::context::Function;
use cryptoki::error::{Rv, RvError};
use cryptoki_sys as sys;
use thiserror::Error;

use super::codes;
use super::raw::{CallFailed, WRONG_LENGTH};
use crate::attributes::Deviation;
use crate::class::Class;
use crate::profile::{self, CodeOverride};
use crate::seal::SealForm;

/// A failure of the PKCS#11 layer. Texts hold names, labels and return codes, never a PIN, plaintext or key handle.
#[derive(Debug, Error)]
pub enum Error {
    /// A PKCS#11 function failed.
    #[error("{function} returned {}", codes::name(*code))]
    Call {
        /// PKCS#11 name.
        function: String,
        /// `CK_RV`.
        code: u64,
        /// What it means, profile overrides applied.
        class: Class,
        /// The session was in the middle of an operation and must be closed.
        poisoned: bool,
    },
    /// The binding could not make sense of what the module said.
    #[error("the module's answer cannot be read: {0}")]
    Unreadable(String),
    /// No key, or no usable one, where the record says there is one.
    #[error("no key with label {label:?} and CKA_ID {id} on the token")]
    KekAbsent {
        /// CKA_LABEL searched for.
        label: String,
        /// CKA_ID in hex.
        id: String,
    },
    /// The key cannot open the record's proof blob.
    #[error(
        "the key {label:?} does not open the proof blob of its record: it is another key, or the record was changed"
    )]
    KekForeign {
        /// CKA_LABEL of the key.
        label: String,
    },
    /// The key opens neither the record's proof blob nor what it has just sealed: the token is sick.
    #[error("the key {label:?} opens neither the proof blob of its record nor a seal of its own: {error}")]
    KekSick {
        /// CKA_LABEL of the key.
        label: String,
        /// How its own seal, or else the proof, failed.
        error: Box<Error>,
    },
    /// More than one key where there must be one.
    #[error("{count} keys with label {label:?} and CKA_ID {id} on the token")]
    KekTwice {
        /// CKA_LABEL searched for.
        label: String,
        /// CKA_ID in hex.
        id: String,
        /// How many were found.
        count: usize,
    },
    /// The key is not what its record says.
    #[error("the key {label:?} is not what its record says: {}", list(deviations))]
    KekWeak {
        /// CKA_LABEL of the key.
        label: String,
        /// What differs.
        deviations: Vec<Deviation>,
    },
    /// The library could not be loaded, or is no PKCS#11 module.
    #[error("cannot load the PKCS#11 module {}: {reason}", path.display())]
    Load {
        /// Path as configured.
        path: PathBuf,
        /// The loader's words.
        reason: String,
    },
    /// The module is not the vendor's that the profile is for.
    #[error("the module says manufacturer {found:?}, the profile is for {}", labels(expected))]
    Manufacturer {
        /// As in the profile; any of these.
        expected: Vec<String>,
        /// `manufacturerID` of `C_GetInfo`.
        found: String,
    },
    /// The token lacks a mechanism that the profile seals with.
    #[error("token {label:?} does not have {}, which the profile needs", mechanisms(missing))]
    MechanismAbsent {
        /// Token label.
        label: String,
        /// `CK_MECHANISM_TYPE`s.
        missing: Vec<u64>,
        /// Profiles of the same manufacturer, or else seals, that would fit.
        fitting: Vec<String>,
    },
    /// The PIN source could not be used. Nothing was sent to the token.
    #[error("{0}")]
    Pin(#[from] crate::pin::PinError),
    /// The token's flags forbid an attempt to log in.
    #[error("token {label:?} flags {flag}: no PIN was tried")]
    PinAtRisk {
        /// Token label.
        label: String,
        /// PKCS#11 flag name.
        flag: &'static str,
    },
    /// The module sealed in another way than its profile says.
    #[error("the module does not seal as its profile says: {what}")]
    Sealing {
        /// What it did.
        what: String,
    },
    /// The process could not be limited as the configuration wants it.
    #[error("{what}")]
    Sandbox {
        /// What does not hold, and why.
        what: String,
    },
    /// A form of sealing that this release does not have.
    #[error("this release cannot seal or open with {:?}, IV layout {:?}", form.seal, form.iv_layout)]
    SealUnsupported {
        /// As the profile or the blob says.
        form: SealForm,
    },
    /// The module keeps separate state for each function list.
    #[error("the module does not know on its second function list what was done on its first")]
    SplitState,
    /// No token with the label.
    #[error("no token with label {label:?}; present: {}", labels(present))]
    TokenAbsent {
        /// Label searched for.
        label: String,
        /// Labels of the tokens that are there.
        present: Vec<String>,
    },
    /// The token has another serial number than the record names.
    #[error("token {label:?} has serial {found:?}, the KEK record names {expected:?}")]
    TokenSerial {
        /// Token label.
        label: String,
        /// As in the record.
        expected: String,
        /// As on the token.
        found: String,
    },
    /// Several tokens with the label.
    #[error("{count} tokens with label {label:?}")]
    TokenTwice {
        /// Label searched for.
        label: String,
        /// How many.
        count: usize,
    },
}

impl Error {
    pub(crate) fn from_cryptoki(error: cryptoki::error::Error, overrides: &[CodeOverride]) -> Self {
        match error {
            cryptoki::error::Error::Pkcs11(rv, function) => {
                let function = function_name(function);
                let code = number(rv);
                let class = codes::classify(&function, code, overrides);
                Self::Call { function, code, class, poisoned: false }
            }
            other => Self::Unreadable(other.to_string()),
        }
    }

    pub(crate) fn from_call(failed: CallFailed, overrides: &[CodeOverride]) -> Self {
        Self::Call {
            function: failed.function.to_owned(),
            code: failed.code,
            class: codes::classify(failed.function, failed.code, overrides),
            poisoned: failed.mid_operation,
        }
    }

    /// What the failure means for whoever asked.
    pub fn class(&self) -> Class {
        match self {
            Self::Call { class, .. } => *class,
            Self::Unreadable(_) => Class::Session,
            // A lost SoftHSM2 token answers searches with "nothing found", so absence alone proves no destruction.
            // And a token that is not ready yet may list too few mechanisms.
            Self::KekAbsent { .. } | Self::KekSick { .. } | Self::MechanismAbsent { .. } | Self::TokenAbsent { .. } => {
                Class::Gone
            }
            Self::KekForeign { .. }
            | Self::KekTwice { .. }
            | Self::KekWeak { .. }
            | Self::Load { .. }
            | Self::Manufacturer { .. }
            | Self::Pin(_)
            | Self::PinAtRisk { .. }
            | Self::Sandbox { .. }
            | Self::Sealing { .. }
            | Self::SealUnsupported { .. }
            | Self::SplitState
            | Self::TokenSerial { .. }
            | Self::TokenTwice { .. } => Class::PinOrConfig,
        }
    }

    /// The text that may be shown to any caller: it ends in API server logs and health pages.
    pub fn public(&self) -> &'static str {
        match self {
            Self::Call { function, class: Class::PinOrConfig, .. } if function == "C_Login" => {
                "the token refused the login; it is not tried again"
            }
            Self::Call { class: Class::Busy, .. } => "the HSM is busy",
            Self::Call { class: Class::Data, .. } => "the sealed blob does not open under this KEK",
            Self::Call { class: Class::PinOrConfig, .. } => "the HSM does not permit the operation",
            Self::Call { .. } | Self::KekSick { .. } | Self::Unreadable(_) => "the HSM does not answer as it should",
            Self::KekAbsent { .. } => "the KEK is not on the token",
            Self::KekForeign { .. } => "the key on the token is not the KEK of the record",
            Self::KekTwice { .. } => "the KEK is on the token more than once",
            Self::KekWeak { .. } => "the KEK's attributes are not those of the record",
            Self::Load { .. } => "the PKCS#11 module cannot be loaded",
            Self::Manufacturer { .. } => "the PKCS#11 module is not the one the profile is for",
            Self::MechanismAbsent { .. } => "the token lacks the mechanism that the profile seals with",
            Self::Pin(_) => "the PIN source cannot be used",
            Self::PinAtRisk { .. } => "the token's PIN is locked or on its last try; no login was tried",
            Self::Sandbox { .. } => "the worker cannot be limited as the configuration wants it",
            Self::Sealing { .. } => "the PKCS#11 module does not seal as its profile says",
            Self::SealUnsupported { .. } => "this release cannot seal in the form that was asked for",
            Self::SplitState => "the PKCS#11 module cannot be used: it splits its state",
            Self::TokenAbsent { .. } => "the token is not there",
            Self::TokenSerial { .. } => "the token is not the one of the record",
            Self::TokenTwice { .. } => "there are several tokens with the label",
        }
    }

    /// What an operator can do about it; one sentence.
    pub fn hint(&self) -> String {
        match self {
            Self::Call { function, code, .. } => call_hint(function, *code).to_owned(),
            Self::Unreadable(_) => "check that the profile fits the module and its version".to_owned(),
            Self::KekAbsent { .. } => {
                "check token, label and record; the key may not be on this token, or the token is away".to_owned()
            }
            Self::KekForeign { .. } => {
                "the label and id were reused; restore the KEK of the record, or use the record of this key".to_owned()
            }
            Self::KekSick { error, .. } => error.hint(),
            Self::KekTwice { .. } => "find out which one the record means before anything is deleted".to_owned(),
            Self::KekWeak { .. } => "do not use this key; hold a new ceremony".to_owned(),
            Self::Load { .. } => {
                "check token.module in the configuration: the vendor's PKCS#11 library, for this CPU".to_owned()
            }
            Self::Manufacturer { .. } => "set token.profile or token.module so that both name one vendor".to_owned(),
            Self::MechanismAbsent { fitting, .. } => match fitting.as_slice() {
                [] => {
                    "no seal of this release fits: use another token, or look whether the HSM's policy hides mechanisms"
                        .to_owned()
                }
                fitting => format!("set token.profile to what this token can do: {}", fitting.join(", ")),
            },
            Self::Pin(error) => error.hint().to_owned(),
            Self::PinAtRisk { .. } => {
                "have the security officer reset the user PIN, put the right one into the PIN source, then send SIGHUP"
                    .to_owned()
            }
            Self::Sandbox { .. } => "use a newer kernel, or set sandbox: best-effort".to_owned(),
            Self::Sealing { .. } => "choose the profile and variant of this module and its mode".to_owned(),
            Self::SealUnsupported { .. } => {
                "choose a profile or variant whose seal this release has (docs/profiles.md), or use a later release"
                    .to_owned()
            }
            Self::SplitState => {
                "p11-kit's modules do this, or another library answers for it; name the vendor's module itself"
                    .to_owned()
            }
            Self::TokenAbsent { .. } => {
                "check token.label, the module's own configuration, and the connection to the HSM".to_owned()
            }
            Self::TokenSerial { .. } => "use the record made for this token, or the token of this record".to_owned(),
            Self::TokenTwice { .. } => "give each token a label of its own".to_owned(),
        }
    }

    /// Whether a file or an argument names the wrong thing, as against a token that does not answer or refuses.
    pub fn is_usage(&self) -> bool {
        matches!(self, Self::Load { .. } | Self::Manufacturer { .. } | Self::Pin(_) | Self::TokenTwice { .. })
    }

    /// The session was in the middle of an operation and must not be used again.
    pub fn poisons_session(&self) -> bool {
        match self {
            Self::Call { poisoned, class, .. } => *poisoned || *class != Class::Data,
            _ => true,
        }
    }
}

fn call_hint(function: &str, code: u64) -> &'static str {
    match code {
        sys::CKR_PIN_INCORRECT | sys::CKR_PIN_INVALID | sys::CKR_PIN_LEN_RANGE | sys::CKR_ARGUMENTS_BAD
            if function == "C_Login" =>
        {
            "put the right PIN into the PIN source, then send SIGHUP or run the ceremony again: each tries it once"
        }
        sys::CKR_GENERAL_ERROR | sys::CKR_FUNCTION_FAILED if function == "C_Login" => {
            "see what the HSM says of it, then send SIGHUP: a login is not tried again by itself"
        }
        sys::CKR_PIN_LOCKED => "have the security officer reset the user PIN",
        sys::CKR_PIN_EXPIRED => "change the user PIN with the vendor's tool",
        sys::CKR_USER_PIN_NOT_INITIALIZED => "set the token's user PIN with the vendor's tool",
        sys::CKR_MECHANISM_INVALID | sys::CKR_MECHANISM_PARAM_INVALID => {
            "the token does not have the profile's mechanism; choose another profile"
        }
        sys::CKR_KEY_FUNCTION_NOT_PERMITTED => "the key lacks the right to encrypt or decrypt; hold a new ceremony",
        sys::CKR_BUFFER_TOO_SMALL | WRONG_LENGTH => {
            "the module's output has another length than the profile says; choose the profile and variant of its mode"
        }
        sys::CKR_SESSION_COUNT => "lower limits.sessions, or close other programs' sessions",
        _ => "check the HSM and the path to it; a running plugin keeps trying by itself",
    }
}

fn list(deviations: &[Deviation]) -> String {
    deviations.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

fn labels(present: &[String]) -> String {
    if present.is_empty() {
        return "none".to_owned();
    }
    present.iter().map(|label| format!("{label:?}")).collect::<Vec<_>>().join(", ")
}

fn function_name(function: Function) -> String {
    format!("C_{function:?}")
}

/// cryptoki keeps no number for the codes it names; ask its own conversion which number gives the name.
fn number(error: RvError) -> u64 {
    match error {
        RvError::VendorDefined(code) | RvError::UnknownErrorCode(code) => code,
        named => (1..0x400).find(|code| Rv::from(*code) == Rv::Error(named)).unwrap_or(sys::CKR_GENERAL_ERROR),
    }
}

fn mechanisms(list: &[u64]) -> String {
    list.iter().map(|number| profile::mechanism_name(*number)).collect::<Vec<_>>().join(" and ")
}
