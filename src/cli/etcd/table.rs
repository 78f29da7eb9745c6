//! An inventory as text, 80 columns wide.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write;

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};

use crate::etcd::inventory::{Inventory, Source};
use crate::etcd::snapshot::Digest;
use crate::etcd::value::Form;

const WIDTH: u16 = 80;
/// Most seeds that are listed; `--json` has all.
const SEED_LIMIT: usize = 10;

pub(super) fn text(inventory: &Inventory) -> String {
    let mut out = String::new();
    let mut line = |text: String| {
        let _ = writeln!(out, "{text}");
    };
    line(format!("store     {}", source(&inventory.source)));
    line(format!("revision  {}, read {}, keys under {}", inventory.revision, inventory.made, inventory.prefix));
    line(format!("objects   {} ({})", inventory.objects, size(inventory.bytes)));
    if inventory.objects > 0 {
        line(format!("\n{}", resources(inventory)));
    }
    let keks = inventory.keks();
    if !keks.is_empty() {
        let mut table = table(&["needs the KEK", "provider", "objects", "seeds"], 2);
        for kek in &keks {
            // As wide as the plugin's own: what is cut here stands in --json.
            let key_id = short(kek.key_id.unwrap_or("(damaged)"), 45);
            table.add_row([&key_id, kek.provider, &kek.objects.to_string(), &kek.seeds.to_string()]);
        }
        line(format!("\n{table}"));
        line(format!("\n{}", seeds(inventory)));
        let covered: u64 = keks.iter().map(|kek| kek.covered).sum();
        let all: u64 = keks.iter().map(|kek| kek.objects).sum();
        line(format!("\nSealed to a recovery recipient, too: {covered} of {all}."));
    }
    for (resource, count) in inventory.mixed() {
        line(format!("\nwarning: {count} of {resource} are in plain text, though others are encrypted."));
    }
    for fault in &inventory.faults {
        line(format!("\nnot readable: {fault}"));
    }
    if inventory.faults_left_off > 0 {
        line(format!("\nnot readable: {} more faults", inventory.faults_left_off));
    }
    out
}

pub(in crate::cli) fn source(source: &Source) -> String {
    match source {
        Source::Etcd { endpoint, cluster_id } => format!("etcd {endpoint}, cluster {cluster_id}"),
        Source::Snapshot { file, size: bytes, digest } => {
            let digest = match digest {
                Digest::Absent => "it has no SHA-256",
                Digest::Differs => "its SHA-256 DIFFERS",
                Digest::Matches => "its SHA-256 matches",
            };
            format!("snapshot {file}, {}, {digest}", size(*bytes))
        }
    }
}

/// One row for each resource and way of storing it.
pub(super) struct Row<'a> {
    pub resource: &'a str,
    pub form: Form,
    pub provider: &'a str,
    pub objects: u64,
    pub bytes: u64,
    pub oldest_revision: u64,
}

pub(super) fn rows(inventory: &Inventory) -> Vec<Row<'_>> {
    let mut rows: BTreeMap<(&str, Form, &str), Row<'_>> = BTreeMap::new();
    for group in &inventory.groups {
        let (resource, provider) = (group.resource.as_str(), group.provider.as_str());
        let row = rows.entry((resource, group.form, provider)).or_insert(Row {
            resource,
            form: group.form,
            provider,
            objects: 0,
            bytes: 0,
            oldest_revision: u64::MAX,
        });
        row.objects += group.objects;
        row.bytes += group.bytes;
        row.oldest_revision = row.oldest_revision.min(group.oldest_revision);
    }
    rows.into_values().collect()
}

fn resources(inventory: &Inventory) -> Table {
    let mut table = table(&["resource", "stored as", "objects", "size", "oldest revision"], 2);
    for row in rows(inventory) {
        let stored = format!("{} {}", row.form, row.provider);
        let cells = [row.objects.to_string(), size(row.bytes), row.oldest_revision.to_string()];
        table.add_row([row.resource, stored.trim_end()].into_iter().map(str::to_owned).chain(cells));
    }
    table
}

/// A seed, over all resources.
pub(super) struct Seed<'a> {
    /// Hex SHA-256 of it as it is sealed.
    pub hash: &'a str,
    pub key_id: &'a str,
    pub objects: u64,
    pub oldest_revision: u64,
}

/// Most objects first.
pub(super) fn all_seeds(inventory: &Inventory) -> Vec<Seed<'_>> {
    let mut found = HashMap::new();
    for group in &inventory.groups {
        let (Some(seed), Some(key_id)) = (&group.seed, &group.key_id) else { continue };
        let entry =
            found.entry((seed, key_id)).or_insert(Seed { hash: seed, key_id, objects: 0, oldest_revision: u64::MAX });
        entry.objects += group.objects;
        entry.oldest_revision = entry.oldest_revision.min(group.oldest_revision);
    }
    let mut seeds: Vec<Seed<'_>> = found.into_values().collect();
    seeds.sort_unstable_by_key(|seed| (std::cmp::Reverse(seed.objects), seed.key_id, seed.hash));
    seeds
}

