//! What stops a ceremony, and what to do about it.

use std::path::PathBuf;

use thiserror::Error;

use super::ImportError;
use super::console::ConsoleError;
use super::evidence::EvidenceError;
use super::plan::PlanError;
use super::preflight::EXCEPTIONS;
use super::transcript::{TranscriptError, TranscriptFault};
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
    /// A check does not hold.
    #[error("the check `{check}` does not hold: {found}")]
    Check {
        /// Its name.
        check: &'static str,
        /// What was found.
        found: String,
    },
    /// The terminal, or the file of answers, gave no answer.
    #[error(transparent)]
    Console(#[from] ConsoleError),
    /// A process that was sent to a token did not do what it was sent for.
    #[error("the token with serial number {serial}: {why}")]
    Copy {
        /// Serial number of the token.
        serial: String,
        /// What the process that looked said.
        why: String,
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
    /// A key on a token reads otherwise than its record.
    #[error("the key {label:?} is not as its record says: {}", deviations.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Differs {
        /// Its `CKA_LABEL`.
        label: String,
        /// What differs.
        deviations: Vec<Deviation>,
    },
    /// The evidence cannot be written or read.
    #[error(transparent)]
    Evidence(#[from] EvidenceError),
    /// The key cannot be brought in from outside.
    #[error(transparent)]
    Import(#[from] ImportError),
    /// The token makes no key with these attributes.
    #[error("the token refuses to make {labels} with the attributes that a KEK must have: {error}")]
    TemplateRefused {
        /// Labels of the keys.
        labels: String,
        /// What the token said.
        error: Box<pkcs11::Error>,
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
    /// A key with the KEK's name does not open what the KEK sealed.
    #[error(
        "the key {label:?} does not open the record's proof blobs, so it is another key, or the record was changed: {error}"
    )]
    OtherKey {
        /// Its `CKA_LABEL`.
        label: String,
        /// What the token said.
        error: Box<pkcs11::Error>,
    },
    /// The token with that label has another serial number.
    #[error("the token has serial number {found:?}, and not {expected:?}")]
    OtherToken {
        /// What was asked for.
        expected: String,
        /// What is there.
        found: String,
    },
    /// The output directory or file cannot be used.
    #[error("{}: {reason}", path.display())]
    Output {
        /// Directory or file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// Those who are there cannot hold a ceremony.
    #[error("the ceremony cannot be held: {0}")]
    People(String),
    /// The plan cannot be used.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// The PKCS#11 layer failed.
    #[error(transparent)]
    Pkcs11(#[from] pkcs11::Error),
    /// The record of the KEK before is not the one of the plan.
    #[error("{0}")]
    Previous(&'static str),
    /// The record is not the one of the KEK that the plan destroys.
    #[error("{0}")]
    Destroys(&'static str),
    /// The record cannot be written in its own format.
    #[error(transparent)]
    Record(#[from] FileError),
    /// A proof blob did not behave as it must. The key was destroyed.
    #[error("the KEK failed its proof: {0}")]
    Proof(&'static str),
    /// Somebody said no.
    #[error("{0}")]
    Refused(&'static str),
    /// A copy on the token of the record itself is none.
    #[error("the token with serial number {serial} is the one that the record is of: a copy on the same token is none")]
    SameToken {
        /// Its serial number.
        serial: String,
    },
    /// The system failed.
    #[error("{what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// The system's words.
        source: std::io::Error,
    },
    /// The transcript cannot be written, or does not hold.
    #[error(transparent)]
    Transcript(#[from] TranscriptError),
    /// The transcript that was closed does not hold.
    #[error("the transcript does not hold: {0}")]
    TranscriptFault(#[from] TranscriptFault),
    /// A question got no answer that could be read.
    #[error("the question `{0}` was not answered in three attempts")]
    Unanswered(String),
}

impl CeremonyError {
    /// What an operator can do about it.
    pub fn hint(&self) -> String {
        match self {
            Self::Altered { .. } => {
                "the key was altered: do not use it; destroy one that the vendor's tool made, and tell the vendor".to_owned()
            }
            Self::Check { check, .. } if EXCEPTIONS.contains(check) => format!(
                "mend it; or record who decides to go on without it: hsm-kms ceremony exception --check {check}; then run --resume"
            ),
            Self::Check { .. } => "mend it, then run --resume; no exception helps".to_owned(),
            Self::Console(ConsoleError::Order { .. }) => "put the answers into the order of the questions".to_owned(),
            Self::Console(ConsoleError::NoTerminal) => "run it on a terminal".to_owned(),
            Self::Console(_) | Self::Unanswered(_) => RESUME.to_owned(),
            Self::Copy { .. } => {
                "the KEK stays on its token; make the copy with the vendor's tool, then run --resume".to_owned()
            }
            Self::Differs { .. } | Self::OtherKey { .. } => {
                "this is not the KEK of the record: do not use it, and find out who changed it".to_owned()
            }
            Self::OtherToken { .. } => "find the right token; serial numbers stand on the device and in the record".to_owned(),
            Self::SameToken { .. } => "name another token".to_owned(),
            Self::People(_) => "meet again when they are there; nothing was touched".to_owned(),
            Self::Plan(error) => error.hint(),
            Self::Previous(_) => "give the record that the plan names under previous: --previous FILE".to_owned(),
            Self::Destroys(_) => "give the record that the plan names under destroys: --record FILE".to_owned(),
            Self::Refused(_) => "find out why, then run --resume, or hold a ceremony by a new plan".to_owned(),
            Self::Evidence(error) => error.hint(),
            Self::TranscriptFault(_) => "it was changed after it was written: keep it, and hold a new ceremony".to_owned(),
            Self::Transcript(error) => error.hint().to_owned(),
            Self::CopyLeft { .. } => {
                "do not use this token for a KEK; destroy what is left of that label with the vendor's tool".to_owned()
            }
            Self::Deviates { .. } => {
                "if the plan's owner accepts it, name the attribute under kek.permit in the plan; a key that the ceremony made was destroyed"
                    .to_owned()
            }
            Self::Import(error) => error.hint().to_owned(),
            Self::TemplateRefused { .. } => {
                "`hsm-kms hsm probe` finds out which attribute; the token's profile can leave it away, under key.omit".to_owned()
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

    /// Whether the ceremony only stopped: what it made stays, and `run --resume` goes on.
    pub fn is_interruption(&self) -> bool {
        match self {
            // The token was away for a moment: that says nothing about the key.
            Self::Pkcs11(error) => {
                matches!(error.class(), Class::Busy | Class::Gone | Class::Login | Class::Session)
                    && self.is_out_of_reach()
            }
            Self::Console(_)
            | Self::Copy { .. }
            | Self::Evidence(_)
            | Self::Output { .. }
            | Self::Refused(_)
            | Self::System { .. }
            | Self::Transcript(_)
            | Self::Unanswered(_) => true,
            _ => false,
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

const RESUME: &str = "the key stays on its token, and the transcript says how far it came: run --resume";
