//! `hsm-kms worker` and `hsm-kms worker-launcher`: the processes that `serve` starts.

use super::CliError;
use crate::exit::ExitCode;
use crate::worker;

/// Runs until the front goes away.
pub(super) fn run() -> Result<ExitCode, CliError> {
    worker::run().map_err(|error| refused("the worker cannot run", &error))
}

/// Starts workers until the front goes away.
pub(super) fn run_launcher() -> Result<ExitCode, CliError> {
    worker::run_launcher().map_err(|error| refused("the launcher cannot run", &error))
}

fn refused(what: &str, error: &std::io::Error) -> CliError {
    CliError {
        code: ExitCode::BadUsage,
        what: what.to_owned(),
        why: error.to_string(),
        hint: "start `hsm-kms serve`, which starts its processes itself".to_owned(),
    }
}
