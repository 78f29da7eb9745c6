//! What was looked at, and whether it holds.

use serde::Serialize;

/// One thing that was looked at.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Check {
    /// Its name.
    pub name: String,
    /// Whether it holds.
    pub holds: bool,
    /// What was found, or why it does not hold.
    pub found: String,
}

/// Everything that was looked at, in order.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize)]
pub struct Report {
    /// Each check.
    pub checks: Vec<Check>,
}

/// What a check gives to those after it, with what was found in words; or why it does not hold.
pub(super) type Found<T> = Result<(T, String), String>;

impl Report {
    /// Whether all of it holds.
    pub fn holds(&self) -> bool {
        !self.checks.is_empty() && self.checks.iter().all(|check| check.holds)
    }

    /// The checks that do not hold.
    pub fn failed(&self) -> impl Iterator<Item = &Check> {
        self.checks.iter().filter(|check| !check.holds)
    }

    pub(super) fn add<T>(&mut self, name: &str, found: Found<T>) -> Option<T> {
        let (value, holds, found) = match found {
            Ok((value, found)) => (Some(value), true, found),
            Err(why) => (None, false, why),
        };
        self.checks.push(Check { name: name.to_owned(), holds, found });
        value
    }
}

/// What an earlier check gave; a check that needs it cannot be made without.
pub(super) fn needs<'a, T>(earlier: Option<&'a T>, name: &str) -> Result<&'a T, String> {
    earlier.ok_or_else(|| format!("not looked at, since {name} does not hold"))
}
