//! The end: the record, the bags, the words of the last event, and the files that are made from them.

use serde_json::json;

use super::{Closed, Proved, Run, report};
use crate::ceremony::evidence::{self, Statement};
use crate::ceremony::output::{RECORD_FILE, write_anew};
use crate::ceremony::site::Site;
use crate::ceremony::steps::StepId;
use crate::ceremony::transcript::{self, CeremonyKind, Event, EventKind};
use crate::ceremony::{CeremonyError, Plan, WitnessedPlan, paper, words};
use crate::record::{KekRecord, Sha256Digest, TokenCopy};

impl Run<'_> {
    /// The record, and the end.
    pub(super) fn close(&mut self, site: &Site, proved: &Proved, copies: Vec<TokenCopy>) -> Result<(), CeremonyError> {
        let path = self.plan.output.join(RECORD_FILE);
        self.step(StepId::Record, json!({"file": RECORD_FILE}), |run| {
            let record = run.record(site, proved, copies)?;
            run.console.begin("write the record");
            write_anew(&path, record.to_json()?.as_bytes())?;
            let digest = evidence::file_digest(&path)?;
            run.console.done(&path.display().to_string());
            Ok(((), json!({"record_sha256": digest})))
        })?;
        self.end()
    }

    /// The bags, and the last event.
    pub(super) fn end(&mut self) -> Result<(), CeremonyError> {
        let bags = self.step(StepId::Closing, json!({}), |run| {
            let bags = run.bags()?;
            let data = json!({"bags": bags});
            Ok((bags, data))
        })?;
        let record_sha256 = evidence::file_digest(&self.plan.output.join(RECORD_FILE))?;
        self.write("closing", EventKind::Closed, json!({"record_sha256": record_sha256, "bags": bags}))?;
        let head = self.transcript.head();
        self.console.heading("closed", "", &[("SHA-256", &head.to_string()), ("words", &words(&head))]);
        self.console.tell("The witness reads the words aloud; all write them on their script.");
        Ok(())
    }

    /// The numbers of the bags that the evidence goes into, each typed twice.
    fn bags(&mut self) -> Result<Vec<String>, CeremonyError> {
        let mut bags = Vec::new();
        for number in 1..=BAGS {
            let ask = |run: &mut Self, text: &str| {
                run.ask_until(&format!("bag-{number}"), text, |answer| {
                    let fits =
                        (1..=40).contains(&answer.len()) && answer.chars().all(|c| c.is_ascii_graphic() || c == ' ');
                    fits.then(|| answer.to_owned())
                })
            };
            let first = ask(self, &format!("number of bag {number}, or \"none\""))?;
            let second = ask(self, "the same again")?;
            if first != second {
                return Err(CeremonyError::Refused("the number of a bag was typed in two ways"));
            }
            if first != "none" {
                bags.push(first);
            }
        }
        Ok(bags)
    }
}

/// Bags for the evidence: one for each of two places.
const BAGS: usize = 2;

/// Writes what is made from a closed transcript and its record: script, report, statement, signers, and the sums of all.
pub(super) fn finish(plan: &Plan, witnessed: &WitnessedPlan) -> Result<Closed, CeremonyError> {
    let directory = &plan.output;
    let (plan_sha256, record_path) = (witnessed.lock.digest, directory.join(RECORD_FILE));
    let system = |source| CeremonyError::System { what: "the evidence cannot be read", source };
    let events = std::fs::read(directory.join(transcript::TRANSCRIPT_FILE)).map_err(system)?;
    let events = transcript::verify(&events, &plan_sha256)?;
    let bytes = std::fs::read(&record_path).map_err(system)?;
    let record = KekRecord::read(&record_path)?;
    let head = events.last().map_or(Sha256Digest([0; 32]), |event| event.hash);
    let kind = kind_of(&events)?;
    if directory.join(evidence::SUMS_FILE).exists() {
        return Ok(Closed { record, directory: directory.clone(), head, kind });
    }
    let statement = Statement::new(&record, &bytes, plan_sha256, &events).to_string();
    for (name, text) in [
        (evidence::STATEMENT_FILE, statement),
        (evidence::SIGNERS_FILE, evidence::allowed_signers(&witnessed.people)),
        ("script.html", paper::script(plan, witnessed, kind)),
        ("report.html", report::of(plan, witnessed, kind, &record, &bytes, &events)?),
    ] {
        write_anew(&directory.join(name), text.as_bytes())?;
    }
    evidence::write_sums(directory)?;
    Ok(Closed { record, directory: directory.clone(), head, kind })
}

/// What the ceremony of these events was held for.
fn kind_of(events: &[Event]) -> Result<CeremonyKind, CeremonyError> {
    let kind = events.first().and_then(|event| event.data.get("kind")?.as_str()?.parse().ok());
    kind.ok_or(CeremonyError::Proof("the transcript does not say what it was for"))
}
