//! The rules of a transcript, kept line by line: the writer and the verifier go through the same.

use std::str::FromStr;

use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use super::{CeremonyKind, Event, EventKind, MAX_DEPTH, MAX_LINE_BYTES, Problem};
use crate::record::{CeremonyId, Sha256Digest};

/// Where a transcript stands after some events.
#[derive(Clone, Debug)]
pub(super) struct Chain {
    plan: Sha256Digest,
    /// Hash of the last event. `None`: there is none yet.
    head: Option<Sha256Digest>,
    next: u64,
    /// The step whose intent has no result yet.
    pending: Option<String>,
    /// Whether an interruption explains that it has none.
    is_interrupted: bool,
    is_closed: bool,
}

impl Chain {
    /// Before the first event.
    pub(super) fn new(plan: Sha256Digest) -> Self {
        Self { plan, head: None, next: 0, pending: None, is_interrupted: false, is_closed: false }
    }

    /// Hash of the last event, if there is one.
    pub(super) fn head(&self) -> Option<Sha256Digest> {
        self.head
    }

    /// Number of the next event.
    pub(super) fn next(&self) -> u64 {
        self.next
    }

    /// Whether the ceremony ended.
    pub(super) fn is_closed(&self) -> bool {
        self.is_closed
    }

    /// The event on this line, with its newline, if it may come next. After a fault the chain is of no further use.
    pub(super) fn admit(&mut self, line: &[u8]) -> Result<Event, Problem> {
        if self.is_closed {
            return Err(Problem::AfterClosed);
        }
        if line.len() > MAX_LINE_BYTES {
            return Err(Problem::LineTooLong);
        }
        let json = line.strip_suffix(b"\n").ok_or(Problem::NoNewline)?;
        let no_event = |error: serde_json::Error| Problem::NotAnEvent(error.to_string());
        let mut content: Value = serde_json::from_slice(json).map_err(no_event)?;
        check_values(&content, MAX_DEPTH)?;
        // Also finds a key that stands twice: the reader keeps one of the two.
        if canonical(&content)? != json {
            return Err(Problem::NotCanonical);
        }
        let event: Event = serde_json::from_value(content.clone()).map_err(no_event)?;
        if let Some(content) = content.as_object_mut() {
            content.remove("hash");
        }
        if self.hash(&event, &canonical(&content)?)? != event.hash {
            return Err(Problem::Hash);
        }
        self.follow(&event)?;
        self.head = Some(event.hash);
        self.next += 1;
        Ok(event)
    }

    /// The hash of an event whose canonical form, without its hash, is this.
    pub(super) fn hash(&self, event: &Event, content: &[u8]) -> Result<Sha256Digest, Problem> {
        let before = if let Some(head) = self.head {
            head
        } else {
            let tool: Sha256Digest = text(&event.data, "tool_sha256")?;
            sha256(&[START, &self.plan.0, &tool.0])
        };
        Ok(sha256(&[&before.0, content]))
    }

    /// Whether this event may come next.
    fn follow(&mut self, event: &Event) -> Result<(), Problem> {
        if event.seq != self.next {
            return Err(Problem::Sequence { found: event.seq, expected: self.next });
        }
        let is_plain = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-');
        if event.step.is_empty() || !event.step.bytes().all(is_plain) {
            return Err(Problem::Step);
        }
        if event.time.to_string().len() != "2026-01-31T12:00:00Z".len() {
            return Err(Problem::Time);
        }
        if (event.kind == EventKind::Opened) != self.head.is_none() {
            return Err(Problem::Opened);
        }
        match event.kind {
            EventKind::Opened => {
                text::<CeremonyId>(&event.data, "ceremony_id")?;
                text::<CeremonyKind>(&event.data, "kind")?;
                text::<String>(&event.data, "tool")?;
                if text::<Sha256Digest>(&event.data, "plan_sha256")? != self.plan {
                    return Err(Problem::Plan);
                }
            }
            EventKind::Intent => {
                self.nothing_hangs()?;
                self.pending = Some(event.step.clone());
                self.is_interrupted = false;
            }
            EventKind::Result => {
                if self.pending.as_ref() != Some(&event.step) {
                    return Err(Problem::NoIntent);
                }
                self.pending = None;
            }
            EventKind::Resumed => self.is_interrupted = true,
            EventKind::Closed => {
                text::<Sha256Digest>(&event.data, "record_sha256")?;
                self.nothing_hangs()?;
                self.is_closed = true;
            }
            EventKind::Answer | EventKind::Check | EventKind::Exception => {}
        }
        Ok(())
    }

    fn nothing_hangs(&self) -> Result<(), Problem> {
        match &self.pending {
            Some(step) if !self.is_interrupted => Err(Problem::NoResult(step.clone())),
            _ => Ok(()),
        }
    }
}

/// What the first event's hash begins with.
const START: &[u8] = b"hsm-kms/ceremony/v1";

/// The canonical form of a value that has been checked.
pub(super) fn canonical(value: &Value) -> Result<Vec<u8>, Problem> {
    serde_json_canonicalizer::to_vec(value).map_err(|error| Problem::NotAnEvent(error.to_string()))
}

/// Only values that every program reads alike: whole numbers that a double holds exactly, and no deep nesting.
pub(super) fn check_values(value: &Value, depth: usize) -> Result<(), Problem> {
    let within = |depth: usize| depth.checked_sub(1).ok_or(Problem::TooDeep);
    match value {
        Value::Number(number) => match number.as_i64() {
            Some(number) if number.unsigned_abs() < 1 << 53 => Ok(()),
            _ => Err(Problem::Number),
        },
        Value::Array(values) => {
            let depth = within(depth)?;
            values.iter().try_for_each(|value| check_values(value, depth))
        }
        Value::Object(values) => {
            let depth = within(depth)?;
            values.values().try_for_each(|value| check_values(value, depth))
        }
        Value::Null | Value::Bool(_) | Value::String(_) => Ok(()),
    }
}

fn text<T: FromStr>(data: &Map<String, Value>, name: &'static str) -> Result<T, Problem> {
    data.get(name).and_then(Value::as_str).and_then(|text| text.parse().ok()).ok_or(Problem::Data(name))
}

fn sha256(parts: &[&[u8]]) -> Sha256Digest {
    let mut digest = Sha256::new();
    for part in parts {
        digest.update(part);
    }
    Sha256Digest(digest.finalize().into())
}
