//! What a rewrap found and did.

use std::collections::BTreeMap;
use std::fmt::Write;

use data_encoding::HEXLOWER;
use serde::Serialize;

use super::Opened;
use crate::cli::etcd::{shown, table};
use crate::cli::recovery::sealed::Found;
use crate::cluster::Cluster;
use crate::etcd::inventory::Source;
use crate::etcd::open::OpenError;
use crate::etcd::seeds::SealedSeed;
use crate::key_id::KeyId;
use crate::recovery::{Fingerprint, Recipient};

/// The report: what `recovery rewrap --json` prints.
#[derive(Serialize)]
pub(super) struct Report {
    version: u32,
    source: Source,
    revision: u64,
    pub(super) cluster: Cluster,
    recipient: Fingerprint,
    /// The living KEK.
    pub(super) sealed_with: KeyId,
    /// The KEKs that the plugin does not have.
    pub(super) lost: BTreeMap<KeyId, Lost>,
    /// Objects under other KEKs, or of other plugins.
    pub(super) other_objects: u64,
    /// Seeds that are not in the table, the first of them.
    pub(super) refused: Vec<Refused>,
    pub(super) refused_left_off: u64,
    /// What could not be read, the first of it.
    pub(super) faults: Vec<String>,
    pub(super) faults_left_off: u64,
    /// Objects that do not open with their seed, though others do: moved within etcd, or changed.
    changed: Vec<String>,
    changed_left_off: u64,
    /// Where the table is, if it was written.
    pub(super) table: Option<String>,
    pub(super) table_bytes: u64,
}

/// What was found of one lost KEK.
#[derive(Default, Serialize)]
pub(super) struct Lost {
    pub(super) seeds: u64,
    pub(super) objects: u64,
    /// Seeds that the recovery key opened, and one of whose objects opens with them.
    seeds_opened: u64,
    /// Objects that were really opened.
    objects_opened: u64,
}

/// A seed that is not in the table.
#[derive(Serialize)]
pub(super) struct Refused {
    /// Its digest in hex.
    pub(super) seed: String,
    key_id: KeyId,
    objects: u64,
    /// The key of one of its objects.
    example: String,
    pub(super) why: String,
}

/// Most of each that are spelled out.
const LIMIT: usize = 20;

impl Refused {
    pub(super) fn new(digest: &[u8; 32], key_id: &KeyId, seed: &SealedSeed, why: String) -> Self {
        let (objects, example) = (seed.objects, shown(&seed.example));
        Self { seed: HEXLOWER.encode(digest), key_id: key_id.clone(), objects, example, why }
    }
}

impl Report {
    pub(super) fn new(cluster: Cluster, recipient: &Recipient, sealed_with: KeyId, found: &Found) -> Self {
        Self {
            version: 1,
            source: found.source.clone(),
            revision: found.revision,
            cluster,
            recipient: recipient.fingerprint(),
            sealed_with,
            lost: BTreeMap::new(),
            other_objects: 0,
            refused: Vec::new(),
            refused_left_off: 0,
            faults: found.seeds.faults.clone(),
            faults_left_off: found.seeds.faults_left_off,
            changed: Vec::new(),
            changed_left_off: 0,
            table: None,
            table_bytes: 0,
        }
    }

    pub(super) fn refuse(&mut self, refused: Refused) {
        if self.refused.len() < LIMIT {
            self.refused.push(refused);
        } else {
            self.refused_left_off += 1;
        }
    }

    pub(super) fn unopened(&mut self, key: &str, error: &OpenError) {
        if self.changed.len() < LIMIT {
            self.changed.push(format!("{key}: {error}"));
        } else {
            self.changed_left_off += 1;
        }
    }

    pub(super) fn count(&mut self, opened: &BTreeMap<[u8; 32], Opened<'_>>) {
        for opened in opened.values() {
            let lost = self.lost.entry(opened.key_id.clone()).or_default();
            lost.seeds_opened += 1;
            lost.objects_opened += opened.proved;
        }
    }

    /// Whether every seed of the lost KEKs opened, and all of the store was read.
    pub(super) fn is_whole(&self) -> bool {
        self.refused.is_empty() && self.faults.is_empty()
    }

    pub(super) fn text(&self) -> String {
        let mut out = String::new();
        let mut line = |text: String| {
            let _ = writeln!(out, "{text}");
        };
        line(format!("store     {}", table::source(&self.source)));
        line(format!("opened by {}", self.recipient));
        line(format!("new KEK   {}", self.sealed_with));
        let mut rows = table::table(&["lost KEK", "seeds opened", "objects opened"], 1);
        for (key_id, lost) in &self.lost {
            let of = |part: u64, whole: u64| format!("{part} of {whole}");
            let seeds = of(lost.seeds_opened, lost.seeds);
            rows.add_row([key_id.to_string(), seeds, of(lost.objects_opened, lost.objects)]);
        }
        line(format!("\n{rows}\n"));
        if self.other_objects > 0 {
            line(format!("{} objects need other KEKs, which were not touched.", self.other_objects));
        }
        for Refused { seed, objects, example, why, .. } in &self.refused {
            line(format!("refused: seed {} of {objects} objects, such as {example}: {why}", short(seed)));
        }
        for fault in &self.faults {
            line(format!("not readable: {fault}"));
        }
        for changed in &self.changed {
            line(format!("does not open: {changed}"));
        }
        let left_off = self.refused_left_off + self.faults_left_off + self.changed_left_off;
        if left_off > 0 {
            line(format!("{left_off} more of these"));
        }
        if let Some(path) = &self.table {
            line(format!("table     {path}, {}", table::size(self.table_bytes)));
        }
        out
    }
}

/// A digest as lines show it.
pub(super) fn short(digest: &str) -> &str {
    digest.get(..16).unwrap_or(digest)
}
