//! The rewrap table: the seeds of a lost KEK, each sealed anew under a living one. Public; docs/formats.md has the format.
//!
//! Nobody has to trust it: what the KEK opens names the sealed seed that it stands for, so an edited table opens nothing wrong.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use thiserror::Error;
use tokio::time::Instant;

use super::{HandleError, Kek, Keyring};
use crate::class::Class;
use crate::cluster::Cluster;
use crate::envelope::{Annotations, annotations, update_prefixed};
use crate::key_id::KeyId;
use crate::record::{Sha256Digest, UtcTime};
use crate::recovery::{seed_digest, unwrapped};
use crate::strict::{self, Base64, Fault, FileError};
use crate::token::{Opened, RequestError};

/// The seeds of lost KEKs, by their digests.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct RewrapTable {
    version: u64,
    origin: Origin,
    /// Over all that stands in the file: it finds damage, not forgery.
    sha256: Sha256Digest,
    /// In the order of their digests.
    seeds: Vec<RewrappedSeed>,
    /// How many there are of each lost KEK.
    #[serde(skip)]
    lost: BTreeMap<KeyId, usize>,
}

/// Where a table is from.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Origin {
    /// The cluster whose seeds they are.
    pub cluster: Cluster,
    /// When it was made.
    pub made: UtcTime,
    /// The store that the seeds were found in, in words.
    #[serde(deserialize_with = "strict::line")]
    pub source: String,
    /// Whether it has every seed of the lost KEKs that this store needs.
    pub complete: bool,
    /// The living KEK that sealed them anew.
    pub sealed_with: KeyId,
}

/// A seed of a lost KEK.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct RewrappedSeed {
    /// [`seed_digest`] of it as the lost KEK sealed it.
    pub seed: Sha256Digest,
    /// The lost KEK.
    pub key_id: KeyId,
    /// What the living KEK made of it.
    pub ciphertext: Base64,
    /// Bound to the ciphertext.
    pub annotations: BTreeMap<String, Base64>,
}

/// Why a table does not open a seed.
#[derive(Debug, Error)]
pub enum RewrapError {
    /// The table's entry is not what the KEK sealed for this seed.
    #[error("the rewrap table was changed: its entry for this seed is not what the KEK sealed for it")]
    Altered,
    /// It names a KEK that this keyring does not have.
    #[error("the rewrap table is sealed with {0}, which this plugin has no longer")]
    NoKek(KeyId),
    /// The table knows the lost KEK, but not this seed of it.
    #[error(
        "this seed of a lost KEK is not in the rewrap table, which was made {made} from {source_text}; make it again from the store of today"
    )]
    Missing {
        /// When the table was made.
        made: UtcTime,
        /// What from.
        source_text: String,
    },
    /// The token did not do it.
    #[error(transparent)]
    Handle(HandleError),
}

impl RewrapTable {
    /// A table of these seeds.
    pub fn new(origin: Origin, mut seeds: Vec<RewrappedSeed>) -> Self {
        seeds.sort_unstable_by_key(|entry| entry.seed.0);
        let sha256 = hash(&origin, &seeds);
        let lost = count(&seeds);
        Self { version: VERSION, origin, sha256, seeds, lost }
    }

    /// Reads the file strictly.
    pub fn read(path: &Path) -> Result<Self, FileError> {
        let checked = strict::read_most(path, MAX_BYTES).and_then(|bytes| checked(&bytes));
        checked.map_err(|fault| FileError::new(WHAT, Some(path), fault))
    }

    /// As [`RewrapTable::read`], for bytes that are not from a file.
    pub fn parse(bytes: &[u8]) -> Result<Self, FileError> {
        checked(bytes).map_err(|fault| FileError::new(WHAT, None, fault))
    }

    /// The file's text: the same table always gives the same bytes.
    pub fn to_json(&self) -> String {
        // Texts, numbers and maps with text keys: nothing that JSON could not say.
        serde_json::to_string_pretty(self).unwrap_or_default() + "\n"
    }

    /// Where it is from.
    pub fn origin(&self) -> &Origin {
        &self.origin
    }

    /// Its seeds.
    pub fn seeds(&self) -> &[RewrappedSeed] {
        &self.seeds
    }

    /// How many seeds it has of each lost KEK.
    pub fn lost(&self) -> &BTreeMap<KeyId, usize> {
        &self.lost
    }

    /// The entry for the sealed seed of this digest.
    pub fn find(&self, digest: &[u8; 32]) -> Option<&RewrappedSeed> {
        let position = self.seeds.binary_search_by_key(digest, |entry| entry.seed.0).ok()?;
        self.seeds.get(position)
    }

