//! What the probing process is asked to do, and answers: one JSON line each, over its control socket.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::look::Seen;
use super::outcome::Outcome;
use crate::exit::ExitCode;
use crate::pin::PinSource;

/// The module and token to probe.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Target {
    /// Path of the module.
    pub module: PathBuf,
    /// The text that the module takes at `C_Initialize`.
    pub init_reserved: Option<String>,
    /// The token's label.
    pub token: String,
    /// Where the PIN is. `None`: nobody logs in.
    pub pin: Option<PinSource>,
    /// Name or path of the profile that the module is held against.
    pub profile: Option<String>,
}

/// One thing to do.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(super) enum Step {
    /// Load the module and look at the token, with no session and no login.
    Look(Seen),
    /// Load the module and find the token. Everything made bears this label.
    Start {
        target: Target,
        label: String,
    },
    /// Log in, one attempt. Gives the number of objects that the user sees. The first time, none may have the label.
    Login {
        first: bool,
    },
    Interfaces,
    Mechanisms,
    Keys,
    Seal(Trial),
    Attributes {
        trial: Trial,
        in_session: bool,
    },
    Defaults {
        on_token: bool,
    },
    Secrecy {
        on_token: bool,
    },
    Sizes(Trial),
    SmallBuffer(Trial),
    ShortCiphertext(Trial),
    Sessions,
    Speed(Trial),
    Kek {
        trial: Trial,
        omit: Vec<u64>,
    },
    /// Destroy everything with the label. Gives how much of it is left, and the number of objects that the user sees.
    CleanUp,
}

/// A candidate, and whether its throw-away keys lie on the token or in the session.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub(super) struct Trial {
    pub(super) candidate: usize,
    pub(super) on_token: bool,
}

/// What came of a step.
#[derive(Debug, Deserialize, Serialize)]
pub(super) enum Answer {
    /// The finding.
    Found(Value),
    /// The step could not be done.
    Failed(Failure),
}

/// Why a step could not be done.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Failure {
    /// Exit code of a command that ends for this reason.
    pub code: u8,
    /// Why.
    pub why: String,
    /// What to do about it.
    pub hint: String,
    /// The same as the outcome of a step.
    pub outcome: Outcome,
}

impl Failure {
    pub(super) fn new(code: ExitCode, why: impl Into<String>, hint: impl Into<String>) -> Self {
        let why = why.into();
        Self { code: code as u8, outcome: Outcome::differs(why.clone()), why, hint: hint.into() }
    }
}
