//! Writing a transcript: every event is on the disk before the ceremony goes on.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use rustix::time::{ClockId, clock_gettime};
use serde_json::{Map, Value};
use thiserror::Error;

use super::chain::{Chain, canonical, check_values};
use super::{
    CeremonyKind, Event, EventKind, MAX_DEPTH, MAX_TRANSCRIPT_BYTES, Problem, TRANSCRIPT_FILE, TranscriptFault, read,
};
use crate::record::{CeremonyId, Sha256Digest, UtcTime};

/// A transcript that is being written, by this process and no other.
#[derive(Debug)]
pub struct Transcript {
    file: File,
    path: PathBuf,
    chain: Chain,
    head: Sha256Digest,
    bytes: usize,
    state: State,
}

#[derive(Debug, Eq, PartialEq)]
enum State {
    /// The next event may come.
    Ready,
    /// It was interrupted, and does not say so yet.
    Interrupted,
    /// Part of an event may be in the file.
    Failed,
}

/// Why an event was not written.
#[derive(Debug, Error)]
pub enum TranscriptError {
    /// A transcript is there already.
    #[error("{} is there already", path.display())]
    Exists {
        /// Where it lies.
        path: PathBuf,
    },
    /// Another process writes it.
    #[error("{} is in use by another process", path.display())]
    InUse {
        /// Where it lies.
        path: PathBuf,
    },
    /// The file that is there is no transcript of this plan.
    #[error("{}: {fault}", path.display())]
    Fault {
        /// Where it lies.
        path: PathBuf,
        /// What is wrong with it.
        fault: TranscriptFault,
    },
    /// The ceremony stopped before its first event was written.
    #[error("{}: there is no event", path.display())]
    Empty {
        /// Where it lies.
        path: PathBuf,
    },
    /// The ceremony ended.
    #[error("{}: this ceremony is closed", path.display())]
    Closed {
        /// Where it lies.
        path: PathBuf,
    },
    /// This event may not come next: a mistake in the program.
    #[error("{}: an event of kind {kind} may not come next: {problem}", path.display())]
    Refused {
        /// Where it lies.
        path: PathBuf,
        /// The event's kind.
        kind: EventKind,
        /// Which rule it breaks.
        problem: Problem,
    },
    /// An interrupted transcript says first that it goes on.
    #[error("{}: it was interrupted, and does not say so yet", path.display())]
    NotResumed {
        /// Where it lies.
        path: PathBuf,
    },
    /// An earlier event could not be written.
    #[error("{}: an earlier event could not be written", path.display())]
    Failed {
        /// Where it lies.
        path: PathBuf,
    },
    /// The system failed.
    #[error("{}: {source}", path.display())]
    System {
        /// Where it lies.
        path: PathBuf,
        /// The system's words.
        source: io::Error,
    },
}

impl TranscriptError {
    /// What to do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Exists { .. } => "resume that ceremony, or name an empty directory under output in the plan",
            Self::InUse { .. } => "let that ceremony end first",
            Self::Fault { .. } => {
                "a transcript that does not hold is never continued; keep it, and hold a new ceremony"
            }
            Self::Empty { .. } => "nothing has happened: empty the directory, and begin again without --resume",
            Self::Closed { .. } => "check it with `hsm-kms ceremony verify-record`",
            Self::Refused { .. } | Self::NotResumed { .. } => "report this",
            Self::Failed { .. } | Self::System { .. } => {
                "mend the disk or make room on it, then resume the ceremony; an event that was cut short is removed then"
            }
        }
    }
}

impl Transcript {
    /// Begins a transcript in this directory, which has none yet.
    pub fn create(directory: &Path, opening: &Opening) -> Result<Self, TranscriptError> {
        let path = directory.join(TRANSCRIPT_FILE);
        let mut options = OpenOptions::new();
        let created = options.append(true).read(true).create_new(true).mode(0o644).open(&path);
        let file = created.map_err(|source| match source.kind() {
            io::ErrorKind::AlreadyExists => TranscriptError::Exists { path: path.clone() },
            _ => TranscriptError::System { path: path.clone(), source },
        })?;
        let mut transcript = Self::locked(file, &path, &opening.plan_sha256)?;
        let begun = transcript.append("opened", EventKind::Opened, opening.data()).and_then(|_| {
            let synced = File::open(directory).and_then(|directory| directory.sync_all());
            synced.map_err(|source| TranscriptError::System { path: path.clone(), source })
        });
        begun.map(|()| transcript).inspect_err(|_| {
            // Nothing has happened yet; what is not whole must not stand in the way of a new start.
            let _ = std::fs::remove_file(&path);
        })
    }

