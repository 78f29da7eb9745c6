//! `hsm-kms recovery`: the offline key that opens seeds when the KEK is lost.

mod keygen;
mod private_key;

use clap::{Args, Subcommand};

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
    /// Make a recovery key: the private half for a safe, the public half for the ceremony's plan
    Keygen(keygen::KeygenArgs),
}

pub(super) fn run(args: RecoveryArgs) -> Result<ExitCode, CliError> {
    match args.command {
        RecoveryCommand::Keygen(args) => keygen::run(&args).map(|()| ExitCode::Done),
    }
}

fn failure(code: ExitCode, what: impl Into<String>, why: impl Into<String>, hint: impl Into<String>) -> CliError {
    CliError { code, what: what.into(), why: why.into(), hint: hint.into() }
}
