//! A recovery key in an offline HSM: Kryoptic and NSS play it, `SoftHSM2` cannot.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::{SoftKey, ceremony, fingerprint, succeeds};
use crate::ceremony::terminal::Terminal;
use crate::harness::{Config, Plugin, TestToken, text};
use crate::parts;
use crate::refusal::refusal;

/// Makes a key of this scheme in the HSM. Returns the file that names the HSM, and the one with the public half.
pub fn make_key(hsm: &TestToken, scheme: &str) -> (PathBuf, PathBuf) {
    let offline = token_file(hsm.directory(), &hsm.section(), &serial(hsm), "recovery");
    let recipient = hsm.directory().join("recipient.json");
    succeeds(&keygen(&text(&offline), scheme, &text(&recipient)));
    (offline, recipient)
}

/// The serial number, which the refusal of another one tells; no PIN is tried.
fn serial(token: &TestToken) -> String {
    let offline = text(&token_file(token.directory(), &token.section(), "?", "none"));
    let recipient = text(&token.directory().join("none.json"));
    let refused = refusal(&keygen(&offline, "rsa-oaep-3072", &recipient), b"");
    let (_, rest) = refused.why.split_once("has serial number \"").unwrap_or_else(|| panic!("{}", refused.text));
    rest.split_once('"').unwrap().0.to_owned()
}

/// The file that names the token of this section as the offline HSM.
fn token_file(directory: &Path, section: &Value, serial: &str, label: &str) -> PathBuf {
    let path = directory.join("offline.yaml");
    let file = json!({"version": 1, "token": section, "serial": serial, "key": {"label": label}});
    fs::write(&path, file.to_string()).unwrap();
    path
}

fn keygen<'a>(token: &'a str, scheme: &'a str, recipient: &'a str) -> [&'a str; 8] {
    ["recovery", "keygen", "--token", token, "--scheme", scheme, "--recipient", recipient]
}

/// Makes a key in the HSM, has a plugin on another token seal to it, and opens that in the HSM.
async fn opens_what_a_plugin_sealed(hsm: &TestToken, schemes: &[(&str, usize)]) {
    let serial = serial(hsm);
    for (scheme, bytes) in schemes {
        let offline = text(&token_file(hsm.directory(), &hsm.section(), &serial, &format!("key-{scheme}")));
        let recipient = hsm.directory().join(format!("{scheme}.json"));
        let output = succeeds(&keygen(&offline, scheme, &text(&recipient)));
        assert!(output.contains(&fingerprint(&recipient)) && output.contains(scheme), "{output}");

        let token = TestToken::softhsm2();
        let record = text(&ceremony(&token, &[&recipient]));
        let config = Config::new(&token, Path::new(&record), "plugin");
        let mut plugin = Plugin::start(&config).healthy().await;
        let [challenge, report] = ["challenge.json", "report.json"].map(|name| text(&token.directory().join(name)));
        let socket = text(plugin.socket());
        succeeds(&["recovery", "drill", "--socket", &socket, "--record", &record, "--challenge", &challenge]);
        let sealed: Value = serde_json::from_slice(&fs::read(&challenge).unwrap()).unwrap();
        let annotation = sealed["annotations"].as_object().unwrap().values().next().unwrap().as_str().unwrap();
        assert_eq!(
            annotation.len() / 4 * 3 - annotation.matches('=').count(),
            *bytes,
            "bytes of a {scheme} annotation"
        );
        let drilled =
            ["recovery", "drill", "--offline", "--challenge", &challenge, "--token", &offline, "--output", &report];
        succeeds(&drilled);
        let written: Value = serde_json::from_slice(&fs::read(&report).unwrap()).unwrap();
        assert_eq!((written["outcome"].as_str(), written["scheme"].as_str()), (Some("opened"), Some(*scheme)));
        plugin.stop().await;
    }
    parts::record_run(hsm.profile);
}

#[tokio::test]
async fn kryoptic_makes_keys_that_open_what_a_plugin_sealed() {
    let hsm = TestToken::kryoptic();
    opens_what_a_plugin_sealed(&hsm, &[("rsa-oaep-3072", 386), ("rsa-oaep-4096", 514)]).await;
}

#[tokio::test]
async fn nss_makes_a_key_that_opens_what_a_plugin_sealed() {
    opens_what_a_plugin_sealed(&TestToken::nss(), &[("rsa-oaep-3072", 386)]).await;
}

