//! The worker process: one per token. Loads the vendor module, reads the PIN, logs in once, proves each KEK, serves.
//!
//! Plain blocking code, no runtime: a PKCS#11 call cannot be cancelled, so each session has a thread of its own, and a
//! process that hangs is killed from outside. Standard input is the control socketpair; it ends when the front does.

mod calls;
mod launcher;
mod session;
mod start;

pub use self::calls::call_names;
pub use self::launcher::{INHERITED, keep_of_environment, pin_variable, run as run_launcher};

use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use rustix::process::{Signal, getpid, kill_process, set_parent_process_death_signal};

use crate::exit::ExitCode;
use crate::memory;
use crate::pkcs11::Error;
use crate::sandbox::Mode;
use crate::wire::{self, link};

/// Runs the worker until the front goes away. `Err`: it was not started by a front.
pub fn run() -> Result<ExitCode, std::io::Error> {
    // It holds the PIN, and runs a module that may crash. Whether its pages are locked the front has said: it has the same limits.
    memory::protect()?;
    // A front that was killed must not leave a process behind that is logged in.
    set_parent_process_death_signal(Some(Signal::KILL))?;
    let mut control = UnixStream::from(std::io::stdin().as_fd().try_clone_to_owned()?);
    let (place, request, streams) = start::receive(&control)?;
    let mut report = |begun| tell(&mut control, link::started::Outcome::LoggingIn(begun));
    let serving = match start::start(&place, &request, streams, &mut report) {
        Ok(serving) => {
            tell(&mut control, link::started::Outcome::Token(serving.token.clone()))?;
            serving
        }
        Err(error) => {
            let mut failure = session::failure(&error);
            if may_be_the_sandbox(&error, &place) {
                failure.hint.push_str(SANDBOX_HINT);
            }
            tell(&mut control, link::started::Outcome::Failure(failure))?;
            return Ok(ExitCode::NotReachable);
        }
    };
    // Nothing more comes down the control socketpair; its end is the sign to stop. No C_Finalize, and no exit either: both run
    // the module's clean-up while session threads may still be in it, and most modules crash on that. The process ends at
    // once, and with it the login.
    let _ = control.read(&mut [0; 1]);
    kill_process(getpid(), Signal::KILL)?;
    drop(serving);
    Ok(ExitCode::Done)
}

/// Modules do not say which file they lacked.
const SANDBOX_HINT: &str =
    "; a module that lacks a file or a port may be kept from it: see token.sandbox in docs/configuration.md";

fn may_be_the_sandbox(error: &Error, place: &link::Place) -> bool {
    let is_on = place.sandbox.as_ref().is_some_and(|sandbox| sandbox.mode != Mode::Off as u32);
    let is_vague = match error {
        Error::Call { function, .. } => function != "C_Login",
        Error::Load { .. } | Error::TokenAbsent { .. } => true,
        _ => false,
    };
    is_on && is_vague
}

fn tell(control: &mut UnixStream, outcome: link::started::Outcome) -> std::io::Result<()> {
    let mut frame = Vec::new();
    wire::append(&link::Started { outcome: Some(outcome), calls: calls::calls() }, &mut frame);
    control.write_all(&frame)
}
