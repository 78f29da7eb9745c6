//! The command line: one file per command. Uses everything; nothing uses it.

mod call;
mod error;

use clap::{Parser, Subcommand};

pub use self::error::CliError;
use crate::exit::ExitCode;

/// Kubernetes KMS v2 plugin whose key encryption key never leaves a PKCS#11 HSM
#[derive(Debug, Parser)]
#[command(version, max_term_width = 100)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Call a running plugin the way the API server does
    Call(call::CallArgs),
}

/// Runs the command.
pub fn run(args: Args) -> Result<ExitCode, CliError> {
    match args.command {
        Command::Call(args) => call::run(args).map(|()| ExitCode::Done),
    }
}
