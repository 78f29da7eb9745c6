//! The values of a KEK record that have a text form of their own.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest, Sha256};

use crate::envelope::{Blob, OwnedBlob};
use crate::strict;

/// A `CKA_ID`: 1 to 64 bytes, written as lower-case hex.
#[derive(Clone, Eq, PartialEq)]
pub struct CkaId(Vec<u8>);

impl CkaId {
    /// The id with these bytes, if there are 1 to 64 of them.
    pub fn new(bytes: &[u8]) -> Option<Self> {
        (1..=64).contains(&bytes.len()).then(|| Self(bytes.to_vec()))
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

/// The random name of a ceremony: 128 bits, written as 32 lower-case hex digits.
#[derive(Clone, Copy, Eq, PartialEq)]
pub struct CeremonyId([u8; 16]);

impl CeremonyId {
    /// The id with these random bytes.
    pub fn new(random: [u8; 16]) -> Self {
        Self(random)
    }
}

/// A SHA-256 digest, written as 64 lower-case hex digits.
#[derive(Clone, Copy, Eq, Ord, PartialEq, PartialOrd)]
pub struct Sha256Digest(pub [u8; 32]);

impl Sha256Digest {
    /// The digest of these bytes.
    pub fn of(bytes: impl AsRef<[u8]>) -> Self {
        Self(Sha256::digest(bytes).into())
    }
}

/// A time in UTC, written as RFC 3339 with `Z`.
#[derive(Clone, Copy, Eq, Ord, PartialEq, PartialOrd)]
pub struct UtcTime(jiff::Timestamp);

impl UtcTime {
    /// Now, in whole seconds.
    pub fn now() -> Self {
        let now = jiff::Timestamp::now();
        Self(jiff::Timestamp::from_second(now.as_second()).unwrap_or(now))
    }

    /// Seconds since midnight, UTC.
    pub fn seconds_of_day(self) -> i64 {
        self.0.as_second().rem_euclid(DAY)
    }

    /// Seconds since 1970.
    pub fn unix_seconds(self) -> i64 {
        self.0.as_second()
    }

    /// From `earlier` to this time; none if this is not the later one.
    pub fn since(self, earlier: Self) -> Duration {
        self.0.duration_since(earlier.0).try_into().unwrap_or_default()
    }

    /// Whole days from then to now.
    pub fn days_ago(self) -> i64 {
        (Self::now().0.as_second() - self.0.as_second()).div_euclid(DAY)
    }
}

/// Seconds.
const DAY: i64 = 24 * 60 * 60;

/// A sealed challenge, written as base64 (RFC 4648 section 4, with padding).
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct ProofBlob(pub(super) OwnedBlob);

impl FromStr for CkaId {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        hex(text).and_then(|bytes| Self::new(&bytes)).ok_or("expected 1 to 64 bytes as lower-case hex digits")
    }
}

impl FromStr for CeremonyId {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        hex(text).and_then(|bytes| bytes.try_into().ok()).map(Self).ok_or("expected 32 lower-case hex digits")
    }
}

impl FromStr for Sha256Digest {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        hex(text).and_then(|bytes| bytes.try_into().ok()).map(Self).ok_or("expected 64 lower-case hex digits")
    }
}

impl FromStr for UtcTime {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let time = text.parse::<jiff::Timestamp>().ok().filter(|time| time.to_string() == text);
        time.map(Self).ok_or("expected a time in UTC such as 2026-01-31T12:00:00Z")
    }
}

impl FromStr for ProofBlob {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bytes = data_encoding::BASE64.decode(text.as_bytes()).map_err(|_| "expected base64 with padding")?;
        Blob::parse(&bytes).map(|blob| Self(blob.into())).map_err(|error| error.to_string())
    }
}

impl fmt::Display for CkaId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(&data_encoding::HEXLOWER.encode(&self.0))
    }
}

impl fmt::Display for CeremonyId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(&data_encoding::HEXLOWER.encode(&self.0))
    }
}

impl fmt::Display for Sha256Digest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(&data_encoding::HEXLOWER.encode(&self.0))
    }
}

impl fmt::Display for UtcTime {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(&self.0.to_string())
    }
}

impl fmt::Display for ProofBlob {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&data_encoding::BASE64.encode(&self.0.as_blob().encode()))
    }
}

/// Reading and writing a type as its text.
macro_rules! as_text {
    ($($type:ty),*) => {$(
        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                strict::from_text(deserializer)
            }
        }

        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
    )*};
}

as_text!(CkaId, CeremonyId, Sha256Digest, UtcTime, ProofBlob);

/// Hex digits are shown as such, not as a list of numbers.
macro_rules! debug_as_text {
    ($($type:ident),*) => {$(
        impl fmt::Debug for $type {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(formatter, "{}({self})", stringify!($type))
            }
        }
    )*};
}

debug_as_text!(CkaId, CeremonyId, Sha256Digest, UtcTime);

fn hex(text: &str) -> Option<Vec<u8>> {
    data_encoding::HEXLOWER.decode(text.as_bytes()).ok()
}
