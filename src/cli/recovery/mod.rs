//! `hsm-kms recovery`: the offline key that opens seeds when the KEK is lost.

mod audit;
mod combine;
mod drill;
pub(super) mod file;
mod guide;
mod keygen;
mod open;
mod plugin;
mod private_key;
mod rewrap;
mod sealed;
mod split;
mod token;

use std::path::Path;

use clap::{Args, Subcommand};
use serde::Serialize;

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
    /// Count which share of objects and seeds a recovery key would open; nothing is decrypted unless a socket is given
    Audit(audit::AuditArgs),
    /// Walk through the recovery of a cluster: what is done, what was found, and the next command
    Guide(guide::GuideArgs),
    /// Make a recovery key: the private half for a safe, the public half for the ceremony's plan
    Keygen(keygen::KeygenArgs),
    /// Split the private half into shares, a sheet to print for each
    Split(split::SplitArgs),
    /// Bring shares together: asks for their words on the terminal, or reads them from files
    Combine(combine::CombineArgs),
    /// Prove that the recovery key opens what the running plugin seals
    Drill(drill::DrillArgs),
    /// Open one value with a recovery key, without plugin and HSM
    Open(open::OpenArgs),
    /// Seal the seeds of a lost KEK anew, under the KEK of a running plugin, into a rewrap table
    Rewrap(rewrap::RewrapArgs),
}

pub(super) fn run(args: RecoveryArgs) -> Result<ExitCode, CliError> {
    // Each of them may hold a private half, a share or a seed.
    without_core_dumps()
        .map_err(|error| failure(ExitCode::NotReachable, "nothing was done", error.to_string(), error.hint()))?;
    match args.command {
        RecoveryCommand::Audit(args) => audit::run(&args),
        RecoveryCommand::Guide(args) => guide::run(&args),
        RecoveryCommand::Keygen(args) => keygen::run(&args).map(|()| ExitCode::Done),
        RecoveryCommand::Split(args) => split::run(&args).map(|()| ExitCode::Done),
        RecoveryCommand::Combine(args) => combine::run(&args).map(|()| ExitCode::Done),
        RecoveryCommand::Drill(args) => drill::run(&args),
        RecoveryCommand::Open(args) => open::run(&args).map(|()| ExitCode::Done),
        RecoveryCommand::Rewrap(args) => rewrap::run(&args),
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

fn json<T: Serialize>(report: &T) -> Result<String, CliError> {
    serde_json::to_string_pretty(report).map(|json| json + "\n").map_err(|error| {
        failure(ExitCode::DoesNotHold, "the report cannot be written as JSON", error.to_string(), "report this")
    })
}
