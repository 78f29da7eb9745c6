//! Parses the command line, runs the command, prints its error and hint, exits.

use clap::Parser;
use hsm_kms::cli::{self, Args};

fn main() -> std::process::ExitCode {
    // clap itself ends with 2 on bad usage, as src/exit.rs has it.
    match cli::run(Args::parse()) {
        Ok(code) => code.into(),
        Err(error) => {
            eprintln!("{error}");
            error.code.into()
        }
    }
}
