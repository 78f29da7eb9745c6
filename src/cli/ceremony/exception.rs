//! `hsm-kms ceremony exception`: the only way past a failed check.

use std::path::PathBuf;

use clap::Args;
use serde_json::json;

use super::{failed, load, print, print_json, witnessed_part};
use crate::ceremony;
use crate::ceremony::preflight::EXCEPTIONS;
use crate::cli::CliError;
use crate::exit::ExitCode;

/// Record who decided to go on although a check fails
#[derive(Args, Debug)]
pub(super) struct ExceptionArgs {
    /// The plan of the interrupted ceremony
    #[arg(long, value_name = "FILE")]
    plan: PathBuf,
    /// Name of the check
    #[arg(long, value_parser = EXCEPTIONS)]
    check: String,
    /// Why it is right to go on: one line, at most 120 bytes
    #[arg(long, value_name = "TEXT", value_parser = reason)]
    reason: String,
    /// Who decided: a person of the plan
    #[arg(long, value_name = "NAME")]
    decided_by: String,
    /// Write the exception as JSON to standard output
    #[arg(long)]
    json: bool,
}

fn reason(text: &str) -> Result<String, &'static str> {
    let fits = (1..=120).contains(&text.len()) && !text.chars().any(char::is_control);
    fits.then(|| text.to_owned()).ok_or("expected 1 to 120 bytes on one line")
}

pub(super) fn run(args: &ExceptionArgs) -> Result<ExitCode, CliError> {
    let plan = load(&args.plan)?;
    let witnessed = witnessed_part(&plan, "exception")?;
    let person = witnessed.people.all().iter().find(|person| person.is(&args.decided_by)).ok_or_else(|| {
        let names: Vec<_> = witnessed.people.all().iter().map(|person| person.name.as_str()).collect();
        CliError {
            code: ExitCode::BadUsage,
            what: "the exception was not recorded".to_owned(),
            why: format!("{:?} is nobody of the plan", args.decided_by),
            hint: format!("one of: {}", names.join(", ")),
        }
    })?;
    ceremony::add_exception(&plan, witnessed, &args.check, &args.reason, person).map_err(|error| failed(&error))?;
    if args.json {
        print_json(&json!({"check": args.check, "reason": args.reason, "decided_by": person.name.as_str()}))?;
    } else {
        print(&format!("recorded: {} is let pass, decided by {}; go on with --resume\n", args.check, person.name))?;
    }
    Ok(ExitCode::Done)
}