    /// Whether it has seeds of this KEK.
    pub fn knows(&self, key_id: &KeyId) -> bool {
        self.lost.contains_key(key_id)
    }

    /// Whether it can stand beside these KEKs of this cluster; if not, why.
    pub fn check(&self, cluster: &Cluster, keks: &[Kek]) -> Result<(), String> {
        let opens = |key_id: &KeyId| keks.iter().any(|kek| kek.opens().any(|it| it == *key_id));
        if self.origin.cluster != *cluster {
            let (of_table, of_config) = (self.origin.cluster.as_str(), cluster.as_str());
            return Err(format!("it is for cluster {of_table:?}, the configuration says {of_config:?}"));
        }
        if let Some(key_id) = self.lost.keys().find(|key_id| opens(key_id)) {
            return Err(format!("the KEK {key_id} is not lost: it is served here"));
        }
        if opens(&self.origin.sealed_with) {
            Ok(())
        } else {
            Err(format!("its seeds are sealed with {}, which is not served here", self.origin.sealed_with))
        }
    }

    /// Opens what a lost KEK sealed.
    pub async fn open(
        &self,
        keyring: &Keyring,
        key_id: &KeyId,
        ciphertext: &[u8],
        annotations: &Annotations,
        deadline: Instant,
    ) -> Result<Opened, RewrapError> {
        let digest = seed_digest(ciphertext, key_id.as_str(), annotations);
        let entry = self
            .find(&digest)
            .filter(|entry| entry.key_id == *key_id)
            .ok_or_else(|| RewrapError::Missing { made: self.origin.made, source_text: self.origin.source.clone() })?;
        let living = &self.origin.sealed_with;
        let handle = keyring.unwrap(living).ok_or_else(|| RewrapError::NoKek(living.clone()))?;
        let opened = handle.open(&entry.ciphertext.0, &entry.annotations(), deadline).await;
        let opened = opened.map_err(|error| match error {
            HandleError::Blob(_) => RewrapError::Altered,
            HandleError::Request(RequestError::Failed(failure)) if failure.class == Class::Data => RewrapError::Altered,
            error => RewrapError::Handle(error),
        })?;
        let plaintext = unwrapped(&opened.plaintext, &digest).map_err(|_| RewrapError::Altered)?;
        Ok(Opened { plaintext, token: opened.token })
    }
}

impl RewrappedSeed {
    /// As Decrypt takes them.
    pub fn annotations(&self) -> Annotations {
        self.annotations.iter().map(|(name, value)| (name.clone(), value.0.clone().into())).collect()
    }
}

fn checked(bytes: &[u8]) -> Result<RewrapTable, Fault> {
    let mut table: RewrapTable = strict::json_most(bytes, VERSION, MAX_BYTES)?;
    let rule = |field, problem: String| {
        let hint = "put the table there as `hsm-kms recovery rewrap` wrote it".to_owned();
        Fault::Rule { field, problem, hint }
    };
    if table.seeds.len() > MAX_SEEDS {
        return Err(rule("seeds", format!("expected at most {MAX_SEEDS} seeds, found {}", table.seeds.len())));
    }
    if !table.seeds.is_sorted_by(|one, other| one.seed.0 < other.seed.0) {
        return Err(rule("seeds", "they are not in the order of their digests".to_owned()));
    }
    if table.sha256 != hash(&table.origin, &table.seeds) {
        return Err(rule("sha256", "the file is damaged, or was edited".to_owned()));
    }
    if table.to_json().as_bytes() != bytes {
        return Err(rule("version", "the file is not in the form that it was written in".to_owned()));
    }
    table.lost = count(&table.seeds);
    Ok(table)
}

fn count(seeds: &[RewrappedSeed]) -> BTreeMap<KeyId, usize> {
    let mut lost = BTreeMap::new();
    for entry in seeds {
        *lost.entry(entry.key_id.clone()).or_default() += 1;
    }
    lost
}

fn hash(origin: &Origin, seeds: &[RewrappedSeed]) -> Sha256Digest {
    let Origin { cluster, made, source, complete, sealed_with } = origin;
    let mut hash = Sha256::new();
    hash.update(DOMAIN);
    let made = made.to_string();
    for part in [cluster.as_str(), &made, source, if *complete { "true" } else { "false" }, sealed_with.as_str()] {
        update_prefixed(&mut hash, part.as_bytes());
    }
    for entry in seeds {
        let bound = annotations::hash(&entry.annotations());
        for part in [&entry.seed.0[..], entry.key_id.as_str().as_bytes(), &entry.ciphertext.0, &bound] {
            update_prefixed(&mut hash, part);
        }
    }
    Sha256Digest(hash.finalize().into())
}

