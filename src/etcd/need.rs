//! What an inventory comes to: the KEKs that must not go away, and what should not be in plain text.

use std::collections::{BTreeSet, HashMap};

use super::inventory::Inventory;
use super::value::Form;

/// Objects that need one KEK, over all resources.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Kek<'a> {
    /// The provider that opens it.
    pub provider: &'a str,
    /// The KEK; `None` where the value is too damaged to say.
    pub key_id: Option<&'a str>,
    /// `sha256:` of it.
    pub key_id_hash: Option<&'a str>,
    /// The resources.
    pub resources: BTreeSet<&'a str>,
    /// Number of different seeds.
    pub seeds: usize,
    /// Number of objects.
    pub objects: u64,
    /// The smallest revision at which one of them was last written.
    pub oldest_revision: u64,
    /// How many carry their seed sealed to a recovery recipient, too.
    pub covered: u64,
}

impl Inventory {
    /// The KEKs in use under KMS v2, most objects first.
    pub fn keks(&self) -> Vec<Kek<'_>> {
        let mut found = HashMap::new();
        for group in self.groups.iter().filter(|group| group.form == Form::KmsV2) {
            let key_id_hash = group.key_id_hash.as_deref();
            let (kek, seeds): &mut (Kek<'_>, BTreeSet<&str>) =
                found.entry((group.provider.as_str(), key_id_hash)).or_insert_with(|| {
                    let kek = Kek {
                        provider: &group.provider,
                        key_id: group.key_id.as_deref(),
                        key_id_hash,
                        resources: BTreeSet::new(),
                        seeds: 0,
                        objects: 0,
                        oldest_revision: u64::MAX,
                        covered: 0,
                    };
                    (kek, BTreeSet::new())
                });
            kek.resources.insert(&group.resource);
            seeds.extend(group.seed.as_deref());
            kek.objects += group.objects;
            kek.oldest_revision = kek.oldest_revision.min(group.oldest_revision);
            kek.covered += group.covered;
        }
        let mut keks: Vec<Kek<'_>> =
            found.into_values().map(|(kek, seeds)| Kek { seeds: seeds.len(), ..kek }).collect();
        keks.sort_unstable_by_key(|kek| (std::cmp::Reverse(kek.objects), kek.provider, kek.key_id_hash));
        keks
    }

    /// Resources of which some objects are encrypted and some are plain text, with the number of the latter. Either a
    /// migration is not finished, or somebody wrote into the store behind the API server.
    pub fn mixed(&self) -> Vec<(&str, u64)> {
        let encrypted: BTreeSet<&str> = self
            .groups
            .iter()
            .filter(|group| group.form != Form::Identity)
            .map(|group| group.resource.as_str())
            .collect();
        let plain = self.groups.iter().filter(|group| group.form == Form::Identity);
        plain
            .filter(|group| encrypted.contains(group.resource.as_str()))
            .map(|group| (group.resource.as_str(), group.objects))
            .collect()
    }
}
