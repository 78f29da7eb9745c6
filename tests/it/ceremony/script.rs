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

/// OpenSC's spy stands between, and writes down what C_GenerateKey is given.
#[test]
fn the_key_is_asked_for_as_the_dry_run_says() {
    let mut staged = Staged::new();
    let log = staged.file("spy");
    let token = &mut staged.plan["token"];
    token["environment"]["PKCS11SPY"] = json!(staged.token.module);
    token["environment"]["PKCS11SPY_OUTPUT"] = json!(log);
    token["module"] = json!(parts::installed("/usr/lib/x86_64-linux-gnu/pkcs11-spy.so".into()));
    let expected = templates(&dry_run(&staged));
    staged.hold(&staged.answers(), &[]);
    let log = fs::read_to_string(log).unwrap();
    let made: Vec<_> = log.split("\n\n").filter(|call| call.contains(": C_GenerateKey\n")).collect();
    // The throw-away key that wraps is the other one.
    let asked: Vec<_> = made.iter().filter(|call| call.contains("CKA_TOKEN             True")).collect();
    assert_eq!(asked.len(), 1, "{made:?}");
    assert_eq!(spied(asked[0]), expected);
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
    let unnamed: Vec<_> = fault.functions().into_iter().filter(|name| !named.contains(name.as_str())).collect();
    assert_eq!(unnamed, Vec::<String>::new());
}

fn dry_run(staged: &Staged) -> String {
    let output = run(&["ceremony", "run", "--dry-run", "--plan", &staged.plan_file()], b"");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Names and values of the attributes, but for the id, which is random.
fn templates(text: &str) -> BTreeSet<String> {
    let attributes = text.lines().map(str::trim).filter(|line| line.starts_with("CKA_") && line.contains(" = "));
    attributes.filter(|line| !line.starts_with("CKA_ID")).map(str::to_owned).collect()
}

/// The same of the spy's words.
fn spied(call: &str) -> BTreeSet<String> {
    panic!("{call}");
}
