//! `hsm-kms ceremony`: makes a KEK and its record.

mod sign;
mod verify;

use std::io::Write;
use std::path::PathBuf;
use std::time::Instant;

use clap::{Args, Subcommand};
use comfy_table::{Table, presets};

use super::CliError;
use crate::attributes::AttributeName;
use crate::ceremony::{self, CeremonyError, Outcome, Plan, Progress};
use crate::exit::ExitCode;
use crate::key_id::KeyId;
use crate::record::{KekRecord, TokenKey};

/// Make a KEK in an HSM and write its record
#[derive(Debug, Args)]
pub(super) struct CeremonyArgs {
    #[command(subcommand)]
    command: CeremonyCommand,
}

#[derive(Debug, Subcommand)]
enum CeremonyCommand {
    /// Run a plan, unattended: the record is marked as a trial
    Run {
        /// The plan: the only input (docs/ceremony.md)
        #[arg(long, value_name = "FILE")]
        plan: PathBuf,
        /// Write what was made as JSON to standard output
        #[arg(long)]
        json: bool,
    },
    /// Add a person's signature to the evidence of a ceremony
    Sign(sign::SignArgs),
    /// Check the evidence beside a record, without an HSM
    VerifyRecord(verify::VerifyArgs),
}

pub(super) fn run(args: CeremonyArgs) -> Result<ExitCode, CliError> {
    let (plan, json) = match args.command {
        CeremonyCommand::Run { plan, json } => (plan, json),
        CeremonyCommand::Sign(args) => return sign::run(args),
        CeremonyCommand::VerifyRecord(args) => return verify::run(&args),
    };
    let plan = Plan::load(&plan).map_err(|error| CliError {
        code: ExitCode::BadUsage,
        what: "the ceremony plan cannot be used".to_owned(),
        why: error.to_string(),
        hint: error.hint(),
    })?;
    with_environment(&plan)?;
    let mut steps = Steps::default();
    let outcome = ceremony::run_trial(&plan, &mut |progress| steps.show(progress)).map_err(|error| {
        steps.end();
        failed(&error)
    })?;
    if json { print_json(&outcome) } else { print_table(&outcome) }.map(|()| ExitCode::Done)
}

/// Starts this program again with the plan's variables, unless they are set already: modules read their configuration from
/// the environment, and a running process may not change its own.
fn with_environment(plan: &Plan) -> Result<(), CliError> {
    use std::os::unix::process::CommandExt;
    let set = |(name, value): (&String, &String)| std::env::var_os(name).is_some_and(|found| found == value.as_str());
    if plan.token.environment.iter().all(set) {
        return Ok(());
    }
    let error = std::process::Command::new("/proc/self/exe")
        .args(std::env::args_os().skip(1))
        .envs(&plan.token.environment)
        .exec();
    Err(CliError {
        code: ExitCode::NotReachable,
        what: "the program cannot be started with the plan's environment".to_owned(),
        why: error.to_string(),
        hint: "set the variables under environment in the plan yourself".to_owned(),
    })
}

/// One line per step, on standard error: what is being done, then what came of it.
#[derive(Default)]
struct Steps {
    number: usize,
    began: Option<Instant>,
}

impl Steps {
    fn show(&mut self, progress: Progress<'_>) {
        let mut out = std::io::stderr().lock();
        // Progress is for whoever watches; nobody watching is no reason to stop.
        let _ = match progress {
            Progress::Begins(step) => {
                if self.began.is_some() {
                    let _ = writeln!(out, "stopped");
                }
                self.number += 1;
                self.began = Some(Instant::now());
                write!(out, "{:>2}. {step} ... ", self.number).and_then(|()| out.flush())
            }
            Progress::Done(result) => {
                let seconds = self.began.take().map_or(0.0, |began| began.elapsed().as_secs_f64());
                writeln!(out, "{seconds:.1} s\n    {result}")
            }
        };
    }

