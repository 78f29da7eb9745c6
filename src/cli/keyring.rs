//! `hsm-kms keyring`: which KEKs a cluster has, and which of them seals.

mod change;
mod converged;
mod inventory;
pub(super) mod nodes;
mod show;

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};

use super::{CliError, print};
use crate::exit::ExitCode;
use crate::keyring::{ChangeError, KeyringFile, RecordPath, folder};

/// Show and change the KEKs of a cluster: which one seals, which ones open
#[derive(Debug, Args)]
pub(super) struct KeyringArgs {
    #[command(subcommand)]
    command: KeyringCommand,
}

#[derive(Debug, Subcommand)]
enum KeyringCommand {
    /// Begin a keyring with the KEK that is in use now: it stays active, under the same key_id
    Init(change::InitArgs),
    /// List the KEKs and what each does
    List(show::ShowArgs),
    /// Add a KEK that opens, and is not announced yet
    Stage(change::StageArgs),
    /// Seal with this KEK from now on, or from a time on; the one before opens
    Activate(change::ActivateArgs),
    /// Take a KEK out of service that nothing in the store needs
    Retire(change::RetireArgs),
    /// Let a KEK open again that was taken out of service
    Restore(change::RestoreArgs),
    /// Show what happened, when, and by whom
    History(show::ShowArgs),
    /// Check that every node has this keyring and can open with all of its KEKs
    Converged(converged::ConvergedArgs),
}

/// Which keyring.
#[derive(Args, Clone, Debug)]
struct Target {
    /// The keyring file
    #[arg(long, value_name = "FILE")]
    keyring: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: KeyringArgs) -> Result<ExitCode, CliError> {
    match args.command {
        KeyringCommand::Init(args) => change::init(args),
        KeyringCommand::List(args) => show::list(&args),
        KeyringCommand::Stage(args) => change::stage(args),
        KeyringCommand::Activate(args) => change::activate(args),
        KeyringCommand::Retire(args) => change::retire(args),
        KeyringCommand::Restore(args) => change::restore(args),
        KeyringCommand::History(args) => show::history(&args),
        KeyringCommand::Converged(args) => converged::run(&args),
    }
}

fn read(path: &Path) -> Result<KeyringFile, CliError> {
    KeyringFile::read(path).map_err(|error| CliError {
        code: ExitCode::BadUsage,
        what: "the keyring cannot be used".to_owned(),
        why: error.to_string(),
        hint: error.hint(),
    })
}

fn not_changed(error: &ChangeError) -> CliError {
    let code = match error {
        ChangeError::Refused(_) => ExitCode::DoesNotHold,
        ChangeError::File(_) => ExitCode::BadUsage,
        ChangeError::Write { .. } => ExitCode::NotReachable,
    };
    let what = "the keyring was not changed".to_owned();
    CliError { code, what, why: error.to_string(), hint: error.hint() }
}

/// The record as the keyring at `keyring` names it: it lies in the keyring's folder or below.
fn record_path(keyring: &Path, record: &Path) -> Result<RecordPath, CliError> {
    let refuse = |why: String| CliError {
        code: ExitCode::BadUsage,
        what: format!("the record {} cannot be named in the keyring", record.display()),
        why,
        hint: "put the record into the keyring's folder: both are copied to every node".to_owned(),
    };
    let absolute = |path: &Path| path.canonicalize().map_err(|error| refuse(format!("{}: {error}", path.display())));
    let (home, place) = (absolute(folder(keyring))?, absolute(record)?);
    let within = place.strip_prefix(&home).map_err(|_| refuse(format!("it is not below {}", home.display())))?;
    let text = within.to_str().ok_or_else(|| refuse("its path is not UTF-8".to_owned()))?;
    text.parse().map_err(|error: &str| refuse(error.to_owned()))
}

/// The record that stands in the keyring under this path, written as there, or as from here.
fn known_record(file: &KeyringFile, keyring: &Path, record: &Path) -> Result<RecordPath, CliError> {
    let entries = file.at(crate::record::UtcTime::now());
    let written = record.to_str().and_then(|text| text.parse::<RecordPath>().ok());
    match written.filter(|written| entries.iter().any(|entry| entry.record == *written)) {
        Some(known) => Ok(known),
        None => record_path(keyring, record),
    }
}
