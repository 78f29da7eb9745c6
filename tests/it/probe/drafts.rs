//! Draft profiles: they are linted, and a KEK is made and served with them.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use super::{in_front, output, probe};
use crate::harness::{Config, Plugin, TestToken, run, run_ceremony_on, text};
use crate::yubihsm::device::Device;

/// A draft is a profile with which a KEK can be made and served on the same token.
async fn draft_serves(section: &Value, directory: &Path) -> String {
    let drafted = output(section, &["--emit-profile"]);
    assert_eq!(drafted.status.code(), Some(0), "{}", String::from_utf8_lossy(&drafted.stderr));
    let draft = String::from_utf8(drafted.stdout).unwrap();
    let path = directory.join("draft.yaml");
    fs::write(&path, &draft).unwrap();
    let lint = run(&["profiles", "lint", &text(&path)], b"");
    let lint = String::from_utf8(lint.stdout).unwrap() + &String::from_utf8_lossy(&lint.stderr);
    assert!(lint.contains("the file is right; this release can use it"), "{lint}\n{draft}");
    assert!(lint.contains("recover") && !lint.contains("seal,"), "{lint}");

    let (report, _) = probe(section, &[]);
    let permit: Vec<_> =
        report["kek"]["permit"].as_array().unwrap().iter().map(|name| name.as_str().unwrap()).collect();
    for name in &permit {
        assert!(draft.contains(name), "{draft}");
    }
    let mut section = section.clone();
    section["profile"] = json!(path);
    let record = run_ceremony_on(&section, &permit, directory);
    let mut plugin = Plugin::start(&Config::on(&section, directory, &record, "drafted")).healthy().await;
    let socket = text(plugin.socket());
    let sealed = run(&["call", "encrypt", "--socket", &socket], b"0123456789abcdef0123456789abcdef");
    assert!(sealed.status.success(), "{sealed:?}");
    let opened = run(&["call", "decrypt", "--socket", &socket], &sealed.stdout);
    assert_eq!(opened.stdout, b"0123456789abcdef0123456789abcdef");
    plugin.stop().await;
    draft
}

#[tokio::test]
async fn a_draft_serves_on_the_module_that_it_is_of() {
    let token = TestToken::new();
    let draft = draft_serves(&token.section(), token.directory()).await;
    assert!(draft.contains("iv: { send: random, found: sent, bytes: 12 }"), "{draft}");
    assert_eq!(draft.contains("CKR_GENERAL_ERROR@C_Decrypt: data"), token.profile == "softhsm2", "{draft}");
}

#[tokio::test]
async fn a_draft_serves_on_an_imitated_luna() {
    let token = TestToken::new();
    let (section, fault) = in_front(&token);
    fault.set(&json!({"imitate": {"iv": "luna-fips"}}));
    let draft = draft_serves(&section, token.directory()).await;
    assert!(draft.contains("iv: { send: none, found: suffix, bytes: 16 }"), "{draft}");
}

#[tokio::test]
async fn a_draft_serves_on_the_driver_of_yubico() {
    let device = Device::new();
    let draft = draft_serves(&device.section(), device.directory()).await;
    assert!(draft.contains("omit: [") && draft.contains("type: 0xd955422a"), "{draft}");
}

/// Without a seal there is no profile but one that refuses; without keys, the vendor's tool must make them.
#[test]
fn a_token_without_a_seal_drafts_a_refusal() {
    let token = TestToken::softhsm2();
    let (section, fault) = in_front(&token);
    let draft = || {
        let drafted = output(&section, &["--emit-profile"]);
        assert_eq!(drafted.status.code(), Some(1));
        let path = token.directory().join("draft.yaml");
        fs::write(&path, &drafted.stdout).unwrap();
        let lint = run(&["profiles", "lint", &text(&path)], b"");
        assert!(lint.status.success(), "{lint:?}");
        String::from_utf8(drafted.stdout).unwrap()
    };
    fault.always("C_EncryptInit", &json!({"return": "CKR_MECHANISM_INVALID"}));
    let refusing = draft();
    assert!(refusing.contains("refuse: \"no seal of this release was seen to work on it\""), "{refusing}");
    assert!(!refusing.contains("seal:"), "{refusing}");

    fault.always("C_GenerateKey", &json!({"return": "CKR_FUNCTION_NOT_SUPPORTED"}));
    let by_tool = draft();
    assert!(by_tool.contains("generate: tool") && by_tool.contains("mechanism: aes-gcm"), "{by_tool}");
    assert!(!by_tool.contains("seal: device"), "{by_tool}");
}
