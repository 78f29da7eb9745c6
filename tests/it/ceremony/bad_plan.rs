//! Plans that no ceremony is held by.

use std::fs;

use serde_json::{Value, json};

use super::staged::{Staged, written};
use crate::harness::{LABEL, hold_ceremony, run};
use crate::refusal::refusal;

#[test]
fn a_plan_that_was_changed_after_it_was_agreed_to_is_refused() {
    let mut staged = Staged::new();
    let agreed = staged.lint();
    let rehearsal = staged.rehearse();
    let answers = staged.answers_file("answers.json", &staged.answers());
    staged.plan["kek"]["permit"] = json!(["CKA_COPYABLE"]);
    let plan = staged.plan_file();
    let run_by = |expected: &[&str]| {
        let arguments = ["ceremony", "run", "--plan", &plan, "--rehearsal", &rehearsal, "--answers", &answers];
        refusal(&[&arguments[..], expected].concat(), b"")
    };
    let [digest, words] = ["plan_sha256", "words"].map(|name| agreed[name].as_str().unwrap());
    for expected in [digest, words, "", "abandon"] {
        let refused = run_by(&["--expect-plan", expected]);
        assert!(refused.why.contains("the plan is not the one that was agreed to"), "{}", refused.text);
        assert!(refused.why.contains(staged.lint()["words"].as_str().unwrap()), "{}", refused.text);
        assert_eq!(refused.code, 2, "{}", refused.text);
    }
    let refused = run_by(&[]);
    assert!(refused.hint.contains("--expect-plan"), "{}", refused.text);
    assert_eq!(refused.code, 2, "{}", refused.text);
    // The words of the plan as it is now, however they are written; but it was another that was rehearsed.
    let words = staged.lint()["words"].as_str().unwrap().to_uppercase().replace(' ', "  ");
    let refused = run_by(&["--expect-plan", &words]);
    assert!(refused.why.contains("the check `rehearsal` does not hold"), "{}", refused.text);
    staged.has_no_key();
}

#[test]
fn another_token_of_the_same_label_is_refused() {
    let mut staged = Staged::new();
    let fault = staged.behind_fault_module();
    staged.plan["serial"] = json!("0123456789abcdef");
    let refused = staged.refuses(&staged.answers(), &[], "the plan says 0123456789abcdef");
    assert!(refused.hint.contains("no exception helps"), "{}", refused.text);
    assert_eq!(fault.calls("C_Login"), 0);
    staged.has_no_key();
}

/// What has the KEK's label already is somebody else's: it is not touched, and not offered to be destroyed later.
#[test]
fn a_key_of_the_same_label_stays_as_it_is() {
    let staged = Staged::new();
    let output = hold_ceremony(&staged.token.section(), &[], staged.token.directory());
    assert!(output.status.success(), "{}", written(&output));
    let before = staged.keys();
    assert_eq!((before.len(), before[0].0.as_str()), (1, LABEL));
    for resume in [&[][..], &["--resume"], &["--resume"]] {
        let refused =
            staged.refuses(&staged.answers(), resume, "1 object(s) with label \"kek\" are on the token already");
        assert_eq!(refused.code, 1, "{}", refused.text);
        assert_eq!(staged.keys(), before);
    }
    assert!(!staged.output().join("kek-record.json").exists());
}

#[test]
fn an_output_directory_that_is_not_empty_is_refused() {
    let staged = Staged::new();
    staged.rehearse();
    let note = staged.output().join("note");
    fs::write(&note, "").unwrap();
    let refused = staged.refuses(&staged.answers(), &[], "is not empty");
    assert_eq!(refused.code, 2, "{}", refused.text);
    fs::remove_file(note).unwrap();
    fs::remove_dir(staged.output()).unwrap();
    assert_eq!(staged.refuses(&staged.answers(), &[], "evidence").code, 2);
    staged.has_no_key();
}

