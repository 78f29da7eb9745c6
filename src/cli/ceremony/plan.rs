//! `hsm-kms ceremony plan`: plans, written, checked, shown and printed.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};

use clap::Subcommand;
use comfy_table::{ContentArrangement, Table, presets};
use serde_json::json;

use super::{load, print, print_json, witnessed_part};
use crate::ceremony::transcript::CeremonyKind;
use crate::ceremony::{Plan, WitnessedPlan, paper, steps, words};
use crate::cli::CliError;
use crate::exit::ExitCode;

#[derive(Debug, Subcommand)]
pub(super) enum PlanCommand {
    /// Write a plan to be filled in
    New {
        /// The file; it must not exist
        file: PathBuf,
    },
    /// Check a plan; prints its SHA-256 and words
    Lint {
        /// The plan
        file: PathBuf,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Show what a plan says: token, people, steps
    Show {
        /// The plan
        file: PathBuf,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Write the script to be printed, as HTML
    Render {
        /// The plan
        file: PathBuf,
        /// The file to write; it must not exist
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
        /// Stamp every page: for a rehearsal
        #[arg(long)]
        rehearsal: bool,
    },
}

pub(super) fn run(command: PlanCommand) -> Result<ExitCode, CliError> {
    match command {
        PlanCommand::New { file } => {
            write(&file, TEMPLATE)?;
            print(&format!(
                "{} is written. Fill it in, then:  hsm-kms ceremony plan lint {}\n",
                file.display(),
                file.display()
            ))?;
        }
        PlanCommand::Lint { file, json } => lint(&file, json)?,
        PlanCommand::Show { file, json } => show(&file, json)?,
        PlanCommand::Render { file, out, rehearsal } => {
            let plan = load(&file)?;
            let witnessed = witnessed_part(&plan, "plan render")?;
            let kind = match (witnessed.destroys, rehearsal) {
                (Some(_), _) => CeremonyKind::Destruction,
                (None, true) => CeremonyKind::Rehearsal,
                (None, false) => CeremonyKind::Production,
            };
            write(&out, &paper::script(&plan, witnessed, kind))?;
            print(&format!("{} is written: open it in a browser, and print a copy for each person\n", out.display()))?;
        }
    }
    Ok(ExitCode::Done)
}

fn lint(file: &Path, as_json: bool) -> Result<(), CliError> {
    let plan = load(file)?;
    let Some(witnessed) = &plan.witnessed else {
        return if as_json {
            print_json(&json!({"kind": "trial"}))
        } else {
            print("the plan is right: a trial, unattended; its KEK is not for a real cluster\n")
        };
    };
    let digest = witnessed.lock.digest;
    if as_json {
        return print_json(&json!({"kind": "production", "plan_sha256": digest, "words": words(&digest)}));
    }
    print(&format!("the plan is right\nSHA-256  {digest}\nwords    {}\n", words(&digest)))
}

fn show(file: &Path, as_json: bool) -> Result<(), CliError> {
    let plan = load(file)?;
    let Some(witnessed) = &plan.witnessed else {
        return lint(file, as_json);
    };
    if as_json {
        let content: serde_json::Value = serde_json::from_slice(&witnessed.lock.json).unwrap_or_default();
        let digest = witnessed.lock.digest;
        return print_json(&json!({"plan": content, "plan_sha256": digest, "words": words(&digest)}));
    }
    print(&format!("{}\n\n{}\n\n{}\n", facts(&plan, witnessed), people(witnessed), schedule(&plan, witnessed)))
}

fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN).set_content_arrangement(ContentArrangement::Dynamic).set_width(80);
    table.set_header(header);
    table
}

fn facts(plan: &Plan, witnessed: &WitnessedPlan) -> Table {
    let mut facts = table(&["what", "plan"]);
    let permit: Vec<_> = plan.kek.permit.iter().map(ToString::to_string).collect();
    let copies: Vec<_> = witnessed.copies.iter().map(|copy| copy.serial.as_str()).collect();
    let some = |list: Vec<&str>| if list.is_empty() { "none".to_owned() } else { list.join(", ") };
    let digest = witnessed.lock.digest;
    let origin = match witnessed.import {
        None => "made in the HSM".to_owned(),
        Some(import) => format!("made outside, {} of {} shares restore it", import.threshold, import.shares),
    };
    facts.add_row(["cluster", &plan.cluster.to_string()]);
    facts.add_row(["site", &witnessed.site]);
    facts.add_row([
        "token",
        &format!("{:?}, serial {}, profile {}", plan.token.label, witnessed.serial, plan.token.profile.full_name()),
    ]);
    facts.add_row(["module", &plan.token.module.display().to_string()]);
    facts.add_row(["KEK", &format!("{:?}, {origin}", plan.kek.label)]);
    facts.add_row(["may deviate", &some(permit.iter().map(String::as_str).collect())]);
    facts.add_row(["copies on", &some(copies)]);
    for recipient in &plan.recipients {
        facts.add_row(["recovery recipient", &format!("{}, {}", recipient.scheme(), recipient.fingerprint())]);
    }
    facts.add_row(["output", &plan.output.display().to_string()]);
    facts.add_row(["plan SHA-256", &digest.to_string()]);
    facts.add_row(["plan words", &words(&digest)]);
    facts
}

fn people(witnessed: &WitnessedPlan) -> Table {
    let mut people = table(&["", "person", "role"]);
    for (position, person) in witnessed.people.all().iter().enumerate() {
        people.add_row([&(position + 1).to_string(), person.name.as_str(), person.role.word()]);
    }
    people
}

fn schedule(plan: &Plan, witnessed: &WitnessedPlan) -> Table {
    let mut schedule = table(&["", "step", "act", "minutes"]);
    let mut total = 0;
    for (position, step) in steps(plan, witnessed).iter().enumerate() {
        total += step.minutes;
        schedule.add_row([&(position + 1).to_string(), step.title, step.act.title(), &step.minutes.to_string()]);
    }
    schedule.add_row(["", "all", "", &total.to_string()]);
    schedule
}

/// Writes a file that must not exist.
fn write(path: &Path, content: &str) -> Result<(), CliError> {
    let opened = OpenOptions::new().write(true).create_new(true).open(path);
    opened.and_then(|mut file| file.write_all(content.as_bytes())).map_err(|error| CliError {
        code: ExitCode::BadUsage,
        what: format!("{} was not written", path.display()),
        why: error.to_string(),
        hint: "name a new file in an existing directory; nothing is overwritten".to_owned(),
    })
}

/// A whole plan, to be filled in: `lint` refuses what was not.
const TEMPLATE: &str = include_str!("plan.yaml");
