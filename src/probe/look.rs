//! A look at a module and its token for `hsm-kms doctor`: no session is opened, nobody logs in, nothing is made.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::identity::{self, ModuleIdentity, TokenIdentity};
use super::process::Process;
use super::steps::{Answer, Failure, Step};
use crate::exit::ExitCode;
use crate::pkcs11::{Error, Module};
use crate::profile;

/// What to look at.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Seen {
    /// Path of the module.
    pub module: PathBuf,
    /// The text that the module takes at `C_Initialize`.
    pub init_reserved: Option<String>,
    /// The token's label.
    pub label: String,
    /// Its serial number, which decides between several tokens with the label.
    pub serial: Option<String>,
    /// Mechanisms that it must have, each with its `CKF_...` flags.
    pub mechanisms: Vec<(u64, u64)>,
}

/// What was seen.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Look {
    /// The module, which loads.
    pub module: ModuleIdentity,
    /// The token, or why it was not found.
    pub token: Result<TokenLook, Failure>,
}

/// A token as it is before any login.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct TokenLook {
    /// What it says of itself.
    pub identity: TokenIdentity,
    /// Names of the mechanisms that it lacks.
    pub missing: Vec<String>,
}

/// Looks, in a process of its own with these variables and no others: modules hang and crash. `Err`: the module cannot be used.
pub fn look(seen: Seen, environment: &BTreeMap<String, String>, limit: Duration) -> Result<Look, Failure> {
    let refused = |why: String| Failure::new(ExitCode::NotReachable, why, "check limits on processes and memory");
    let mut process = Process::spawn_with(environment).map_err(|error| refused(error.to_string()))?;
    match process.ask(&Step::Look(seen), limit) {
        Ok(Answer::Found(look)) => serde_json::from_value(look).map_err(|error| refused(error.to_string())),
        Ok(Answer::Failed(failure)) => Err(failure),
        Err(outcome) => Err(Failure {
            why: format!("the process that loads it was lost: {outcome}"),
            outcome,
            ..Failure::new(
                ExitCode::NotReachable,
                "",
                "check the module's own configuration, its daemon and the way to the HSM",
            )
        }),
    }
}

pub(super) fn run(seen: Seen) -> Result<Look, Failure> {
    let Seen { module, init_reserved, label, serial, mechanisms } = seen;
    let load = || {
        let module = Module::load(&module, init_reserved.as_deref(), &[], Vec::new())?;
        let identity = identity::of_module(&module)?;
        Ok((module, identity))
    };
    let (module, identity) = load().map_err(|error: Error| Failure::from(&error))?;
    let look = || {
        let token = module.token_of(&label, serial.as_deref())?;
        let missing = token.missing(mechanisms)?.into_iter().map(profile::mechanism_name).collect();
        Ok(TokenLook { identity: identity::of_token(&token)?, missing })
    };
    Ok(Look { module: identity, token: look().map_err(|error: Error| Failure::from(&error)) })
}
