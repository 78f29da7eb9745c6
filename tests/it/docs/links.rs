//! Links lead to files and headings that are there, and the tests that tables name exist.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Component, Path, PathBuf};

use super::{documents, is_test, root};
use crate::parts;

#[test]
fn links_lead_to_what_is_there() {
    let documents = documents();
    let headings: BTreeMap<PathBuf, BTreeSet<String>> =
        documents.iter().map(|path| (path.clone(), anchors(&fs::read_to_string(path).unwrap()))).collect();
    let mut wrong = Vec::new();
    let mut linked = BTreeSet::new();
    for path in &documents {
        for (line, target) in links(&fs::read_to_string(path).unwrap()) {
            let checked = check(path, &target, &headings);
            match checked {
                Ok(Some(file)) if file != *path => drop(linked.insert(file)),
                Ok(_) => {}
                Err(why) => wrong.push(format!("{}:{line}: {target}: {why}", path.display())),
            }
        }
    }
    let below = root().join("docs");
    let lost = documents.iter().filter(|path| path.starts_with(&below) && !linked.contains(*path));
    wrong.extend(lost.map(|path| format!("{}: no other document leads there", path.display())));
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(linked.len() > 20, "{linked:?}");
}

#[test]
fn links_that_lead_nowhere_are_found() {
    let path = root().join("docs/a.md");
    let headings =
        BTreeMap::from([(path.clone(), anchors("# One `two`, three_4\n## Again\n## Again\n```\n# Not this\n```\n"))]);
    let check = |target: &str| check(&path, target, &headings).map(drop);
    for right in ["#one-two-three_4", "#again", "#again-1", "../README.md", "../src", "https://example.org/a#b"] {
        check(right).unwrap();
    }
    for wrong in [
        "#two",
        "#again-2",
        "#not-this",
        "b.md",
        "a.md#no",
        "../README.md#x",
        "/README.md",
        "../../..",
        "http://example.org",
    ] {
        check(wrong).unwrap_err();
    }
    for wrong in ["https://", "https://example", "https://example.org/a b", "ftp://example.org"] {
        check(wrong).unwrap_err();
    }
    let text = "[a](b.md) `[c](d.md)` ![e](f.svg)\n```\n[g](h.md)\n```\n[i](j.md#k), [l\nm](n.md)";
    let found: Vec<_> = links(text).into_iter().map(|(line, target)| format!("{line} {target}")).collect();
    assert_eq!(found, ["1 b.md", "1 f.svg", "5 j.md#k", "6 n.md"]);
}

/// The file that a link leads to, if it is one of ours.
fn check(from: &Path, target: &str, headings: &BTreeMap<PathBuf, BTreeSet<String>>) -> Result<Option<PathBuf>, String> {
    if target.contains(char::is_whitespace) {
        return Err("it holds a blank".to_owned());
    }
    if target.contains("://") {
        let host = target.strip_prefix("https://").ok_or("expected https://")?.split(['/', '#']).next();
        return host.filter(|host| host.contains('.')).map(|_| None).ok_or("no host".to_owned());
    }
    let (file, anchor) = target.split_once('#').map_or((target, None), |(file, anchor)| (file, Some(anchor)));
    let path = if file.is_empty() { from.to_owned() } else { plain(&from.parent().unwrap().join(file)) };
    if !path.starts_with(root()) || file.starts_with('/') {
        return Err("it leaves the repository".to_owned());
    }
    match (anchor, headings.get(&path)) {
        (None, _) if path.exists() || headings.contains_key(&path) => Ok(Some(path)),
        (None, _) => Err("there is no such file".to_owned()),
        (Some(anchor), Some(of_file)) if of_file.contains(anchor) => Ok(Some(path)),
        (Some(_), _) => Err("there is no such heading".to_owned()),
    }
}

/// The path without `..`.
fn plain(path: &Path) -> PathBuf {
    let mut found = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => drop(found.pop()),
            Component::CurDir => {}
            part => found.push(part),
        }
    }
    found
}

