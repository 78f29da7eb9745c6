//! Checked values, for `deserialize_with`: an error that arises while a value is read carries its place.

use std::fmt;

use serde::de::{self, Deserializer, Visitor};

/// Reads a text value by its `FromStr`: for `deserialize_with`, and for `Deserialize` of checked texts.
pub fn from_text<'de, D: Deserializer<'de>, T>(deserializer: D) -> Result<T, D::Error>
where
    T: std::str::FromStr<Err: fmt::Display>,
{
    struct Text<T>(std::marker::PhantomData<T>);
    impl<T: std::str::FromStr<Err: fmt::Display>> Visitor<'_> for Text<T> {
        type Value = T;
        fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
            formatter.write_str("a text")
        }
        fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
            text.parse().map_err(E::custom)
        }
    }
    deserializer.deserialize_str(Text(std::marker::PhantomData))
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

/// As [`line`], but the text may be empty.
pub fn line_or_empty<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    from_text::<D, LineOrEmpty>(deserializer).map(|line| line.0)
}

struct LineOrEmpty(String);

impl std::str::FromStr for LineOrEmpty {
    type Err = &'static str;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let printable = text.len() <= 255 && !text.chars().any(char::is_control);
        printable.then(|| Self(text.to_owned())).ok_or("expected at most 255 bytes on one line, no control characters")
    }
}

struct Line(String);

impl std::str::FromStr for Line {
    type Err = &'static str;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let line: LineOrEmpty = text.parse()?;
        (!line.0.is_empty()).then_some(Self(line.0)).ok_or("must not be empty")
    }
}
