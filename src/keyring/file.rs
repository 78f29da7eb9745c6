//! The keyring file, `keyring.json`: the KEKs of a cluster and their history, as a chain. docs/formats.md has the format.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::history::{Change, Entry, Event, Operator, Refusal, State, follow, settle};
use crate::cluster::Cluster;
use crate::record::{KekRecord, Sha256Digest, UtcTime};
use crate::strict::{self, Fault, FileError};

/// The KEKs of one cluster, and all that happened to them.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct KeyringFile {
    version: u64,
    cluster: Cluster,
    /// What the history adds up to, for whoever reads the file.
    keks: Vec<Entry>,
    history: Vec<Event>,
    /// Hash of the last event.
    head: Sha256Digest,
}

/// Why a keyring could not be changed.
#[derive(Debug, Error)]
pub enum ChangeError {
    /// The file, or a record, cannot be used.
    #[error(transparent)]
    File(#[from] FileError),
    /// It may not happen.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// Not written.
    #[error("{} cannot be written: {error}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// The operating system's reason.
        error: std::io::Error,
    },
}

impl ChangeError {
    /// What to do about it.
    pub fn hint(&self) -> String {
        match self {
            Self::File(error) => error.hint(),
            Self::Refused(refusal) => refusal.hint(),
            Self::Write { .. } => {
                "check the rights on the folder, its room, and that nobody else changes it".to_owned()
            }
        }
    }
}

impl KeyringFile {
    /// A keyring whose history has not begun.
    pub fn new(cluster: Cluster) -> Self {
        let head = beginning(&cluster);
        Self { version: VERSION, cluster, keks: Vec::new(), history: Vec::new(), head }
    }

    /// Reads the file strictly, and goes through its history.
    pub fn read(path: &Path) -> Result<Self, FileError> {
        let checked = strict::read_most(path, MAX_BYTES).and_then(|bytes| checked(&bytes));
        checked.map_err(|fault| FileError::new(WHAT, Some(path), fault))
    }

    /// The same with the SHA-256 of the file, unless that is `known`: then nothing more is done.
    pub fn read_other(path: &Path, known: Option<Sha256Digest>) -> Result<Option<(Self, Sha256Digest)>, FileError> {
        let read = || {
            let bytes = strict::read_most(path, MAX_BYTES)?;
            let digest = Sha256Digest::of(&bytes);
            if Some(digest) == known { Ok(None) } else { checked(&bytes).map(|file| Some((file, digest))) }
        };
        read().map_err(|fault| FileError::new(WHAT, Some(path), fault))
    }

    /// As [`KeyringFile::read`], for bytes that are not from a file.
    pub fn parse(bytes: &[u8]) -> Result<Self, FileError> {
        checked(bytes).map_err(|fault| FileError::new(WHAT, None, fault))
    }

    /// The cluster whose seeds the KEKs seal.
    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// All that happened.
    pub fn history(&self) -> &[Event] {
        &self.history
    }

    /// Hash of the last event.
    pub fn head(&self) -> Sha256Digest {
        self.head
    }

    /// The KEKs as they are at this time: what was planned for an earlier one has happened.
    pub fn at(&self, now: UtcTime) -> Vec<Entry> {
        let mut entries = self.keks.clone();
        settle(&mut entries, now);
        entries
    }

    /// When the next planned activation comes.
    pub fn planned(&self) -> Option<UtcTime> {
        self.keks.iter().find_map(|entry| entry.activate_at)
    }

    /// When a KEK last became active.
    pub fn last_activation(&self) -> Option<UtcTime> {
        let time = |event: &Event| match event.change {
            Change::Init { .. } => Some(event.time),
            Change::Activate { at, .. } => at.max(Some(event.time)),
            _ => None,
        };
        self.history.iter().filter_map(time).filter(|time| *time <= UtcTime::now()).max()
    }

    /// How many events came after the one with this hash. `None`: it is not of this history.
    pub fn events_after(&self, head: Sha256Digest) -> Option<usize> {
        if head == self.head {
            return Some(0);
        }
        let position = self.history.iter().position(|event| event.previous == head)?;
        Some(self.history.len() - position)
    }

    /// The same keyring after one more event, which happens now.
    pub fn after(&self, change: Change, reason: Option<String>) -> Result<Self, Refusal> {
        // A clock that was put back does not turn the order round.
        let time = self.history.last().map_or_else(UtcTime::now, |last| last.time.max(UtcTime::now()));
        let event = Event { time, by: operator(), change, reason, previous: self.head };
        let mut next = self.clone();
        follow(&mut next.keks, &event)?;
        next.head = hash(&event);
        next.history.push(event);
        Ok(next)
    }

