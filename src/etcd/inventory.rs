//! What a store holds: how many objects of which resource need which KEK and which seed. Nothing is decrypted.

use std::collections::HashMap;
use std::collections::hash_map::Entry as Slot;

use data_encoding::HEXLOWER;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::Entry;
use super::resource::resource;
use super::value::{Form, Stored, printable};
use crate::key_id;
use crate::recovery;

/// The report: what `hsm-kms etcd inventory --json` prints.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Inventory {
    /// Version of this form: 1.
    pub version: u32,
    /// When the store was read, RFC 3339, UTC.
    pub made: String,
    /// What was read.
    pub source: Source,
    /// Keys outside this prefix were not looked at.
    pub prefix: String,
    /// The revision of the store that was counted.
    pub revision: u64,
    /// Whether all of it could be read. If not, every count is a lower bound.
    pub complete: bool,
    /// All objects.
    pub objects: u64,
    /// Bytes of all their values.
    pub bytes: u64,
    /// The objects, by what they need.
    pub groups: Vec<Group>,
    /// What could not be read, the first [`FAULT_LIMIT`] of it.
    pub faults: Vec<String>,
    /// How many more faults there are.
    pub faults_left_off: u64,
}

/// What was read.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Source {
    /// A running etcd.
    Etcd {
        /// Its URL.
        endpoint: String,
        /// The cluster's id in hex, as `etcdctl member list --hex` has it.
        cluster_id: String,
    },
    /// A snapshot, or another file of etcd's database.
    Snapshot {
        /// Its path.
        file: String,
        /// Its size in bytes.
        size: u64,
        /// What became of the SHA-256 that `etcdctl snapshot save` appends.
        digest: super::snapshot::Digest,
    },
}

/// Objects of one resource that are stored alike.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Group {
    /// The resource, as `kubectl` names it.
    pub resource: String,
    /// How the values are stored.
    pub form: Form,
    /// The KMS provider, or for `aescbc` and the like the key; empty for plain text.
    pub provider: String,
    /// The KEK that is needed. Only for KMS v2.
    pub key_id: Option<String>,
    /// `sha256:` of the `key_id`, as the API server's metrics print it.
    pub key_id_hash: Option<String>,
    /// Hex SHA-256 of the encrypted DEK source. Only for KMS v2.
    pub seed: Option<String>,
    /// How many objects.
    pub objects: u64,
    /// Bytes of their values.
    pub bytes: u64,
    /// The smallest revision at which one of them was last written.
    pub oldest_revision: u64,
    /// The largest.
    pub newest_revision: u64,
    /// How many carry their seed sealed to a recovery recipient, too: see [`is_covered`].
    pub covered: u64,
}

/// Most faults that a report spells out.
pub const FAULT_LIMIT: usize = 20;

/// Most groups; what belongs to none of the first so many is counted as one. There are about as many as there were starts of
/// API servers, so only a store that somebody filled on purpose gets there.
const GROUP_LIMIT: usize = 50_000;

/// Counts entries as they come.
pub struct Counter {
    prefix: Vec<u8>,
    groups: HashMap<Key, Tally>,
    faults: Vec<String>,
    faults_left_off: u64,
    objects: u64,
    bytes: u64,
}

#[derive(Clone, Eq, Hash, Ord, PartialEq, PartialOrd)]
struct Key {
    resource: String,
    form: Form,
    provider: String,
    /// The `key_id` and the hash of the encrypted DEK source.
    kek: Option<(String, [u8; 32])>,
}

#[derive(Default)]
struct Tally {
    objects: u64,
    bytes: u64,
    oldest_revision: u64,
    newest_revision: u64,
    covered: u64,
}

/// Whether the seed of this object can be recovered without its KEK, as far as its annotations tell: one of them carries the seed,
/// sealed to a recovery recipient.
pub fn is_covered<'a>(mut annotations: impl Iterator<Item = &'a String>) -> bool {
    annotations.any(|name| recovery::is_annotation(name))
}

impl Counter {
    /// Counts keys below `prefix`, such as `/registry/`.
    pub fn new(prefix: &[u8]) -> Self {
        Self {
            prefix: prefix.to_owned(),
            groups: HashMap::new(),
            faults: Vec::new(),
            faults_left_off: 0,
            objects: 0,
            bytes: 0,
        }
    }

