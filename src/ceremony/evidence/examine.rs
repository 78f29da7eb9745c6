//! Everything that must be true of the evidence, looked at without an HSM and without a network.

use std::path::Path;

use super::bundle::Bundle;
use super::check::{Found, Report, needs};
use super::plan::LockedPlan;
use super::signature::{allowed_signers, principal, verifies};
use super::{EvidenceError, PLAN_FILE, RECORD_FILE, SIGNATURES, SIGNERS_FILE, STATEMENT_FILE, SUMS_FILE, Statement};
use crate::ceremony::transcript::{self, CeremonyKind, Event, EventKind, TRANSCRIPT_FILE};
use crate::ceremony::{Person, Role};
use crate::record::{KekRecord, Kind, Origin, Participant, Recovery, Sha256Digest, Witnessed};
use crate::recovery::Recipient;

/// Looks at the whole evidence in this directory. An error only if it could not be looked at.
pub fn verify_directory(directory: &Path) -> Result<Report, EvidenceError> {
    let bundle = Bundle::read(directory)?;
    let (mut report, statement) = examine(&bundle);
    report.add(SUMS_FILE, sums(&bundle));
    let Some(Signable { plan, people, statement }) = statement else {
        report.add::<()>(SIGNATURES, Err("not looked at, since there is no statement that holds".to_owned()));
        return Ok(report);
    };
    let signers = allowed_signers(&plan.people);
    let mut expected = Vec::new();
    for person in &people {
        let Some(principal) = principal(&plan.people, person) else { continue };
        let name = format!("{principal}.sig");
        let found = match bundle.signatures.get(&name) {
            None => Err(format!("{} has not signed", person.name)),
            Some(signature) if verifies(&signers, &principal, statement.as_bytes(), signature)? => {
                Ok(((), format!("{} signed the statement", person.name)))
            }
            Some(_) => Err(format!("it is not {}'s signature over this statement", person.name)),
        };
        report.add(&format!("{SIGNATURES}/{name}"), found);
        expected.push(name);
    }
    let others: Vec<_> = bundle.signatures.keys().filter(|name| !expected.contains(name)).cloned().collect();
    let nobody = if others.is_empty() { Ok(((), format!("{} people", people.len()))) } else { Err(others.join(", ")) };
    report.add("nobody else signed", nobody);
    Ok(report)
}

/// What there is to sign, and who may.
pub(super) struct Signable {
    pub(super) plan: LockedPlan,
    /// Who took part, in the plan's order.
    pub(super) people: Vec<Person>,
    pub(super) statement: String,
}

/// Looks at all that the signatures are over.
pub(super) fn examine(bundle: &Bundle) -> (Report, Option<Signable>) {
    let mut report = Report::default();
    let file = |name: &str| bundle.files.get(name).map(Vec::as_slice).ok_or_else(|| "the file is missing".to_owned());

    let plan = report.add(PLAN_FILE, file(PLAN_FILE).and_then(read_plan));
    let transcript = file(TRANSCRIPT_FILE).and_then(|bytes| read_transcript(bytes, needs(plan.as_ref(), PLAN_FILE)?));
    let events = report.add(TRANSCRIPT_FILE, transcript);
    let record = report.add(RECORD_FILE, file(RECORD_FILE).and_then(read_record));
    let all = || {
        Ok((
            needs(plan.as_ref(), PLAN_FILE)?,
            needs(events.as_ref(), TRANSCRIPT_FILE)?,
            needs(record.as_ref(), RECORD_FILE)?,
        ))
    };

    let is_destruction = plan.as_ref().is_some_and(|plan| plan.destroys.is_some());
    let people = if is_destruction {
        report.add("record as destroyed", all().and_then(|(plan, events, record)| destroyed(plan, events, record)));
        report.add("tokens", all().and_then(|(plan, events, _)| gone(plan, events)));
        report.add("people", all().and_then(|(plan, events, _)| signed_in(plan, events)))
    } else {
        report.add("record as closed", all().and_then(|(_, events, record)| closed(events, record)));
        report.add("record and plan", all().and_then(|(plan, _, record)| as_planned(plan, record)));
        let people = report.add("people", all().and_then(|(plan, events, record)| took_part(plan, events, record)));
        report.add("copies", all().and_then(|(plan, events, record)| copies(plan, events, record)));
        report.add("exceptions", all().and_then(|(_, events, record)| exceptions(events, record)));
        people
    };
    let statement = all().and_then(|(plan, events, record)| {
        let Record { content: record, digest: record_sha256, .. } = record;
        let statement = Statement { record, record_sha256: *record_sha256, plan_sha256: plan.digest, events };
        let expected = statement.to_string();
        as_derived(file(STATEMENT_FILE)?, expected)
    });
    let statement = report.add(STATEMENT_FILE, statement);
    let signers =
        needs(plan.as_ref(), PLAN_FILE).and_then(|plan| as_derived(file(SIGNERS_FILE)?, allowed_signers(&plan.people)));
    report.add(SIGNERS_FILE, signers);
    let signable = match (plan, people, statement) {
        (Some(plan), Some(people), Some(statement)) => Some(Signable { plan, people, statement }),
        _ => None,
    };
    (report, signable)
}

