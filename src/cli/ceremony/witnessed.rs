//! `hsm-kms ceremony run`, `rotate` and `rehearse`: the people's ceremony on this terminal.

use std::path::{Path, PathBuf};
use std::process::Command;

use clap::Args;

use super::{failed, load, print, print_json, trial, unusable, with_environment, witnessed_part};
use crate::ceremony::transcript::CeremonyKind;
use crate::ceremony::{self, Answers, Closed, Console, Options, PIN_HALVES, Plan, Stage, WitnessedPlan};
use crate::cli::CliError;
use crate::exit::ExitCode;
use crate::keyring::{Change, KeyringFile, State};
use crate::record::{Recovery, UtcTime};

/// Hold the ceremony of a plan
#[derive(Args, Debug)]
pub(super) struct RunArgs {
    #[command(flatten)]
    common: Common,
    /// The plan that was agreed to: its SHA-256, or its twelve words
    #[arg(long, value_name = "SHA256|WORDS")]
    expect_plan: Option<String>,
    /// Directory of a rehearsal of the same plan, not older than 30 days
    #[arg(long, value_name = "DIR")]
    rehearsal: Option<PathBuf>,
    /// Go on with a ceremony that was interrupted
    #[arg(long)]
    resume: bool,
    /// The plan that this one is a rehearsal of
    #[arg(long, hide = true, value_name = "FILE")]
    rehearses: Option<PathBuf>,
}

/// Hold the ceremony of a KEK that follows another
#[derive(Args, Debug)]
pub(super) struct RotateArgs {
    #[command(flatten)]
    run: RunArgs,
    /// Record of the KEK before; the plan names its SHA-256 under `previous`
    #[arg(long, value_name = "FILE")]
    previous: PathBuf,
}

/// Hold the ceremony of a plan on a throw-away token
#[derive(Args, Debug)]
pub(super) struct RehearseArgs {
    #[command(flatten)]
    common: Common,
    /// Directory for the rehearsal's evidence: exists, and is empty
    #[arg(long, value_name = "DIR")]
    output: PathBuf,
    /// Record of the KEK before, if the plan names one
    #[arg(long, value_name = "FILE")]
    previous: Option<PathBuf>,
}

/// Hold the ceremony that destroys a KEK
#[derive(Args, Debug)]
pub(super) struct DestroyArgs {
    #[command(flatten)]
    common: Common,
    /// Record of the KEK; the plan names its SHA-256 under `destroys`
    #[arg(long, value_name = "FILE")]
    record: PathBuf,
    /// The plan that was agreed to: its SHA-256, or its twelve words
    #[arg(long, value_name = "SHA256|WORDS")]
    expect_plan: Option<String>,
    /// The keyring that says, since `keyring retire`, that nothing needs the KEK
    #[arg(long, value_name = "FILE")]
    keyring: Option<PathBuf>,
    /// Go on with a ceremony that was interrupted
    #[arg(long)]
    resume: bool,
}

#[derive(Args, Debug)]
struct Common {
    /// The plan: the only input (docs/ceremony.md)
    #[arg(long, value_name = "FILE")]
    plan: PathBuf,
    /// Answers in place of a terminal; the record says so
    #[arg(long, value_name = "FILE")]
    answers: Option<PathBuf>,
    /// Print each step and each PKCS#11 call with its template, and do nothing
    #[arg(long)]
    dry_run: bool,
    /// Write what was made as JSON to standard output
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &RunArgs) -> Result<ExitCode, CliError> {
    hold(args, None)
}

pub(super) fn rotate(args: &RotateArgs) -> Result<ExitCode, CliError> {
    let plan = load(&args.run.common.plan)?;
    witnessed_part(&plan, "rotate")?;
    hold(&args.run, Some(&args.previous))
}

