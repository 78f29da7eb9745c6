//! The `healthz` text of Status: from memory, never by asking the HSM.

use std::time::Duration;

use serde::Deserialize;

use crate::audit;
use crate::token::{Failure, Health};

/// What Status says while no token can be used.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "kebab-case")]
pub enum HealthPolicy {
    /// `ok` for [`COAST`] after the KEK last did its work, if what stands in the way may pass by itself: the API server needs no
    /// HSM for what it does all day, and would take itself out of service.
    #[default]
    Coast,
    /// Not `ok` at once.
    Strict,
}

/// How long [`HealthPolicy::Coast`] goes on.
pub const COAST: Duration = Duration::from_mins(2);

/// `ok`, or a short public text. The key_id beside it stays the same either way: a plugin that loses its HSM must not look
/// like one that changed its KEK.
pub fn healthz(health: &Health, policy: HealthPolicy) -> String {
    if audit::refuses() {
        return format!("audit: {}", audit::REFUSAL);
    }
    match health {
        Health::Ok => "ok".to_owned(),
        Health::Lost { trouble_for, .. } if policy == HealthPolicy::Coast && *trouble_for <= COAST => "ok".to_owned(),
        Health::Lost { failure, .. } | Health::Failed(failure) => text(failure),
        Health::Starting => "starting: the HSM is being reached".to_owned(),
    }
}

fn text(failure: &Failure) -> String {
    format!("{}: {}", failure.class.word(), failure.public)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::class::Class;

    #[test]
    fn coasting_ends_and_covers_no_denial() {
        let failure = Failure {
            class: Class::Gone,
            public: "the token is not there".to_owned(),
            detail: String::new(),
            hint: String::new(),
        };
        let lost = |seconds| Health::Lost { trouble_for: Duration::from_secs(seconds), failure: failure.clone() };
        let gone = "gone: the token is not there";
        for (health, coast, strict) in [
            (Health::Ok, "ok", "ok"),
            (lost(0), "ok", gone),
            (lost(120), "ok", gone),
            (lost(121), gone, gone),
            (Health::Failed(failure.clone()), gone, gone),
            (Health::Starting, "starting: the HSM is being reached", "starting: the HSM is being reached"),
        ] {
            assert_eq!(healthz(&health, HealthPolicy::Coast), coast);
            assert_eq!(healthz(&health, HealthPolicy::Strict), strict);
        }
    }
}
