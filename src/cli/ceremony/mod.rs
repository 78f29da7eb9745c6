//! `hsm-kms ceremony`: makes a KEK and its record, and proves what was made.

mod exception;
mod keys;
mod plan;
mod sign;
mod trial;
mod verify;
mod witnessed;

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

use clap::{Args, Subcommand};

use super::CliError;
use crate::ceremony::{CeremonyError, Plan, PlanError, WitnessedPlan};
use crate::exit::ExitCode;

/// Make a KEK in an HSM and write its record
#[derive(Debug, Args)]
pub(super) struct CeremonyArgs {
    #[command(subcommand)]
    command: CeremonyCommand,
}

#[derive(Debug, Subcommand)]
enum CeremonyCommand {
    /// Write, check, show and print plans
    #[command(subcommand)]
    Plan(plan::PlanCommand),
    /// Check machine, module and token for a plan; changes nothing, and nobody logs in
    Preflight(keys::PreflightArgs),
    /// Hold the ceremony of a plan on a throw-away token
    Rehearse(witnessed::RehearseArgs),
    /// Hold the ceremony of a plan; a trial's runs unattended
    Run(witnessed::RunArgs),
    /// Hold the ceremony of a KEK that follows another
    Rotate(witnessed::RotateArgs),
    /// Hold the ceremony that destroys a KEK
    Destroy(witnessed::DestroyArgs),
    /// The process that `destroy` sends to a token
    #[command(hide = true)]
    DestroyKey(keys::DestroyKeyArgs),
    /// Record who decided to go on although a check fails
    Exception(exception::ExceptionArgs),
    /// Add a person's signature to the evidence of a ceremony
    Sign(sign::SignArgs),
    /// Check the evidence beside a record, without an HSM
    VerifyRecord(verify::VerifyArgs),
    /// Prove that another token holds a copy of the KEK
    CloneCheck(keys::CloneCheckArgs),
    /// Put the KEK into another token, from its shares
    Restore(keys::RestoreArgs),
    /// Prove that the token holds the KEK of a record
    VerifyKey(keys::VerifyKeyArgs),
}

pub(super) fn run(args: CeremonyArgs) -> Result<ExitCode, CliError> {
    match args.command {
        CeremonyCommand::Plan(command) => plan::run(command),
        CeremonyCommand::Preflight(args) => keys::preflight(&args),
        CeremonyCommand::Rehearse(args) => witnessed::rehearse(&args),
        CeremonyCommand::Run(args) => witnessed::run(&args),
        CeremonyCommand::Rotate(args) => witnessed::rotate(&args),
        CeremonyCommand::Destroy(args) => witnessed::destroy(&args),
        CeremonyCommand::DestroyKey(args) => keys::destroy_key(&args),
        CeremonyCommand::Exception(args) => exception::run(&args),
        CeremonyCommand::Sign(args) => sign::run(args),
        CeremonyCommand::VerifyRecord(args) => verify::run(&args),
        CeremonyCommand::CloneCheck(args) => keys::clone_check(&args),
        CeremonyCommand::Restore(args) => keys::restore(&args),
        CeremonyCommand::VerifyKey(args) => keys::verify_key(&args),
    }
}

fn load(path: &Path) -> Result<Plan, CliError> {
    Plan::load(path).map_err(|error| unusable(&error))
}

/// The part of a plan that takes people.
fn witnessed_part<'a>(plan: &'a Plan, command: &str) -> Result<&'a WitnessedPlan, CliError> {
    plan.witnessed.as_ref().ok_or_else(|| CliError {
        code: ExitCode::BadUsage,
        what: format!("there is no `ceremony {command}` of a trial"),
        why: "the plan says `kind: trial`: nobody attends it".to_owned(),
        hint: "run it with `hsm-kms ceremony run`; for a ceremony with people start from `ceremony plan new`"
            .to_owned(),
    })
}

fn unusable(error: &PlanError) -> CliError {
    CliError {
        code: ExitCode::BadUsage,
        what: "the ceremony plan cannot be used".to_owned(),
        why: error.to_string(),
        hint: error.hint(),
    }
}

/// Starts this program again with the plan's variables, unless they are set already: modules read their configuration from
/// the environment, and a running process may not change its own.
pub(super) fn with_environment(environment: &BTreeMap<String, String>) -> Result<(), CliError> {
    use std::os::unix::process::CommandExt;
    let set = |(name, value): (&String, &String)| std::env::var_os(name).is_some_and(|found| found == value.as_str());
    if environment.iter().all(set) {
        return Ok(());
    }
    let error = std::process::Command::new("/proc/self/exe").args(std::env::args_os().skip(1)).envs(environment).exec();
    Err(CliError {
        code: ExitCode::NotReachable,
        what: "the program cannot be started with the token's environment".to_owned(),
        why: error.to_string(),
        hint: "set the variables under token.environment yourself".to_owned(),
    })
}

fn failed(error: &CeremonyError) -> CliError {
    let code = match error {
        CeremonyError::Console(_)
        | CeremonyError::Output { .. }
        | CeremonyError::Plan(_)
        | CeremonyError::Previous(_)
        | CeremonyError::Destroys(_) => ExitCode::BadUsage,
        CeremonyError::Record(_) | CeremonyError::System { .. } => ExitCode::NotReachable,
        CeremonyError::Pkcs11(error) if error.is_usage() => ExitCode::BadUsage,
        error if error.is_out_of_reach() => ExitCode::NotReachable,
        _ => ExitCode::DoesNotHold,
    };
    CliError {
        code,
        what: match error {
            error if error.is_interruption() => "the ceremony was interrupted".to_owned(),
            CeremonyError::LeftBehind { .. } => "the ceremony stopped, and left a key behind".to_owned(),
            _ => "the ceremony stopped; no KEK was made".to_owned(),
        },
        why: error.to_string(),
        hint: error.hint(),
    }
}

/// JSON for programs.
fn print_json(value: &serde_json::Value) -> Result<(), CliError> {
    print(&format!("{value:#}\n"))
}

fn print(text: &str) -> Result<(), CliError> {
    std::io::stdout().write_all(text.as_bytes()).map_err(|error| CliError {
        code: ExitCode::NotReachable,
        what: "the result cannot be written to standard output".to_owned(),
        why: error.to_string(),
        hint: "the work itself was done; see the files".to_owned(),
    })
}
