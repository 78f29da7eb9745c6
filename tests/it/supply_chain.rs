//! What is built in is listed with a reason, and every `unsafe` block is reviewed.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use crate::imports::sources;

#[test]
fn the_list_of_dependencies_is_up_to_date() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let output = Command::new(root.join("scripts/dependencies")).arg("--check").output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&said));
}

#[test]
fn every_unsafe_block_is_reviewed() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let review = fs::read_to_string(root.join("docs/unsafe.md")).unwrap();
    let rows = review.lines().filter_map(|line| line.strip_prefix("| `raw")).map(|line| format!("raw{line}"));
    let reviewed: BTreeMap<String, usize> = rows
        .map(|row| {
            let cells: Vec<&str> = row.split('|').collect();
            (cells[0].replace('`', "").trim().to_owned(), cells[1].trim().parse().unwrap())
        })
        .collect();
    let mut found = BTreeMap::new();
    for (path, text) in sources(&root.join("src")) {
        let name = path.strip_prefix(&format!("{}/src/pkcs11/", root.display())).unwrap_or(&path).to_owned();
        let mut function = String::new();
        for line in text.lines() {
            if let Some((_, rest)) = line.split_once("fn ").filter(|(before, _)| !before.contains(['/', '"', '<'])) {
                function = rest.chars().take_while(|one| one.is_alphanumeric() || *one == '_').collect();
            }
            for _ in line.matches("unsafe {") {
                *found.entry(format!("{name} {function}")).or_insert(0) += 1;
            }
        }
    }
    assert_eq!(found, reviewed, "left: in src; right: in docs/unsafe.md");
}
