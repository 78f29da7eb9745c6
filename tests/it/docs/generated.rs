//! Pages that are made from the program are those of this program.

use std::process::Command;

use super::root;

#[test]
fn the_reference_is_up_to_date() {
    let output = Command::new(root().join("scripts/reference"))
        .args(["--check", "--program", env!("CARGO_BIN_EXE_hsm-kms")])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn the_tables_of_capacity_are_up_to_date() {
    for arguments in [["--check"].as_slice(), &["--nodes", "5", "--seeds", "500"]] {
        let output = Command::new(root().join("scripts/capacity")).args(arguments).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}
