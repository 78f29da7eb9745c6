//! The sealed seeds of a store, each once, however many objects it encrypted: what a recovery has to open.

use std::collections::HashMap;
use std::collections::hash_map::Entry as Slot;

use prost::bytes::Bytes;

use super::Entry;
use super::inventory::FAULT_LIMIT;
use super::proto::EncryptedObject;
use super::value::{Stored, printable};
use crate::envelope::Annotations;
use crate::recovery::seed_digest;

/// A sealed seed, as the API server gives it to Decrypt.
#[derive(Clone, Debug, PartialEq)]
pub struct SealedSeed {
    /// The encrypted DEK source.
    pub ciphertext: Bytes,
    /// The KEK that sealed it, whichever plugin's.
    pub key_id: String,
    /// Bound to the ciphertext.
    pub annotations: Annotations,
    /// How many objects it encrypted.
    pub objects: u64,
    /// The key of one of them.
    pub example: Bytes,
}

/// All that were found.
#[derive(Debug, Default)]
pub struct Seeds {
    /// By their digests.
    pub found: HashMap<[u8; 32], SealedSeed>,
    /// Objects under KMS v2, whichever plugin's.
    pub objects: u64,
    /// What could not be read, the first of it.
    pub faults: Vec<String>,
    /// How many more faults there are.
    pub faults_left_off: u64,
    /// What `found` takes.
    bytes: usize,
}

/// Most seeds, and most bytes of them: only a store that somebody filled on purpose gets there.
const SEED_LIMIT: usize = 50_000;
const BYTE_LIMIT: usize = 256 << 20;

impl Seeds {
    /// Takes in one object of the store.
    pub fn add(&mut self, entry: &Entry) {
        match Stored::parse(&entry.value) {
            Ok(Stored { object: Some(object), .. }) => self.add_object(&entry.key, object),
            Ok(_) => {}
            Err(error) => self.fault(format!("{}: {error}", printable(&entry.key))),
        }
    }

    /// Notes something that could not be read.
    pub fn fault(&mut self, text: String) {
        if self.faults.len() < FAULT_LIMIT {
            self.faults.push(text);
        } else {
            self.faults_left_off += 1;
        }
    }

    /// Whether all of the store was read.
    pub fn are_complete(&self) -> bool {
        self.faults.is_empty()
    }

    fn add_object(&mut self, key: &Bytes, object: EncryptedObject) {
        self.objects += 1;
        let has_room = self.found.len() < SEED_LIMIT && self.bytes < BYTE_LIMIT;
        match self.found.entry(digest_of(&object)) {
            Slot::Occupied(mut slot) => slot.get_mut().objects += 1,
            Slot::Vacant(slot) if has_room => {
                let annotations: usize = object.annotations.iter().map(|(name, value)| name.len() + value.len()).sum();
                self.bytes += object.encrypted_dek_source.len() + object.key_id.len() + annotations + key.len();
                // Copies: what comes in are parts of a whole page.
                let copy = |bytes: &Bytes| Bytes::copy_from_slice(bytes);
                slot.insert(SealedSeed {
                    ciphertext: copy(&object.encrypted_dek_source),
                    annotations: object.annotations.iter().map(|(name, value)| (name.clone(), copy(value))).collect(),
                    key_id: object.key_id,
                    objects: 1,
                    example: copy(key),
                });
            }
            Slot::Vacant(_) => self.fault(format!("{}: the store has more seeds than are looked at", printable(key))),
        }
    }
}

/// The name of an object's sealed seed.
pub fn digest_of(object: &EncryptedObject) -> [u8; 32] {
    seed_digest(&object.encrypted_dek_source, &object.key_id, &object.annotations)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::etcd::inventory::sealed;

    fn entry(key: &str, value: Bytes) -> Entry {
        Entry { key: Bytes::copy_from_slice(key.as_bytes()), value, mod_revision: 1 }
    }

    #[test]
    fn each_seed_is_found_once() {
        let mut seeds = Seeds::default();
        for (key, value) in [
            ("/registry/a", sealed("hsm", "k", "s1", true)),
            ("/registry/b", sealed("hsm", "k", "s1", true)),
            ("/registry/c", sealed("hsm", "k", "s1", false)),
            ("/registry/d", sealed("hsm", "l", "s1", true)),
            ("/registry/e", Bytes::from_static(b"k8s\0x")),
            ("/registry/f", Bytes::from_static(b"k8s:enc:kms:v2:hsm:\xff")),
        ] {
            seeds.add(&entry(key, value));
        }
        let mut counts: Vec<u64> = seeds.found.values().map(|seed| seed.objects).collect();
        counts.sort_unstable();
        assert_eq!((counts, seeds.objects, seeds.are_complete()), (vec![1, 1, 2], 4, false));
        for (digest, seed) in &seeds.found {
            assert_eq!(*digest, seed_digest(&seed.ciphertext, &seed.key_id, &seed.annotations));
        }
    }

    #[test]
    fn a_store_full_of_seeds_takes_no_more_memory_than_allowed() {
        let mut seeds = Seeds::default();
        for number in 0..SEED_LIMIT + 2 {
            seeds.add(&entry("/registry/a", sealed("hsm", "k", &number.to_string(), false)));
        }
        assert_eq!((seeds.found.len(), seeds.faults.len(), seeds.are_complete()), (SEED_LIMIT, 2, false));
        seeds.bytes = BYTE_LIMIT;
        seeds.found.clear();
        seeds.add(&entry("/registry/a", sealed("hsm", "k", "s", false)));
        assert!(seeds.found.is_empty());
    }
}
