//! What both documents have on their first page, and on every one.

use std::fmt;

use askama::filters::HtmlSafe;

use super::super::transcript::CeremonyKind;
use super::super::{Plan, WitnessedPlan, words};
use crate::record::{CkaId, Sha256Digest};
use crate::recovery::Fingerprint;

/// The frame of a document.
pub(super) struct Frame<'a> {
    /// What the document is.
    pub(super) title: &'static str,
    /// The cluster that the KEK is for.
    pub(super) cluster: &'a str,
    /// What it is held for.
    pub(super) kind: CeremonyKind,
    /// Digest of the plan.
    pub(super) plan: Hex,
    /// The first digits of it, at the foot of every page.
    pub(super) plan_begin: String,
    /// The plan's twelve words.
    pub(super) plan_words: Vec<String>,
}

impl<'a> Frame<'a> {
    pub(super) fn new(title: &'static str, plan: &'a Plan, witnessed: &WitnessedPlan, kind: CeremonyKind) -> Self {
        let digest = witnessed.lock.digest;
        Self {
            title,
            cluster: plan.cluster.as_str(),
            kind,
            plan: Hex::of(digest),
            plan_begin: digest.to_string().chars().take(8).collect(),
            plan_words: split_words(&digest),
        }
    }
}

impl Frame<'_> {
    /// What must not be overlooked, for the first page.
    pub(super) fn notice(&self) -> &'static str {
        match self.kind {
            CeremonyKind::Production => "",
            CeremonyKind::Rehearsal => "No key of this ceremony may protect a cluster: its token is thrown away.",
            CeremonyKind::Destruction => {
                "This ceremony makes no key. What the key below has sealed, nothing opens afterwards."
            }
        }
    }
}

/// The twelve words of a digest, one by one.
pub(super) fn split_words(digest: &Sha256Digest) -> Vec<String> {
    words(digest).split(' ').map(str::to_owned).collect()
}

/// Where the key material comes from.
pub(super) fn origin(witnessed: &WitnessedPlan) -> String {
    match witnessed.import {
        None => "generated in the token".to_owned(),
        Some(import) => {
            format!("made outside the token and imported; {} of {} shares restore it", import.threshold, import.shares)
        }
    }
}

/// Hex digits in groups of eight, between which a line may break. Marked as HTML: nothing but digits comes in.
pub(super) struct Hex(String);

impl Hex {
    pub(super) fn of(bytes: impl Bytes) -> Self {
        Self(data_encoding::HEXLOWER.encode(bytes.bytes()))
    }
}

/// What is shown in hex.
pub(super) trait Bytes {
    fn bytes(&self) -> &[u8];
}

impl Bytes for Sha256Digest {
    fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl Bytes for Fingerprint {
    fn bytes(&self) -> &[u8] {
        self.as_bytes()
    }
}

impl Bytes for CkaId {
    fn bytes(&self) -> &[u8] {
        self.as_bytes()
    }
}

// Templates pass references on.
impl<T: Bytes> Bytes for &T {
    fn bytes(&self) -> &[u8] {
        (*self).bytes()
    }
}

impl fmt::Display for Hex {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("<span class=\"hex\">")?;
        for (position, digit) in self.0.chars().enumerate() {
            match position {
                0 => formatter.write_str("<span>")?,
                _ if position % GROUP == 0 => formatter.write_str("</span><wbr><span>")?,
                _ => {}
            }
            write!(formatter, "{digit}")?;
        }
        formatter.write_str("</span></span>")
    }
}

impl HtmlSafe for Hex {}

/// Digits that an eye takes in at once.
const GROUP: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_stand_in_groups() {
        let id = CkaId::new(&[0xab; 6]).unwrap();
        assert_eq!(Hex::of(&id).to_string(), "<span class=\"hex\"><span>abababab</span><wbr><span>abab</span></span>");
    }
}