fn seeds(inventory: &Inventory) -> Table {
    let seeds = all_seeds(inventory);
    let mut table = table(&["seed (hash)", "of the KEK", "objects", "oldest revision"], 2);
    for seed in seeds.iter().take(SEED_LIMIT) {
        let cells = [seed.objects, seed.oldest_revision].map(|number| number.to_string());
        table.add_row([short(seed.hash, 19), short(seed.key_id, 23)].into_iter().chain(cells));
    }
    if seeds.len() > SEED_LIMIT {
        table.add_row([format!("{} more: see --json", seeds.len() - SEED_LIMIT)]);
    }
    table
}

/// At most so many characters, the last three being dots if there are more.
pub(in crate::cli) fn short(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    text.chars().take(width.saturating_sub(3)).chain("...".chars()).collect()
}

/// Numbers stand to the right from column `numbers` on.
pub(in crate::cli) fn table(header: &[&str], numbers: usize) -> Table {
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN).set_content_arrangement(ContentArrangement::Dynamic).set_width(WIDTH);
    table.set_header(header);
    for column in table.column_iter_mut().skip(numbers) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

/// Bytes for people.
pub(in crate::cli) fn size(bytes: u64) -> String {
    indicatif::HumanBytes(bytes).to_string()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::etcd::inventory::{Group, Inventory};

    /// An inventory with long and hostile names.
    pub(in crate::cli::etcd) fn sample() -> Inventory {
        let group = |resource: &str, form, provider: &str, key_id: Option<&str>, seed: Option<u8>, objects| Group {
            resource: resource.to_owned(),
            form,
            provider: provider.to_owned(),
            key_id: key_id.map(str::to_owned),
            key_id_hash: key_id.map(crate::key_id::hash),
            seed: seed.map(|seed| format!("{seed:02x}").repeat(32)),
            objects,
            bytes: objects * 777,
            oldest_revision: 12_345_678,
            newest_revision: 12_345_679,
            covered: 0,
        };
        let (new, old) =
            ("hsm1-00112233445566778899aabbccddeeff00112233", "hsm1-ffeeddccbbaa00112233445566778899aabbccdd");
        let mut groups = vec![
            group("configmaps", Form::Identity, "", None, None, 4_321),
            group("pods", Form::Identity, "", None, None, 40_000),
            group("secrets", Form::Identity, "", None, None, 7),
            group("secrets", Form::Aescbc, "key1", None, None, 120),
            group("secrets", Form::KmsV2, "hsm-kms", Some(old), Some(99), 1_000),
            group("secrets", Form::KmsV2, "hsm-kms", None, None, 1),
            group(
                "widgets.a-quite-long-group.of-an-operator.example.com",
                Form::KmsV2,
                "hsm-kms",
                Some(new),
                Some(1),
                5,
            ),
            group("<script>alert(1)</script>", Form::Unknown, "<b>\"'&", None, None, 1),
            group("tokens.example.com", Form::KmsV2, "other", Some(&"k".repeat(200)), Some(200), 3),
        ];
        groups.extend((0..30).map(|seed| group("secrets", Form::KmsV2, "hsm-kms", Some(new), Some(seed), 3_000)));
        Inventory {
            version: 1,
            made: "2026-01-31T12:00:00Z".to_owned(),
            source: Source::Snapshot { file: "/backup/etcd.db".to_owned(), size: 99 << 20, digest: Digest::Matches },
            prefix: "/registry/".to_owned(),
            revision: 123_456_789,
            complete: false,
            objects: groups.iter().map(|group| group.objects).sum(),
            bytes: groups.iter().map(|group| group.bytes).sum(),
            groups,
            faults: vec![
                "page 7: its keys are out of order; what was written at revisions 5 to 9 is not readable".to_owned(),
            ],
            faults_left_off: 3,
        }
    }

    #[test]
    fn no_line_is_wider_than_a_terminal() {
        let text = text(&sample());
        for line in text.lines().filter(|line| line.starts_with('|')) {
            assert!(line.chars().count() <= 80, "{line}");
        }
        assert!(text.contains("| hsm1-00112233445566778899aabbccddeeff00112233 |"), "{text}");
        assert!(text.contains("warning: 7 of secrets are in plain text"), "{text}");
        assert!(text.contains("more: see --json"), "{text}");
    }
}