/// Each is refused by `lint` already, by the field that is wrong.
#[test]
fn plans_that_no_four_people_can_hold_a_ceremony_by_are_refused() {
    let staged = Staged::new();
    let key = |person: usize| staged.plan["people"][person]["key"].clone();
    let pem = "-----BEGIN OPENSSH PRIVATE KEY-----";
    for (place, value, why) in [
        ("/people/3", Value::Null, "`people`"),
        ("/people/2/role", json!("operator"), "`people`: there must be one administrator and one operator"),
        ("/people/3/role", json!("witness"), "`people`: there is no custodian"),
        ("/people/2/role", json!("auditor"), "`people[2].role`"),
        ("/people/2/name", json!("ada  LOVELACE"), "Ada Lovelace and ada  LOVELACE are one person"),
        ("/people/2/name", json!("ADA LOVELACE"), "Ada Lovelace and ADA LOVELACE are one person"),
        ("/people/2/key", key(0), "Ada Lovelace and Emmy Noether are one person"),
        ("/people/2/name", json!("The Witness"), "not a role or a placeholder"),
        ("/people/2/name", json!("TBD TBD"), "not a role or a placeholder"),
        ("/people/2/name", json!("Emmy"), "expected first and last name"),
        ("/people/2/key", json!("ssh-ed25519 AAAA"), "expected an OpenSSH public key"),
        ("/people/2/pin", json!("1234"), "unknown key `people[2].pin`"),
        ("/token/pin", json!({"file": "/etc/hostname"}), "`token.pin`"),
        ("/pin", json!("1234"), "unknown key `pin`"),
        ("/site", json!(pem), "a private key stands there"),
        ("/site", json!(""), "`site`"),
        ("/site", Value::Null, "`site`"),
        ("/serial", Value::Null, "`serial`"),
        ("/output", json!("evidence"), "`output`: expected an absolute path"),
        ("/kek/permit", json!(["CKA_EXTRACTABLE"]), "CKA_EXTRACTABLE is not negotiable"),
        ("/previous", json!("00"), "`previous`"),
        ("/copies", json!([{"serial": staged.serial(), "token": staged.plan["token"]}]), "stands there twice"),
        ("/import", json!({"shares": 5, "threshold": 3}), "5 shares need 5 custodians"),
        ("/kind", json!("trial"), "`token.pin`: it is missing"),
    ] {
        let mut plan = staged.plan.clone();
        if value.is_null() && place.starts_with("/people/") {
            plan["people"].as_array_mut().unwrap().pop();
        } else if value.is_null() {
            plan.as_object_mut().unwrap().remove(&place[1..]);
        } else {
            let (parent, name) = place.rsplit_once('/').unwrap();
            match plan.pointer_mut(parent).unwrap() {
                Value::Array(list) => list[name.parse::<usize>().unwrap()] = value.clone(),
                parent => parent[name] = value.clone(),
            }
        }
        let path = staged.file("bad-plan.yaml");
        fs::write(&path, plan.to_string()).unwrap();
        let refused = refusal(&["ceremony", "plan", "lint", path.to_str().unwrap()], b"");
        assert!(refused.why.contains(why), "{place} {value}: not {why:?}: {}", refused.text);
        assert_eq!(refused.code, 2, "{place} {value}: {}", refused.text);
    }
}

/// Two texts of one content are one plan; and a key that stands twice is none.
#[test]
fn a_plan_is_its_content() {
    let staged = Staged::new();
    let digest = staged.lint()["plan_sha256"].clone();
    let path = staged.file("other.yaml");
    let plan = path.to_str().unwrap();
    let lint = || run(&["ceremony", "plan", "lint", "--json", plan], b"");
    let one_line = staged.plan.to_string();
    fs::write(&path, format!("# agreed to\n{one_line}")).unwrap();
    let other: Value = serde_json::from_slice(&lint().stdout).unwrap();
    assert_eq!(other["plan_sha256"], digest);
    fs::write(&path, one_line.replace("\"site\":", "\"site\":\"Room 1\",\"site\":")).unwrap();
    let refused = lint();
    assert_eq!(refused.status.code(), Some(2), "{}", written(&refused));
}
