//! What is written down, and how a line looks. Frozen: docs/audit.md has each field.

use std::fmt::Write;

use serde::Serialize;
use sha2::{Digest, Sha256};

/// What happened.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
#[allow(missing_docs, reason = "docs/audit.md has each field")]
pub enum Event {
    /// The plugin began.
    Start { version: &'static str, cluster: String, pid: u32 },
    /// A keyring is served from now on.
    Keyring { key_id_hash: String, epoch: u64, keks: usize },
    /// A changed keyring file is not served.
    KeyringRefused { reason: String },
    /// An RPC ended.
    Encrypt(Rpc),
    /// An RPC ended.
    Decrypt(Rpc),
    /// A worker tried to log in.
    Login { token: String, position: u64, outcome: LoginOutcome, failure: Option<String> },
    /// Requests go to another token, since one failed.
    Failover { from: String, from_position: usize, to: String, to_position: usize },
    /// Requests go back to a token that stands further in front.
    Return { from: String, from_position: usize, to: String, to_position: usize },
    /// Connections were refused: how many since the last such line, and the last of them.
    Denied { connections: u64, reason: &'static str, peer_uid: Option<u32>, peer_pid: Option<i32> },
    /// This file follows on another.
    Reopened,
    /// Lines could not be written before this one.
    Lost { lines: u64 },
    /// The line before this one is torn: it was being written when power or disk failed.
    Torn { bytes: usize, whole: Option<String> },
    /// The plugin ended.
    Stop,
}

/// An RPC, but for what is secret.
#[derive(Clone, Debug, Serialize)]
#[allow(missing_docs, reason = "docs/audit.md has each field")]
pub struct Rpc {
    pub uid: String,
    pub key_id_hash: String,
    pub code: String,
    pub token: Option<String>,
    pub position: Option<usize>,
    pub duration_us: u64,
    pub peer_uid: Option<u32>,
    pub peer_pid: Option<i32>,
}

/// What became of a login.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LoginOutcome {
    /// The token took the PIN.
    Passed,
    /// The token said no.
    Refused,
    /// It ended without an answer: nobody knows whether the token counted it.
    Unknown,
}

impl LoginOutcome {
    /// As the line has it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Passed => "passed",
            Self::Refused => "refused",
            Self::Unknown => "unknown",
        }
    }
}

/// SHA-256 of a line, without its end.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct LineHash(pub(super) [u8; 32]);

#[derive(Serialize)]
struct Line<'a> {
    time: String,
    #[serde(flatten)]
    event: &'a Event,
    #[serde(skip_serializing_if = "Option::is_none")]
    previous: Option<String>,
}

/// What the first line of a chain names as the one before.
pub(super) const NONE: &str = "none";

impl Event {
    /// The line of this event, without its end. `previous`: in a chain, the line before.
    pub(super) fn line(&self, time: jiff::Timestamp, previous: Option<String>) -> String {
        let line = Line { time: format!("{time:.6}"), event: self, previous };
        // Texts and numbers: nothing that JSON could not say.
        plain(&serde_json::to_string(&line).unwrap_or_default())
    }
}

impl LineHash {
    pub(super) fn of(line: &[u8]) -> Self {
        Self(Sha256::digest(line).into())
    }

    pub(super) fn text(self) -> String {
        format!("sha256:{}", data_encoding::HEXLOWER.encode(&self.0))
    }

    pub(super) fn parse(text: &str) -> Option<Self> {
        let bytes = data_encoding::HEXLOWER.decode(text.strip_prefix("sha256:")?.as_bytes()).ok()?;
        bytes.try_into().ok().map(Self)
    }
}

/// The same JSON in printable ASCII: what a peer sends must not change how a terminal shows the line.
fn plain(json: &str) -> String {
    if json.bytes().all(|byte| matches!(byte, b' '..=b'~')) {
        return json.to_owned();
    }
    let mut text = String::with_capacity(json.len() * 2);
    for character in json.chars() {
        if matches!(character, ' '..='~') {
            text.push(character);
        } else {
            // Only within texts: what else JSON consists of is ASCII.
            for unit in character.encode_utf16(&mut [0; 2]) {
                let _ = write!(text, "\\u{unit:04x}");
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decrypt(uid: &str) -> Event {
        Event::Decrypt(Rpc {
            uid: uid.to_owned(),
            key_id_hash: "sha256:00".to_owned(),
            code: "OK".to_owned(),
            token: Some("kek".to_owned()),
            position: Some(0),
            duration_us: 417,
            peer_uid: Some(0),
            peer_pid: Some(812),
        })
    }

    #[test]
    fn a_line_looks_as_the_document_says() {
        let time = "2026-12-01T09:30:00.123456Z".parse().unwrap();
        let line = decrypt("5b1f6a8e").line(time, Some(LineHash([7; 32]).text()));
        let document = include_str!("../../docs/audit.md");
        assert!(document.contains(&format!("```json\n{line}\n```")), "{line}");
        assert!(Event::Stop.line(time, Some(NONE.to_owned())).ends_with(r#""event":"stop","previous":"none"}"#));
        assert!(Event::Stop.line(time, None).ends_with(r#""event":"stop"}"#));
    }

    #[test]
    fn whatever_a_peer_sends_stays_one_line_of_printable_ascii() {
        let time = jiff::Timestamp::now();
        for uid in ["a\nb", "\u{1b}[2J", "\u{202e}\u{7f}", "\"},{\"", "\u{1f511}", "\0", "\\"] {
            let line = decrypt(uid).line(time, None);
            assert!(line.bytes().all(|byte| matches!(byte, b' '..=b'~')), "{line}");
            let read: serde_json::Value = serde_json::from_str(&line).unwrap();
            assert_eq!(read["uid"], uid);
        }
    }
}