/// The record, as far as these checks need it.
struct Record {
    content: KekRecord,
    witnessed: Witnessed,
    digest: Sha256Digest,
}

fn read_plan(bytes: &[u8]) -> Found<LockedPlan> {
    let plan = LockedPlan::parse(bytes)?;
    let found = format!("canonical; cluster {}, {} people", plan.cluster.as_str(), plan.people.all().len());
    Ok((plan, found))
}

fn read_transcript(bytes: &[u8], plan: &LockedPlan) -> Found<Vec<Event>> {
    let events = transcript::verify(bytes, &plan.digest).map_err(|fault| fault.to_string())?;
    let time = |event: Option<&Event>| event.map(|event| event.time.to_string()).unwrap_or_default();
    let found = format!("{} events, {} to {}", events.len(), time(events.first()), time(events.last()));
    Ok((events, found))
}

fn read_record(bytes: &[u8]) -> Found<Record> {
    let record = KekRecord::parse(bytes).map_err(|error| error.fault.to_string())?;
    let witnessed = record.witnessed.clone().ok_or("it is of a trial, which nobody witnessed")?;
    let found = format!("{}, KEK {:?}", record.kind.word(), record.kek.label);
    Ok((Record { content: record, witnessed, digest: Sha256Digest::of(bytes) }, found))
}

/// The transcript's event says this.
fn says(event: Option<&Event>, name: &str, value: &str) -> Result<(), String> {
    match event.and_then(|event| event.data.get(name)) {
        Some(found) if found == value => Ok(()),
        _ => Err(format!("the transcript's {name} is not {value}")),
    }
}

/// The record is the one that the plan destroys and the transcript ends with.
fn destroyed(plan: &LockedPlan, events: &[Event], record: &Record) -> Found<()> {
    says(events.last(), "record_sha256", &record.digest.to_string())?;
    says(events.first(), "kind", CeremonyKind::Destruction.word())?;
    if plan.destroys != Some(record.digest) {
        return Err("the plan destroys the KEK of another record".to_owned());
    }
    if record.content.cluster != plan.cluster || record.content.token.serial != plan.serial {
        return Err("it is of another cluster or token than the plan".to_owned());
    }
    Ok(((), format!("KEK {:?}, made {}", record.content.kek.label, record.content.ceremony.time)))
}

