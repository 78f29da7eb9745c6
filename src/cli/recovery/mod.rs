//! `hsm-kms recovery`: the offline key that opens seeds when the KEK is lost.

mod audit;
mod file;
mod guide;
mod keygen;
mod open;
mod plugin;
mod private_key;
mod rewrap;
mod sealed;

use clap::{Args, Subcommand};
use serde::Serialize;

use super::{CliError, print};
use crate::exit::ExitCode;

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
    /// Open one value with a recovery key, without plugin and HSM
    Open(open::OpenArgs),
    /// Seal the seeds of a lost KEK anew, under the KEK of a running plugin, into a rewrap table
    Rewrap(rewrap::RewrapArgs),
}

pub(super) fn run(args: RecoveryArgs) -> Result<ExitCode, CliError> {
    match args.command {
        RecoveryCommand::Audit(args) => audit::run(&args),
        RecoveryCommand::Guide(args) => guide::run(&args),
        RecoveryCommand::Keygen(args) => keygen::run(&args).map(|()| ExitCode::Done),
        RecoveryCommand::Open(args) => open::run(&args).map(|()| ExitCode::Done),
        RecoveryCommand::Rewrap(args) => rewrap::run(&args),
    }
}

fn failure(code: ExitCode, what: impl Into<String>, why: impl Into<String>, hint: impl Into<String>) -> CliError {
    CliError { code, what: what.into(), why: why.into(), hint: hint.into() }
}

fn json<T: Serialize>(report: &T) -> Result<String, CliError> {
    serde_json::to_string_pretty(report).map(|json| json + "\n").map_err(|error| {
        failure(ExitCode::DoesNotHold, "the report cannot be written as JSON", error.to_string(), "report this")
    })
}
