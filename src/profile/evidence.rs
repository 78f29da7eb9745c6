//! How something in a profile is known to be true.

use serde::{Deserialize, Serialize};

/// How a field of a profile is known to be true, the best first.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Evidence {
    /// This project's tests run against the module.
    Ci,
    /// Somebody ran it on the device, or on the software token, and wrote down what came out.
    Device,
    /// This project's tests run against an imitation of it.
    CiImitated,
    /// The vendor's documents or source say so.
    Documents,
    /// Nobody has confirmed it.
    Unconfirmed,
}

/// The fields that have evidence, in the order of docs/profiles.md.
pub const FIELDS: [&str; 32] = [
    "module.paths",
    "module.manufacturers",
    "module.environment",
    "module.files",
    "module.daemon",
    "login.user",
    "login.pin",
    "seal.mechanism",
    "seal.number",
    "seal.call",
    "seal.params",
    "seal.iv.send",
    "seal.iv.found",
    "seal.iv.bytes",
    "seal.aad",
    "seal.max_bytes",
    "key.type",
    "key.generate",
    "key.add",
    "key.omit",
    "sessions.max",
    "sessions.serial",
    "recover.gone",
    "recover.probe_seconds",
    "recover.call_limit_ms",
    "codes",
    "ha",
    "key_settle",
    "backup",
    "sandbox.read",
    "sandbox.write",
    "sandbox.connect",
];

impl Evidence {
    /// The real thing was tried.
    pub fn is_proof(self) -> bool {
        matches!(self, Self::Ci | Self::Device)
    }

    /// The word for it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Ci => "ci",
            Self::Device => "device",
            Self::CiImitated => "ci-imitated",
            Self::Documents => "documents",
            Self::Unconfirmed => "unconfirmed",
        }
    }
}

/// Whether `field` is `path`, or lies in the mapping `path`.
pub(super) fn is_within(field: &str, path: &str) -> bool {
    field.strip_prefix(path).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}
