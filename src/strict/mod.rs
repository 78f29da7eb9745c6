//! Strict reading of the files that people and ceremonies write: YAML and JSON, every error with field, line and column.
//!
//! No error shows a value from the file: a PIN may stand where a number or a list was expected.

mod fault;
mod place;
mod report;
mod value;
mod walk;

use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde::Deserialize;
use serde::de::DeserializeOwned;

pub use self::fault::{Fault, FileError, Place};
pub use self::place::yaml_place;
use self::report::{Report, json_report, yaml_report};
pub use self::value::{AbsolutePath, Base64, EnvironmentName, from_text, line, line_or_empty, number};
use self::walk::walk;

/// Most bytes of any such file.
pub const MAX_FILE_BYTES: usize = 64 * 1024;

/// Reads a whole file, at most [`MAX_FILE_BYTES`].
pub fn read(path: &Path) -> Result<Vec<u8>, Fault> {
    read_most(path, MAX_FILE_BYTES)
}

/// Reads a whole file, and one byte more than `most` if it is longer.
pub fn read_most(path: &Path, most: usize) -> Result<Vec<u8>, Fault> {
    let mut bytes = Vec::new();
    let limit = u64::try_from(most).unwrap_or(u64::MAX);
    let file = File::open(path).map_err(|error| Fault::Read { error })?;
    file.take(limit.saturating_add(1)).read_to_end(&mut bytes).map_err(|error| Fault::Read { error })?;
    Ok(bytes)
}

/// Reads one JSON value with a `version` that must be `known`.
pub fn json<T: DeserializeOwned>(bytes: &[u8], known: u64) -> Result<T, Fault> {
    json_most(bytes, known, MAX_FILE_BYTES)
}

/// The same of at most `most` bytes: for files that grow.
pub fn json_most<T: DeserializeOwned>(bytes: &[u8], known: u64, most: usize) -> Result<T, Fault> {
    let text = text(bytes, most)?;
    let read = || serde_json::Deserializer::from_str(text);
    let mut walked = read();
    walk(&mut walked, most).map_err(|error| json_report(&error).malformed())?;
    walked.end().map_err(|error| Report::json(String::new(), &error).malformed())?;
    let Versioned { version } =
        serde_path_to_error::deserialize(&mut read()).map_err(|error| json_report(&error).unusable())?;
    check_version(version, known)?;
    serde_path_to_error::deserialize(&mut read()).map_err(|error| json_report(&error).unusable())
}

/// Reads one YAML document with a `version` that must be `known`.
pub fn yaml<T: DeserializeOwned>(bytes: &[u8], known: u64) -> Result<T, Fault> {
    let text = yaml_text(bytes)?;
    let read = || serde_yaml::Deserializer::from_str(text);
    let Versioned { version } =
        serde_path_to_error::deserialize(read()).map_err(|error| yaml_report(&error).unusable())?;
    check_version(version, known)?;
    serde_path_to_error::deserialize(read()).map_err(|error| yaml_report(&error).unusable())
}

/// The same of a format that is not ours, so that it has no `version` of our kind.
pub fn foreign_yaml<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Fault> {
    let text = yaml_text(bytes)?;
    serde_path_to_error::deserialize(serde_yaml::Deserializer::from_str(text))
        .map_err(|error| yaml_report(&error).unusable())
}

/// The text of one YAML document, in which no mapping has a key twice.
fn yaml_text(bytes: &[u8]) -> Result<&str, Fault> {
    let text = text(bytes, MAX_FILE_BYTES)?;
    let indented_by_tab = |line: &str| line.trim_start_matches(' ').starts_with('\t') && !line.trim().is_empty();
    if let Some(index) = text.lines().position(indented_by_tab) {
        return Err(Fault::Tab { line: index + 1 });
    }
    if text.lines().all(|line| line.trim().is_empty() || line.trim_start().starts_with('#')) {
        return Err(Fault::Empty);
    }
    walk(serde_yaml::Deserializer::from_str(text), MAX_FILE_BYTES).map_err(|error| yaml_report(&error).malformed())?;
    Ok(text)
}

