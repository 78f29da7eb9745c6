//! What came of one thing that `hsm-kms doctor` looked at: a verdict, what was found, and what to do about it.

use serde::Serialize;

/// One thing that is looked at.
#[derive(Debug, Eq, PartialEq)]
pub struct Check {
    /// Its name for machines, unique among all.
    pub name: &'static str,
    /// Its name for people, at most 17 characters.
    pub title: &'static str,
    /// Why it matters, in one sentence.
    pub why: &'static str,
}

/// What came of it.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// It holds.
    Ok,
    /// It was not looked at; the finding says why.
    NotChecked,
    /// It holds for now, or less than it should.
    Warning,
    /// It does not hold.
    Failed,
}

/// One row of the table.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Finding {
    /// What was looked at.
    pub check: &'static Check,
    /// Which one of several, such as one of two tokens.
    pub subject: Option<String>,
    /// What came of it.
    pub verdict: Verdict,
    /// What was found, or why nothing was.
    pub found: String,
    /// What to do.
    pub advice: Option<String>,
}

impl Verdict {
    /// In a word or two.
    pub fn words(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::NotChecked => "not checked",
            Self::Warning => "warning",
            Self::Failed => "failed",
        }
    }
}

impl Finding {
    /// It holds.
    pub fn ok(check: &'static Check, found: impl AsRef<str>) -> Self {
        Self { check, subject: None, verdict: Verdict::Ok, found: one_line(found.as_ref()), advice: None }
    }

    /// It holds for now, or less than it should.
    pub fn warning(check: &'static Check, found: impl AsRef<str>, advice: impl AsRef<str>) -> Self {
        Self { verdict: Verdict::Warning, advice: Some(one_line(advice.as_ref())), ..Self::ok(check, found) }
    }

    /// It does not hold.
    pub fn failed(check: &'static Check, found: impl AsRef<str>, advice: impl AsRef<str>) -> Self {
        Self { verdict: Verdict::Failed, ..Self::warning(check, found, advice) }
    }

    /// It was not looked at.
    pub fn not_checked(check: &'static Check, because: impl AsRef<str>) -> Self {
        Self { verdict: Verdict::NotChecked, ..Self::ok(check, format!("because {}", because.as_ref())) }
    }

    /// The same of one of several.
    #[must_use]
    pub fn of(self, subject: &str) -> Self {
        Self { subject: Some(one_line(subject)), ..self }
    }
}

/// Much of it was said by modules, files and whoever listens on a socket, and goes to a terminal.
fn one_line(text: &str) -> String {
    text.chars().map(|character| if character.is_control() { ' ' } else { character }).collect()
}
