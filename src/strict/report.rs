//! Turns the parsers' messages into faults.

use super::fault::{Fault, Place};
use super::nearest;

/// A parser's error, taken apart.
pub(super) struct Report {
    field: String,
    message: String,
    place: Place,
}

pub(super) fn json_report(error: &serde_path_to_error::Error<serde_json::Error>) -> Report {
    Report::json(error.path().to_string(), error.inner())
}

pub(super) fn yaml_report(error: &serde_path_to_error::Error<serde_yaml::Error>) -> Report {
    let field = error.path().to_string();
    let inner = error.inner();
    let place = inner
        .location()
        .map_or(Place { line: 1, column: 1 }, |place| Place { line: place.line(), column: place.column() });
    let mut message = without_place(&inner.to_string(), place);
    // The parser names the field again, or the mapping that it is in.
    let mut prefix = field.as_str();
    while !prefix.is_empty() {
        if let Some(rest) = message.strip_prefix(prefix).and_then(|rest| rest.strip_prefix(": ")) {
            message = rest.to_owned();
            break;
        }
        prefix = prefix.rfind(['.', '[']).and_then(|end| prefix.get(..end)).unwrap_or_default();
    }
    Report { field, message, place }
}

fn without_place(message: &str, Place { line, column }: Place) -> String {
    let end = message.find(&format!(" at line {line} column {column}"));
    message.get(..end.unwrap_or(message.len())).unwrap_or(message).to_owned()
}

impl Report {
    pub(super) fn json(field: String, error: &serde_json::Error) -> Self {
        let place = Place { line: error.line(), column: error.column() };
        Self { field, message: without_place(&error.to_string(), place), place }
    }

    /// What an error of the first pass means, which asks for nothing but syntax and distinct keys.
    pub(super) fn malformed(self) -> Fault {
        let Self { message, place, .. } = self;
        if let Some(key) = message.strip_prefix(DUPLICATE).and_then(|rest| rest.strip_suffix('`')) {
            return Fault::DuplicateKey { key: key.to_owned(), place };
        }
        if message.contains("more than one document") {
            return Fault::SeveralDocuments;
        }
        Fault::Syntax { problem: without_values(&message), place }
    }

    /// What an error of the last pass means.
    pub(super) fn unusable(self) -> Fault {
        let Self { field, message, place } = self;
        let field = shown(&field);
        let mut quoted = message.split('`').skip(1).step_by(2).map(str::to_owned);
        if message.starts_with("missing field `") {
            let key = quoted.next().unwrap_or_default();
            let key = if field == "." { key } else { format!("{field}.{key}") };
            return Fault::MissingKey { key, place };
        }
        // A key that is an enum has a variant for each name, and no name yet in the path.
        let named = field.strip_suffix('?').filter(|_| message.starts_with("unknown variant `"));
        if named.is_some() || message.starts_with("unknown field `") {
            let name = quoted.next().unwrap_or_default();
            let key = named.map_or_else(|| field.clone(), |mapping| format!("{mapping}{}", shown(&name)));
            let allowed: Vec<_> = quoted.collect();
            let nearest = nearest(&name, allowed.iter().map(String::as_str)).map(str::to_owned);
            return Fault::UnknownKey { key, place, allowed, nearest };
        }
        Fault::Value { field, problem: without_values(&message), place }
    }
}

/// Serde's message without the value that it found: that may be a PIN in the wrong place.
fn without_values(message: &str) -> String {
    let Some((found, expected)) = message.rsplit_once(", expected ") else { return message.to_owned() };
    let found = found.split(['`', '"']).next().unwrap_or_default().trim_end();
    match found.split_once(": ") {
        Some((_, kind)) => format!("expected {expected}, found {kind}"),
        None => format!("expected {expected}"),
    }
}

/// A name from a file, made safe and short enough to print.
pub(super) fn shown(name: &str) -> String {
    let short: String = name.chars().take(120).flat_map(char::escape_debug).collect();
    short.replace("\\'", "'").replace("\\\"", "\"")
}

/// How the first pass begins its message about a key that stands twice.
pub(super) const DUPLICATE: &str = "duplicate key `";
