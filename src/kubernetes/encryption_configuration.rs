//! The file of kube-apiserver's `--encryption-provider-config`, read as strictly as the API server reads it. It may hold keys: they are not
//! kept, and no error shows a value.

use std::path::Path;

use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::record::Sha256Digest;
use crate::strict::{self, Fault, FileError};

/// An `EncryptionConfiguration` (`apiserver.config.k8s.io/v1`).
#[derive(Debug)]
pub struct EncryptionConfiguration {
    pub(super) file: File,
    digest: Sha256Digest,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct File {
    pub(super) api_version: String,
    pub(super) kind: String,
    pub(super) resources: Vec<Entry>,
}

/// Some resources, and the providers that write and read them.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Entry {
    pub(super) resources: Vec<String>,
    pub(super) providers: Vec<Provider>,
}

/// One of these.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Provider {
    pub(super) kms: Option<Kms>,
    pub(super) aescbc: Option<Keys>,
    pub(super) aesgcm: Option<Keys>,
    pub(super) secretbox: Option<Keys>,
    pub(super) identity: Option<Identity>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Kms {
    /// Without it the API server takes `v1`.
    pub(super) api_version: Option<String>,
    pub(super) name: String,
    pub(super) cachesize: Option<i64>,
    pub(super) endpoint: String,
    /// Without it the API server takes 3 s.
    pub(super) timeout: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Keys {
    #[serde(rename = "keys")]
    _keys: Vec<Key>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Key {
    #[serde(rename = "name")]
    _name: String,
    #[serde(rename = "secret")]
    _secret: IgnoredAny,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Identity {}

impl EncryptionConfiguration {
    /// Reads the file, at most 64 KiB.
    pub fn read(path: &Path) -> Result<Self, FileError> {
        let parsed = strict::read(path).and_then(|bytes| parsed(&bytes));
        parsed.map_err(|fault| FileError::new(WHAT, Some(path), fault))
    }

    /// The same, for bytes that are not from a file.
    pub fn parse(bytes: &[u8]) -> Result<Self, FileError> {
        parsed(bytes).map_err(|fault| FileError::new(WHAT, None, fault))
    }

    /// SHA-256 of what the file says: of its content as canonical JSON (RFC 8785). Files that differ in comments, order of keys or layout
    /// have one digest.
    pub fn digest(&self) -> Sha256Digest {
        self.digest
    }
}

fn parsed(bytes: &[u8]) -> Result<EncryptionConfiguration, Fault> {
    let file = strict::foreign_yaml(bytes)?;
    let content: serde_json::Value = strict::foreign_yaml(bytes)?;
    let canonical = serde_json_canonicalizer::to_vec(&content).unwrap_or_default();
    Ok(EncryptionConfiguration { file, digest: Sha256Digest::of(canonical) })
}

const WHAT: &str = "EncryptionConfiguration";

impl Provider {
    /// Its name in the file. `None`: it has none or more than one of them.
    pub(super) fn word(&self) -> Option<&'static str> {
        let mut words = [
            self.kms.as_ref().map(|_| "kms"),
            self.aescbc.as_ref().map(|_| "aescbc"),
            self.aesgcm.as_ref().map(|_| "aesgcm"),
            self.secretbox.as_ref().map(|_| "secretbox"),
            self.identity.as_ref().map(|_| "identity"),
        ]
        .into_iter()
        .flatten();
        words.next().filter(|_| words.next().is_none())
    }
}

impl Kms {
    pub(super) fn is_v2(&self) -> bool {
        self.api_version.as_deref() == Some("v2")
    }

    /// The path that the API server dials. `Err`: why it has none.
    pub(super) fn path(&self) -> Result<&str, &'static str> {
        let rest = self.endpoint.strip_prefix("unix:").ok_or("it has no scheme `unix`")?;
        let path = match rest.strip_prefix("//") {
            Some(path) if path.starts_with('/') => path,
            Some(_) => return Err("behind `unix://` the path has no `/`, so it is taken for a host and ignored"),
            None => rest,
        };
        if path.contains(['%', '?', '#']) {
            Err("`%`, `?` and `#` mean something in a URL")
        } else if path.starts_with("/@") {
            Err("it is an abstract socket, which has no owner and no mode")
        } else if path.starts_with('/') && path.len() > 1 {
            Ok(path)
        } else {
            Err("it has no absolute path")
        }
    }
}
