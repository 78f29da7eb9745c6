//! How many sessions one program may open.

use serde::{Deserialize, Serialize};

use super::bench::Bench;
use super::outcome::Outcome;

/// The sessions of one program, that of the login included.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Sessions {
    /// How many were open at once, at most 65.
    pub open: usize,
    /// How the next one was refused. `None`: it was not tried.
    pub refused: Option<Outcome>,
}

/// More than `serve` ever opens.
pub(super) const MOST: usize = 65;

pub(super) fn run(bench: &Bench) -> Sessions {
    let mut open = Vec::new();
    let of_login = usize::from(bench.login.is_some());
    while open.len() + of_login < MOST {
        match bench.token.open_session() {
            Ok(session) => open.push(session),
            Err(error) => {
                return Sessions { open: open.len() + of_login, refused: Some(Outcome::from(&error)) };
            }
        }
    }
    Sessions { open: open.len() + of_login, refused: None }
}
