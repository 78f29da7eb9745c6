//! The report: what was done, what came of it, and how to check it.

use askama::Template;

use super::super::transcript::CeremonyKind;
use super::super::{Person, Plan, Refusal, WitnessedPlan, steps};
use super::attributes::{KeyOnPaper, keys};
use super::frame::{Frame, Hex, origin, split_words};
use super::html;
use crate::record::{KekRecord, Participant, Recovery, Sha256Digest, TokenCopy, UtcTime};

/// What a report is made from.
#[derive(Clone, Copy, Debug)]
pub struct Report<'a> {
    /// The plan.
    pub plan: &'a Plan,
    /// What of it needs people.
    pub witnessed: &'a WitnessedPlan,
    /// The record that came of it.
    pub record: &'a KekRecord,
    /// SHA-256 of `kek-record.json`.
    pub record_sha256: Sha256Digest,
    /// SHA-256 of the program.
    pub program_sha256: Sha256Digest,
    /// Hash of the last event of the transcript.
    pub transcript_head: Sha256Digest,
    /// All events of the transcript, in order.
    pub events: &'a [ReportEvent],
    /// What was tried on the token, and what it answered.
    pub refusals: &'a [Refusal],
    /// Checks that were let pass, and who decided.
    pub exceptions: &'a [String],
    /// Numbers of the bags that the evidence lies in.
    pub bags: &'a [String],
    /// Who took part.
    pub people: &'a [Participant],
    /// What it was held for.
    pub kind: CeremonyKind,
}

/// An event of the transcript, as it is printed.
#[derive(Clone, Debug)]
pub struct ReportEvent {
    /// Its number.
    pub seq: u64,
    /// When.
    pub time: UtcTime,
    /// Name of the step that it belongs to.
    pub step: String,
    /// What it is: `intent`, `result`, ...
    pub kind: String,
    /// What it says, in a line.
    pub text: String,
}

/// The report of a ceremony.
pub fn report(report: Report<'_>) -> String {
    let Report { plan, witnessed, record, kind, .. } = report;
    let copies = record.witnessed.as_ref().map_or(&[][..], |witnessed| &witnessed.copies);
    let people = attendance(witnessed, report.people);
    html(&Document {
        frame: Frame::new("Key ceremony report", plan, witnessed, kind),
        report,
        witnessed,
        key_id: record.key_id(1).to_string(),
        makes: kind != CeremonyKind::Destruction,
        recovery: match record.recovery {
            Recovery::None => "NONE".to_owned(),
            Recovery::Shares => "shares".to_owned(),
            Recovery::Recipients => format!("{} recovery recipients", record.recipients.len()),
            Recovery::Copies => format!("{} proved copies", copies.len()),
        },
        origin: origin(witnessed),
        transcript_words: split_words(&report.transcript_head),
        signers: people.iter().filter(|one| one.took_part).map(|one| one.person).collect(),
        people,
        steps: results(plan, witnessed, report.events),
        keys: keys(plan, record),
        copies,
    })
}

#[derive(Template)]
#[template(path = "report.html", config = "src/ceremony/paper/askama.toml")]
struct Document<'a> {
    frame: Frame<'a>,
    report: Report<'a>,
    witnessed: &'a WitnessedPlan,
    key_id: String,
    /// Whether a key was made, or one destroyed.
    makes: bool,
    recovery: String,
    origin: String,
    transcript_words: Vec<String>,
    people: Vec<Attendance<'a>>,
    /// Those of them who took part.
    signers: Vec<&'a Person>,
    steps: Vec<StepResult>,
    keys: Vec<KeyOnPaper<'a>>,
    copies: &'a [TokenCopy],
}

/// Whether someone was there.
struct Attendance<'a> {
    person: &'a Person,
    /// As `allowed_signers` names the person.
    principal: String,
    took_part: bool,
}

/// When a step was done, and what came of it.
struct StepResult {
    title: &'static str,
    times: Option<(String, String)>,
    result: String,
}

/// The people of the plan, and whether they took part.
fn attendance<'a>(witnessed: &'a WitnessedPlan, there: &[Participant]) -> Vec<Attendance<'a>> {
    let people = witnessed.people.all().iter().zip(1..);
    let people = people.map(|(person, number): (_, usize)| Attendance {
        person,
        principal: format!("{number}-{}", person.role.word()),
        took_part: there.iter().any(|one| one.role == person.role && person.is(&one.name)),
    });
    people.collect()
}

/// What the transcript says of each step.
fn results(plan: &Plan, witnessed: &WitnessedPlan, events: &[ReportEvent]) -> Vec<StepResult> {
    let of_step = |step: super::super::Step| {
        let events = || events.iter().filter(|event| event.step == step.id.name());
        let result = events().rfind(|event| event.kind == "result");
        StepResult {
            title: step.title,
            times: events().next().zip(events().next_back()).map(|(first, last)| (clock(first.time), clock(last.time))),
            result: result.map_or_else(String::new, |event| event.text.clone()),
        }
    };
    steps(plan, witnessed).into_iter().map(of_step).collect()
}

/// The time of day: the day stands above.
fn clock(time: UtcTime) -> String {
    let time = time.to_string();
    time.get(11..19).unwrap_or(&time).to_owned()
}
