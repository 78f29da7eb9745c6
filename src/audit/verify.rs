//! Whether the lines of files follow on each other, as a chain says.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::event::{LineHash, NONE};

/// Longest line, in bytes. Ours have less than 2 KiB.
pub(super) const LONGEST_LINE: usize = 64 * 1024;

/// A chain that holds.
#[derive(Debug, Default, Eq, PartialEq)]
pub struct Verified {
    /// Lines, over all files.
    pub lines: u64,
    /// What the first line names as the one before: it is in a file that was not given.
    pub begins_after: Option<String>,
    /// The last whole line: `sha256:` and its hash.
    pub head: Option<String>,
    /// Lines that tell of a torn line before them.
    pub torn: u64,
    /// How many lines were lost, as the log itself says.
    pub lost: u64,
    /// Bytes of the last line, if it has no end: it was just being written, or power or disk failed.
    pub unfinished: usize,
    /// Whether the line that was asked for is among them.
    pub has_head: bool,
}

/// The first line that does not fit.
#[derive(Debug, thiserror::Error)]
#[error("{}{}: {reason}", path.display(), if *line > 0 { format!(", line {line}") } else { String::new() })]
pub struct Fault {
    /// Its file.
    pub path: PathBuf,
    /// Its number, from 1. 0: it is the whole file.
    pub line: u64,
    /// What is wrong.
    pub reason: FaultReason,
}

/// What is wrong.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum FaultReason {
    #[error("it does not follow on the line before: one of the two was changed, or lines between them were taken away")]
    DoesNotFollow,
    #[error("it begins a new chain: what stood between was taken away, or the plugin did not know the file before")]
    Begins,
    #[error("it is no line of a chain: it was changed, or was written without audit.chain")]
    NoChain,
    #[error("it is no line of an audit log")]
    NoLine,
    #[error("it is torn, and the line after it does not say so")]
    Torn,
    #[error("it has more than {LONGEST_LINE} bytes")]
    TooLong,
    #[error("the file has no end of a line, and another file follows")]
    Unfinished,
    #[error("cannot be read: {0}")]
    System(#[from] io::Error),
}

#[derive(Deserialize)]
struct Line {
    event: String,
    previous: Option<String>,
    whole: Option<String>,
    lines: Option<u64>,
}

/// Follows the chain through the files, in the order that they were written in. `head`: a line that must be among them.
pub fn verify(paths: &[PathBuf], head: Option<&str>) -> Result<Verified, Fault> {
    let mut follower = Follower { verified: Verified::default(), last: None, fragment: None };
    for (number, path) in (1..).zip(paths) {
        follower.file(path, head, number == paths.len())?;
    }
    let Follower { mut verified, last, .. } = follower;
    verified.head = last.map(LineHash::text);
    Ok(verified)
}

struct Follower {
    verified: Verified,
    /// The line before.
    last: Option<LineHash>,
    /// The line before is no line: its number, and the line before it.
    fragment: Option<(u64, Option<LineHash>)>,
}

impl Follower {
    fn file(&mut self, path: &Path, head: Option<&str>, is_last: bool) -> Result<(), Fault> {
        let fault = |line, reason| Fault { path: path.to_owned(), line, reason };
        let mut reader = BufReader::new(File::open(path).map_err(|error| fault(0, error.into()))?);
        let mut bytes = Vec::new();
        for number in 1.. {
            bytes.clear();
            let most = LONGEST_LINE as u64 + 1;
            let read = reader.by_ref().take(most).read_until(b'\n', &mut bytes);
            if read.map_err(|error| fault(number, error.into()))? == 0 {
                break;
            }
            if bytes.pop_if(|byte| *byte == b'\n').is_none() {
                if bytes.len() > LONGEST_LINE {
                    return Err(fault(number, FaultReason::TooLong));
                }
                if !is_last {
                    return Err(fault(number, FaultReason::Unfinished));
                }
                self.verified.unfinished = bytes.len();
                break;
            }
            self.line(number, &bytes).map_err(|(line, reason)| fault(line, reason))?;
            let hash = LineHash::of(&bytes);
            self.last = Some(hash);
            self.verified.has_head |= head.is_some_and(|head| head == hash.text());
        }
        match self.fragment {
            Some((line, _)) => Err(fault(line, FaultReason::Torn)),
            None => Ok(()),
        }
    }

    fn line(&mut self, number: u64, bytes: &[u8]) -> Result<(), (u64, FaultReason)> {
        let fault = |reason| (number, reason);
        self.verified.lines += 1;
        let read = serde_json::from_slice::<Line>(bytes);
        let fragment = self.fragment.take();
        let Ok(line) = read else {
            // Only a torn line is none, and the one after it says so.
            if let Some((torn, _)) = fragment {
                return Err((torn, FaultReason::NoLine));
            }
            self.fragment = Some((number, self.last));
            return Ok(());
        };
        let previous = line.previous.ok_or_else(|| fault(FaultReason::NoChain))?;
        match self.last {
            None => self.verified.begins_after = Some(previous).filter(|previous| previous != NONE),
            Some(last) if previous == last.text() => {}
            Some(_) if previous == NONE => return Err(fault(FaultReason::Begins)),
            Some(_) => return Err(fault(FaultReason::DoesNotFollow)),
        }
        if let Some((torn, before)) = fragment {
            if line.event != "torn" {
                return Err((torn, FaultReason::Torn));
            }
            if line.whole != before.map(LineHash::text) {
                return Err(fault(FaultReason::DoesNotFollow));
            }
        }
        match line.event.as_str() {
            "torn" => self.verified.torn += 1,
            "lost" => self.verified.lost = self.verified.lost.saturating_add(line.lines.unwrap_or(0)),
            _ => {}
        }
        Ok(())
    }
}

impl Fault {
    /// Whether the file could not be read at all.
    pub fn is_unreadable(&self) -> bool {
        matches!(self.reason, FaultReason::System(_))
    }
}

#[cfg(test)]
mod tests;
