//! The evidence of a ceremony: what lies beside its record, signed, so that anyone can check it without the HSM.
//!
//! docs/formats.md has the files. `scripts/verify-ceremony` checks the same with code of its own.

mod bundle;
mod check;
mod examine;
mod plan;
mod sign;
mod signature;
mod statement;

use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

pub use self::bundle::{file_digest, write_sums};
pub use self::check::{Check, Report};
pub use self::examine::verify_directory;
pub use self::sign::{Signed, Source, sign};
pub use self::signature::{allowed_signers, principal};
pub use self::statement::Statement;

/// The plan that everybody agreed to: canonical JSON.
pub const PLAN_FILE: &str = "plan.lock.json";
/// The record.
pub const RECORD_FILE: &str = "kek-record.json";
/// What is signed.
pub const STATEMENT_FILE: &str = "statement.txt";
/// The keys of the plan's people, as OpenSSH reads them.
pub const SIGNERS_FILE: &str = "allowed_signers";
/// SHA-256 of the other files, as `sha256sum` writes and checks it.
pub const SUMS_FILE: &str = "SHA256SUMS";
/// The directory with a signature from each person.
pub const SIGNATURES: &str = "signatures";

/// Why evidence could not be looked at, or a signature was not stored.
#[derive(Debug, Error)]
pub enum EvidenceError {
    /// A file or directory cannot be read or written.
    #[error("{}: {source}", path.display())]
    File {
        /// Where it lies.
        path: PathBuf,
        /// The system's words.
        source: io::Error,
    },
    /// A file could not be written whole.
    #[error("{0}")]
    NotWritten(String),
    /// A directory has more files than any ceremony leaves.
    #[error("{} has more than {} files", path.display(), bundle::MAX_FILES)]
    TooManyFiles {
        /// The directory.
        path: PathBuf,
    },
    /// OpenSSH's program cannot be run.
    #[error("ssh-keygen cannot be run: {0}")]
    NoProgram(io::Error),
    /// OpenSSH's program did not sign.
    #[error("ssh-keygen did not sign with {}: it ended with {status}", key.display())]
    NotSigned {
        /// The file of the key.
        key: PathBuf,
        /// How it ended.
        status: std::process::ExitStatus,
    },
    /// There is something wrong with what would be signed.
    #[error("what would be signed does not hold: {0}")]
    DoesNotHold(String),
    /// Nobody of that name took part.
    #[error("{name:?} did not take part in this ceremony")]
    Unknown {
        /// As given.
        name: String,
        /// Who did.
        people: Vec<String>,
    },
    /// The signature is not this person's over this statement.
    #[error("the signature is not one over this statement by the key that the plan names for {name}")]
    NotTheirs {
        /// Who was to sign.
        name: String,
    },
}

impl EvidenceError {
    /// What to do about it.
    pub fn hint(&self) -> String {
        match self {
            Self::File { source, .. } if source.kind() == io::ErrorKind::AlreadyExists => {
                "it is never overwritten; if it does not hold, remove it first".to_owned()
            }
            Self::File { .. } | Self::NotWritten(_) => {
                "check the path and the permissions of the file and its directories".to_owned()
            }
            Self::TooManyFiles { .. } => "name the directory of one ceremony".to_owned(),
            Self::NoProgram(_) => "install OpenSSH: its package is often named openssh-client".to_owned(),
            Self::NotSigned { .. } => "see what it said above; check path and passphrase of the key".to_owned(),
            Self::DoesNotHold(_) => "sign nothing; see `hsm-kms ceremony verify-record`".to_owned(),
            Self::Unknown { people, .. } => format!("these took part: {}", people.join(", ")),
            Self::NotTheirs { .. } => {
                "sign statement.txt with `ssh-keygen -Y sign -n hsm-kms-ceremony` and the key that stands in the plan"
                    .to_owned()
            }
        }
    }

    fn file(path: &Path) -> impl FnOnce(io::Error) -> Self {
        |source| Self::File { path: path.to_owned(), source }
    }
}

/// Writes a file that must not exist yet, and makes sure that it is on the disk.
fn write_new(path: &Path, content: &[u8]) -> Result<(), EvidenceError> {
    super::output::write_new(path, content).map_err(|error| EvidenceError::NotWritten(error.to_string()))
}
