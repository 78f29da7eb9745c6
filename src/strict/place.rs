//! Where a field stands in a YAML file: for rules that are checked after it was read.

use std::fmt;

use serde::de::{self, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor};

use super::fault::Place;

/// The place of the longest part of `path` that the text has. `None`: it has not even the first name.
pub fn yaml_place(text: &str, path: &[String]) -> Option<Place> {
    (1..=path.len()).rev().find_map(|length| {
        let seek = Seek(path.get(..length)?);
        // The end of the search is an error, since the parser gives places for errors only.
        let error = seek.deserialize(serde_yaml::Deserializer::from_str(text)).err()?;
        let found = error.to_string().contains(FOUND);
        let place = error.location().filter(|_| found)?;
        Some(Place { line: place.line(), column: place.column() })
    })
}

const FOUND: &str = "the field is here";

/// Goes down the mappings by these names, and fails at the last one.
struct Seek<'a>(&'a [String]);

impl<'de> DeserializeSeed<'de> for Seek<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Seek<'_> {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a mapping")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(is_next) = map.next_key_seed(Key(self.0))? {
            if is_next {
                map.next_value_seed(Seek(self.0.get(1..).unwrap_or_default()))?;
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(())
    }
}

/// Whether a key is the first of these names; fails at it if it is also the last.
struct Key<'a>(&'a [String]);

impl<'de> DeserializeSeed<'de> for Key<'_> {
    type Value = bool;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<bool, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for Key<'_> {
    type Value = bool;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a key")
    }

    fn visit_str<E: de::Error>(self, key: &str) -> Result<bool, E> {
        match self.0 {
            [last] if last == key => Err(E::custom(FOUND)),
            [first, ..] => Ok(first == key),
            [] => Ok(false),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_part_that_is_there_is_found() {
        let text = "a: 1\nb:\n  c: { d: [1, 2] }\n  \"e.f\": 3\n";
        let place = |path: &[&str]| {
            let path: Vec<_> = path.iter().map(|name| (*name).to_owned()).collect();
            yaml_place(text, &path).map(|place| (place.line, place.column))
        };
        assert_eq!(place(&["b", "c", "d"]), Some((3, 8)));
        assert_eq!(place(&["b", "e.f"]), Some((4, 3)));
        assert_eq!(place(&["b", "x", "y"]), Some((2, 1)));
        assert_eq!(place(&["a", "x"]), Some((1, 1)));
        assert_eq!(place(&["x", "a"]), None);
    }
}
