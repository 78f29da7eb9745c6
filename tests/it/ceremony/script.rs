//! What `--dry-run` says will be asked of the token, and what is asked.

use std::collections::BTreeSet;
use std::fs;

use serde_json::json;

use super::staged::Staged;
use crate::harness::{TestToken, run};
use crate::parts;

/// Whoever reads this file agrees to these calls. A change of it is a change of the ceremony.
#[test]
fn the_dry_run_is_the_one_that_was_agreed_to() {
    let staged = Staged::on(TestToken::softhsm2());
    let found = dry_run(&staged);
    let expected = include_str!("dry-run.txt");
    if found != expected {
        let path = std::env::temp_dir().join("dry-run.txt");
        fs::write(&path, &found).unwrap();
        panic!("it is another: see {}\n{found}", path.display());
    }
    assert!(fs::read_dir(staged.output()).unwrap().next().is_none());
    staged.has_no_key();
}

/// The spy of `OpenSC` stands between, and writes down what `C_GenerateKey` is given. A module with interfaces of its own is called past it.
#[test]
fn the_key_is_asked_for_as_the_dry_run_says() {
    let mut staged = Staged::on(TestToken::softhsm2());
    let log = staged.file("spy");
    let token = &mut staged.plan["token"];
    token["environment"]["PKCS11SPY"] = json!(staged.token.module);
    token["environment"]["PKCS11SPY_OUTPUT"] = json!(log);
    token["module"] = json!(parts::installed("/usr/lib/x86_64-linux-gnu/pkcs11-spy.so".into()));
    let text = dry_run(&staged);
    staged.hold(&staged.answers(), &[]);
    let log = fs::read_to_string(log).unwrap();
    let made: Vec<_> = log.split("\n\n").filter(|call| call.contains(": C_GenerateKey\n")).map(spied).collect();
    // The other one is the throw-away key that wraps.
    let kek: Vec<_> = made.iter().filter(|template| template.contains("CKA_TOKEN = true")).collect();
    assert!(made.len() == 2 && kek.len() == 1, "{made:?}");
    assert_eq!(*kek[0], said(&text));
}

/// No call that the dry run does not name.
#[test]
fn every_call_is_named_in_the_dry_run() {
    let mut staged = Staged::new();
    let fault = staged.behind_fault_module();
    let text = dry_run(&staged);
    assert_eq!(fault.calls("*"), 0, "the module was loaded");
    staged.hold(&staged.answers(), &[]);
    let named: BTreeSet<_> = text.split(|c: char| !c.is_alphanumeric() && c != '_').collect();
    // The search for objects is one thing in three calls.
    let is_named = |name: &String| named.contains(name.trim_end_matches("Init").trim_end_matches("Final"));
    let called = fault.functions();
    assert!(called.len() > 20, "{called:?}");
    let unnamed: Vec<_> = called.into_iter().filter(|name| !is_named(name) && !named.contains(name.as_str())).collect();
    assert_eq!(unnamed, Vec::<String>::new());
}

fn dry_run(staged: &Staged) -> String {
    let output = run(&["ceremony", "run", "--dry-run", "--plan", &staged.plan_file()], b"");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Names and values of the attributes, but for the id, which is random.
fn said(text: &str) -> BTreeSet<String> {
    let attributes = text.lines().map(str::trim).filter(|line| line.starts_with("CKA_") && line.contains(" = "));
    attributes
        .map(|line| match line {
            // The spy does not know it, and shows no value: what it is is read back.
            "CKA_COPYABLE = false" => "CKA_COPYABLE".to_owned(),
            "CKA_ID = (16 random bytes)" => "CKA_ID of 16 bytes".to_owned(),
            line => line.to_owned(),
        })
        .collect()
}

/// The same from what the spy wrote of a call.
fn spied(call: &str) -> BTreeSet<String> {
    let mut lines = call.lines().map(str::trim).peekable();
    let mut found = BTreeSet::new();
    while let Some(line) = lines.next() {
        let Some((name, value)) = line.split_once(' ').filter(|(name, _)| name.starts_with("CKA_")) else { continue };
        // Of a value in memory the bytes are on the next line.
        let bytes = lines.peek().copied().unwrap_or_default();
        found.insert(match (name, value.trim()) {
            ("CKA_?", value) if value.starts_with("(0x00000171)") => "CKA_COPYABLE".to_owned(),
            ("CKA_ID", value) if value.ends_with("/ 16") => "CKA_ID of 16 bytes".to_owned(),
            ("CKA_LABEL", _) => {
                let text = data_encoding::HEXUPPER.decode(bytes.as_bytes()).unwrap();
                format!("CKA_LABEL = {}", String::from_utf8(text).unwrap())
            }
            ("CKA_VALUE_LEN", _) => format!("CKA_VALUE_LEN = {:#x}", little_endian(bytes)),
            ("CKA_ALLOWED_MECHANISMS", _) if little_endian(bytes) == 0x1087 => {
                "CKA_ALLOWED_MECHANISMS = CKM_AES_GCM".to_owned()
            }
            (name, value) => format!("{name} = {}", value.replace("True", "true").replace("False", "false")),
        });
    }
    found
}

/// The number of a line such as `00000000  20 00 00 00 00 00 00 00   .......`.
fn little_endian(line: &str) -> u64 {
    let bytes = line.split_whitespace().skip(1).take(8).map(|byte| u8::from_str_radix(byte, 16).unwrap());
    u64::from_le_bytes(bytes.collect::<Vec<_>>().try_into().unwrap())
}
