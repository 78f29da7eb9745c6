//! docs/doctor.md says what the code does.

use std::collections::BTreeSet;

use super::GROUPS;

#[test]
fn the_documented_rows_are_those_of_the_code() {
    let document = include_str!("../../docs/doctor.md");
    let (_, table) = document.split_once("| check | why it matters | warning | failed |\n|---|---|---|---|\n").unwrap();
    let rows = table.lines().take_while(|line| line.starts_with("| `"));
    let documented: Vec<(&str, &str)> = rows
        .map(|row| {
            let mut cells = row.split('|').map(str::trim).skip(1);
            (cells.next().unwrap().trim_matches('`'), cells.next().unwrap())
        })
        .collect();
    let checks = GROUPS.iter().flat_map(|group| group.checks);
    assert_eq!(documented, checks.map(|check| (check.name, check.why)).collect::<Vec<_>>());
}

#[test]
fn names_are_unique_and_titles_short() {
    let checks: Vec<_> = GROUPS.iter().flat_map(|group| group.checks).collect();
    assert_eq!(checks.iter().map(|check| check.name).collect::<BTreeSet<_>>().len(), checks.len());
    assert!(checks.iter().all(|check| check.title.len() <= 17 && check.why.is_ascii()));
}
