//! `hsm-kms recovery keygen`.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use clap::Args;
use zeroize::Zeroizing;

use super::{failure, print};
use crate::cli::CliError;
use crate::exit::ExitCode;
use crate::record::UtcTime;
use crate::recovery::HybridKey;

/// Make a recovery key: the private half for a safe, the public half for the ceremony's plan
#[derive(Args, Debug)]
pub(super) struct KeygenArgs {
    /// Where the private half goes, readable by this user alone; must not exist. Best on a medium that is taken out
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    /// Where the public half goes; must not exist
    #[arg(long, value_name = "FILE")]
    recipient: PathBuf,
}

pub(super) fn run(args: &KeygenArgs) -> Result<(), CliError> {
    let key = HybridKey::generate()
        .map_err(|error| failure(ExitCode::NotReachable, "no key was made", error.to_string(), "try again"))?;
    let recipient = key.recipient().ok_or_else(|| {
        failure(ExitCode::DoesNotHold, "no key was made", "the library refused its own key", "report this")
    })?;
    let fingerprint = recipient.fingerprint();
    let text = Zeroizing::new(format!(
        "# hsm-kms recovery key. Whoever has it can read every secret of the cluster, from etcd or a backup of it.\n\
         # made {}; fingerprint {fingerprint}\n{}\n",
        UtcTime::now(),
        *key.to_text()
    ));
    write_new(&args.key, 0o600, text.as_bytes())?;
    write_new(&args.recipient, 0o644, recipient.to_json().as_bytes())?;
    print(&format!(
        "private   {}\npublic    {}\nscheme    {}\nfingerprint\n{fingerprint}\n",
        args.key.display(),
        args.recipient.display(),
        recipient.scheme(),
    ))
}

/// Writes a file that must not exist yet.
fn write_new(path: &Path, mode: u32, content: &[u8]) -> Result<(), CliError> {
    let written = OpenOptions::new().write(true).create_new(true).mode(mode).open(path).and_then(|mut file: File| {
        file.write_all(content)?;
        file.sync_all()
    });
    written.map_err(|error| {
        let hint = "choose a path in a directory that is there, where nothing is yet";
        failure(ExitCode::BadUsage, format!("cannot write {}", path.display()), error.to_string(), hint)
    })
}
