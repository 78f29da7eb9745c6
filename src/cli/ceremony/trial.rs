//! `hsm-kms ceremony run` of a trial: unattended, a line for each step, then what was made.

use std::io::Write;
use std::time::Instant;

use comfy_table::{ContentArrangement, Table, presets};

use super::{failed, print};
use crate::attributes::AttributeName;
use crate::ceremony::{self, Outcome, Plan, Progress};
use crate::cli::CliError;
use crate::key_id::KeyId;
use crate::record::{KekRecord, TokenKey};

pub(super) fn run(plan: &Plan, json: bool) -> Result<(), CliError> {
    let mut steps = Steps::default();
    let outcome = ceremony::run_trial(plan, &mut |progress| steps.show(progress)).map_err(|error| {
        steps.end();
        failed(&error)
    })?;
    if json { print_json(&outcome) } else { print_table(&outcome) }
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

fn key_id(outcome: &Outcome) -> KeyId {
    crate::keyring::first_key_id(&outcome.record)
}

fn print_json(outcome: &Outcome) -> Result<(), CliError> {
    let key_id = key_id(outcome);
    let json = serde_json::json!({
        "record": outcome.path,
        "kind": outcome.record.kind,
        "key_id": key_id.as_str(),
        "key_id_hash": key_id.hash(),
        "attributes": outcome.record.kek.attributes,
        "mac_key_attributes": outcome.record.mac_key.as_ref().map(|key| &key.attributes),
        "deviations": outcome.record.deviations,
        "refusals": outcome.refusals,
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
        refusals.set_content_arrangement(ContentArrangement::Dynamic).set_width(80);
        refusals.load_style(presets::ASCII_MARKDOWN).set_header([&format!("tried on {:?}", key.label), "answer"]);
        for refusal in outcome.refusals.iter().filter(|refusal| refusal.key == key.label) {
            refusals.add_row([refusal.attempt.as_ref(), &refusal.answer]);
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