/// The lines outside of fenced blocks, and their numbers.
fn prose(document: &str) -> Vec<(usize, &str)> {
    let mut is_fenced = false;
    let lines = (1..).zip(document.lines()).filter(|(_, line)| {
        let is_fence = line.trim_start().starts_with("```");
        is_fenced ^= is_fence;
        !is_fenced && !is_fence
    });
    lines.collect()
}

/// The targets of links, and the lines on which they stand.
fn links(document: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for (number, line) in prose(document) {
        // What stands between two backquotes is shown, not followed.
        let shown: String = line.split('`').step_by(2).collect();
        let targets = shown.split("](").skip(1).filter_map(|rest| rest.split_once(')'));
        found.extend(targets.map(|(target, _)| (number, target.to_owned())));
    }
    found
}

/// The anchors that GitHub makes of the headings.
fn anchors(document: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for (_, line) in prose(document) {
        let Some(title) = line.starts_with('#').then(|| line.trim_start_matches('#')) else { continue };
        let kept = title.trim().to_lowercase().replace(' ', "-");
        let slug: String = kept.chars().filter(|one| one.is_alphanumeric() || matches!(one, '-' | '_')).collect();
        let numbered = (1..).map(|number| format!("{slug}-{number}"));
        let free = std::iter::once(slug.clone()).chain(numbered).find(|name| !found.contains(name));
        found.extend(free);
    }
    found
}

#[test]
fn tests_that_the_documents_name_exist() {
    let mut found = 0;
    for path in documents() {
        let document = fs::read_to_string(&path).unwrap();
        for name in TABLES.iter().flat_map(|heading| document.split(heading).skip(1)).flat_map(names) {
            assert!(is_test(name), "{}: there is no test {name}", path.display());
            found += 1;
        }
    }
    assert!(found > 80, "{found} tests are named");
}

/// The texts of docs/troubleshooting.md are those of the API server's source.
#[test]
fn the_api_server_says_what_is_quoted() {
    let sources = parts::folder().join("build/go-root/usr/share/gocode/src");
    let folders = ["k8s.io/apiserver/pkg", "google.golang.org/grpc/internal"].map(|name| sources.join(name));
    let mut files: Vec<_> = folders.iter().flat_map(|folder| go_files(folder)).collect();
    files.retain(|path| !path.ends_with("_test.go"));
    let document = fs::read_to_string(root().join("docs/troubleshooting.md")).unwrap();
    let mut found = 0;
    for table in document.split(QUOTES).skip(1) {
        for row in table.lines().take_while(|line| line.starts_with('|')) {
            let cells: Vec<_> = row.split('`').collect();
            let (text, place) = (cells[1], cells[3]);
            let mut named = files.iter().filter(|path| path.to_str().unwrap().ends_with(place)).peekable();
            assert!(named.peek().is_some(), "{place}");
            assert!(named.any(|path| fs::read_to_string(path).unwrap().contains(text)), "{place} has no {text:?}");
            found += 1;
        }
    }
    assert!(found > 15, "{found} texts are quoted");
}

/// Heading of tables whose first two columns are a text and the file that has it.
const QUOTES: &str = "| text | where | what it means, and what to do | met |\n|---|---|---|---|\n";

fn go_files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let paths = entries.map(|entry| entry.unwrap().path());
    paths.flat_map(|path| if path.is_dir() { go_files(&path) } else { vec![path] }).collect()
}

/// Headings of tables whose last column names tests.
const TABLES: [&str; 3] = [
    "| statement | test |\n|---|---|\n",
    "| claim | mechanism | test |\n|---|---|---|\n",
    "| taken out | test |\n|---|---|\n",
];

/// The tests in the last column of a table, of which this is the rest of the document.
fn names(rest: &str) -> Vec<&str> {
    let rows = rest.lines().take_while(|line| line.starts_with('|'));
    let cells = rows.filter_map(|line| line.rsplit('|').nth(1)).flat_map(|cell| cell.split(','));
    cells.map(|name| name.trim().trim_matches('`')).collect()
}
