//! Which Kubernetes it is, as far as it matters here.

use std::fmt;
use std::str::FromStr;

/// A minor version of Kubernetes 1.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct KubernetesVersion(u16);

impl KubernetesVersion {
    /// The first in which KMS v2 is stable, and takes the version that this plugin answers.
    pub const STABLE: Self = Self(29);

    /// The first that reaches a socket whatever its name.
    pub const ANY_SOCKET_NAME: Self = Self(32);
}

impl FromStr for KubernetesVersion {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = "expected a version of Kubernetes such as 1.31 or v1.31.4";
        let mut parts = text.strip_prefix('v').unwrap_or(text).splitn(3, '.');
        let minor = match (parts.next(), parts.next()) {
            (Some("1"), Some(minor)) if minor.bytes().all(|byte| byte.is_ascii_digit()) => minor,
            _ => return Err(error),
        };
        minor.parse().map(Self).map_err(|_| error)
    }
}

impl fmt::Display for KubernetesVersion {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "1.{}", self.0)
    }
}
