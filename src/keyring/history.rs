//! What may happen to the KEKs of a cluster, event by event: the states are what the history adds up to.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use thiserror::Error;

use crate::record::{Sha256Digest, UtcTime};
use crate::strict;

/// One event of a keyring's history. Each names the one before it by its hash.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Event {
    /// When; never before the event before it.
    pub time: UtcTime,
    /// Who, as the operating system knows them.
    pub by: Operator,
    /// What happened.
    pub change: Change,
    /// Why, in the operator's words.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "some_line")]
    pub reason: Option<String>,
    /// Hash of the event before, or of the cluster's name.
    pub previous: Sha256Digest,
}

/// Who changed a keyring.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Operator {
    /// The user's number.
    pub uid: u32,
    /// Name of the machine.
    #[serde(deserialize_with = "strict::line_or_empty")]
    pub host: String,
}

/// What can happen to a KEK, named by its record.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
#[allow(missing_docs, reason = "the fields are the same in all")]
pub enum Change {
    /// The keyring begins: one KEK, active.
    Init { record: RecordPath, record_sha256: Sha256Digest },
    /// A KEK is added: it opens, and seals nothing yet.
    Stage { record: RecordPath, record_sha256: Sha256Digest },
    /// New seeds are sealed with this KEK, at once or from a time on. The one before opens.
    Activate {
        record: RecordPath,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        at: Option<UtcTime>,
        /// Whether it was done without the word of all nodes.
        forced: bool,
    },
    /// The activation that was planned does not come.
    Cancel { record: RecordPath },
    /// Nothing needs the KEK any more: it is taken out of service.
    Retire {
        record: RecordPath,
        /// SHA-256 of each inventory that showed so.
        inventories: Vec<Sha256Digest>,
        /// Whether it was done against what the inventories say, or without any.
        forced: bool,
    },
    /// A KEK that was taken out of service opens again.
    Restore { record: RecordPath },
}

/// What a KEK does.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// Opens, and was never announced.
    Staged,
    /// Seals and opens.
    Active,
    /// Opens, and is announced no longer.
    Retired,
    /// Does nothing: the plugin does not look for it, and the key may be destroyed in the HSM.
    Destroyed,
}

/// One KEK of a keyring.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// Where its record lies.
    pub record: RecordPath,
    /// SHA-256 of the record's file.
    pub record_sha256: Sha256Digest,
    /// What it does.
    pub state: State,
    /// How often it has become active. Each activation is an epoch, and has a `key_id` of its own.
    pub activations: u64,
    /// When it is to become active.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub activate_at: Option<UtcTime>,
}

/// Path of a record, from the folder of the keyring's file: no way leads out of it.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct RecordPath(String);

/// Why something may not happen to a KEK.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
pub enum Refusal {
    /// The history begins otherwise, or begins twice.
    #[error("a history begins with `init`, and has it once")]
    Beginning,
    /// The record, or one with the same bytes, is there.
    #[error("the keyring has the record {0} already")]
    Known(RecordPath),
    /// There is no such record.
    #[error("the keyring has no record {0}")]
    Unknown(RecordPath),
    /// Its state forbids it.
    #[error("the KEK of {record} is {state}: {rule}")]
    State {
        /// The record.
        record: RecordPath,
        /// What it is.
        state: State,
        /// What it must be.
        rule: &'static str,
    },
    /// No activation is planned.
    #[error("no activation of the KEK of {0} is planned")]
    NotPlanned(RecordPath),
    /// More than a worker can be told of.
    #[error("there are {MAX_IN_SERVICE} KEKs in service, and no more can be")]
    TooMany,
    /// An event is older than the one before.
    #[error("an event is older than the one before it")]
    Time,
}

/// Most KEKs that are found and proved at a start.
const MAX_IN_SERVICE: usize = 32;

/// Lets `event` happen.
pub(super) fn follow(entries: &mut Vec<Entry>, event: &Event) -> Result<(), Refusal> {
    settle(entries, event.time);
    let is_first = entries.is_empty();
    if is_first != matches!(event.change, Change::Init { .. }) {
        return Err(Refusal::Beginning);
    }
    match &event.change {
        Change::Init { record, record_sha256 } => {
            entries.push(Entry::new(record, *record_sha256));
            activate(entries, 0);
        }
        Change::Stage { record, record_sha256 } => {
            let is_same = |entry: &&Entry| entry.record == *record || entry.record_sha256 == *record_sha256;
            if let Some(entry) = entries.iter().find(is_same) {
                return Err(Refusal::Known(entry.record.clone()));
            }
            make_room(entries)?;
            entries.push(Entry::new(record, *record_sha256));
        }
        Change::Activate { record, at, .. } => {
            let (index, entry) = find(entries, record)?;
            let rule = match entry.state {
                State::Staged | State::Retired => None,
                State::Active => Some("it seals already"),
                State::Destroyed => Some("restore it first"),
            };
            refuse(entry, rule)?;
            // One plan at a time: the last word counts.
            let plan = at.filter(|at| *at > event.time);
            for (position, entry) in entries.iter_mut().enumerate() {
                entry.activate_at = plan.filter(|_| position == index);
            }
            if plan.is_none() {
                activate(entries, index);
            }
        }
        Change::Cancel { record } => {
            let (_, entry) = find(entries, record)?;
            entry.activate_at.take().ok_or_else(|| Refusal::NotPlanned(record.clone()))?;
        }
        Change::Retire { record, .. } => {
            let (_, entry) = find(entries, record)?;
            let rule = match entry.state {
                State::Staged | State::Retired => None,
                State::Active => Some("activate another one first"),
                State::Destroyed => Some("it is out of service already"),
            };
            refuse(entry, rule)?;
            entry.state = State::Destroyed;
            entry.activate_at = None;
        }
        Change::Restore { record } => {
            make_room(entries)?;
            let (_, entry) = find(entries, record)?;
            refuse(entry, (entry.state != State::Destroyed).then_some("only what is out of service is restored"))?;
            entry.state = if entry.activations == 0 { State::Staged } else { State::Retired };
        }
    }
    Ok(())
}

