//! Recovery keys: made in software and in an HSM, split for paper and brought together, and drilled against a living plugin.

mod drills;
pub mod hsm;
mod shares;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::harness::{CLUSTER, LABEL, TestToken, run, text};

/// A recovery key in software, in a folder of its own.
pub struct SoftKey {
    pub key: PathBuf,
    pub recipient: PathBuf,
}

impl SoftKey {
    /// By `recovery keygen`, with these file names.
    pub fn new(directory: &Path, name: &str) -> Self {
        let (key, recipient) = (directory.join(format!("{name}.key")), directory.join(format!("{name}.json")));
        succeeds(&["recovery", "keygen", "--key", &text(&key), "--recipient", &text(&recipient)]);
        Self { key, recipient }
    }

    /// The secret line of its file.
    fn secret(&self) -> String {
        secret(&fs::read_to_string(&self.key).unwrap())
    }
}

/// The secret line of a key file.
fn secret(text: &str) -> String {
    text.lines().find(|line| line.starts_with("hkr1")).unwrap().to_owned()
}

/// The fingerprint in the file of a recipient.
pub fn fingerprint(recipient: &Path) -> String {
    let file: Value = serde_json::from_slice(&fs::read(recipient).unwrap()).unwrap();
    file["recipient"]["fingerprint"].as_str().unwrap().to_owned()
}

/// Runs the command to a good end; its standard output.
fn succeeds(arguments: &[&str]) -> String {
    let output = run(arguments, b"");
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// A KEK with these recipients in the token; the path of its record.
pub fn ceremony(token: &TestToken, recipients: &[&Path]) -> PathBuf {
    let recipients: Vec<_> =
        recipients.iter().map(|path| json!({"file": path, "fingerprint": fingerprint(path)})).collect();
    let plan = json!({
        "version": 1,
        "kind": "trial",
        "cluster": CLUSTER,
        "token": token.section(),
        "kek": {"label": LABEL},
        "recipients": recipients,
        "output": token.directory(),
    });
    let path = token.directory().join("plan.yaml");
    fs::write(&path, plan.to_string()).unwrap();
    succeeds(&["ceremony", "run", "--json", "--plan", &text(&path)]);
    token.directory().join("kek-record.json")
}

#[test]
fn a_key_in_software_is_made_once_and_is_its_owners() {
    let directory = tempfile::tempdir().unwrap();
    let key = SoftKey::new(directory.path(), "a");
    assert_eq!(fs::metadata(&key.key).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(!fs::read_to_string(&key.recipient).unwrap().contains("hkr1"));
    let refused = crate::refusal::refusal(
        &["recovery", "keygen", "--key", &text(&key.key), "--recipient", &text(&key.recipient)],
        b"",
    );
    assert!(refused.code == 2 && refused.why.contains("exists"), "{}", refused.text);
    // The one that is there is still it.
    assert!(!key.secret().is_empty());
    // No private half without its public half.
    let other = directory.path().join("other");
    crate::refusal::refusal(&["recovery", "keygen", "--key", &text(&other), "--recipient", &text(&key.recipient)], b"");
    assert!(!other.exists());
}