/// No token of the plan has the KEK any more.
fn gone(plan: &LockedPlan, events: &[Event]) -> Found<()> {
    let tokens = std::iter::once(&plan.serial).chain(&plan.copies);
    let is_gone = |serial: &String| {
        events.iter().any(|event| {
            let is = |name, value: serde_json::Value| event.data.get(name) == Some(&value);
            event.kind == EventKind::Check
                && event.step == "destroy"
                && is("check", "gone".into())
                && is("serial", serial.as_str().into())
                && is("left", 0.into())
        })
    };
    match tokens.clone().find(|serial| !is_gone(serial)) {
        Some(serial) => Err(format!("the transcript does not say that it is gone from token {serial:?}")),
        None => Ok(((), format!("gone from {}", tokens.count()))),
    }
}

/// The people of a destruction: who signed in by the transcript, enough of them, in the plan's order.
fn signed_in(plan: &LockedPlan, events: &[Event]) -> Found<Vec<Person>> {
    let last = events.iter().rev().find(|event| event.step == "people" && event.kind == EventKind::Result);
    let present: Option<Vec<Participant>> =
        last.and_then(|event| serde_json::from_value(event.data.get("present")?.clone()).ok());
    present_people(plan, &present.unwrap_or_default())
}

/// The record is the one that the transcript ends with, of the ceremony that it begins with.
fn closed(events: &[Event], record: &Record) -> Found<()> {
    says(events.last(), "record_sha256", &record.digest.to_string())?;
    says(events.first(), "ceremony_id", &record.content.ceremony.id.to_string())?;
    says(events.first(), "kind", record.content.kind.word())?;
    let head = record.witnessed.transcript_head;
    let before = events.iter().find(|event| event.hash == head);
    match before {
        Some(event) if event.kind == EventKind::Intent => Ok(((), format!("written in step {}", event.step))),
        _ => Err(format!("its transcript_head {head} is no intent of the transcript")),
    }
}

/// What the record says is what the plan says.
fn as_planned(plan: &LockedPlan, record: &Record) -> Found<()> {
    let Record { content: record, witnessed, .. } = record;
    let origin = if plan.is_import { Origin::Imported } else { Origin::Generated };
    let agreements = [
        ("plan_sha256", witnessed.plan_sha256 == plan.digest),
        ("cluster", record.cluster == plan.cluster),
        ("origin", witnessed.origin == origin),
        ("recipients", record.recipients.iter().map(Recipient::fingerprint).eq(plan.recipients.iter().copied())),
        ("previous_record_sha256", witnessed.previous_record_sha256 == plan.previous),
        // A rehearsal is held on a throw-away token.
        ("token.serial", record.token.serial == plan.serial || record.kind == Kind::Rehearsal),
    ];
    let differ: Vec<_> = agreements.iter().filter(|(_, agrees)| !agrees).map(|(name, _)| *name).collect();
    if differ.is_empty() {
        Ok(((), format!("{} things agree", agreements.len())))
    } else {
        Err(format!("they differ in {}", differ.join(", ")))
    }
}

/// Who took part: people of the plan in its order, who signed in by the transcript, and enough of them.
fn took_part(plan: &LockedPlan, events: &[Event], record: &Record) -> Found<Vec<Person>> {
    let named = &record.witnessed.people;
    let signed_in = events.iter().rev().find(|event| event.step == "people" && event.kind == EventKind::Result);
    let present = signed_in.and_then(|event| event.data.get("present"));
    if present != serde_json::to_value(named).ok().as_ref() {
        return Err("the transcript says that others signed in than the record names".to_owned());
    }
    present_people(plan, named)
}

/// These people, if they are of the plan, in its order, and enough.
fn present_people(plan: &LockedPlan, named: &[Participant]) -> Found<Vec<Person>> {
    let is_named = |person: &Person| named.iter().any(|other| is_person(other, person));
    let there: Vec<_> = plan.people.all().iter().filter(|person| is_named(person)).cloned().collect();
    if there.len() != named.len() || !there.iter().zip(named).all(|(person, named)| is_person(named, person)) {
        return Err("they are others than in the plan, or in another order".to_owned());
    }
    plan.people.judge(is_named)?;
    let count = |role| there.iter().filter(|person| person.role == role).count();
    let found = format!("{}, {} of them witnesses", there.len(), count(Role::Witness));
    Ok((there, found))
}

