//! The transcript, `transcript.jsonl`: what happened at a ceremony, as a hash chain; docs/formats.md has the format.

mod chain;
mod event;
mod kind;
#[cfg(test)]
mod tests;
mod writer;

use thiserror::Error;

use self::chain::Chain;
pub use self::event::{Event, EventKind, Problem};
pub use self::kind::CeremonyKind;
pub use self::writer::{Opening, Transcript, TranscriptError};
use crate::record::Sha256Digest;

/// Name of the file in the ceremony's directory.
pub const TRANSCRIPT_FILE: &str = "transcript.jsonl";

/// Most bytes of a line, with its newline.
pub const MAX_LINE_BYTES: usize = 64 * 1024;

/// Most bytes of a transcript.
pub const MAX_TRANSCRIPT_BYTES: usize = 16 * 1024 * 1024;

/// Deepest nesting within a line: the line itself is the first level.
pub const MAX_DEPTH: usize = 32;

/// Why bytes are no transcript.
#[derive(Debug, Eq, Error, PartialEq)]
#[error("line {line}: {problem}")]
pub struct TranscriptFault {
    /// The line, from 1.
    pub line: usize,
    /// What is wrong with it.
    pub problem: Problem,
}

/// The events of a whole transcript: each byte is as it was written, for a plan of this digest, and the ceremony closed.
pub fn verify(bytes: &[u8], plan: &Sha256Digest) -> Result<Vec<Event>, TranscriptFault> {
    let (chain, events) = read(bytes, plan)?;
    if chain.is_closed() { Ok(events) } else { Err(fault(events.len(), Problem::NotClosed)) }
}

/// The events of a transcript that may still go on.
fn read(bytes: &[u8], plan: &Sha256Digest) -> Result<(Chain, Vec<Event>), TranscriptFault> {
    if bytes.len() > MAX_TRANSCRIPT_BYTES {
        return Err(fault(0, Problem::TranscriptTooLong));
    }
    let (mut chain, mut events) = (Chain::new(*plan), Vec::new());
    for line in bytes.split_inclusive(|byte| *byte == b'\n') {
        events.push(chain.admit(line).map_err(|problem| fault(events.len(), problem))?);
    }
    Ok((chain, events))
}

fn fault(lines_before: usize, problem: Problem) -> TranscriptFault {
    TranscriptFault { line: lines_before + 1, problem }
}