#[test]
fn an_hsm_without_sha_256_for_oaep_is_refused_and_keeps_no_key() {
    let hsm = TestToken::softhsm2();
    let offline = text(&token_file(hsm.directory(), &hsm.section(), &serial(&hsm), "recovery"));
    let recipient = hsm.directory().join("recipient.json");
    // Twice: if the first had left a key behind, its label would not be free.
    for _ in 0..2 {
        let refused = refusal(&keygen(&offline, "rsa-oaep-3072", &text(&recipient)), b"");
        assert_eq!(refused.code, 1, "{}", refused.text);
        assert!(
            refused.why.starts_with("SoftHSM ") && refused.why.contains("RSA-OAEP with SHA-256"),
            "{}",
            refused.text
        );
        assert!(refused.hint.contains("recovery keygen --key"), "{}", refused.text);
        assert!(!recipient.exists());
    }
    parts::record_run("softhsm2");
}

#[test]
fn what_is_wrong_with_the_token_or_its_file_is_told_before_a_key_is_made() {
    let hsm = TestToken::kryoptic();
    let (serial, recipient) = (serial(&hsm), text(&hsm.directory().join("recipient.json")));
    let refused = |section: &Value, serial: &str, label: &str| {
        let offline = text(&token_file(hsm.directory(), section, serial, label));
        refusal(&keygen(&offline, "rsa-oaep-3072", &recipient), b"")
    };
    let other = refused(&hsm.section(), "other", "recovery");
    assert!(other.code == 2 && other.why.contains("the file says \"other\""), "{}", other.text);
    let long = refused(&hsm.section(), &serial, &"x".repeat(41));
    assert!(long.code == 2 && long.why.contains("`key.label`"), "{}", long.text);
    let mut section = hsm.section();
    section["pni"] = json!("1234");
    let unknown = refused(&section, &serial, "recovery");
    assert!(unknown.code == 2 && unknown.why.contains("unknown key `token.pni`"), "{}", unknown.text);
    let mut section = hsm.section();
    section["pin"] = json!(null);
    let silent = refused(&section, &serial, "recovery");
    assert!(silent.code == 2 && silent.error == "there is no PIN", "{}", silent.text);
    let wrong = hsm.directory().join("wrong-pin");
    crate::harness::write_secret(&wrong, "1111222233334444");
    section["pin"] = json!({"file": wrong});
    let wrong = refused(&section, &serial, "recovery");
    assert!(wrong.code == 1 && wrong.why.contains("CKR_PIN_INCORRECT"), "{}", wrong.text);

    // A label that is taken, and a key that is not there.
    let offline = text(&token_file(hsm.directory(), &hsm.section(), &serial, "recovery"));
    succeeds(&keygen(&offline, "rsa-oaep-3072", &recipient));
    let again = text(&hsm.directory().join("again.json"));
    let taken = refusal(&keygen(&offline, "rsa-oaep-3072", &again), b"");
    assert!(taken.code == 2 && taken.why.contains("there is a key with the label \"recovery\""), "{}", taken.text);
    assert!(!Path::new(&again).exists());
    let there = refusal(&keygen(&offline, "rsa-oaep-3072", &recipient), b"");
    assert!(there.code == 2 && there.why.contains("exists"), "{}", there.text);
}

#[test]
fn the_pin_of_an_offline_hsm_is_asked_for() {
    let hsm = TestToken::kryoptic();
    let mut section = hsm.section();
    section.as_object_mut().unwrap().remove("pin");
    let offline = text(&token_file(hsm.directory(), &section, &serial(&hsm), "recovery"));
    let recipient = hsm.directory().join("recipient.json");
    let pin = fs::read_to_string(&hsm.pin).unwrap();
    let mut terminal = Terminal::start(&keygen(&offline, "rsa-oaep-3072", &text(&recipient)).map(str::to_owned));
    terminal.answer("PIN of token", pin.trim());
    let (status, screen) = terminal.end();
    assert!(status.success() && !screen.contains(pin.trim()), "{screen}");
    assert!(screen.contains(&fingerprint(&recipient)), "{screen}");
}

#[test]
fn a_command_takes_one_private_half() {
    let directory = tempfile::tempdir().unwrap();
    let key = SoftKey::new(directory.path(), "a");
    let key = text(&key.key);
    for halves in [&["--key", key.as_str(), "--token", "b"][..], &[]] {
        let arguments = [&["recovery", "drill", "--offline", "--challenge", "c", "--output", "d"], halves].concat();
        let output = crate::harness::run(&arguments, b"");
        assert_eq!(output.status.code(), Some(2), "{halves:?}");
    }
}
