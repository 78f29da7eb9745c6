//! The module held against a profile, field by field.

use serde::{Deserialize, Serialize};

use super::candidates;
use super::report::Report;
use crate::class::Class;
use crate::pkcs11::codes;
use crate::profile::{self, KeyGeneration, Profile};

/// A profile, and what the module does.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Comparison {
    /// Full name of the profile.
    pub name: String,
    /// Whether every line agrees.
    pub agrees: bool,
    /// One for each field that was tried.
    pub lines: Vec<Line>,
}

/// One field.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Line {
    /// As in a profile file.
    pub field: String,
    /// What the profile says.
    pub profile: String,
    /// What the module does.
    pub module: String,
    /// Whether they agree.
    pub agrees: bool,
}

/// Holds the findings against the profile.
pub(super) fn compare(profile: &Profile, report: &Report) -> Comparison {
    let mut lines = Vec::new();
    let mut line = |field: &str, profile: String, module: String, agrees| {
        lines.push(Line { field: field.to_owned(), profile, module, agrees });
    };
    let known = &profile.module.manufacturers;
    let found = &report.module.manufacturer;
    let says = if known.is_empty() { "any".to_owned() } else { known.join(", ") };
    line("module.manufacturers", says, found.clone(), known.is_empty() || known.contains(found));
    if let Some(reason) = profile.refuse.as_ref().filter(|_| report.logins > 0) {
        let fit = if report.is_fit() { "nothing speaks against it" } else { "not fit for a KEK" };
        line("refuse", reason.clone(), fit.to_owned(), !report.is_fit());
    }
    let by_tool = profile.key.generate == KeyGeneration::Tool;
    if let Some(keys) = report.keys.found() {
        let says = match profile.key.generate {
            KeyGeneration::Mechanism(mechanism) => profile::mechanism_name(mechanism),
            KeyGeneration::Tool => "tool".to_owned(),
        };
        line("key.generate", says, keys.token.to_string(), by_tool || keys.token.works());
    }
    let own = profile.seal.map(|seal| (candidates::name(&seal.sealing), seal.sealing));
    let finding = own.as_ref().and_then(|(name, _)| report.seals.get(name));
    if let (Some((name, sealing)), Some(finding)) = (own, finding) {
        // Without a key of the vendor's tool nothing could be sealed.
        let untried = by_tool && finding.outcome.call().is_some_and(|(function, _)| function == "C_GenerateKey");
        if untried {
            let listed = report.lists(&sealing);
            let module = if listed { "mechanisms are there; no key to try" } else { "mechanisms are not there" };
            line("seal", name, module.to_owned(), listed);
        } else {
            line("seal", name, finding.outcome.to_string(), finding.outcome.works());
        }
        if let Some((function, code)) = finding.changed_bit.as_ref().and_then(|changed| changed.call()) {
            let class = codes::classify(function, code, &profile.codes);
            let says = format!("{} is {}", codes::name(code), class.word());
            line("codes", says, format!("{function} answers a changed seal so"), class == Class::Data);
        }
    }
    for (name, finding) in report.attributes.found().into_iter().flatten() {
        let is_omitted = profile.key.omit.iter().any(|number| profile::attribute_name(*number) == *name);
        let is_usual = !matches!(name.as_str(), "CKA_DESTROYABLE" | "CKA_WRAP_WITH_TRUSTED" | "CKA_TRUSTED");
        let is_added = profile.key.add.iter().any(|(number, _)| profile::attribute_name(*number) == *name);
        let is_refused = finding.generate.is_refusal();
        if is_omitted || is_refused && (is_usual || is_added) {
            let says = if is_omitted { "omitted" } else { "in the template" };
            // One that could stand there and is left out costs protection; the profile is right that it can do without.
            line(&format!("key {name}"), says.to_owned(), finding.generate.to_string(), is_omitted || !is_refused);
        }
    }
    if let (Some(max), Some(sessions)) = (profile.sessions.max, report.sessions.found()) {
        let open = u64::try_from(sessions.open).unwrap_or(u64::MAX);
        let module = if sessions.refused.is_some() { format!("{open}, no more") } else { format!("at least {open}") };
        line("sessions.max", max.to_string(), module, sessions.refused.is_none() || open >= max);
    }
    if let Some(kek) = report.kek.found().filter(|_| profile.refuse.is_none()) {
        line("a ceremony's KEK", "made".to_owned(), kek.outcome.to_string(), kek.outcome.works());
    }
    Comparison { name: profile.full_name(), agrees: lines.iter().all(|line| line.agrees), lines }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::report::tests::with;
    use super::*;

    fn differing(profile: &str, place: &str, value: serde_json::Value) -> Vec<String> {
        let comparison = compare(&Profile::by_name(profile).unwrap(), &with(place, value));
        let differing: Vec<_> =
            comparison.lines.iter().filter(|line| !line.agrees).map(|line| line.field.clone()).collect();
        assert_eq!(comparison.agrees, differing.is_empty());
        differing
    }

    #[test]
    fn each_difference_is_named() {
        assert_eq!(differing("softhsm2", "/version", json!(1)), [""; 0]);
        let seal = "/seals/aes-gcm~1random-sent-12";
        for (place, value, field) in [
            ("/module/manufacturer", json!("Somebody"), "module.manufacturers"),
            (&format!("{seal}/outcome"), json!("refused: C_Encrypt CKR_DEVICE_ERROR"), "seal"),
            (&format!("{seal}/changed_bit"), json!("refused: C_Decrypt CKR_DEVICE_ERROR"), "codes"),
            ("/keys/token", json!("refused: C_GenerateKey CKR_DEVICE_ERROR"), "key.generate"),
            (
                "/attributes/CKA_COPYABLE/generate",
                json!("refused: C_GenerateKey CKR_GENERAL_ERROR"),
                "key CKA_COPYABLE",
            ),
            ("/kek/outcome", json!("differs: CKA_LOCAL is false, expected true"), "a ceremony's KEK"),
        ] {
            assert_eq!(differing("softhsm2", place, value), [field]);
        }
    }

    #[test]
    fn what_was_not_tried_does_not_differ() {
        assert_eq!(differing("softhsm2", "/attributes", json!("untried: no seal works")), [""; 0]);
        assert_eq!(differing("softhsm2", "/kek", json!("untried: no seal works")), [""; 0]);
    }

    #[test]
    fn a_profile_that_refuses_agrees_with_an_unfit_token() {
        let differs = differing("nss", "/secrecy/wrap-out", json!("differs: the key was given away"));
        assert!(!differs.contains(&"refuse".to_owned()), "{differs:?}");
        assert!(differing("nss", "/version", json!(1)).contains(&"refuse".to_owned()));
    }
}
