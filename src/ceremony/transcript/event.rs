//! One event: a line of a transcript.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize, Serializer};
use serde_json::{Map, Value};
use thiserror::Error;

use super::{MAX_DEPTH, MAX_LINE_BYTES, MAX_TRANSCRIPT_BYTES};
use crate::record::{Sha256Digest, UtcTime};
use crate::strict;

/// One event.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Event {
    /// What is to be known of it; never a secret.
    pub data: Map<String, Value>,
    /// SHA-256 over the hash before it and everything else in it.
    pub hash: Sha256Digest,
    /// What sort of event.
    #[serde(deserialize_with = "strict::from_text")]
    pub kind: EventKind,
    /// Milliseconds of the machine's monotonic clock, which nobody sets.
    pub monotonic_ms: u64,
    /// Its number, from 0.
    pub seq: u64,
    /// The step that it belongs to: `a-z`, `0-9` and `-`.
    pub step: String,
    /// When, in whole seconds.
    pub time: UtcTime,
}

/// What sort of event.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum EventKind {
    /// The ceremony begins; the first event, and no other.
    Opened,
    /// A step is about to change something.
    Intent,
    /// What came of the last intent.
    Result,
    /// Somebody answered.
    Answer,
    /// Something was checked.
    Check,
    /// A check that failed is let pass.
    Exception,
    /// A ceremony that was interrupted goes on.
    Resumed,
    /// The ceremony ends; the last event, and no other.
    Closed,
}

/// What is wrong with an event or its place.
#[derive(Debug, Eq, Error, PartialEq)]
pub enum Problem {
    /// Its bytes are not those that the writer makes of its content.
    #[error("it is not in canonical form (RFC 8785)")]
    NotCanonical,
    /// It is no JSON object with the keys of an event.
    #[error("it is not an event: {0}")]
    NotAnEvent(String),
    /// It has no newline at its end.
    #[error("it has no newline at its end")]
    NoNewline,
    /// A line is longer than any.
    #[error("it has more than {MAX_LINE_BYTES} bytes")]
    LineTooLong,
    /// The transcript is longer than any.
    #[error("the transcript has more than {MAX_TRANSCRIPT_BYTES} bytes")]
    TranscriptTooLong,
    /// A number that programs do not read alike.
    #[error("a number in it is not whole, or not between -2^53 and 2^53")]
    Number,
    /// A value within values within values.
    #[error("its values are nested deeper than {MAX_DEPTH} levels")]
    TooDeep,
    /// Its hash is not that of its content after the event before it.
    #[error("its hash is not that of its content and of the lines before it")]
    Hash,
    /// Its number is not the next one.
    #[error("its seq is {found}, expected {expected}")]
    Sequence {
        /// As it says.
        found: u64,
        /// As it must be.
        expected: u64,
    },
    /// A step has a name of another form.
    #[error("its step is not made of a-z, 0-9 and -")]
    Step,
    /// Its time has a fraction of a second.
    #[error("its time is not in whole seconds")]
    Time,
    /// The first event is another, or a later one is `opened`.
    #[error("`opened` is the first event, and no other")]
    Opened,
    /// What `opened` or `closed` must say is missing.
    #[error("its data lacks `{0}`, or has it in another form")]
    Data(&'static str),
    /// It is of another plan.
    #[error("its plan_sha256 is not the digest of the plan")]
    Plan,
    /// An intent while another has no result.
    #[error("step {0} has no result yet, and nothing was interrupted")]
    NoResult(String),
    /// A result without its intent.
    #[error("it is the result of a step that has not begun")]
    NoIntent,
    /// Something after the end.
    #[error("it comes after `closed`")]
    AfterClosed,
    /// There is no end.
    #[error("the transcript ends here without `closed`")]
    NotClosed,
}

impl EventKind {
    const ALL: [Self; 8] = [
        Self::Opened,
        Self::Intent,
        Self::Result,
        Self::Answer,
        Self::Check,
        Self::Exception,
        Self::Resumed,
        Self::Closed,
    ];

    /// As transcripts write it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Opened => "opened",
            Self::Intent => "intent",
            Self::Result => "result",
            Self::Answer => "answer",
            Self::Check => "check",
            Self::Exception => "exception",
            Self::Resumed => "resumed",
            Self::Closed => "closed",
        }
    }
}

impl fmt::Display for EventKind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(self.word())
    }
}

impl FromStr for EventKind {
    type Err = &'static str;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL.into_iter().find(|kind| kind.word() == text).ok_or("expected the kind of an event")
    }
}

impl Serialize for EventKind {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.word())
    }
}
