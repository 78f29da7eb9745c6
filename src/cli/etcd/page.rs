//! An inventory as one HTML page: charts made of plain boxes, no script, nothing loaded from elsewhere.

use askama::Template;
use indicatif::HumanCount;

use super::table::{self, Row, Seed};
use crate::etcd::inventory::Inventory;
use crate::etcd::need::Kek;
use crate::etcd::value::Form;

/// The page.
pub(super) fn render(inventory: &Inventory) -> Result<String, askama::Error> {
    let keks = inventory.keks();
    let sealed: u64 = keks.iter().map(|kek| kek.objects).sum();
    let rows = table::rows(inventory);
    let seeds = table::all_seeds(inventory);
    let largest_seed = seeds.first().map_or(0, |seed| seed.objects);
    Page {
        inventory,
        source: table::source(&inventory.source),
        size: table::size(inventory.bytes),
        sealed,
        other: count(&rows, |form| !matches!(form, Form::Identity | Form::KmsV2)),
        plain: count(&rows, |form| form == Form::Identity),
        mixed: inventory.mixed(),
        kek_count: keks.iter().filter(|kek| kek.key_id.is_some()).count(),
        seed_count: seeds.len(),
        keks: keks.into_iter().map(|kek| KekRow { width: percent(kek.objects, sealed), kek }).collect(),
        resources: resources(&rows),
        rows,
        seeds: seeds
            .into_iter()
            .take(SEED_LIMIT)
            .map(|seed| SeedRow { width: percent(seed.objects, largest_seed), seed })
            .collect(),
    }
    .render()
}

/// Most seeds that the page shows.
const SEED_LIMIT: usize = 25;

#[derive(Template)]
#[template(path = "page.html", config = "src/cli/etcd/askama.toml")]
struct Page<'a> {
    inventory: &'a Inventory,
    source: String,
    size: String,
    sealed: u64,
    other: u64,
    plain: u64,
    mixed: Vec<(&'a str, u64)>,
    kek_count: usize,
    seed_count: usize,
    keks: Vec<KekRow<'a>>,
    resources: Vec<ResourceRow<'a>>,
    rows: Vec<Row<'a>>,
    seeds: Vec<SeedRow<'a>>,
}

// What the template calls; it passes references.
#[allow(clippy::unused_self, clippy::trivially_copy_pass_by_ref, reason = "askama calls methods")]
impl Page<'_> {
    fn number(&self, number: &u64) -> String {
        HumanCount(*number).to_string()
    }

    fn short(&self, text: &str) -> String {
        table::short(text, 24)
    }
}

struct KekRow<'a> {
    kek: Kek<'a>,
    /// Percent of all objects under KMS v2.
    width: String,
}

struct SeedRow<'a> {
    seed: Seed<'a>,
    /// Percent of the seed with the most objects.
    width: String,
}

/// A stacked bar.
struct ResourceRow<'a> {
    name: &'a str,
    objects: u64,
    parts: Vec<Part>,
}

struct Part {
    class: &'static str,
    /// Percent of the resource's objects.
    width: String,
    label: String,
}

/// Encrypted resources first, then the largest.
fn resources<'a>(rows: &[Row<'a>]) -> Vec<ResourceRow<'a>> {
    let mut found: Vec<ResourceRow<'a>> = Vec::new();
    for rows in rows.chunk_by(|one, next| one.resource == next.resource) {
        let objects = rows.iter().map(|row| row.objects).sum();
        let part = |row: &Row<'_>| Part {
            class: class(row.form),
            width: percent(row.objects, objects),
            label: format!("{} {}: {}", row.form, row.provider, HumanCount(row.objects)).replace(" :", ":"),
        };
        let name = rows.first().map_or("", |row| row.resource);
        found.push(ResourceRow { name, objects, parts: rows.iter().map(part).collect() });
    }
    found.sort_by_key(|resource| {
        let is_plain = resource.parts.iter().all(|part| part.class == class(Form::Identity));
        (is_plain, std::cmp::Reverse(resource.objects))
    });
    found
}

fn class(form: Form) -> &'static str {
    match form {
        Form::Identity => "plain",
        Form::KmsV2 => "kms",
        _ => "other",
    }
}

fn count(rows: &[Row<'_>], which: impl Fn(Form) -> bool) -> u64 {
    rows.iter().filter(|row| which(row.form)).map(|row| row.objects).sum()
}

/// With one digit after the point.
fn percent(part: u64, whole: u64) -> String {
    let thousandths = u128::from(part) * 1000 / u128::from(whole.max(1));
    format!("{}.{}", thousandths / 10, thousandths % 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_from_the_store_becomes_markup() {
        let page = render(&table::tests::sample()).unwrap();
        assert!(page.contains("&#60;script&#62;alert(1)"), "{page}");
        for forbidden in ["<script", "<b>\"", "http:", "https:", "url(", "@import", "javascript"] {
            assert!(!page.contains(forbidden), "{forbidden}");
        }
        assert!(page.contains("style=\"width:98.8%\""), "{page}");
    }

    #[test]
    fn an_empty_store_has_a_page() {
        let mut inventory = table::tests::sample();
        inventory.groups.clear();
        inventory.objects = 0;
        assert!(render(&inventory).unwrap().contains("<b>0</b>objects"));
    }

    #[test]
    fn parts_are_of_a_hundred() {
        assert_eq!(
            [percent(0, 0), percent(1, 3), percent(3, 3), percent(u64::MAX, u64::MAX)],
            ["0.0", "33.3", "100.0", "100.0"]
        );
    }
}