/// Lets the activation happen that was planned for a time until `now`.
pub(super) fn settle(entries: &mut [Entry], now: UtcTime) {
    if let Some(index) = entries.iter().position(|entry| entry.activate_at.is_some_and(|at| at <= now)) {
        activate(entries, index);
    }
}

fn activate(entries: &mut [Entry], index: usize) {
    for (position, entry) in entries.iter_mut().enumerate() {
        if position == index {
            entry.state = State::Active;
            entry.activations += 1;
            entry.activate_at = None;
        } else if entry.state == State::Active {
            entry.state = State::Retired;
        }
    }
}

fn find<'a>(entries: &'a mut [Entry], record: &RecordPath) -> Result<(usize, &'a mut Entry), Refusal> {
    let found = entries.iter_mut().enumerate().find(|(_, entry)| entry.record == *record);
    found.ok_or_else(|| Refusal::Unknown(record.clone()))
}

fn refuse(entry: &Entry, rule: Option<&'static str>) -> Result<(), Refusal> {
    let refusal = |rule| Refusal::State { record: entry.record.clone(), state: entry.state, rule };
    rule.map_or(Ok(()), |rule| Err(refusal(rule)))
}

fn make_room(entries: &[Entry]) -> Result<(), Refusal> {
    let in_service = entries.iter().filter(|entry| entry.is_in_service()).count();
    if in_service < MAX_IN_SERVICE { Ok(()) } else { Err(Refusal::TooMany) }
}

impl Entry {
    fn new(record: &RecordPath, record_sha256: Sha256Digest) -> Self {
        Self { record: record.clone(), record_sha256, state: State::Staged, activations: 0, activate_at: None }
    }

    /// Whether the plugin looks for it on the tokens.
    pub fn is_in_service(&self) -> bool {
        self.state != State::Destroyed
    }
}

impl Change {
    /// The record that it is about.
    pub fn record(&self) -> &RecordPath {
        match self {
            Self::Init { record, .. }
            | Self::Stage { record, .. }
            | Self::Activate { record, .. }
            | Self::Cancel { record }
            | Self::Retire { record, .. }
            | Self::Restore { record } => record,
        }
    }

    /// What else there is to say, for people; ends in a blank.
    pub fn note(&self) -> String {
        let forced = |forced: bool| if forced { "FORCED: " } else { "" };
        match self {
            Self::Activate { at: Some(at), forced: is_forced, .. } => format!("from {at} on. {}", forced(*is_forced)),
            Self::Activate { forced: is_forced, .. } | Self::Retire { forced: is_forced, .. } => {
                forced(*is_forced).to_owned()
            }
            _ => String::new(),
        }
    }

    /// As the file writes it.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Init { .. } => "init",
            Self::Stage { .. } => "stage",
            Self::Activate { .. } => "activate",
            Self::Cancel { .. } => "cancel",
            Self::Retire { .. } => "retire",
            Self::Restore { .. } => "restore",
        }
    }
}

impl Refusal {
    /// What to do about it.
    pub fn hint(&self) -> String {
        match self {
            Self::Beginning | Self::Time => "use the file as `hsm-kms keyring` wrote it".to_owned(),
            Self::Known(_) | Self::Unknown(_) | Self::State { .. } | Self::NotPlanned(_) => {
                "`hsm-kms keyring list` shows what there is".to_owned()
            }
            Self::TooMany => "retire those that nothing needs".to_owned(),
        }
    }
}

impl State {
    /// As the file writes it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Staged => "staged",
            Self::Active => "active",
            Self::Retired => "retired",
            Self::Destroyed => "destroyed",
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(self.word())
    }
}

impl RecordPath {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for RecordPath {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let is_name = |part: &str| !part.is_empty() && part != "." && part != "..";
        let is_line = text.len() <= 255 && !text.chars().any(char::is_control);
        if is_line && text.split('/').all(is_name) {
            Ok(Self(text.to_owned()))
        } else {
            Err("expected a path from the keyring's own folder on, such as kek-record.json, without . and ..")
        }
    }
}

impl fmt::Display for RecordPath {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(&self.0)
    }
}

impl<'de> Deserialize<'de> for RecordPath {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        strict::from_text(deserializer)
    }
}

impl Serialize for RecordPath {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

fn some_line<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    strict::line(deserializer).map(Some)
}
