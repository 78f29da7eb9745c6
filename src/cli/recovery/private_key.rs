//! The private half of a recovery key, as commands are given it.

use std::io::Read;
use std::path::{Path, PathBuf};

use clap::Args;
use zeroize::Zeroizing;

use super::failure;
use super::token::{HsmKey, OfflineToken};
use crate::cli::CliError;
use crate::exit::ExitCode;
use crate::recovery::{Binding, HybridKey, Recipient, RecoveryBlob, Scheme};
use crate::secret::Plaintext;

/// The private half of a recovery key.
#[derive(Args, Debug)]
#[group(multiple = false)]
pub(super) struct PrivateKeyArgs {
    /// The file with the private half; `-` reads it from standard input, so that it need not be on a disk
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
    /// The file that names the offline HSM with the private half (docs/recovery.md); its PIN is tried once
    #[arg(long, value_name = "FILE")]
    token: Option<PathBuf>,
}

/// A private half that is at hand.
pub(super) enum PrivateKey {
    /// In memory.
    Hybrid(HybridKey),
    /// In an HSM of this machine.
    Hsm(Box<HsmKey>),
}

impl PrivateKeyArgs {
    /// Reads the key, or logs in to its HSM. To be called before anything else is done: for a module's environment the program starts
    /// itself again.
    pub(super) fn open(&self) -> Result<PrivateKey, CliError> {
        match (&self.key, &self.token) {
            (Some(path), _) => read(path).map(PrivateKey::Hybrid),
            (None, Some(path)) => HsmKey::find(OfflineToken::load(path)?.log_in()?).map(Box::new).map(PrivateKey::Hsm),
            (None, None) => {
                let hint = "add --key FILE, or --token FILE for one in an offline HSM";
                Err(failure(ExitCode::BadUsage, "there is no recovery key", "no private half was named", hint))
            }
        }
    }
}

/// Reads a private half from a file, or from standard input for `-`.
pub(super) fn read(path: &Path) -> Result<HybridKey, CliError> {
    let mut text = Zeroizing::new(String::with_capacity(MOST_BYTES));
    let limit = MOST_BYTES as u64;
    let read = if path.as_os_str() == "-" {
        std::io::stdin().take(limit).read_to_string(&mut text)
    } else {
        std::fs::File::open(path).and_then(|file| file.take(limit).read_to_string(&mut text))
    };
    let what = || format!("the recovery key {} cannot be used", path.display());
    read.map_err(|error| {
        failure(ExitCode::BadUsage, what(), error.to_string(), "check the path, and that this user may read it")
    })?;
    HybridKey::parse(&text).map_err(|error| {
        let hint = "give the file that recovery keygen or recovery combine wrote";
        failure(ExitCode::BadUsage, what(), error.to_string(), hint)
    })
}

impl PrivateKey {
    /// The public half.
    pub(super) fn recipient(&self) -> Result<Recipient, CliError> {
        match self {
            Self::Hybrid(key) => recipient_of(key),
            Self::Hsm(key) => Ok(key.recipient().clone()),
        }
    }

    /// Opens a recovery blob that is bound to this. The text says why it does not open.
    pub(super) fn open(&self, blob: &RecoveryBlob<'_>, binding: &Binding) -> Result<Plaintext, String> {
        let key = match self {
            Self::Hybrid(key) => key,
            Self::Hsm(key) => return key.open(blob, binding),
        };
        if blob.scheme() != Scheme::Hybrid {
            return Err(format!("it was sealed with {}, this key is for {}", blob.scheme(), Scheme::Hybrid));
        }
        let refused = || "it was sealed to another key, for another cluster or KEK, or it was changed".to_owned();
        key.open(blob.sealed(), binding).ok_or_else(refused)
    }
}

/// The public half of a key in memory.
pub(super) fn recipient_of(key: &HybridKey) -> Result<Recipient, CliError> {
    key.recipient().ok_or_else(|| {
        failure(ExitCode::BadUsage, "the recovery key cannot be used", "it has no public half", "check the file")
    })
}

/// Most bytes of the file.
const MOST_BYTES: usize = 4096;
