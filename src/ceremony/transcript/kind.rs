//! What a ceremony is held for.

use std::str::FromStr;

/// What a ceremony that people hold is for. A trial has no transcript.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum CeremonyKind {
    /// Makes a KEK for a real cluster.
    Production,
    /// Does the same on a token that is thrown away.
    Rehearsal,
    /// Destroys a KEK.
    Destruction,
}

impl FromStr for CeremonyKind {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let all = [Self::Production, Self::Rehearsal, Self::Destruction];
        all.into_iter().find(|kind| kind.word() == text).ok_or("expected production, rehearsal or destruction")
    }
}

impl CeremonyKind {
    /// As files write it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Production => "production",
            Self::Rehearsal => "rehearsal",
            Self::Destruction => "destruction",
        }
    }

    /// What stands on every page that is printed, and on every screen.
    pub fn stamp(self) -> Option<&'static str> {
        match self {
            Self::Production => None,
            Self::Rehearsal => Some("REHEARSAL"),
            Self::Destruction => Some("DESTRUCTION"),
        }
    }
}
