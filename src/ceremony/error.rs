//! What stops a ceremony, and what to do about it.

use std::path::PathBuf;

use thiserror::Error;

use crate::attributes::Deviation;
use crate::class::Class;
use crate::pkcs11;
use crate::strict::FileError;

/// What stops a ceremony.
#[derive(Debug, Error)]
pub enum CeremonyError {
    /// A negative test succeeded, and what it did to the key could not be undone.
    #[error("the token did what it must refuse: {attempt}; and it does not let it be undone: {error}")]
    Altered {
        /// What was tried.
        attempt: &'static str,
        /// Why it could not be undone.
        error: Box<pkcs11::Error>,
    },
    /// A copy that was made to try the token could not be destroyed.
    #[error(
        "a copy of the key {label:?}, made to try what the token refuses ({attempt}), cannot be destroyed: {error}"
    )]
    CopyLeft {
        /// `CKA_LABEL` of the key, and so of the copy.
        label: String,
        /// What was tried, and done.
        attempt: &'static str,
        /// Why it could not be destroyed.
        error: Box<pkcs11::Error>,
    },
    /// The key that was made is not a KEK; it was destroyed.
    #[error("the key {label:?} is not what a KEK needs: {}", deviations.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Deviates {
        /// Its `CKA_LABEL`.
        label: String,
        /// What differs.
        deviations: Vec<Deviation>,
    },
    /// Something with the KEK's label is on the token already.
    #[error("{count} object(s) with label {label:?} are on the token already")]
    LabelTaken {
        /// The label.
        label: String,
        /// How many objects have it.
        count: usize,
    },
    /// The ceremony stopped, and the key that it had made could not be destroyed.
    #[error("{cause}; and the key {label:?} with CKA_ID {id} is still on the token: {error}")]
    LeftBehind {
        /// Its `CKA_LABEL`.
        label: String,
        /// Its `CKA_ID`, in hex.
        id: String,
        /// Why it could not be destroyed.
        error: Box<pkcs11::Error>,
        /// Why the ceremony stopped.
        cause: Box<CeremonyError>,
    },
    /// A negative test succeeded: the token did what it must refuse. The key was destroyed.
    #[error("the token did what it must refuse: {0}")]
    NotRefused(&'static str),
    /// The output directory or file cannot be used.
    #[error("{}: {reason}", path.display())]
    Output {
        /// Directory or file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The PKCS#11 layer failed.
    #[error(transparent)]
    Pkcs11(#[from] pkcs11::Error),
    /// The record cannot be written in its own format.
    #[error(transparent)]
    Record(#[from] FileError),
    /// A proof blob did not behave as it must. The key was destroyed.
    #[error("the KEK failed its proof: {0}")]
    Proof(&'static str),
    /// The system failed.
    #[error("{what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// The system's words.
        source: std::io::Error,
    },
}

impl CeremonyError {
    /// What an operator can do about it.
    pub fn hint(&self) -> String {
        match self {
            Self::Altered { .. } => {
                "the key was altered: do not use it; destroy one that the vendor's tool made, and tell the vendor".to_owned()
            }
            Self::CopyLeft { .. } => {
                "do not use this token for a KEK; destroy what is left of that label with the vendor's tool".to_owned()
            }
            Self::Deviates { .. } => {
                "if the plan's owner accepts it, name the attribute under kek.permit in the plan; a key that the ceremony made was destroyed"
                    .to_owned()
            }
            Self::LabelTaken { .. } => {
                "choose a new kek.label in the plan; a ceremony never touches an existing object".to_owned()
            }
            Self::LeftBehind { .. } => {
                "no record was written, so no plugin uses this key; destroy it with the vendor's tool".to_owned()
            }
            Self::NotRefused(_) | Self::Proof(_) => {
                "do not use this token for a KEK, and tell the vendor; a key that the ceremony made was destroyed".to_owned()
            }
            Self::Output { .. } => {
                "name an existing directory without a kek-record.json under output in the plan".to_owned()
            }
            Self::Pkcs11(error) => error.hint(),
            Self::Record(error) => error.hint(),
            Self::System { .. } => "mend it and run the ceremony again".to_owned(),
        }
    }

    /// Whether the HSM was out of reach, as against a refusal or a mistake in the plan.
    pub fn is_out_of_reach(&self) -> bool {
        // A token that was found, and has not what the plan needs, was not out of reach.
        let answered = |error: &pkcs11::Error| {
            matches!(error, pkcs11::Error::KekAbsent { .. } | pkcs11::Error::MechanismAbsent { .. })
        };
        matches!(self, Self::Pkcs11(error) if error.class() != Class::PinOrConfig && !answered(error))
    }
}