fn hold(args: &RunArgs, previous: Option<&Path>) -> Result<ExitCode, CliError> {
    let Common { plan: file, answers, dry_run, json } = &args.common;
    let mut plan = load(file)?;
    if *dry_run {
        return show_calls(&plan, *json);
    }
    with_environment(&plan.token.environment)?;
    if plan.witnessed.is_none() {
        refuse_people(args)?;
        trial::run(&plan, *json)?;
        return Ok(ExitCode::Done);
    }
    if let (Some(rehearsed), Some(witnessed)) = (&args.rehearses, &mut plan.witnessed) {
        witnessed.lock = witnessed_part(&load(rehearsed)?, "rehearse")?.lock.clone();
    }
    let witnessed = witnessed_part(&plan, "run")?;
    let kind = if args.rehearses.is_some() { CeremonyKind::Rehearsal } else { CeremonyKind::Production };
    if kind == CeremonyKind::Production {
        check_expected(witnessed, args.expect_plan.as_deref())?;
    }
    if witnessed.destroys.is_some() {
        return Err(CliError {
            code: ExitCode::BadUsage,
            what: "no ceremony was begun".to_owned(),
            why: "the plan destroys a KEK".to_owned(),
            hint: "use `hsm-kms ceremony destroy`".to_owned(),
        });
    }
    let options = Options { kind, plan: file, resume: args.resume, rehearsal: args.rehearsal.as_deref(), previous };
    let mut console = console(answers.as_deref())?;
    if kind == CeremonyKind::Rehearsal {
        let [first, second] = PIN_HALVES;
        console.tell(&format!(
            "REHEARSAL on a token that is thrown away. Its PIN: first half {first}, second half {second}."
        ));
    }
    let closed = ceremony::run(&plan, witnessed, &options, &mut console).map_err(|error| failed(&error))?;
    show(&closed, *json)?;
    Ok(ExitCode::Done)
}

pub(super) fn destroy(args: &DestroyArgs) -> Result<ExitCode, CliError> {
    let Common { plan: file, answers, dry_run, json } = &args.common;
    let plan = load(file)?;
    let witnessed = witnessed_part(&plan, "destroy")?;
    if *dry_run {
        return show_calls(&plan, *json);
    }
    with_environment(&plan.token.environment)?;
    check_expected(witnessed, args.expect_plan.as_deref())?;
    let unused = unused(args.keyring.as_deref(), witnessed)?;
    let options =
        Options { kind: CeremonyKind::Destruction, plan: file, resume: args.resume, rehearsal: None, previous: None };
    let mut console = console(answers.as_deref())?;
    let closed = ceremony::destroy(&plan, witnessed, &args.record, &unused, &options, &mut console);
    let closed =
        closed.map_err(|error| CliError { what: "the KEK is not destroyed everywhere".to_owned(), ..failed(&error) });
    show(&closed?, *json)?;
    Ok(ExitCode::Done)
}

/// The terminal, or the answers of this file.
fn console(answers: Option<&Path>) -> Result<Console, CliError> {
    let answers = answers.map(Answers::read).transpose().map_err(|error| CliError {
        code: ExitCode::BadUsage,
        what: "the answers cannot be used".to_owned(),
        why: error.to_string(),
        hint: error.hint(),
    })?;
    Console::new(answers).map_err(|error| failed(&error.into()))
}

pub(super) fn rehearse(args: &RehearseArgs) -> Result<ExitCode, CliError> {
    let Common { plan: file, answers, dry_run, json } = &args.common;
    let plan = load(file)?;
    let witnessed = witnessed_part(&plan, "rehearse")?;
    if *dry_run {
        return show_calls(&plan, *json);
    }
    if witnessed.destroys.is_some() {
        return Err(CliError {
            code: ExitCode::BadUsage,
            what: "there is no rehearsal of a destruction".to_owned(),
            why: "on a throw-away token there is no KEK to destroy".to_owned(),
            hint: "see what it will do with `hsm-kms ceremony destroy --dry-run`".to_owned(),
        });
    }
    let output = args.output.canonicalize().map_err(|error| CliError {
        code: ExitCode::BadUsage,
        what: format!("{} cannot take the evidence", args.output.display()),
        why: error.to_string(),
        hint: "name an existing, empty directory".to_owned(),
    })?;
    let stage = Stage::new(witnessed, &output).map_err(|error| failed(&error))?;
    let staged = stage.plan(witnessed).map_err(|error| unusable(&error))?;
    // In a process of its own: the module reads its configuration from the environment.
    let mut command = Command::new("/proc/self/exe");
    command.args(["ceremony", if args.previous.is_some() { "rotate" } else { "run" }]);
    command.arg("--plan").arg(stage.plan_file()).arg("--rehearses").arg(file);
    for (name, value) in [("--answers", answers), ("--previous", &args.previous)] {
        if let Some(value) = value {
            command.arg(name).arg(value);
        }
    }
    if *json {
        command.arg("--json");
    }
    let status = command.envs(&staged.token.environment).status().map_err(|error| CliError {
        code: ExitCode::NotReachable,
        what: "the rehearsal cannot be started".to_owned(),
        why: error.to_string(),
        hint: "try again".to_owned(),
    })?;
    Ok(match status.code() {
        Some(0) => ExitCode::Done,
        Some(1) => ExitCode::DoesNotHold,
        Some(2) => ExitCode::BadUsage,
        _ => ExitCode::NotReachable,
    })
}

