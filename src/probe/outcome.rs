//! What came of one thing that was tried, as one short text: reports and expectations compare it word by word.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::pkcs11::{Error, codes};
use crate::profile;

/// What came of one thing that was tried. Its text is the verdict's word, and a colon and the detail where there is one.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct Outcome {
    /// Which kind.
    pub verdict: Verdict,
    /// `C_Encrypt CKR_MECHANISM_INVALID`, or words.
    pub detail: String,
}

/// The kinds of outcome.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Verdict {
    /// It did what it should.
    Works,
    /// A PKCS#11 function returned a code.
    Refused,
    /// It did something, but not what it should.
    Differs,
    /// The process that tried it died.
    Crashed,
    /// There was no answer within the limit.
    Hung,
    /// It was not tried.
    Untried,
}

impl Outcome {
    /// It did what it should.
    pub const WORKS: Self = Self { verdict: Verdict::Works, detail: String::new() };

    pub(super) fn differs(what: impl Into<String>) -> Self {
        Self { verdict: Verdict::Differs, detail: what.into() }
    }

    pub(super) fn refused(function: &str, code: u64) -> Self {
        Self { verdict: Verdict::Refused, detail: format!("{function} {}", codes::name(code)) }
    }

    pub(super) fn untried(why: impl Into<String>) -> Self {
        Self { verdict: Verdict::Untried, detail: why.into() }
    }

    /// What a call came to.
    pub(super) fn of<T>(result: &Result<T, Error>) -> Self {
        result.as_ref().err().map_or(Self::WORKS, Self::from)
    }

    /// What came of something that must be refused, if it was `what` that happened otherwise.
    pub(super) fn of_forbidden<T>(result: &Result<T, Error>, what: &str) -> Self {
        result.as_ref().err().map_or_else(|| Self::differs(what), Self::from)
    }

    /// Whether it did what it should.
    pub fn works(&self) -> bool {
        self.verdict == Verdict::Works
    }

    /// Whether a function returned a code, other than for a token that went away.
    pub fn is_refusal(&self) -> bool {
        self.verdict == Verdict::Refused
    }

    /// The function that refused, and its code.
    pub fn call(&self) -> Option<(&str, u64)> {
        let (function, code) = self.detail.split_once(' ').filter(|_| self.verdict == Verdict::Refused)?;
        let hex = || u64::from_str_radix(code.strip_prefix("0x")?, 16).ok();
        Some((function, profile::code_number(code).or_else(hex)?))
    }
}

impl From<&Error> for Outcome {
    fn from(error: &Error) -> Self {
        match error {
            // The call succeeded, and what it gave cannot be right.
            Error::Call { function, code: codes::WRONG_LENGTH, .. } => {
                Self::differs(format!("{function} gave another length"))
            }
            Error::Call { function, code, .. } => Self::refused(function, *code),
            // Behind the semicolon it goes on about the profile.
            Error::Sealing { what } => Self::differs(what.split(';').next().unwrap_or(what)),
            other => Self::differs(other.to_string()),
        }
    }
}

const WORDS: [(Verdict, &str); 6] = [
    (Verdict::Works, "works"),
    (Verdict::Refused, "refused"),
    (Verdict::Differs, "differs"),
    (Verdict::Crashed, "crashed"),
    (Verdict::Hung, "hung"),
    (Verdict::Untried, "untried"),
];

impl Verdict {
    /// The word for it.
    pub fn word(self) -> &'static str {
        WORDS.into_iter().find(|(verdict, _)| *verdict == self).map_or("", |(_, word)| word)
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = self.verdict.word();
        if self.detail.is_empty() { formatter.write_str(word) } else { write!(formatter, "{word}: {}", self.detail) }
    }
}

impl FromStr for Outcome {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (word, detail) = text.split_once(": ").unwrap_or((text, ""));
        let verdict = WORDS.into_iter().find(|(_, known)| *known == word).map(|(verdict, _)| verdict);
        let verdict = verdict.ok_or_else(|| format!("{text:?} is no outcome"))?;
        Ok(Self { verdict, detail: detail.to_owned() })
    }
}

impl TryFrom<String> for Outcome {
    type Error = String;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Outcome> for String {
    fn from(outcome: Outcome) -> Self {
        outcome.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::class::Class;

    #[test]
    fn an_outcome_comes_back_from_its_text() {
        for text in ["works", "refused: C_Encrypt CKR_DEVICE_ERROR", "hung: 2 s", "differs: a: b"] {
            assert_eq!(text.parse::<Outcome>().unwrap().to_string(), text);
        }
        "perhaps".parse::<Outcome>().unwrap_err();
    }

    #[test]
    fn a_refusal_names_function_and_code() {
        let error = |code| Error::Call { function: "C_Decrypt".to_owned(), code, class: Class::Gone, poisoned: true };
        for code in [cryptoki_sys::CKR_GENERAL_ERROR, 0x8000_0123] {
            let outcome = Outcome::from(&error(code)).to_string().parse::<Outcome>().unwrap();
            assert_eq!(outcome.call(), Some(("C_Decrypt", code)), "{outcome}");
        }
        assert_eq!(Outcome::from(&error(codes::WRONG_LENGTH)).verdict, Verdict::Differs);
        assert_eq!(Outcome::WORKS.call(), None);
    }
}