    /// Counts one object.
    pub fn add(&mut self, entry: &Entry) {
        let size = entry.value.len() as u64;
        self.objects += 1;
        self.bytes += size;
        let resource = resource(&entry.key, &self.prefix);
        let mut covered = false;
        let key = match Stored::parse(&entry.value) {
            Ok(Stored { form, name, object }) => {
                let kek = object.map(|object| {
                    covered = is_covered(object.annotations.keys());
                    (object.key_id, Sha256::digest(&object.encrypted_dek_source).into())
                });
                Key { resource, form, provider: name, kek }
            }
            Err(error) => {
                self.fault(format!("{}: {error}", printable(&entry.key)));
                Key { resource, form: Form::KmsV2, provider: error.provider, kek: None }
            }
        };
        let has_room = self.groups.len() < GROUP_LIMIT;
        let tally = match self.groups.entry(key) {
            Slot::Occupied(slot) => slot.into_mut(),
            Slot::Vacant(slot) if has_room => slot.insert(Tally::default()),
            Slot::Vacant(_) => {
                self.fault(format!("{}: more than {GROUP_LIMIT} seeds: not told apart", printable(&entry.key)));
                let rest = Key {
                    resource: "(not told apart)".to_owned(),
                    form: Form::Unknown,
                    provider: String::new(),
                    kek: None,
                };
                self.groups.entry(rest).or_default()
            }
        };
        tally.objects += 1;
        tally.bytes += size;
        tally.covered += u64::from(covered);
        tally.newest_revision = tally.newest_revision.max(entry.mod_revision);
        tally.oldest_revision =
            if tally.objects == 1 { entry.mod_revision } else { tally.oldest_revision.min(entry.mod_revision) };
    }

    /// Notes something that could not be read.
    pub fn fault(&mut self, text: String) {
        if self.faults.len() < FAULT_LIMIT {
            self.faults.push(text);
        } else {
            self.faults_left_off += 1;
        }
    }

    /// Notes how many more there are.
    pub fn more_faults(&mut self, count: u64) {
        self.faults_left_off += count;
    }

    /// How many objects were counted so far.
    pub fn objects(&self) -> u64 {
        self.objects
    }

    /// The report.
    pub fn finish(self, made: String, source: Source, revision: u64) -> Inventory {
        let mut groups: Vec<(Key, Tally)> = self.groups.into_iter().collect();
        groups.sort_unstable_by(|(one, _), (other, _)| one.cmp(other));
        Inventory {
            version: 1,
            made,
            source,
            prefix: printable(&self.prefix),
            revision,
            complete: self.faults.is_empty(),
            objects: self.objects,
            bytes: self.bytes,
            groups: groups.into_iter().map(group).collect(),
            faults: self.faults,
            faults_left_off: self.faults_left_off,
        }
    }
}

fn group((key, tally): (Key, Tally)) -> Group {
    let (key_id, seed) = key.kek.map(|(key_id, seed)| (key_id, HEXLOWER.encode(&seed))).unzip();
    Group {
        resource: key.resource,
        form: key.form,
        provider: key.provider,
        key_id_hash: key_id.as_deref().map(key_id::hash),
        key_id: key_id.map(|key_id| printable_key_id(&key_id)),
        seed,
        objects: tally.objects,
        bytes: tally.bytes,
        oldest_revision: tally.oldest_revision,
        newest_revision: tally.newest_revision,
        covered: tally.covered,
    }
}

/// Its hash tells apart what is cut here.
fn printable_key_id(key_id: &str) -> String {
    printable(key_id.as_bytes())
}

/// A value as a test writes it.
#[cfg(test)]
pub(super) fn sealed(provider: &str, key_id: &str, seed: &str, covered: bool) -> prost::bytes::Bytes {
    use prost::Message;
    use prost::bytes::Bytes;

    let object = super::proto::EncryptedObject {
        encrypted_data: Bytes::from_static(b"data"),
        key_id: key_id.to_owned(),
        encrypted_dek_source: Bytes::from(seed.to_owned()),
        annotations: covered
            .then(|| ("0123456789abcdef.recovery.hsm-kms".to_owned(), Bytes::new()))
            .into_iter()
            .collect(),
        encrypted_dek_source_type: 1,
    };
    [format!("k8s:enc:kms:v2:{provider}:").into_bytes(), object.encode_to_vec()].concat().into()
}