    /// Ends the line of a step that failed.
    fn end(&mut self) {
        if self.began.take().is_some() {
            let _ = writeln!(std::io::stderr(), "stopped");
        }
    }
}

fn failed(error: &CeremonyError) -> CliError {
    let code = match error {
        CeremonyError::Output { .. } => ExitCode::BadUsage,
        CeremonyError::Record(_) | CeremonyError::System { .. } => ExitCode::NotReachable,
        CeremonyError::Pkcs11(error) if error.is_usage() => ExitCode::BadUsage,
        error if error.is_out_of_reach() => ExitCode::NotReachable,
        _ => ExitCode::DoesNotHold,
    };
    CliError {
        code,
        what: match error {
            CeremonyError::LeftBehind { .. } => "the ceremony stopped, and left a key behind".to_owned(),
            _ => "the ceremony stopped; no KEK was made".to_owned(),
        },
        why: error.to_string(),
        hint: error.hint(),
    }
}

fn key_id(outcome: &Outcome) -> KeyId {
    crate::keyring::first_key_id(&outcome.record)
}

fn print_json(outcome: &Outcome) -> Result<(), CliError> {
    let key_id = key_id(outcome);
    let refusals: Vec<_> = outcome
        .refusals
        .iter()
        .map(|refusal| serde_json::json!({"key": refusal.key, "attempt": refusal.attempt, "answer": refusal.answer}))
        .collect();
    let json = serde_json::json!({
        "record": outcome.path,
        "kind": outcome.record.kind,
        "key_id": key_id.as_str(),
        "key_id_hash": key_id.hash(),
        "attributes": outcome.record.kek.attributes,
        "mac_key_attributes": outcome.record.mac_key.as_ref().map(|key| &key.attributes),
        "deviations": outcome.record.deviations,
        "refusals": refusals,
    });
    print(&format!("{json:#}\n"))
}

fn print_table(outcome: &Outcome) -> Result<(), CliError> {
    let key_id = key_id(outcome);
    let KekRecord { kek, mac_key, .. } = &outcome.record;
    let keys = || [Some(kek), mac_key.as_ref()].into_iter().flatten();
    let mut attributes = Table::new();
    let header = ["KEK", "MAC key"].into_iter().zip(keys()).map(|(name, _)| format!("{name} reads"));
    attributes.load_style(presets::ASCII_MARKDOWN).set_header(["attribute".to_owned()].into_iter().chain(header));
    for name in AttributeName::ALL {
        let read = |key: &TokenKey| key.attributes.get(&name).map(ToString::to_string).unwrap_or_default();
        attributes.add_row([name.to_string()].into_iter().chain(keys().map(read)));
    }
    let mut tables = vec![attributes];
    for key in keys() {
        let mut refusals = Table::new();
        refusals.load_style(presets::ASCII_MARKDOWN).set_header([&format!("tried on {:?}", key.label), "answer"]);
        for refusal in outcome.refusals.iter().filter(|refusal| refusal.key == key.label) {
            refusals.add_row([refusal.attempt, &refusal.answer]);
        }
        tables.push(refusals);
    }
    let tables = tables.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n\n");
    let deviations = match outcome.record.deviations.len() {
        0 => String::new(),
        _ => format!("\npermitted deviations: {}\n", outcome.record.deviations.join("; ")),
    };
    print(&format!(
        "\n{tables}\n{deviations}\n\
         TRIAL: nobody witnessed this KEK; do not protect a real cluster with it.\n\
         key_id   {}\n         {}\n\
         record   {}\n",
        key_id.as_str(),
        key_id.hash(),
        outcome.path.display(),
    ))
}

fn print(text: &str) -> Result<(), CliError> {
    std::io::stdout().write_all(text.as_bytes()).map_err(|error| CliError {
        code: ExitCode::NotReachable,
        what: "the result cannot be written to standard output".to_owned(),
        why: error.to_string(),
        hint: "the work itself was done; see the files".to_owned(),
    })
}
