//! A KEK that follows another: its record names the one before, and the chain cannot be begun at another.

use std::fs;

use hsm_kms::ceremony::evidence::file_digest;
use serde_json::{Value, json};

use super::custodians::sign;
use super::staged::{REHEARSED_HALVES, Staged, with, written};
use crate::harness::{run, text};
use crate::refusal::refusal;

/// A change of the plan, a command, and why it is refused.
type Attempt<'a> = (&'a dyn Fn(&mut Value), &'a [&'a str], &'a str);

#[test]
fn a_rotation_follows_the_record_that_the_plan_names() {
    let mut staged = Staged::new();
    staged.hold(&staged.answers(), &[]);
    let (first, record) = (staged.keys(), staged.record());
    let before = text(&staged.output().join("kek-record.json"));
    let digest = file_digest(before.as_ref()).unwrap().to_string();
    staged.plan["previous"] = json!(digest);
    staged.plan["kek"]["label"] = json!("kek-2");

    let mut edited = record.clone();
    edited["ceremony"]["tool"] = json!("another");
    let other = staged.file("other.json");
    fs::write(&other, edited.to_string()).unwrap();
    let other = text(&other);
    let as_planned = |_: &mut Value| {};
    let unnamed = |plan: &mut Value| drop(plan.as_object_mut().unwrap().remove("previous"));
    let same_label = |plan: &mut Value| plan["kek"]["label"] = json!("kek");
    let elsewhere = |plan: &mut Value| plan["cluster"] = json!("other");
    let chain = "must be of the same cluster, and the new KEK needs another label";
    let attempts: [Attempt<'_>; 5] = [
        (&as_planned, &["rotate", "--previous", &other], "is not the one that the plan names"),
        (&as_planned, &["run"], "the plan names a previous record, and none was given"),
        (&unnamed, &["rotate", "--previous", &before], "a previous record was given, and the plan names none"),
        (&same_label, &["rotate", "--previous", &before], chain),
        (&elsewhere, &["rotate", "--previous", &before], chain),
    ];
    for (number, (change, command, why)) in attempts.into_iter().enumerate() {
        let plan = staged.plan.clone();
        change(&mut staged.plan);
        move_output(&mut staged, &format!("attempt-{number}"));
        let arguments = arguments(&staged, command);
        let refused = refusal(&arguments.iter().map(String::as_str).collect::<Vec<_>>(), b"");
        assert!(refused.code == 2 && refused.why.contains(why), "{command:?}: not {why:?}: {}", refused.text);
        assert_eq!(staged.keys(), first);
        staged.plan = plan;
    }
    let refused = refusal(&["ceremony", "rotate", "--plan", &staged.plan_file(), "--previous", "/nonexistent"], b"");
    assert_eq!(refused.code, 2, "{}", refused.text);

    move_output(&mut staged, "evidence-2");
    let plan = staged.plan_file();
    let dry = |plan: &str| {
        let arguments = ["ceremony", "rotate", "--plan", plan, "--previous", &before, "--dry-run", "--json"];
        run(&arguments, b"")
    };
    let output = dry(&plan);
    assert!(output.status.success(), "{}", written(&output));
    let steps: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
    assert!(json!(steps).to_string().contains("C_GenerateKey"), "{steps:?}");
    assert_eq!(dry("/nonexistent").status.code(), Some(2));

    let rehearsal = rehearse(&staged, &before);
    let mut arguments = arguments(&staged, &["rotate", "--previous", &before, "--json"]);
    arguments.extend(["--rehearsal".to_owned(), rehearsal]);
    let output = run(&arguments.iter().map(String::as_str).collect::<Vec<_>>(), b"");
    assert!(output.status.success(), "{}", written(&output));
    let made: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&made["kind"], &made["recovery"]), (&json!("production"), &json!("none")));
    assert_eq!(staged.record()["witnessed"]["previous_record_sha256"], json!(digest));
    let keys = staged.keys();
    assert_eq!(keys.len(), 2);
    assert!(keys.contains(&first[0]), "the KEK before is still needed");
    sign(&staged, &staged.output());
}

fn move_output(staged: &mut Staged, name: &str) {
    let output = staged.file(name);
    fs::create_dir(&output).unwrap();
    staged.plan["output"] = json!(output);
}

/// Arguments of a ceremony by this command, with answers.
fn arguments(staged: &Staged, command: &[&str]) -> Vec<String> {
    let mut arguments = staged.bare_arguments();
    arguments.splice(1..2, command.iter().map(|&argument| argument.to_owned()));
    arguments.extend(["--answers".to_owned(), staged.answers_file("answers.json", &staged.answers())]);
    arguments
}

fn rehearse(staged: &Staged, before: &str) -> String {
    let [first, second] = REHEARSED_HALVES;
    let answers = with(with(staged.answers(), "pin-1", first), "pin-2", second);
    let answers = staged.answers_file("rehearsal.json", &answers);
    let output = staged.file("rehearsal-2");
    fs::create_dir(&output).unwrap();
    let output = text(&output);
    let arguments = ["ceremony", "rehearse", "--plan", &staged.plan_file(), "--output", &output];
    let rehearsed = run(&[&arguments[..], &["--previous", before, "--answers", &answers]].concat(), b"");
    assert!(rehearsed.status.success(), "{}", written(&rehearsed));
    output
}