/// Whether a keyring took the KEK out of service because inventories showed that nothing needs it.
fn unused(keyring: Option<&Path>, witnessed: &WitnessedPlan) -> Result<Result<String, String>, CliError> {
    let Some(path) = keyring else {
        return Ok(Err("no keyring was given that says that nothing needs the KEK: --keyring FILE".to_owned()));
    };
    let file = KeyringFile::read(path).map_err(|error| CliError {
        code: ExitCode::BadUsage,
        what: "the keyring cannot be used".to_owned(),
        why: error.to_string(),
        hint: error.hint(),
    })?;
    let entries = file.at(UtcTime::now());
    let entry = entries.iter().find(|entry| Some(entry.record_sha256) == witnessed.destroys);
    let Some(entry) = entry.filter(|entry| entry.state == State::Destroyed) else {
        return Ok(Err("the keyring has not taken the KEK out of service: see `hsm-kms keyring retire`".to_owned()));
    };
    if entry.activations == 0 {
        return Ok(Ok("it was never active, and has sealed nothing".to_owned()));
    }
    let retired = file.history().iter().rev().find_map(|event| match &event.change {
        Change::Retire { record, inventories, forced } if *record == entry.record => {
            Some((event.time, inventories.len(), *forced))
        }
        _ => None,
    });
    Ok(match retired {
        Some((time, count, false)) if count > 0 => {
            Ok(format!("taken out of service {time}; {count} inventories showed no object"))
        }
        Some((time, ..)) => Err(format!("it was taken out of service {time} by force or without an inventory")),
        None => Err("the keyring does not say who took it out of service".to_owned()),
    })
}

/// A production ceremony says which plan was agreed to.
fn check_expected(witnessed: &WitnessedPlan, expected: Option<&str>) -> Result<(), CliError> {
    let Some(expected) = expected else {
        return Err(CliError {
            code: ExitCode::BadUsage,
            what: "the plan that was agreed to is not named".to_owned(),
            why: "a production ceremony runs only the plan of the printed script".to_owned(),
            hint: "give the script's SHA-256 or words: --expect-plan".to_owned(),
        });
    };
    witnessed.check_expected(expected).map_err(|error| unusable(&error))
}

/// A trial has no people, and nothing that takes people.
fn refuse_people(args: &RunArgs) -> Result<(), CliError> {
    let given = [
        ("--answers", args.common.answers.is_some()),
        ("--expect-plan", args.expect_plan.is_some()),
        ("--rehearsal", args.rehearsal.is_some()),
        ("--resume", args.resume),
    ];
    given.into_iter().find(|(_, is_given)| *is_given).map_or(Ok(()), |(name, _)| {
        Err(CliError {
            code: ExitCode::BadUsage,
            what: format!("{name} is not for trials"),
            why: "the plan says `kind: trial`: it runs unattended".to_owned(),
            hint: format!("leave {name} away"),
        })
    })
}

fn show_calls(plan: &Plan, json: bool) -> Result<ExitCode, CliError> {
    let steps = ceremony::calls(plan).map_err(|error| failed(&error))?;
    if json {
        print_json(&serde_json::json!(steps))?;
    } else {
        let lines = steps.iter().flat_map(|step| {
            std::iter::once(step.title.clone()).chain(step.calls.iter().map(|call| format!("    {call}")))
        });
        let text = lines.collect::<Vec<_>>().join("\n") + "\n";
        print(&text)?;
    }
    Ok(ExitCode::Done)
}

fn show(closed: &Closed, json: bool) -> Result<(), CliError> {
    let key_id = crate::keyring::first_key_id(&closed.record);
    let directory = closed.directory.display();
    if json {
        return print_json(&serde_json::json!({
            "directory": closed.directory,
            "kind": closed.kind.word(),
            "key_id": key_id.as_str(),
            "key_id_hash": key_id.hash(),
            "recovery": closed.record.recovery,
            "transcript": closed.head,
            "words": ceremony::words(&closed.head),
        }));
    }
    let stamp = match (closed.kind, closed.record.recovery) {
        (CeremonyKind::Rehearsal, _) => "REHEARSAL: this KEK was made on a token that is thrown away.\n",
        (CeremonyKind::Destruction, _) => "DESTRUCTION: this KEK is gone from every token of the plan.\n",
        (CeremonyKind::Production, Recovery::None) => "NO-RECOVERY: if this token is lost, every Secret is lost.\n",
        (CeremonyKind::Production, _) => "",
    };
    print(&format!(
        "\n{stamp}key_id   {}\n         {}\nevidence {directory}\n\n\
         next: each person signs  hsm-kms ceremony sign {directory} --as NAME --key FILE\n\
         then, on any machine     hsm-kms ceremony verify-record {directory}\n",
        key_id.as_str(),
        key_id.hash(),
    ))
}
