//! The report, from what the ceremony left: transcript and record. So it can be made again from them.

use serde_json::{Map, Value};

use crate::ceremony::paper::{self, Report, ReportEvent};
use crate::ceremony::transcript::{CeremonyKind, Event, EventKind};
use crate::ceremony::{CeremonyError, Plan, Refusal, WitnessedPlan};
use crate::record::{KekRecord, Participant, Sha256Digest};

/// The report of a closed ceremony; `bytes`: the record's file.
pub(super) fn of(
    plan: &Plan,
    witnessed: &WitnessedPlan,
    kind: CeremonyKind,
    record: &KekRecord,
    bytes: &[u8],
    events: &[Event],
) -> Result<String, CeremonyError> {
    let printed: Vec<_> = events.iter().map(printed).collect();
    // What an interrupted run did, the next one did again.
    let latest = |name: &'static str| events.iter().rev().find_map(move |event| event.data.get(name));
    let missing = CeremonyError::Proof("the transcript lacks what its report is made from");
    let program = latest("tool_sha256").and_then(|digest| digest.as_str()?.parse().ok());
    let (Some(last), Some(program_sha256)) = (events.last(), program) else { return Err(missing) };
    let refusals: Vec<Refusal> = list(latest("refusals"));
    let bags: Vec<String> = list(latest("bags"));
    let people: Vec<Participant> = list(latest("present"));
    let exceptions = match kind {
        CeremonyKind::Destruction => events.iter().filter_map(exception).collect(),
        _ => record.witnessed.as_ref().map(|witnessed| witnessed.exceptions.clone()).unwrap_or_default(),
    };
    Ok(paper::report(Report {
        plan,
        witnessed,
        record,
        record_sha256: Sha256Digest::of(bytes),
        program_sha256,
        transcript_head: last.hash,
        events: &printed,
        refusals: &refusals,
        exceptions: &exceptions,
        bags: &bags,
        people: &people,
        kind,
    }))
}

/// An exception in words: a destruction writes no record that could list it.
fn exception(event: &Event) -> Option<String> {
    let text = |name| event.data.get(name).and_then(Value::as_str);
    let decided = text("decided_by").map(|name| format!(" (decided by {name})")).unwrap_or_default();
    (event.kind == EventKind::Exception).then(|| Some(format!("{}: {}{decided}", text("check")?, text("reason")?)))?
}

fn list<T: serde::de::DeserializeOwned>(value: Option<&Value>) -> Vec<T> {
    value.and_then(|value| serde_json::from_value(value.clone()).ok()).unwrap_or_default()
}

fn printed(event: &Event) -> ReportEvent {
    ReportEvent {
        seq: event.seq,
        time: event.time,
        step: event.step.clone(),
        kind: event.kind.word().to_owned(),
        text: text(event.kind, &event.data),
    }
}

/// What an event says, in a line: the transcript has all of it.
fn text(kind: EventKind, data: &Map<String, Value>) -> String {
    let short = |value: &Value| match value {
        Value::String(text) => text.clone(),
        Value::Array(list) if list.is_empty() => "none".to_owned(),
        Value::Array(list) if list.iter().all(Value::is_string) && list.len() <= 3 => {
            list.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(", ")
        }
        Value::Array(list) => format!("{} entries", list.len()),
        Value::Object(fields) => format!("{} entries", fields.len()),
        Value::Null => "none".to_owned(),
        other => other.to_string(),
    };
    if kind == EventKind::Answer
        && let Some(Value::String(answer)) = data.get("answer")
    {
        return answer.clone();
    }
    data.iter()
        .map(|(name, value)| format!("{}: {}", name.replace('_', " "), short(value)))
        .collect::<Vec<_>>()
        .join("; ")
}