    /// Goes on with an interrupted transcript, which must hold: its events, and how many bytes of an event that was cut short
    /// were removed from its end. The first event to append is `resumed`.
    pub fn resume(directory: &Path, plan: &Sha256Digest) -> Result<(Self, Vec<Event>, usize), TranscriptError> {
        let path = directory.join(TRANSCRIPT_FILE);
        let system = |source| TranscriptError::System { path: path.clone(), source };
        let opened = OpenOptions::new().append(true).read(true).open(&path);
        let file = opened.map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => TranscriptError::Empty { path: path.clone() },
            _ => system(source),
        })?;
        let mut transcript = Self::locked(file, &path, plan)?;
        let mut bytes = read_limited(&transcript.file).map_err(system)?;
        if bytes.len() > MAX_TRANSCRIPT_BYTES {
            // Only the beginning was read, so nothing may be cut off.
            let fault = TranscriptFault { line: 1, problem: Problem::TranscriptTooLong };
            return Err(TranscriptError::Fault { path, fault });
        }
        let torn = torn_bytes(&bytes);
        bytes.truncate(bytes.len() - torn);
        let (chain, events) =
            read(&bytes, plan).map_err(|fault| TranscriptError::Fault { path: path.clone(), fault })?;
        if chain.is_closed() {
            return Err(TranscriptError::Closed { path });
        }
        transcript.head = chain.head().ok_or_else(|| TranscriptError::Empty { path: path.clone() })?;
        if torn > 0 {
            let whole = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
            transcript.file.set_len(whole).and_then(|()| transcript.file.sync_all()).map_err(system)?;
        }
        (transcript.chain, transcript.bytes, transcript.state) = (chain, bytes.len(), State::Interrupted);
        Ok((transcript, events, torn))
    }

    /// The events of the transcript in this directory, if the ceremony closed; it must hold as far as it goes.
    pub fn closed_events(directory: &Path, plan: &Sha256Digest) -> Result<Option<Vec<Event>>, TranscriptError> {
        let path = directory.join(TRANSCRIPT_FILE);
        let system = |source| TranscriptError::System { path: path.clone(), source };
        let mut bytes = File::open(&path).and_then(|file| read_limited(&file)).map_err(system)?;
        if bytes.len() <= MAX_TRANSCRIPT_BYTES {
            bytes.truncate(bytes.len() - torn_bytes(&bytes));
        }
        let (chain, events) =
            read(&bytes, plan).map_err(|fault| TranscriptError::Fault { path: path.clone(), fault })?;
        Ok(chain.is_closed().then_some(events))
    }

    /// Writes an event. When this returns it is on the disk, and what is returned is its hash. After an error nothing more can
    /// be appended but by resuming.
    pub fn append(
        &mut self,
        step: &str,
        kind: EventKind,
        data: Map<String, Value>,
    ) -> Result<Sha256Digest, TranscriptError> {
        let path = || self.path.clone();
        match self.state {
            State::Failed => return Err(TranscriptError::Failed { path: path() }),
            State::Interrupted if kind != EventKind::Resumed => {
                return Err(TranscriptError::NotResumed { path: path() });
            }
            State::Interrupted | State::Ready => {}
        }
        let mut chain = self.chain.clone();
        let admitted = line(&chain, step, kind, data).and_then(|line| {
            if self.bytes + line.len() > MAX_TRANSCRIPT_BYTES {
                return Err(Problem::TranscriptTooLong);
            }
            Ok((chain.admit(&line)?.hash, line))
        });
        let (head, line) = admitted.map_err(|problem| TranscriptError::Refused { path: path(), kind, problem })?;
        if let Err(source) = self.file.write_all(&line).and_then(|()| self.file.sync_all()) {
            let path = path();
            self.state = State::Failed;
            return Err(TranscriptError::System { path, source });
        }
        (self.chain, self.head, self.bytes, self.state) = (chain, head, self.bytes + line.len(), State::Ready);
        Ok(head)
    }

    /// Hash of the last event.
    pub fn head(&self) -> Sha256Digest {
        self.head
    }

    /// The file, locked for as long as it is open.
    fn locked(file: File, path: &Path, plan: &Sha256Digest) -> Result<Self, TranscriptError> {
        flock(&file, FlockOperation::NonBlockingLockExclusive).map_err(|errno| match errno {
            rustix::io::Errno::WOULDBLOCK => TranscriptError::InUse { path: path.to_owned() },
            errno => TranscriptError::System { path: path.to_owned(), source: errno.into() },
        })?;
        let (chain, head, state) = (Chain::new(*plan), Sha256Digest([0; 32]), State::Ready);
        Ok(Self { file, path: path.to_owned(), chain, head, bytes: 0, state })
    }

    /// A transcript on a file of any kind, such as a disk that is full.
    #[cfg(test)]
    pub(super) fn on(file: File, plan: &Sha256Digest) -> Self {
        Self::locked(file, Path::new("transcript"), plan).unwrap()
    }
}