#[cfg(test)]
mod tests {
    use prost::bytes::Bytes;

    use super::*;

    fn count(entries: &[(&str, u64, Bytes)]) -> Inventory {
        let mut counter = Counter::new(b"/registry/");
        for (key, mod_revision, value) in entries {
            let key = Bytes::copy_from_slice(key.as_bytes());
            counter.add(&Entry { key, value: value.clone(), mod_revision: *mod_revision });
        }
        let source = Source::Etcd { endpoint: "http://127.0.0.1:2379".to_owned(), cluster_id: "1".to_owned() };
        counter.finish("2026-01-01T00:00:00Z".to_owned(), source, 9)
    }

    fn store() -> Inventory {
        count(&[
            ("/registry/secrets/a/1", 7, sealed("hsm", "new", "s1", true)),
            ("/registry/secrets/a/2", 3, sealed("hsm", "new", "s1", false)),
            ("/registry/secrets/a/3", 4, sealed("hsm", "new", "s2", false)),
            ("/registry/configmaps/a/1", 2, sealed("hsm", "new", "s2", false)),
            ("/registry/secrets/a/4", 5, sealed("hsm", "old", "s3", false)),
            ("/registry/secrets/a/5", 6, Bytes::from_static(b"k8s\0x")),
            ("/registry/secrets/a/6", 8, Bytes::from_static(b"k8s:enc:aescbc:v1:key1:x")),
            ("/registry/pods/a/1", 1, Bytes::from_static(b"k8s\0x")),
        ])
    }

    #[test]
    fn objects_are_counted_by_what_they_need() {
        let inventory = store();
        assert_eq!((inventory.objects, inventory.complete, inventory.groups.len()), (8, true, 7));
        let group = inventory.groups.iter().find(|group| group.objects == 2).unwrap();
        assert_eq!((group.oldest_revision, group.newest_revision, group.covered), (3, 7, 1));
        assert_eq!(group.key_id_hash.as_deref(), Some(key_id::hash("new").as_str()));
        assert_eq!(group.seed, Some(HEXLOWER.encode(&Sha256::digest(b"s1"))));
        let keks = inventory.keks();
        let seen: Vec<_> = keks.iter().map(|kek| (kek.key_id, kek.objects, kek.seeds, kek.oldest_revision)).collect();
        assert_eq!(seen, [(Some("new"), 4, 2, 2), (Some("old"), 1, 1, 5)]);
        assert_eq!(keks[0].resources, ["configmaps", "secrets"].into());
        assert_eq!(inventory.mixed(), [("secrets", 1)]);
    }

    #[test]
    fn a_report_is_read_back() {
        let inventory = store();
        let json = serde_json::to_string(&inventory).unwrap();
        assert_eq!(serde_json::from_str::<Inventory>(&json).unwrap(), inventory);
    }

    #[test]
    fn a_damaged_value_is_counted_and_named() {
        let inventory = count(&[("/registry/secrets/a/1", 7, Bytes::from_static(b"k8s:enc:kms:v2:hsm:\xff"))]);
        assert_eq!((inventory.objects, inventory.complete), (1, false));
        assert!(inventory.faults[0].starts_with("/registry/secrets/a/1: a value of the KMS v2 provider"));
        assert_eq!(inventory.keks()[0].key_id, None);
    }

    #[test]
    fn a_store_full_of_seeds_takes_no_more_memory_than_allowed() {
        let mut counter = Counter::new(b"/registry/");
        for number in 0..=GROUP_LIMIT {
            let value = sealed("hsm", "k", &number.to_string(), false);
            counter.add(&Entry { key: Bytes::from_static(b"/registry/secrets/a"), value, mod_revision: 1 });
        }
        assert_eq!((counter.groups.len(), counter.objects(), counter.faults.len()), (GROUP_LIMIT + 1, 50_001, 1));
    }
}
