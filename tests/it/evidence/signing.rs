//! `hsm-kms ceremony sign`.

use std::fs;
use std::process::Command;

use serde_json::Value;

use super::story::{Evidence, PEOPLE};
use crate::harness::run;
use crate::refusal::refusal;

const NAMESPACE: &str = "hsm-kms-ceremony";

fn sign<'a>(evidence: &'a str, name: &'a str, source: &'a str, file: &'a str) -> [&'a str; 7] {
    ["ceremony", "sign", evidence, "--as", name, source, file]
}

#[test]
fn everybody_signs_and_the_evidence_holds() {
    let evidence = Evidence::unsigned(|_| {});
    let directory = evidence.path().display().to_string();
    for (place, (name, _)) in (1..).zip(&PEOPLE[..4]) {
        let verified = run(&["ceremony", "verify-record", &directory], b"");
        assert_eq!(verified.status.code(), Some(1), "{name} has not signed yet");
        let key = evidence.key(place).display().to_string();
        let elsewhere = evidence.path().with_extension("sig").display().to_string();
        fs::write(&elsewhere, evidence.signed(place, NAMESPACE)).unwrap();
        let lower = name.to_lowercase();
        let source = if place % 2 == 0 { ["--key", &key] } else { ["--signature", &elsewhere] };
        let arguments = [&sign(&directory, &lower, source[0], source[1])[..], &["--json"]].concat();
        let output = run(&arguments, b"");
        assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
        let signed: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(signed["name"], *name);
        assert_eq!(signed["missing"].as_array().unwrap().len(), 4 - place);
        assert!(evidence.signature(place).is_file());
    }
    assert_eq!(run(&["ceremony", "verify-record", &directory], b"").status.code(), Some(0));
    // As a stranger with nothing but OpenSSH checks it.
    let mut command = Command::new("ssh-keygen");
    command
        .args(["-Y", "verify", "-n", NAMESPACE, "-I", "1-administrator", "-f"])
        .arg(evidence.file("allowed_signers"));
    command.arg("-s").arg(evidence.signature(1)).stdin(fs::File::open(evidence.file("statement.txt")).unwrap());
    assert!(command.output().unwrap().status.success());
}

#[test]
fn what_must_not_be_signed_is_not() {
    let evidence = Evidence::unsigned(|_| {});
    let directory = evidence.path().display().to_string();
    let [stranger, ada, witness] = [0, 1, 3].map(|place| evidence.key(place).display().to_string());
    let refused = |name: &str, source: &str, file: &str, code: i32, why: &str| {
        let refusal = refusal(&sign(&directory, name, source, file), b"");
        assert_eq!(refusal.code, code, "{}", refusal.text);
        assert!(refusal.why.contains(why), "{}", refusal.text);
        refusal.hint
    };
    let hint = refused("Somebody Else", "--key", &ada, 2, "did not take part");
    assert!(hint.contains("Ada Lovelace, Grace Hopper"), "{hint}");
    refused("Lise Meitner", "--key", &evidence.key(5).display().to_string(), 2, "did not take part");
    refused("Ada Lovelace", "--key", &stranger, 1, "is not one over this statement");
    refused("Ada Lovelace", "--signature", &ada, 1, "is not one over this statement");
    refused("Ada Lovelace", "--key", "/nonexistent", 2, "ssh-keygen did not sign");
    refused("Ada Lovelace", "--signature", "/nonexistent", 2, "No such file");
    assert!(!evidence.file("signatures").exists());

    assert_eq!(run(&sign(&directory, "Ada Lovelace", "--key", &ada), b"").status.code(), Some(0));
    let before = fs::read(evidence.signature(1)).unwrap();
    let hint = refused("Ada Lovelace", "--key", &ada, 2, "1-administrator.sig");
    assert!(hint.contains("never overwritten"), "{hint}");
    assert_eq!(fs::read(evidence.signature(1)).unwrap(), before);

    evidence.edit("statement.txt", "prod-eu-1", "prod-eu-2");
    refused("Emmy Noether", "--key", &witness, 1, "statement.txt: line 3 is not what the other files make of it");
}

#[test]
fn without_openssh_nothing_is_judged() {
    let evidence = Evidence::new();
    let mut command = Command::new(env!("CARGO_BIN_EXE_hsm-kms"));
    let output =
        command.args(["ceremony", "verify-record"]).arg(evidence.path()).env("PATH", "/nonexistent").output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(error.contains("ssh-keygen cannot be run") && error.contains("openssh-client"), "{error}");
}