/// How a transcript begins.
#[derive(Clone, Debug)]
pub struct Opening {
    /// Random name of the ceremony.
    pub ceremony_id: CeremonyId,
    /// What it is held for.
    pub kind: CeremonyKind,
    /// SHA-256 of `plan.lock.json`.
    pub plan_sha256: Sha256Digest,
    /// Program and version.
    pub tool: String,
    /// SHA-256 of the program's file.
    pub tool_sha256: Sha256Digest,
}

impl Opening {
    fn data(&self) -> Map<String, Value> {
        let Self { ceremony_id, kind, plan_sha256, tool, tool_sha256 } = self;
        let data = [
            ("ceremony_id", ceremony_id.to_string()),
            ("kind", kind.word().to_owned()),
            ("plan_sha256", plan_sha256.to_string()),
            ("tool", tool.clone()),
            ("tool_sha256", tool_sha256.to_string()),
        ];
        data.into_iter().map(|(name, value)| (name.to_owned(), value.into())).collect()
    }
}

/// The whole file, or one byte more than a transcript has.
fn read_limited(file: &File) -> io::Result<Vec<u8>> {
    let (mut bytes, limit) = (Vec::new(), u64::try_from(MAX_TRANSCRIPT_BYTES).unwrap_or(u64::MAX));
    file.take(limit + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The line of an event that happens now.
fn line(chain: &Chain, step: &str, kind: EventKind, data: Map<String, Value>) -> Result<Vec<u8>, Problem> {
    let now = clock_gettime(ClockId::Monotonic);
    let milliseconds = now.tv_sec.saturating_mul(1000).saturating_add(now.tv_nsec / 1_000_000);
    let mut event = Event {
        data,
        hash: Sha256Digest([0; 32]),
        kind,
        monotonic_ms: u64::try_from(milliseconds).unwrap_or(0),
        seq: chain.next(),
        step: step.to_owned(),
        time: UtcTime::now(),
    };
    let mut content = serde_json::to_value(&event).map_err(|error| Problem::NotAnEvent(error.to_string()))?;
    check_values(&content, MAX_DEPTH)?;
    let hash = content.as_object_mut().and_then(|content| content.remove("hash"));
    event.hash = chain.hash(&event, &canonical(&content)?)?;
    if let (Some(content), Some(_)) = (content.as_object_mut(), hash) {
        content.insert("hash".to_owned(), event.hash.to_string().into());
    }
    let mut line = canonical(&content)?;
    line.push(b'\n');
    Ok(line)
}

/// How many bytes at the end are an event that was cut short: without its newline, or no JSON.
fn torn_bytes(bytes: &[u8]) -> usize {
    let Some(last) = bytes.split_inclusive(|byte| *byte == b'\n').next_back() else { return 0 };
    let is_whole = last.ends_with(b"\n") && serde_json::from_slice::<serde::de::IgnoredAny>(last).is_ok();
    if is_whole { 0 } else { last.len() }
}
