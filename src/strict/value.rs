//! Checked values, for `deserialize_with`: an error that arises while a value is read carries its place.

use std::fmt;
use std::marker::PhantomData;
use std::path::PathBuf;
use std::str::FromStr;

use data_encoding::BASE64;
use serde::de::{self, Deserializer, Visitor};
use serde::{Deserialize, Serialize, Serializer};

/// Reads a text value by its `FromStr`: for `deserialize_with`, and for `Deserialize` of checked texts.
pub fn from_text<'de, D: Deserializer<'de>, T>(deserializer: D) -> Result<T, D::Error>
where
    T: FromStr<Err: fmt::Display>,
{
    struct Text<T>(PhantomData<T>);
    impl<T: FromStr<Err: fmt::Display>> Visitor<'_> for Text<T> {
        type Value = T;
        fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
            formatter.write_str("a text")
        }
        fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
            text.parse().map_err(E::custom)
        }
    }
    deserializer.deserialize_str(Text(PhantomData))
}

/// Reads a whole number in a range: for `deserialize_with`.
pub fn number<'de, const MIN: u64, const MAX: u64, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    struct Number<const MIN: u64, const MAX: u64>;
    impl<const MIN: u64, const MAX: u64> Visitor<'_> for Number<MIN, MAX> {
        type Value = u64;
        fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(formatter, "a whole number from {MIN} to {MAX}")
        }
        fn visit_u64<E: de::Error>(self, number: u64) -> Result<u64, E> {
            let fault = || E::invalid_value(de::Unexpected::Unsigned(number), &self);
            (MIN..=MAX).contains(&number).then_some(number).ok_or_else(fault)
        }
    }
    deserializer.deserialize_u64(Number::<MIN, MAX>)
}

/// Reads a text without control characters, 1 to 255 bytes: for `deserialize_with`.
pub fn line<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    from_text::<D, Line>(deserializer).map(|line| line.0)
}

/// As [`line()`], but the text may be empty.
pub fn line_or_empty<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    from_text::<D, LineOrEmpty>(deserializer).map(|line| line.0)
}

/// An absolute path on one line, at most 4095 bytes, without `.` and `..`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct AbsolutePath(pub PathBuf);

impl FromStr for AbsolutePath {
    type Err = &'static str;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let plain = !text.chars().any(char::is_control) && text.len() <= 4095;
        let direct = text.split('/').all(|part| part != "." && part != "..");
        let absolute = text.starts_with('/') && !text.ends_with('/');
        let path = (plain && direct && absolute).then(|| Self(PathBuf::from(text)));
        path.ok_or("expected an absolute path to a file, without `.` and `..`")
    }
}

/// Bytes, written as base64 (RFC 4648 section 4, with padding).
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Base64(pub Vec<u8>);

impl FromStr for Base64 {
    type Err = &'static str;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        BASE64.decode(text.as_bytes()).map(Self).map_err(|_| "expected base64 with padding")
    }
}

impl<'de> Deserialize<'de> for Base64 {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        from_text(deserializer)
    }
}

impl Serialize for Base64 {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&BASE64.encode(&self.0))
    }
}

/// The name of an environment variable: letters, digits and underscores, no digit first.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct EnvironmentName(pub String);

impl FromStr for EnvironmentName {
    type Err = &'static str;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let word = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
        let fits = word && (1..=255).contains(&text.len()) && !text.starts_with(|first: char| first.is_ascii_digit());
        let name = fits.then(|| Self(text.to_owned()));
        name.ok_or("expected the name of an environment variable: letters, digits and `_`, no digit first")
    }
}

impl<'de> Deserialize<'de> for AbsolutePath {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        from_text(deserializer)
    }
}

impl<'de> Deserialize<'de> for EnvironmentName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        from_text(deserializer)
    }
}

struct LineOrEmpty(String);

impl FromStr for LineOrEmpty {
    type Err = &'static str;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let printable = text.len() <= 255 && !text.chars().any(char::is_control);
        printable.then(|| Self(text.to_owned())).ok_or("expected at most 255 bytes on one line, no control characters")
    }
}

struct Line(String);

impl FromStr for Line {
    type Err = &'static str;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let line: LineOrEmpty = text.parse()?;
        (!line.0.is_empty()).then_some(Self(line.0)).ok_or("must not be empty")
    }
}