const VERSION: u64 = 1;
const WHAT: &str = "rewrap table";
const DOMAIN: &[u8] = b"hsm-kms/rewrap-table/v1";

/// Most seeds of a table. There are about as many as there were starts of API servers since the last storage migration.
const MAX_SEEDS: usize = 50_000;

/// Most bytes of the file: so many seeds with a hybrid recovery annotation each, and a half more.
const MAX_BYTES: usize = 192 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    fn key_id(epoch: u64) -> KeyId {
        KeyId::derive("prod-eu-1", &[7; 16], "00112233445566778899aabbccddeeff", epoch)
    }

    fn origin() -> Origin {
        Origin {
            cluster: "prod-eu-1".parse().unwrap(),
            made: "2026-01-31T12:00:00Z".parse().unwrap(),
            source: "snapshot etcd.db, revision 123456".to_owned(),
            complete: true,
            sealed_with: key_id(9),
        }
    }

    fn seed(number: u64, annotation: usize) -> RewrappedSeed {
        let annotations = [("0123456789abcdef.recovery.hsm-kms".to_owned(), Base64(vec![0xa5; annotation]))].into();
        let seed = Sha256Digest::of(number.to_be_bytes());
        RewrappedSeed { seed, key_id: key_id(1), ciphertext: Base64(vec![0x5a; 117]), annotations }
    }

    fn table() -> RewrapTable {
        RewrapTable::new(origin(), vec![seed(1, 4), seed(2, 4)])
    }

    #[test]
    fn the_documented_table_is_read_and_written() {
        let document = include_str!("../../docs/formats.md");
        let blocks: Vec<&str> = document.split("```").skip(1).step_by(2).collect();
        let is_table = |text: &&str| text.contains("\"sealed_with\"");
        let text = blocks.iter().filter_map(|block| block.strip_prefix("json\n")).find(is_table).unwrap_or_default();
        assert_eq!(text, table().to_json());
        assert_eq!(RewrapTable::parse(text.as_bytes()).unwrap(), table());
    }

    #[test]
    fn seeds_are_found_by_digest() {
        let table = table();
        assert_eq!(table.find(&Sha256Digest::of(2_u64.to_be_bytes()).0), Some(&seed(2, 4)));
        assert_eq!(table.find(&[0; 32]), None);
        assert_eq!(*table.lost(), [(key_id(1), 2)].into());
        assert!(table.knows(&key_id(1)) && !table.knows(&key_id(9)));
    }

    #[test]
    fn every_changed_bit_is_found() {
        let text = table().to_json();
        for place in 0..text.len() {
            for bit in 0..8 {
                let mut changed = text.clone().into_bytes();
                changed[place] ^= 1 << bit;
                assert!(RewrapTable::parse(&changed).is_err(), "byte {place}, bit {bit}");
            }
            assert!(RewrapTable::parse(&text.as_bytes()[..place]).is_err());
        }
    }

    #[test]
    fn faults_are_named() {
        let text = table().to_json();
        let twice = RewrapTable::new(origin(), vec![seed(1, 4), seed(1, 4)]).to_json();
        let spaced = text.replace("\"seeds\": [", "\"seeds\":  [");
        for (text, error) in [
            (text.replace("true", "false"), "`sha256`: the file is damaged, or was edited"),
            (text.replace("\"complete\"", "\"whole\""), "unknown key `origin.whole`"),
            (twice, "`seeds`: they are not in the order of their digests"),
            (spaced, "`version`: the file is not in the form that it was written in"),
        ] {
            let found = RewrapTable::parse(text.as_bytes()).unwrap_err().to_string();
            assert!(found.contains(error), "{found}\n{error}");
        }
    }

    /// With an annotation of the hybrid scheme each.
    #[test]
    fn the_largest_table_fits() {
        let annotation = 1170 + 17 + 32;
        let seeds = (0..1000).map(|number| seed(number, annotation)).collect();
        let text = RewrapTable::new(origin(), seeds).to_json();
        let bytes = text.len() / 1000;
        println!("{bytes} bytes for each seed with a hybrid recovery annotation");
        assert!(bytes * MAX_SEEDS * 3 / 2 < MAX_BYTES, "{bytes}");
    }
}
