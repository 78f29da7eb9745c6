//! A draft profile from what was found: to be completed by hand, and not proof of more than what was tried.

use std::fmt::Write;

use serde_json::json;

use super::candidates::{Candidate, candidates};
use super::omit;
use super::outcome::Verdict;
use super::report::Report;
use crate::class::Class;
use crate::pkcs11::codes;
use crate::profile::{self, AttributeSetting, Profile, UserKind};
use crate::seal::{Seal, SealCall};

/// The draft, as a profile file. `profile`: the one that the module was held against, if any.
pub fn draft(report: &Report, profile: Option<&Profile>) -> String {
    let all = candidates(profile);
    let tried = report.chosen.as_ref().and_then(|name| all.iter().find(|candidate| candidate.name == *name));
    let by_tool = report.keys.found().is_some_and(|keys| !keys.token.works());
    let guessed = all.iter().find(|candidate| by_tool && report.lists(&candidate.sealing));
    let refuse = refusal(report, tried.or(guessed));
    let mut text = head(report, refuse.as_deref());
    text += &module(report, profile);
    let mut evidence = vec!["module.paths", "module.manufacturers"];
    if report.logins > 0 {
        evidence.push("login.user");
    }
    if let Some(candidate) = tried {
        text += &seal(candidate);
        text += &key(candidate, report);
        evidence.extend(["seal", "key", "codes"]);
    } else if let Some(candidate) = guessed {
        text += &seal(candidate);
        text += "key:\n  # C_GenerateKey cannot: make the key with the vendor's tool, before the ceremony.\n  generate: tool\n";
        evidence.push("key.generate");
    }
    let (sessions, of_sessions) = sessions(report);
    text += &sessions;
    evidence.extend(of_sessions);
    text += &codes_of(report);
    text += "# Look up what brings a lost token back, and how the KEK is kept twice: `recover`, `ha`, `backup` (docs/profiles.md).\n";
    text += "# A probe runs without a sandbox. This is wide: name the folders and ports that the module needs (docs/profiles.md).\n";
    text += "sandbox:\n  write: [configured, configured/.., /tmp]\n  connect: any\n";
    text += "evidence:\n  default: unconfirmed\n";
    for field in evidence {
        let _ = writeln!(text, "  {field}: device");
    }
    if report.chosen.is_some() {
        text += "  seal.max_bytes: unconfirmed\n";
    }
    text
}

fn head(report: &Report, refuse: Option<&str>) -> String {
    let token = &report.token;
    let mut text = format!(
        "# Draft of a profile, made by {} on {}.\n\
         # Module: {} {}, {}, SHA-256\n#   {}\n\
         # Token: {} {}, firmware {}\n\
         # What has the evidence `device` was tried. The rest is a default that nobody has confirmed.\n",
        report.tool,
        report.time,
        plain(&report.module.library),
        plain(&report.module.library_version),
        plain(&report.module.manufacturer),
        report.sha256,
        plain(&token.manufacturer),
        plain(&token.model),
        plain(&token.firmware),
    );
    let permit = report.kek.found().map(|kek| kek.permit.as_slice()).unwrap_or_default();
    if !permit.is_empty() {
        let names: Vec<_> = permit.iter().map(ToString::to_string).collect();
        let _ = writeln!(text, "# A ceremony's plan must have: kek.permit: [{}]", names.join(", "));
    }
    let _ = writeln!(text, "version: 1\nname: {}", name(&report.module.manufacturer));
    let title = format!("{} {}", plain(&token.manufacturer), plain(&token.model));
    let _ = writeln!(text, "title: {}", json!(format!("{} (draft)", title.trim())));
    if let Some(refuse) = refuse {
        let _ = writeln!(text, "refuse: {}", json!(refuse));
    }
    text
}

fn module(report: &Report, profile: Option<&Profile>) -> String {
    let path = std::path::absolute(&report.path).unwrap_or_else(|_| report.path.clone());
    let mut text = format!("module:\n  paths: {}\n", json!([path]));
    if !report.module.manufacturer.is_empty() {
        let _ = writeln!(text, "  manufacturers: {}", json!([report.module.manufacturer]));
    }
    if let Some(login) = profile.map(|profile| profile.login) {
        let _ = writeln!(text, "login:\n  user: {}", json!(login.user));
        if login.user != UserKind::None {
            let _ = writeln!(text, "  pin: {}", json!(login.pin));
        }
    }
    text
}

fn seal(candidate: &Candidate) -> String {
    let sealing = &candidate.sealing;
    let form = sealing.form;
    let mut text = format!("seal:\n  mechanism: {}\n", form.seal.word());
    let _ = writeln!(text, "  number: {}", profile::mechanism_name(sealing.mechanism));
    if sealing.call != SealCall::Encrypt {
        let _ = writeln!(text, "  call: {}", word(json!(sealing.call)));
    }
    if form.seal == Seal::AesGcm {
        let (send, found) = (word(json!(sealing.send)), word(json!(form.iv_layout)));
        let _ = writeln!(text, "  iv: {{ send: {send}, found: {found}, bytes: {} }}", form.iv_length);
    }
    text
}

