//! Who reads it: on a terminal without UTF-8, and as a user without rights.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::Command;

use serde_json::{Value, json};

use super::Site;
use crate::harness::{Plugin, copy_program, program, text};

#[test]
fn without_utf_8_all_is_ascii() {
    let mut site = Site::new();
    site.config.value["token"]["label"] = json!("schl\u{fc}ssel");
    let config = text(site.config.write());
    let said = |locale: &str| {
        let output = program().env("LC_ALL", locale).args(["doctor", "--config", &config]).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let ascii = said("C");
    assert!(ascii.is_ascii() && ascii.contains("schl\\u{fc}ssel"), "{ascii}");
    assert!(said("C.UTF-8").contains("schl\u{fc}ssel"));
    for text in [ascii, said("C.UTF-8")] {
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
    }
}

/// What a user may not see is said to be so, and nothing else breaks.
#[tokio::test]
async fn a_user_without_rights_gets_each_row() {
    const NOBODY: u32 = 65534;
    let site = Site::new();
    let _plugin = Plugin::start(&site.config).healthy().await;
    let copy = site.file("hsm-kms");
    copy_program(&copy);
    fs::set_permissions(site.token.directory(), Permissions::from_mode(0o711)).unwrap();
    let config = text(site.config.write());
    let rows = || {
        let mut command = Command::new(&copy);
        let output = command.uid(NOBODY).gid(NOBODY).args(["doctor", "--json", "--config", &config]).output().unwrap();
        serde_json::from_slice::<Value>(&output.stdout).unwrap()
    };
    let result = |rows: &Value, check: &str| {
        let row = rows["rows"].as_array().unwrap().iter().find(|row| row["check"] == check).unwrap().clone();
        (row["result"].as_str().unwrap().to_owned(), row["found"].as_str().unwrap().to_owned())
    };
    let readable = rows();
    // Its rights are seen, if its folder is, and its content is not read.
    let (pin, found) = result(&readable, "pin-file");
    assert!(pin == "ok" || found.contains("Permission denied"), "{found}");
    let (socket, found) = result(&readable, "socket");
    assert!(socket == "not-checked" && found.contains("may not connect"), "{found}");
    fs::set_permissions(&config, Permissions::from_mode(0o600)).unwrap();
    let closed = rows();
    assert!(result(&closed, "config").1.contains("Permission denied"), "{closed:#}");
    assert_eq!(result(&closed, "record").0, "not-checked");
}