/// The name among `names` that was probably meant by `name`.
pub fn nearest<'a>(name: &str, names: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let distance = |candidate: &str| strsim::damerau_levenshtein(&name.to_ascii_lowercase(), candidate);
    let tolerated = (name.len() / 3).clamp(1, 3);
    names
        .into_iter()
        .map(|candidate| (distance(candidate), candidate))
        .filter(|(far, _)| *far <= tolerated)
        .min()
        .map(|(_, candidate)| candidate)
}

#[derive(Deserialize)]
struct Versioned {
    version: u64,
}

fn check_version(found: u64, known: u64) -> Result<(), Fault> {
    if found == known { Ok(()) } else { Err(Fault::Version { found, known }) }
}

fn text(bytes: &[u8], most: usize) -> Result<&str, Fault> {
    if bytes.len() > most {
        return Err(Fault::TooLong { most });
    }
    if [&b"\xef\xbb\xbf"[..], b"\xff\xfe", b"\xfe\xff"].iter().any(|mark| bytes.starts_with(mark)) {
        return Err(Fault::ByteOrderMark);
    }
    let text = std::str::from_utf8(bytes).map_err(|error| {
        let before = bytes.iter().take(error.valid_up_to());
        Fault::NotText { line: 1 + before.filter(|byte| **byte == b'\n').count() }
    })?;
    if text.trim().is_empty() { Err(Fault::Empty) } else { Ok(text) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Outer {
        #[allow(dead_code, reason = "only its reading is tested")]
        version: u64,
        inner: Inner,
        #[serde(default)]
        list: Vec<Inner>,
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Inner {
        #[serde(deserialize_with = "number::<1, 9, _>")]
        count: u64,
        #[serde(default, deserialize_with = "line")]
        label: String,
    }

    fn yaml_error(text: &str) -> String {
        yaml::<Outer>(text.as_bytes(), 1).unwrap_err().to_string()
    }

    fn json_error(text: &str) -> String {
        json::<Outer>(text.as_bytes(), 1).unwrap_err().to_string()
    }

    #[test]
    fn good_files_are_read() {
        let outer: Outer = yaml(b"version: 1\ninner: { count: 3, label: \"0123\" }\nlist:\n- count: 4\n", 1).unwrap();
        assert_eq!((outer.inner.count, outer.inner.label.as_str(), outer.list.len()), (3, "0123", 1));
        assert!(json::<Outer>(br#"{"version": 1, "inner": {"count": 3}}"#, 1).is_ok());
    }

    #[test]
    fn errors_of_yaml_name_field_line_and_column() {
        for (text, error) in [
            ("version: 1\ninner:\n  count: 3\n  lable: x\n", "line 4, column 3: unknown key `inner.lable`"),
            ("version: 1\ninner:\n  count: 3\n  count: 4\n", "line 4, column 3: duplicate key `count`"),
            ("version: 1\ninner: {count: 1}\ninner: {count: 1}\n", "line 3, column 1: duplicate key `inner`"),
            (
                "version: 1\ninner:\n  label: x\n  count: soon\n",
                "line 4, column 10: `inner.count`: expected a whole number from 1 to 9, found string",
            ),
            (
                "version: 1\ninner: {count: 10}\n",
                "line 2, column 16: `inner.count`: expected a whole number from 1 to 9, found integer",
            ),
            ("version: 1\ninner:\n  label: x\n", "line 3, column 3: missing key `inner.count`"),
            ("version: 1\n", "line 1, column 1: missing key `inner`"),
            (
                "version: 1\ninner: {count: 1}\nlist:\n- count: 1\n- count: -1\n",
                "line 5, column 10: `list[1].count`: expected a whole number from 1 to 9, found integer",
            ),
            ("version: 1\ninner: {count: 1, label: ''}\n", "line 2, column 26: `inner.label`: must not be empty"),
            ("version: 1\ninner: [\n", "line 3, column 1: did not find expected node content"),
            ("version: 2\nother: 1\n", "version 2 is not known, this release reads version 1"),
            ("inner: {}\n", "line 1, column 1: missing key `version`"),
        ] {
            let found = yaml_error(text);
            assert!(found.starts_with(error), "{found}\n{error}");
        }
    }

    #[test]
    fn errors_of_json_name_field_line_and_column() {
        for (text, error) in [
            (
                "{\"version\": 1,\n\"inner\": {\"count\": 3,\n\"lable\": 1}}",
                "line 3, column 7: unknown key `inner.lable`",
            ),
            ("{\"version\": 1,\n\"inner\": {\"count\": 3, \"count\": 3}}", "line 2, column 29: duplicate key `count`"),
            (
                "{\"version\": 1,\n\"inner\": {\"count\": 0}}",
                "line 2, column 20: `inner.count`: expected a whole number from 1 to 9, found integer",
            ),
            ("{\"version\": 1} x", "line 1, column 16: trailing characters"),
            ("{\"version\": 1", "line 1, column 13: EOF while parsing an object"),
            ("{\"version\": 1}", "line 1, column 14: missing key `inner`"),
        ] {
            assert_eq!(json_error(text), error);
        }
    }

    #[test]
    fn no_value_is_printed() {
        for text in [
            "version: 1\ninner: 1234\n",
            "version: 1\ninner: \"1, expected `34\"\n",
            "version: 1\ninner: {count: [1234]}\n",
        ] {
            let error = yaml_error(text);
            assert!(!error.contains("34"), "{error}");
        }
        assert!(!json_error("{\"version\": 1, \"inner\": \"1234\"}").contains("34"));
    }

    #[test]
    fn other_files_are_refused() {
        for (bytes, error) in [
            (&b""[..], "the file is empty"),
            (b"  \n\n", "the file is empty"),
            (b"# only a comment\n", "the file is empty"),
            (b"\xef\xbb\xbfversion: 1\n", "line 1: the file begins with a byte-order mark"),
            (b"\xff\xfev\0", "line 1: the file begins with a byte-order mark"),
            (b"version: 1\n\xff\n", "line 2: the file is not UTF-8 text"),
            (b"version: 1\ninner:\n\tcount: 3\n", "tab at line 3: YAML wants spaces"),
            (b"version: 1\ninner:\n  \tcount: 3\n", "tab at line 3: YAML wants spaces"),
            (b"version: 1\ninner: {count: 1}\n---\nversion: 1\n", "the file has more than one YAML document"),
            (&vec![b' '; MAX_FILE_BYTES + 1], "the file has more than 65536 bytes"),
        ] {
            let fault = yaml::<Outer>(bytes, 1).unwrap_err();
            assert_eq!(fault.to_string(), error);
            assert!(!fault.hint().is_empty());
        }
        assert!(yaml::<Outer>(b"- 1\n", 1).is_err());
        assert!(yaml::<Outer>(b"!tag\nversion: 1\n", 1).is_err());
    }

    #[test]
    fn bombs_and_towers_are_refused() {
        let mut bomb = "version: 1\na0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for level in 1..12 {
            let list = vec![format!("*a{}", level - 1); 10].join(", ");
            bomb = format!("{bomb}a{level}: &a{level} [{list}]\n");
        }
        assert!(yaml_error(&bomb).contains("the aliases repeat too much"), "{}", yaml_error(&bomb));
        let wide = format!("version: 1\na: &a [{}]\nb: [{}]\n", "x,".repeat(1000), "*a,".repeat(1000));
        assert!(yaml_error(&wide).contains("the aliases repeat too much"), "{}", yaml_error(&wide));
        assert!(yaml_error(&format!("version: {}", "[".repeat(10_000))).contains("recursion limit"));
        assert!(json_error(&"[".repeat(10_000)).contains("recursion limit"));
    }

    #[test]
    fn the_nearest_name_is_found() {
        let names = ["mode", "path", "label"];
        assert_eq!(nearest("lable", names), Some("label"));
        assert_eq!(nearest("Mode", names), Some("mode"));
        assert_eq!(nearest("socket", names), None);
    }
}