fn key(candidate: &Candidate, report: &Report) -> String {
    let mut text = format!(
        "key:\n  type: {}\n  generate: {}\n",
        profile::key_type_name(candidate.kind),
        profile::mechanism_name(candidate.generate)
    );
    let omit: Vec<_> = omit(candidate, report).into_iter().map(profile::attribute_name).collect();
    if !omit.is_empty() {
        let _ = writeln!(text, "  omit: [{}]", omit.join(", "));
    }
    if !candidate.add.is_empty() {
        let add = candidate.add.iter().map(|(name, setting)| {
            let setting = match setting {
                AttributeSetting::Flag(flag) => flag.to_string(),
                AttributeSetting::Number(number) => number.to_string(),
            };
            format!("{}: {setting}", profile::attribute_name(*name))
        });
        let _ = writeln!(text, "  add: {{ {} }}", add.collect::<Vec<_>>().join(", "));
    }
    text
}

/// The section, and the fields of it that were tried.
fn sessions(report: &Report) -> (String, Vec<&'static str>) {
    let mut lines = Vec::new();
    let mut tried = Vec::new();
    if let Some(sessions) = report.sessions.found()
        && sessions.refused.is_some()
        && sessions.open >= 2
    {
        lines.push(format!("  max: {}\n", sessions.open));
        tried.push("sessions.max");
    }
    if let Some(speed) = report.speed.found()
        && let Some(single) = speed.per_second.get(&1)
    {
        let best = speed.per_second.values().max().copied().unwrap_or_default();
        let is_serial = best < single.saturating_add(single / 5);
        let what = if is_serial { "nothing" } else { "it" };
        lines.push(format!("  # Tried for a second only: more threads made {what} faster.\n"));
        lines.push(format!("  serial: {is_serial}\n"));
        tried.push("sessions.serial");
    }
    let text = if lines.is_empty() { String::new() } else { format!("sessions:\n{}", lines.concat()) };
    (text, tried)
}

/// The answer to a changed seal, if the default table takes it for something else.
fn codes_of(report: &Report) -> String {
    let chosen = report.chosen.as_ref().and_then(|name| report.seals.get(name));
    let call = chosen.and_then(|seal| seal.changed_bit.as_ref()?.call());
    let Some((function, code)) = call.filter(|(function, code)| codes::classify(function, *code, &[]) != Class::Data)
    else {
        return String::new();
    };
    format!("codes:\n  # The answer to a changed seal.\n  {}@{function}: data\n", codes::name(code))
}

/// Why no KEK may be kept there.
fn refusal(report: &Report, candidate: Option<&Candidate>) -> Option<String> {
    let Some(_) = candidate else { return Some("no seal of this release was seen to work on it".to_owned()) };
    let leaks = report.secrecy.found().into_iter().flatten().filter(|(_, outcome)| outcome.verdict == Verdict::Differs);
    let leaks: Vec<_> = leaks.map(|(what, _)| what.as_str()).collect();
    if !leaks.is_empty() {
        return Some(format!("it does what it must refuse of a key that must not leave: {}", leaks.join(", ")));
    }
    let kek = report.kek.found().map(|kek| &kek.outcome);
    kek.filter(|outcome| !outcome.works()).map(|outcome| format!("no KEK can be made there, {outcome}"))
}

/// 1 to 63 of `a-z`, `0-9` and `-`, from a vendor's name.
fn name(manufacturer: &str) -> String {
    let letters = manufacturer.to_lowercase();
    let words = letters.split(|letter: char| !letter.is_ascii_lowercase() && !letter.is_ascii_digit());
    let name = words.filter(|word| !word.is_empty()).collect::<Vec<_>>().join("-");
    let name: String = name.chars().take(50).collect();
    if name.is_empty() { "draft".to_owned() } else { format!("{name}-draft") }
}

/// A module's text in a comment or title: on one line.
fn plain(text: &str) -> String {
    text.chars().filter(|letter| !letter.is_control()).collect()
}

/// A word that serialises as text.
fn word(value: serde_json::Value) -> String {
    if let serde_json::Value::String(text) = value { text } else { String::new() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_manufacturer_gives_a_name() {
        for (manufacturer, expected) in [
            ("Yubico (www.yubico.com)", "yubico-www-yubico-com-draft"),
            ("SoftHSM", "softhsm-draft"),
            ("", "draft"),
            ("\u{1f512}  --", "draft"),
        ] {
            assert_eq!(name(manufacturer), expected);
        }
        assert!(name(&"x".repeat(500)).len() < 64);
    }

    #[test]
    fn a_text_of_the_module_cannot_end_a_comment() {
        assert_eq!(plain("a\nname: b\r"), "aname: b");
    }
}
