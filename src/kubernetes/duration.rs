//! Durations as Go writes them (`time.ParseDuration`): `3s`, `1m30s`, `500ms`.

use std::time::Duration;

/// The duration, if it is one and not negative.
pub(super) fn parse(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    let mut seconds = 0.0;
    let mut is_empty = true;
    while !rest.is_empty() {
        let number = split(rest, |character| character.is_ascii_digit() || character == '.');
        let unit = split(number.1, |character| !(character.is_ascii_digit() || character == '.'));
        let value: f64 = number.0.parse().ok()?;
        seconds += value * UNITS.into_iter().find(|(name, _)| *name == unit.0)?.1;
        rest = unit.1;
        is_empty = false;
    }
    if is_empty { None } else { Duration::try_from_secs_f64(seconds).ok() }
}

const UNITS: [(&str, f64); 8] = [
    ("h", 3600.0),
    ("m", 60.0),
    ("s", 1.0),
    ("ms", 1e-3),
    ("us", 1e-6),
    ("\u{b5}s", 1e-6),
    ("\u{3bc}s", 1e-6),
    ("ns", 1e-9),
];

/// The longest beginning of such characters, and the rest.
fn split(text: &str, is_part: impl Fn(char) -> bool) -> (&str, &str) {
    text.split_at(text.find(|character| !is_part(character)).unwrap_or(text.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_go_reads_them() {
        for (text, milliseconds) in
            [("3s", 3000), ("1m30s", 90_000), ("500ms", 500), ("1.5s", 1500), ("0", 0), ("0s", 0), ("+2s", 2000)]
        {
            assert_eq!(parse(text), Some(Duration::from_millis(milliseconds)), "{text}");
        }
        for text in ["", "3", "-3s", "s", "3 s", "3S", "3sec", "..s", "1e300h", "9999999999999999999999h", "\u{663}s"] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
