//! `hsm-kms recovery`: the offline key that opens seeds when the KEK is lost.

mod combine;
mod drill;
mod file;
mod keygen;
mod private_key;
mod split;
mod token;

use std::path::Path;

use clap::{Args, Subcommand};

use super::{CliError, print};
use crate::ceremony::without_core_dumps;
use crate::exit::ExitCode;
use crate::recovery::{HybridKey, Recipient};

/// Prepare for the loss of the KEK, and recover from it (docs/recovery.md)
#[derive(Args, Debug)]
pub(super) struct RecoveryArgs {
    #[command(subcommand)]
    command: RecoveryCommand,
}

#[derive(Debug, Subcommand)]
enum RecoveryCommand {
    /// Make a recovery key: the private half for a safe, the public half for the ceremony's plan
    Keygen(keygen::KeygenArgs),
    /// Split the private half into shares, a sheet to print for each
    Split(split::SplitArgs),
    /// Bring shares together: asks for their words on the terminal, or reads them from files
    Combine(combine::CombineArgs),
    /// Prove that the recovery key opens what the running plugin seals
    Drill(drill::DrillArgs),
}

pub(super) fn run(args: RecoveryArgs) -> Result<ExitCode, CliError> {
    // Each of them may hold a private half, a share or a seed.
    without_core_dumps()
        .map_err(|error| failure(ExitCode::NotReachable, "nothing was done", error.to_string(), error.hint()))?;
    match args.command {
        RecoveryCommand::Keygen(args) => keygen::run(&args).map(|()| ExitCode::Done),
        RecoveryCommand::Split(args) => split::run(&args).map(|()| ExitCode::Done),
        RecoveryCommand::Combine(args) => combine::run(&args).map(|()| ExitCode::Done),
        RecoveryCommand::Drill(args) => drill::run(&args),
    }
}

/// The public half that a file holds.
fn recipient(path: &Path) -> Result<Recipient, CliError> {
    Recipient::read(path).map_err(|error| {
        failure(ExitCode::BadUsage, "the recovery recipient cannot be used", error.to_string(), error.hint())
    })
}

/// Whether a secret is the private half of this recipient.
fn is_key_of(secret: &[u8], recipient: &Recipient) -> bool {
    let key = secret.try_into().ok().map(HybridKey::from_bytes);
    key.and_then(|key| key.recipient()).is_some_and(|found| found == *recipient)
}

fn failure(code: ExitCode, what: impl Into<String>, why: impl Into<String>, hint: impl Into<String>) -> CliError {
    CliError { code, what: what.into(), why: why.into(), hint: hint.into() }
}
