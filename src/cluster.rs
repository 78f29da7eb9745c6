//! The name of the cluster whose seeds are sealed.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use thiserror::Error;

/// A cluster id: 1 to 63 of `a-z`, `0-9`, `.` and `-`, a letter or digit at both ends.
///
/// It is part of every context and `key_id`, so another cluster's blob does not open. It never changes.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Cluster(String);

impl Cluster {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A text that is not a cluster id.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
#[error("a cluster id has 1 to 63 of a-z, 0-9, '.' and '-', with a letter or digit at both ends")]
pub struct ClusterError;

impl FromStr for Cluster {
    type Err = ClusterError;

    fn from_str(text: &str) -> Result<Self, ClusterError> {
        let inner = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'-');
        let end = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
        let bytes = text.as_bytes();
        let fits = bytes.len() <= 63 && bytes.iter().copied().all(inner) && end(bytes.first()) && end(bytes.last());
        fits.then(|| Self(text.to_owned())).ok_or(ClusterError)
    }
}

impl fmt::Display for Cluster {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(&self.0)
    }
}

impl<'de> Deserialize<'de> for Cluster {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        crate::strict::from_text(deserializer)
    }
}

impl Serialize for Cluster {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_cluster_ids_are_read() {
        for good in ["a", "0", "prod-eu-1", "a.b", "a--b", &"a".repeat(63)] {
            assert_eq!(good.parse::<Cluster>().unwrap().as_str(), good);
        }
        for wrong in ["", "-", "a-", ".a", "A", "a_b", "a b", "é", "a\n", &"a".repeat(64)] {
            assert_eq!(wrong.parse::<Cluster>(), Err(ClusterError), "{wrong:?}");
        }
    }
}
