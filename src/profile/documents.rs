//! docs/profiles.md and the profiles say the same.

use std::collections::BTreeSet;

use super::*;
use crate::strict::Fault;

const DOCUMENT: &str = include_str!("../../docs/profiles.md");
const BEGIN: &str = "<!-- matrix: begin -->\n";
const END: &str = "<!-- matrix: end -->\n";
/// Set it to write the table anew.
const UPDATE: &str = "HSM_KMS_UPDATE_DOCS";

#[test]
fn the_matrix_is_that_of_the_profiles() {
    let (before, rest) = DOCUMENT.split_once(BEGIN).unwrap();
    let (found, after) = rest.split_once(END).unwrap();
    let right = matrix();
    if std::env::var_os(UPDATE).is_some() {
        let document = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/profiles.md");
        std::fs::write(document, format!("{before}{BEGIN}{right}{END}{after}")).unwrap();
    } else {
        assert_eq!(found, right, "docs/profiles.md is old; make it anew: {UPDATE}=1 cargo test --lib the_matrix_is");
    }
}

/// A row for each profile and variant, a column for each section.
fn matrix() -> String {
    let sections = ["module", "login", "seal", "key", "sessions", "recover"];
    let rest = ["codes", "ha", "key_settle", "backup", "sandbox"];
    let mut lines = vec![
        "| profile | now | seal | IV sent, found, bytes | module | login | seal | key | sessions | recover | codes, ha, \
         key_settle, backup, sandbox |"
            .to_owned(),
        format!("{}|", "|---".repeat(11)),
    ];
    for family in Profile::names().map(|name| Family::by_name(name).unwrap()) {
        let json = family.json();
        for (profile, json) in family.profiles.iter().zip(json["profiles"].as_array().unwrap()) {
            let seal = &json["seal"];
            let word = |value: &serde_json::Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            let (mechanism, iv) = match (seal.is_null(), &seal["iv"]) {
                (true, _) => ("none".to_owned(), "-".to_owned()),
                (false, iv) if iv["bytes"] == 0 => (word(&seal["mechanism"]), "-".to_owned()),
                (false, iv) => (
                    word(&seal["mechanism"]),
                    format!("{}, {}, {}", word(&iv["send"]), word(&iv["found"]), word(&iv["bytes"])),
                ),
            };
            let now = match profile.usable() {
                Ok(_) => "built",
                Err(Unusable::Refused { .. }) => "refused",
                Err(Unusable::Unsupported { .. }) => "not yet",
            };
            let mut cells = vec![format!("`{}`", profile.full_name()), now.to_owned(), mechanism, iv];
            cells.extend(sections.map(|section| counts(profile, &[section])));
            cells.push(counts(profile, &rest));
            lines.push(format!("| {} |", cells.join(" | ")));
        }
    }
    lines.join("\n") + "\n"
}

/// How many fields of the sections have which evidence, the best first; a lone word if all have the same.
fn counts(profile: &Profile, sections: &[&str]) -> String {
    let of_sections =
        profile.evidence.iter().filter(|(field, _)| sections.iter().any(|section| evidence::is_within(field, section)));
    let mut counted = std::collections::BTreeMap::new();
    for (_, evidence) in of_sections {
        *counted.entry(*evidence).or_insert(0) += 1;
    }
    let all_alike = counted.len() == 1;
    let words =
        counted.iter().map(
            |(evidence, count)| {
                if all_alike { evidence.word().to_owned() } else { format!("{} {count}", evidence.word()) }
            },
        );
    words.collect::<Vec<_>>().join(", ")
}

/// Key and default of each line of the table of keys.
fn rows() -> Vec<(&'static str, &'static str)> {
    let (_, table) = DOCUMENT.split_once("### Keys").unwrap();
    let lines = table.lines().filter_map(|line| line.strip_prefix("| `"));
    lines
        .map(|line| {
            let cells: Vec<_> = line.trim_end_matches(" |").split(" | ").collect();
            assert_eq!(cells.len(), 5, "{line}");
            (cells[0].trim_end_matches('`'), cells[2])
        })
        .collect()
}

/// The keys that the reader allows in the mapping `within`, by its own words; `None` if it is not such a mapping.
fn allowed(within: &str) -> Option<Vec<String>> {
    let mut line = "zzz: 1".to_owned();
    for name in within.split('.').rev().filter(|name| !name.is_empty()) {
        line = format!("{name}: {{ {line} }}");
    }
    let mut text = format!("version: 1\nname: x\ntitle: X\nevidence: {{ default: ci }}\n{line}\n");
    if within == "evidence" {
        text = text.replace("evidence: { default: ci }\n", "");
    }
    match Profile::parse(text.as_bytes()) {
        Err(ProfileError::File(error)) => match *error.fault {
            Fault::UnknownKey { allowed, .. } => Some(allowed),
            _ => None,
        },
        _ => None,
    }
}

#[test]
fn every_key_is_documented_and_no_other() {
    let mut schema = BTreeSet::new();
    let mut mappings = vec![String::new()];
    while let Some(within) = mappings.pop() {
        for name in allowed(&within).unwrap() {
            let key = if within.is_empty() { name } else { format!("{within}.{name}") };
            if matches!(key.as_str(), "version" | "name" | "title") || allowed(&key).is_none() {
                schema.insert(key);
            } else {
                mappings.push(key);
            }
        }
    }
    let documented: BTreeSet<_> = rows().iter().map(|(key, _)| (*key).to_owned()).collect();
    assert_eq!(schema, documented);
    assert_eq!(documented.len(), rows().len());
    for field in FIELDS {
        assert!(schema.remove(field), "{field}");
    }
    let others = ["default_variant", "evidence", "name", "refuse", "title", "variants", "version"];
    assert!(schema.iter().map(String::as_str).eq(others), "a field without evidence: {schema:?}");
}

#[test]
fn documented_defaults_are_the_code_s() {
    let base = "version: 1\nname: x\ntitle: X\nseal: { mechanism: aes-gcm }\nevidence: { default: ci }\n";
    let omitted = Profile::parse(base.as_bytes()).unwrap();
    let mut defaults = 0;
    for (key, default) in rows() {
        let Some(default) = default.strip_prefix('`').and_then(|rest| rest.split_once('`')) else { continue };
        let (value, rest) = default;
        if rest.starts_with(" is required") {
            continue;
        }
        let inner = key.rsplit('.').fold(value.to_owned(), |value, name| format!("{{ {name}: {value} }}"));
        let line = inner.strip_prefix("{ ").and_then(|line| line.strip_suffix(" }")).unwrap();
        let text = match line.strip_prefix("seal: { ") {
            Some(seal) => {
                base.replace("mechanism: aes-gcm", &format!("mechanism: aes-gcm, {}", seal.trim_end_matches(" }")))
            }
            None => format!("{base}{line}\n"),
        };
        let text = if key.starts_with("seal.iv.") { text.replace(" }\nevidence", " } }\nevidence") } else { text };
        assert_eq!(Profile::parse(text.as_bytes()).unwrap(), omitted, "{key}: {text}");
        defaults += 1;
    }
    assert_eq!(defaults, 23);
}
