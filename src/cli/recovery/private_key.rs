//! The private half of a recovery key, as commands are given it.

use std::io::Read;
use std::path::PathBuf;

use clap::Args;
use zeroize::Zeroizing;

use super::failure;
use crate::cli::CliError;
use crate::exit::ExitCode;
use crate::recovery::{Binding, HybridKey, Recipient, RecoveryBlob, Scheme};
use crate::secret::Plaintext;

/// The private half of a recovery key.
#[derive(Args, Debug)]
pub(super) struct PrivateKeyArgs {
    /// The file with the private half; `-` reads it from standard input, so that it need not be on a disk
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
}

/// A private half that is at hand.
pub(super) enum PrivateKey {
    /// In memory.
    Hybrid(HybridKey),
}

impl PrivateKeyArgs {
    pub(super) fn open(&self) -> Result<PrivateKey, CliError> {
        let mut text = Zeroizing::new(String::with_capacity(MOST_BYTES));
        let is_input = self.key.as_os_str() == "-";
        let limit = MOST_BYTES as u64;
        let read = if is_input {
            std::io::stdin().take(limit).read_to_string(&mut text)
        } else {
            std::fs::File::open(&self.key).and_then(|file| file.take(limit).read_to_string(&mut text))
        };
        let what = || format!("the recovery key {} cannot be used", self.key.display());
        read.map_err(|error| {
            failure(ExitCode::BadUsage, what(), error.to_string(), "check the path, and that this user may read it")
        })?;
        HybridKey::parse(&text).map(PrivateKey::Hybrid).map_err(|error| {
            let hint = "give the file that recovery keygen or recovery combine wrote";
            failure(ExitCode::BadUsage, what(), error.to_string(), hint)
        })
    }
}

impl PrivateKey {
    /// The public half.
    pub(super) fn recipient(&self) -> Result<Recipient, CliError> {
        let Self::Hybrid(key) = self;
        key.recipient().ok_or_else(|| {
            failure(ExitCode::BadUsage, "the recovery key cannot be used", "it has no public half", "check the file")
        })
    }

    /// Opens a recovery blob that is bound to this. The text says why it does not open.
    pub(super) fn open(&self, blob: &RecoveryBlob<'_>, binding: &Binding) -> Result<Plaintext, String> {
        let Self::Hybrid(key) = self;
        if blob.scheme() != Scheme::Hybrid {
            return Err(format!("it was sealed with {}, this key is for {}", blob.scheme(), Scheme::Hybrid));
        }
        let refused = || "it was sealed to another key, for another cluster or KEK, or it was changed".to_owned();
        key.open(blob.sealed(), binding).ok_or_else(refused)
    }
}

/// Most bytes of the file.
const MOST_BYTES: usize = 4096;