    /// The file's text: the same keyring always gives the same bytes.
    pub fn to_json(&self) -> String {
        // Maps with text keys, texts and numbers: nothing that JSON could not say.
        serde_json::to_string_pretty(self).unwrap_or_default() + "\n"
    }

    /// Writes the file anew: all of it or nothing, whenever the machine stops.
    pub fn write(&self, path: &Path) -> Result<(), ChangeError> {
        replace(path, self.to_json().as_bytes()).map_err(|error| ChangeError::Write { path: path.to_owned(), error })
    }

    /// Reads the record of an entry, in the folder of the keyring at `path`, if its bytes are those of the entry.
    pub fn record(path: &Path, entry: &Entry) -> Result<KekRecord, FileError> {
        let place = folder(path).join(entry.record.as_str());
        let fault = |fault| FileError::new("KEK record", Some(&place), fault);
        let bytes = strict::read(&place).map_err(fault)?;
        if Sha256Digest::of(&bytes) != entry.record_sha256 {
            return Err(fault(Fault::Rule {
                field: "record_sha256",
                problem: "the file is not the one that the keyring names".to_owned(),
                hint: "put the record there that was staged, byte by byte".to_owned(),
            }));
        }
        KekRecord::parse(&bytes).map_err(|error| FileError { path: Some(place.clone()), ..error })
    }
}

/// Only one change at a time, by whichever command: held until it goes.
pub struct Lock(#[allow(dead_code, reason = "held")] File);

impl Lock {
    /// Waits for the folder of the keyring at `path`.
    pub fn take(path: &Path) -> Result<Self, ChangeError> {
        let taken = File::open(folder(path)).and_then(|folder| {
            flock(&folder, FlockOperation::LockExclusive)?;
            Ok(Self(folder))
        });
        taken.map_err(|error| ChangeError::Write { path: path.to_owned(), error })
    }
}

/// The folder that the records' paths begin in.
pub fn folder(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn checked(bytes: &[u8]) -> Result<KeyringFile, Fault> {
    let file: KeyringFile = strict::json_most(bytes, VERSION, MAX_BYTES)?;
    let rule = |field, problem: String| Fault::Rule {
        field,
        problem,
        hint: "use the file as `hsm-kms keyring` wrote it: copy it, do not edit it".to_owned(),
    };
    let (mut keks, mut head) = (Vec::new(), beginning(&file.cluster));
    let mut last: Option<UtcTime> = None;
    for event in &file.history {
        if event.previous != head {
            return Err(rule("history", "an event does not follow the one before it".to_owned()));
        }
        if last.is_some_and(|last| event.time < last) {
            return Err(rule("history", Refusal::Time.to_string()));
        }
        follow(&mut keks, event).map_err(|refusal| rule("history", refusal.to_string()))?;
        (head, last) = (hash(event), Some(event.time));
    }
    if head != file.head {
        return Err(rule("head", "it is not the hash of the last event".to_owned()));
    }
    if keks != file.keks {
        return Err(rule("keks", "the states are not what the history adds up to".to_owned()));
    }
    if !keks.iter().any(|entry| entry.state == State::Active) {
        return Err(rule("history", Refusal::Beginning.to_string()));
    }
    if file.to_json().as_bytes() != bytes {
        return Err(rule("version", "the file is not in the form that it was written in".to_owned()));
    }
    Ok(file)
}

/// What the first event names as the one before it.
fn beginning(cluster: &Cluster) -> Sha256Digest {
    Sha256Digest::of(format!("hsm-kms/keyring/v1 {cluster}").as_bytes())
}

/// Over the canonical form (RFC 8785) of the event, which names the one before.
fn hash(event: &Event) -> Sha256Digest {
    Sha256Digest::of(serde_json_canonicalizer::to_vec(event).unwrap_or_default())
}

fn operator() -> Operator {
    Operator { uid: rustix::process::getuid().as_raw(), host: host() }
}

/// Name of this machine.
pub(super) fn host() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

fn replace(path: &Path, content: &[u8]) -> std::io::Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".new");
    // One that a crash left behind is written over; the lock keeps others away.
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o644).open(&temporary)?;
    file.write_all(content)?;
    file.sync_all()?;
    std::fs::rename(&temporary, path)?;
    File::open(folder(path))?.sync_all()
}

const VERSION: u64 = 1;
const WHAT: &str = "keyring";

/// Most bytes of a keyring file: some thousand events.
const MAX_BYTES: usize = 1024 * 1024;