fn is_person(named: &Participant, person: &Person) -> bool {
    named.name == person.name.as_str() && named.role == person.role
}

/// Each copy in the record is planned, and proved by the transcript; and each that is planned is there.
fn copies(plan: &LockedPlan, events: &[Event], record: &Record) -> Found<()> {
    for copy in &record.witnessed.copies {
        // The copies of a rehearsal are thrown away like its token.
        if !plan.copies.contains(&copy.serial) && record.content.kind != Kind::Rehearsal {
            return Err(format!("the plan has no copy on token {:?}", copy.serial));
        }
        let proves = |event: &Event| {
            let is = |name, value: &str| event.data.get(name).is_some_and(|found| found == value);
            event.kind == EventKind::Check
                && event.step == "copies"
                && is("serial", &copy.serial)
                && is("library", &copy.library)
        };
        if !events.iter().any(proves) {
            return Err(format!("the transcript does not prove the copy on token {:?}", copy.serial));
        }
    }
    if record.witnessed.copies.len() != plan.copies.len() && record.content.kind == Kind::Production {
        return Err(format!("{} copies are planned, {} were proved", plan.copies.len(), record.witnessed.copies.len()));
    }
    let worth = match record.content.recovery {
        Recovery::None => "NO-RECOVERY: without this token nothing opens",
        Recovery::Copies => "the KEK outlives its token",
        Recovery::Shares => "shares restore the KEK",
        Recovery::Recipients => "its seeds open by the key of a recovery recipient",
    };
    Ok(((), format!("{} proved; {worth}", record.witnessed.copies.len())))
}

/// Each exception of the record was recorded, with who answers for it.
fn exceptions(events: &[Event], record: &Record) -> Found<()> {
    let recorded: Vec<_> = events
        .iter()
        .filter(|event| event.kind == EventKind::Exception)
        .filter_map(|event| event.data.get("check")?.as_str())
        .collect();
    let listed = &record.witnessed.exceptions;
    let check = |text: &String| text.split_once(": ").map(|(check, _)| check.to_owned()).unwrap_or_default();
    if let Some(text) = listed.iter().find(|text| !recorded.contains(&check(text).as_str())) {
        return Err(format!("the transcript has no exception for: {text}"));
    }
    Ok(((), if listed.is_empty() { "none".to_owned() } else { listed.join("; ") }))
}

/// A file that is made from others is what they make.
fn as_derived(bytes: &[u8], expected: String) -> Found<String> {
    if bytes == expected.as_bytes() {
        return Ok((expected, "as it is made from the others".to_owned()));
    }
    let found = String::from_utf8_lossy(bytes);
    let differs = found.lines().zip(expected.lines()).position(|(found, expected)| found != expected);
    let line = differs.unwrap_or_else(|| found.lines().count().min(expected.lines().count())) + 1;
    Err(format!("line {line} is not what the other files make of it"))
}

fn sums(bundle: &Bundle) -> Found<()> {
    let expected = bundle.sums();
    let found = bundle.files.get(SUMS_FILE).ok_or("the file is missing")?;
    let found = String::from_utf8_lossy(found);
    if let Some(stranger) = bundle.strangers.first() {
        return Err(stranger.clone());
    }
    let name = |line: &str| line.split_once("  ").map_or(line, |(_, name)| name).to_owned();
    let listed: Vec<_> = found.lines().map(name).collect();
    if let Some(line) = expected.lines().find(|line| !found.lines().any(|found| found == *line)) {
        let (name, is) = (name(line), if listed.contains(&name(line)) { "is another file" } else { "is not listed" });
        return Err(format!("{name} {is}"));
    }
    if *found != expected {
        return Err("it lists something that is not there, or not in order".to_owned());
    }
    Ok(((), format!("{} files", expected.lines().count())))
}
