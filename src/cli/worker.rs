//! `hsm-kms worker`: the process that `serve` starts for each token.

use super::CliError;
use crate::exit::ExitCode;

/// Runs until the front goes away.
pub(super) fn run() -> Result<ExitCode, CliError> {
    crate::worker::run().map_err(|error| CliError {
        code: ExitCode::BadUsage,
        what: "the worker cannot run".to_owned(),
        why: error.to_string(),
        hint: "start `hsm-kms serve`, which starts its worker itself".to_owned(),
    })
}
