//! The audit log: who asked for what, which token did it, and what became of it. One JSON line for each event; docs/audit.md has the
//! format. Never a secret, never a ciphertext.
//!
//! A thread of its own writes, behind a bounded queue: no request waits for the disk, unless the operator wants exactly that.

mod event;
mod file;
mod verify;
mod writer;

use std::path::PathBuf;
use std::str::FromStr;
use std::sync::OnceLock;
use std::time::Duration;

use serde::Deserialize;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};

pub use self::event::{Event, LoginOutcome, Rpc};
pub use self::file::OpenError;
pub use self::verify::{Fault, Verified, verify};
use self::writer::Writer;
use crate::strict::AbsolutePath;

/// Where the lines go, and what follows when they cannot.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Settings {
    /// Where the lines go.
    pub to: Destination,
    /// Each line names the one before.
    pub chain: bool,
    /// What becomes of requests whose lines cannot be written.
    pub on_full: OnFull,
}

/// Where the lines go.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Destination {
    /// To this file. An absolute path.
    File(PathBuf),
    /// To standard output, which systemd and container runtimes take into their journal.
    Journal,
}

/// What becomes of a request whose line cannot be written.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "lowercase")]
pub enum OnFull {
    /// It is answered, and the lost line is counted.
    #[default]
    Continue,
    /// It is answered with `UNAVAILABLE`.
    Stop,
}

/// Whether a request may be answered now.
#[derive(Debug)]
pub struct Written(Option<oneshot::Receiver<bool>>);

/// Why a request is not answered: the text is public.
pub const REFUSAL: &str = "the audit log cannot be written, and audit.on_full is stop";

/// Longest wait at the end for what is still in the queue.
const STOP_LIMIT: Duration = Duration::from_secs(1);

static LOG: OnceLock<Writer> = OnceLock::new();

/// Opens the log and starts its thread; without settings, nothing is written. Call once.
pub fn start(settings: Option<&Settings>) -> Result<(), OpenError> {
    let Some(settings) = settings else { return Ok(()) };
    let writer = Writer::start(settings)?;
    // A second call would be a mistake of ours, and changes nothing.
    drop(LOG.set(writer));
    Ok(())
}

/// Writes a line, if there is an audit log. Does not wait.
pub fn record(event: impl FnOnce() -> Event) {
    if let Some(log) = LOG.get() {
        log.send(event(), None);
    }
}

/// Writes the line of a request. Its answer must wait for what is returned.
pub fn request(event: impl FnOnce() -> Event) -> Written {
    let Some(log) = LOG.get() else { return Written(None) };
    if log.on_full == OnFull::Continue {
        log.send(event(), None);
        return Written(None);
    }
    let (answer, written) = oneshot::channel();
    log.send(event(), Some(answer));
    Written(Some(written))
}

impl Written {
    /// Waits for the line, where the operator wants that. Whether the request may be answered.
    pub async fn wait(self, deadline: Instant) -> bool {
        let Some(written) = self.0 else { return true };
        let written = timeout_at(deadline, written).await;
        if let (Err(_), Some(log)) = (&written, LOG.get()) {
            log.hangs();
        }
        matches!(written, Ok(Ok(true)))
    }
}

/// Whether requests are refused now, since their lines could not be written.
pub fn refuses() -> bool {
    LOG.get().is_some_and(|log| log.on_full == OnFull::Stop && !log.is_writing())
}

/// Whether lines are written now. `None`: there is no audit log.
pub fn is_writing() -> Option<bool> {
    LOG.get().map(Writer::is_writing)
}

/// Opens the file again: another may stand under its path.
pub fn reopen() {
    if let Some(log) = LOG.get() {
        log.reopen();
    }
}

/// Writes the last line, and waits until all lines are written, but not for long.
pub fn stop() {
    if let Some(log) = LOG.get() {
        log.stop(STOP_LIMIT);
    }
}

impl FromStr for Destination {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "journal" {
            return Ok(Self::Journal);
        }
        let path = text.parse::<AbsolutePath>();
        path.map(|AbsolutePath(path)| Self::File(path)).map_err(|_| "expected an absolute path to a file, or `journal`")
    }
}

/// Whether this is the hash of a line, as the chain writes it.
pub fn is_hash(text: &str) -> bool {
    event::LineHash::parse(text).is_some()
}
