//! The report, from what the ceremony left: transcript and record. So it can be made again from them.

use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use super::closing::stamp;
use crate::ceremony::paper::{self, Report, ReportEvent};
use crate::ceremony::transcript::{Event, EventKind};
use crate::ceremony::{Plan, Refusal, WitnessedPlan};
use crate::record::{KekRecord, Sha256Digest};

/// The report of a closed ceremony; `bytes`: the record's file.
pub(super) fn of(plan: &Plan, witnessed: &WitnessedPlan, record: &KekRecord, bytes: &[u8], events: &[Event]) -> String {
    let printed: Vec<_> = events.iter().map(printed).collect();
    let last = events.last();
    // What an interrupted run tried, the next one tried again.
    let refusals = events.iter().rev().find_map(|event| list::<Refusal>(event, "refusals")).unwrap_or_default();
    let bags = last.and_then(|event| list::<String>(event, "bags")).unwrap_or_default();
    let program = events.iter().rev().find_map(|event| event.data.get("tool_sha256")?.as_str()?.parse().ok());
    paper::report(Report {
        plan,
        witnessed,
        record,
        record_sha256: Sha256Digest(Sha256::digest(bytes).into()),
        program_sha256: program.unwrap_or(Sha256Digest([0; 32])),
        transcript_head: last.map_or(Sha256Digest([0; 32]), |event| event.hash),
        events: &printed,
        refusals: &refusals,
        exceptions: record.witnessed.as_ref().map_or(&[][..], |witnessed| &witnessed.exceptions),
        bags: &bags,
        stamp: stamp(record.kind),
    })
}

fn list<T: serde::de::DeserializeOwned>(event: &Event, name: &str) -> Option<Vec<T>> {
    serde_json::from_value(event.data.get(name)?.clone()).ok()
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
