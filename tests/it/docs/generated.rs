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
