//! The key ceremony: makes a KEK on a token from a plan, proves what can be proved about it, and writes its record.
//!
//! Runs PKCS#11 in its own process: nothing untrusted comes in here, and a link with frames for generation, copies and
//! attribute changes would give the worker powers that it must not have.

mod calls;
mod console;
mod copies;
mod error;
pub mod evidence;
mod generate;
mod import;
mod keys;
mod negative;
mod output;
pub mod paper;
mod people;
mod plan;
pub mod preflight;
mod prove;
mod rehearsal;
mod restore;
mod site;
mod steps;
pub mod transcript;
mod trial;
mod witnessed;
mod words;

pub use self::calls::{PREFLIGHT_CALLS, RESTORE_CALLS, StepCalls, VERIFY_CALLS, calls};
pub use self::console::{Answers, Console, ConsoleError};
pub use self::copies::{KeyProof, Sameness, count as count_keys, destroy as destroy_key, verify as verify_key};
pub use self::error::CeremonyError;
pub(crate) use self::generate::{deviations, generate};
pub use self::import::ImportError;
pub use self::negative::Refusal;
pub(crate) use self::negative::run as negative_tests;
pub use self::people::{People, Person, Role};
pub use self::plan::{CopyPlan, Plan, PlanError, PlanLock, WitnessedPlan};
pub use self::rehearsal::{LABEL as THROW_AWAY_LABEL, PIN_HALVES, Stage, configure, initialise};
pub use self::restore::{import_copy, restore};
pub use self::steps::{Act, Note, Owner, Step, StepId, steps};
pub use self::trial::run as run_trial;
pub use self::witnessed::{Closed, Options, add_exception, destroy, run};
pub use self::words::words;
use crate::memory;
use crate::record::KekRecord;

/// What a ceremony is doing, for whoever watches.
#[derive(Clone, Copy, Debug)]
pub enum Progress<'a> {
    /// A step begins.
    Begins(&'a str),
    /// The step that began is done, and this came of it.
    Done(&'a str),
}

/// Told of each step.
pub type Watcher<'a> = &'a mut dyn FnMut(Progress<'_>);

/// What a ceremony made.
pub struct Outcome {
    /// The record, as written.
    pub record: KekRecord,
    /// Where it lies.
    pub path: std::path::PathBuf,
    /// What was tried and refused, in order.
    pub refusals: Vec<Refusal>,
}

/// Program and version, as records name them.
const TOOL: &str = concat!("hsm-kms ", env!("CARGO_PKG_VERSION"));

/// A process that holds a PIN, and runs a module that may crash, leaves no core dump, and nobody of the same user reads its memory.
pub(crate) fn without_core_dumps() -> Result<(), CeremonyError> {
    memory::protect()
        .map(|_| ())
        .map_err(|error| CeremonyError::System { what: "memory cannot be kept from core dumps", source: error.into() })
}
