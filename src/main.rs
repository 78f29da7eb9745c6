//! Parses the command line, runs the command, prints its error and hint, exits.

use std::alloc::System;
use std::io::Write;

use clap::Parser;
use hsm_kms::cli::{self, Args};
use zeroizing_alloc::ZeroAlloc;

/// Seeds pass through buffers that are not ours to wipe: those of gRPC, for one.
#[global_allocator]
static WIPES_WHAT_IS_FREED: ZeroAlloc<System> = ZeroAlloc(System);

fn main() -> std::process::ExitCode {
    // clap itself ends with 2 on bad usage, as src/exit.rs has it.
    match cli::run(Args::parse()) {
        Ok(code) => code.into(),
        Err(error) => {
            // A terminal that is gone takes no error, and is no reason to panic.
            let _ = writeln!(std::io::stderr(), "{error}");
            error.code.into()
        }
    }
}
