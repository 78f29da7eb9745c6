//! How a command fails: three lines for people and one exit code for machines.

use std::fmt;

use crate::exit::ExitCode;

/// A failed command.
#[derive(Clone, Debug)]
pub struct CliError {
    /// The exit code.
    pub code: ExitCode,
    /// What failed.
    pub what: String,
    /// Why.
    pub why: String,
    /// What to do about it.
    pub hint: String,
}

impl fmt::Display for CliError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(formatter, "hsm-kms: error: {}", self.what)?;
        writeln!(formatter, "hsm-kms: why: {}", self.why)?;
        write!(formatter, "hsm-kms: hint: {}", self.hint)
    }
}
