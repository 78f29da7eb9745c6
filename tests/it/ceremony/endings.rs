//! The end of a KEK: on every token of the plan, only this key, and nobody can say so of a token where it was not seen gone.

use std::fs;

use hsm_kms::ceremony::evidence::file_digest;
use serde_json::{Value, json};

use super::copies::Copy;
use super::custodians::{keys_on, opening, second_opinion, sign, verdict};
use super::rehearsals::forge;
use super::staged::{Answers, Staged, with, written};
use super::terminal::Terminal;
use crate::harness::{run, text};
use crate::refusal::{Refusal, refusal};

#[test]
fn a_kek_ends_on_every_token_and_nothing_else_does() {
    let ending = Ending::new();
    let Ending { staged, copy, .. } = &ending;
    let answers = ending.answers();
    let record = text(&ending.record);
    let before = ending.keys();
    assert_eq!((before.0.len(), before.1.len()), (2, 4));

    // By another record, or none; and the plan that is for this is for nothing else.
    let edited = ending.edited(|record| record["ceremony"]["tool"] = json!("another"));
    let refused = ending.refuses(&answers, &edited, &[], 2, "is not the one that the plan destroys");
    assert!(refused.hint.contains("--record"), "{}", refused.text);
    ending.refuses(&answers, "/nonexistent", &[], 3, "");
    let digest = staged.lint()["plan_sha256"].as_str().unwrap().to_owned();
    let wrong = ["ceremony", "run", "--plan", &staged.plan_file(), "--expect-plan", &digest];
    assert_eq!(refusal(&wrong, b"").why, "the plan destroys a KEK");
    let wrong = ["ceremony", "rehearse", "--plan", &staged.plan_file(), "--output", "/tmp"];
    assert_eq!(refusal(&wrong, b"").code, 2);
    assert_eq!(ending.keys(), before);

    // As long as nobody answers for it that nothing needs the KEK.
    let refused = ending.refuses(&answers, &record, &[], 1, "the check `unused` does not hold");
    assert!(refused.hint.contains("exception --check unused"), "{}", refused.text);
    assert_eq!(ending.keys(), before);
    staged.except("unused");
    // The label is to be typed; three times it is another.
    let mut other = with(answers.clone(), "destroy", "kek-1");
    let place = other.iter().position(|(question, _)| question == "destroy").unwrap();
    for _ in 0..2 {
        other.insert(place, other[place].clone());
    }
    ending.refuses(&other, &record, &["--resume"], 1, "`destroy` was not answered in three attempts");
    assert_eq!(ending.keys(), before);

    // It is gone from one token, and the PIN of the other does not come.
    let half = answers.iter().position(|(question, _)| question == "pin-2-1").unwrap();
    ending.refuses(&answers[..half].to_vec(), &record, &["--resume"], 2, "and the question is `pin-2-1`");
    let between = ending.keys();
    assert_eq!((between.0.len(), between.1.len()), (1, 4));
    let output = ending.destroy(&answers, &record, &["--resume", "--json"]);
    assert!(output.status.success(), "{}", written(&output));
    assert!(written(&output).contains("it was gone already"), "{}", written(&output));
    let made: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(made["kind"], json!("destruction"));
    let (first, second) = ending.keys();
    assert_eq!(first, [("another".to_owned(), "77".to_owned())]);
    assert_eq!(second, ["another", "77"]);
    let checks: Vec<Value> = staged.events().into_iter().filter(|event| event["data"]["check"] == "gone").collect();
    let serials: Vec<_> = checks.iter().map(|check| check["data"]["serial"].clone()).collect();
    assert_eq!(serials, [json!(staged.serial()), json!(staged.serial()), json!(copy.serial)]);
    assert_eq!(fs::read(staged.output().join("kek-record.json")).unwrap(), fs::read(&ending.record).unwrap());
    sign(staged, &staged.output());

    // What was proved before is not proved any more.
    let mut terminal = Terminal::start(&ending.verify_key(&record));
    ending.type_pin(&mut terminal);
    let (status, screen) = terminal.end();
    assert!(!status.success() && screen.contains("did not prove that it holds the KEK"), "{screen}");

    // A story without the last of them.
    forge(&staged.output(), &|events| {
        let place = events.iter().rposition(|event| event["data"]["check"] == "gone").unwrap();
        events.remove(place);
        for (number, event) in events.iter_mut().enumerate() {
            event["seq"] = json!(number);
        }
    });
    let (code, failed) = verdict(&staged.output());
    assert!(code == 1 && failed.contains(&"tokens".to_owned()), "{failed:?}");
    assert!(!failed.contains(&"transcript.jsonl".to_owned()), "{failed:?}");
    let (code, said) = second_opinion(&staged.output());
    assert!(code == 1 && said.contains("does NOT hold: a token that still has it"), "{said}");
}

/// A key of the label and id of the record, which does not open its proof blobs, is another.
#[test]
fn a_key_that_does_not_prove_to_be_the_kek_stays() {
    let mut ending = Ending::new();
    // Proof blobs of another ceremony.
    let other = ending.edited(|record| record["ceremony"]["id"] = json!("0123456789abcdef0123456789abcdef"));
    ending.staged.plan["destroys"] = json!(file_digest(other.as_ref()).unwrap());
    let before = ending.keys();
    let answers = ending.answers();
    ending.refuses(&answers, &other, &[], 1, "`unused`");
    ending.staged.except("unused");
    ending.refuses(&answers, &other, &["--resume"], 1, "serial number");
    assert_eq!(ending.keys(), before);
}

/// The token says that it destroyed the key, and did not.
#[test]
fn a_key_that_is_still_there_is_not_called_gone() {
    let mut ending = Ending::new();
    let fault = ending.staged.behind_fault_module();
    let answers = ending.answers();
    let record = text(&ending.record);
    ending.refuses(&answers, &record, &[], 1, "`unused`");
    ending.staged.except("unused");
    fault.always("C_DestroyObject", &json!({"return": "CKR_OK"}));
    ending.refuses(&answers, &record, &["--resume"], 1, "it is still on the token");
    assert_eq!(ending.keys().0.len(), 2);
    assert!(!ending.staged.events().iter().any(|event| event["data"]["check"] == "gone"));
    fault.clear();
    let output = ending.destroy(&answers, &record, &["--resume"]);
    assert!(output.status.success(), "{}", written(&output));
    sign(&ending.staged, &ending.staged.output());
}

#[test]
fn what_the_end_will_do_is_told_before() {
    let ending = Ending::new();
    let before = ending.keys();
    let plan = ending.staged.plan_file();
    let dry = |plan: &str| {
        let record = text(&ending.record);
        run(&["ceremony", "destroy", "--plan", plan, "--record", &record, "--dry-run", "--json"], b"")
    };
    let output = dry(&plan);
    assert!(output.status.success(), "{}", written(&output));
    let steps: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(steps.to_string().contains("C_DestroyObject"), "{steps}");
    assert_eq!(dry("/nonexistent").status.code(), Some(2));
    assert_eq!(ending.keys(), before);

    // What the token holds can be looked at before, and by JSON.
    let mut terminal = Terminal::start(&ending.verify_key(&text(&ending.record)));
    ending.type_pin(&mut terminal);
    let (status, screen) = terminal.end();
    assert!(status.success() && screen.contains("\"opened\": 3"), "{screen}");
    let mut looks = vec![];
    for command in ["preflight", "verify-key"] {
        let output = run(&["ceremony", command, "--plan", &plan, "--dry-run", "--json"], b"");
        assert!(output.status.success(), "{command}: {}", written(&output));
        looks.push(serde_json::from_slice::<Vec<String>>(&output.stdout).unwrap());
        let output = run(&["ceremony", command, "--plan", "/nonexistent", "--dry-run", "--json"], b"");
        assert_eq!(output.status.code(), Some(2), "{command}: {}", written(&output));
    }
    assert!(!looks[0].iter().any(|call| call.starts_with("C_Login")), "{looks:?}");
    assert!(looks[1].iter().any(|call| call.starts_with("C_Login")), "{looks:?}");
    let output = run(&["ceremony", "preflight", "--plan", &plan, "--json"], b"");
    let checks: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(checks.as_array().unwrap().iter().any(|check| check["name"] == "token"), "{checks}");
}

/// A KEK on two tokens, another key beside it, and a plan for its end.
struct Ending {
    staged: Staged,
    copy: Copy,
    record: std::path::PathBuf,
}

impl Ending {
    fn new() -> Self {
        let mut staged = Staged::new();
        let token = staged.plan["token"].clone();
        staged.tool(&token, &["--keygen", "--key-type", "aes:32", "--label", "another", "--id", "77"]);
        let copy = Copy::planned(&staged.token, &staged.serial(), 1);
        staged.plan["copies"] = json!([copy.plan()]);
        staged.refuses(&staged.answers(), &[], &format!("serial number {}", copy.serial));
        copy.make();
        staged.hold(&staged.answers(), &["--resume"]);
        let record = staged.output().join("kek-record.json");
        staged.plan["destroys"] = json!(file_digest(&record).unwrap());
        let output = staged.file("end");
        fs::create_dir(&output).unwrap();
        staged.plan["output"] = json!(output);
        Self { staged, copy, record }
    }

    /// What is on the two tokens.
    fn keys(&self) -> (Vec<(String, String)>, Vec<String>) {
        (self.staged.keys(), keys_on(&self.staged, &self.copy))
    }

    fn answers(&self) -> Answers {
        let mut answers = opening(&self.staged);
        let mut add = |question: &str, answer: &str| answers.push((question.to_owned(), answer.to_owned()));
        add("destroy", "kek");
        for token in 1..=2 {
            for (position, half) in self.staged.halves.iter().enumerate() {
                add(&format!("pin-{token}-{}", position + 1), half);
            }
        }
        for (question, answer) in [("bag-1", "A 0017"), ("bag-1", "A 0017"), ("bag-2", "none"), ("bag-2", "none")] {
            add(question, answer);
        }
        answers
    }

    /// The record with an edit, in a file of its own.
    fn edited(&self, edit: impl FnOnce(&mut Value)) -> String {
        let mut record: Value = serde_json::from_slice(&fs::read(&self.record).unwrap()).unwrap();
        edit(&mut record);
        let path = self.staged.file("edited.json");
        fs::write(&path, record.to_string()).unwrap();
        text(&path)
    }

    fn verify_key(&self, record: &str) -> Vec<String> {
        let plan = self.staged.plan_file();
        ["ceremony", "verify-key", "--json", "--plan", &plan, "--record", record].map(str::to_owned).to_vec()
    }

    fn type_pin(&self, terminal: &mut Terminal) {
        terminal.answer("first half of the PIN", &self.staged.halves[0]);
        terminal.answer("second half of the PIN", &self.staged.halves[1]);
    }

    fn arguments(&self, answers: &Answers, record: &str, more: &[&str]) -> Vec<String> {
        let mut arguments = self.staged.bare_arguments();
        "destroy".clone_into(&mut arguments[1]);
        arguments.extend(["--record".to_owned(), record.to_owned()]);
        arguments.extend(["--answers".to_owned(), self.staged.answers_file("end.json", answers)]);
        arguments.extend(more.iter().map(|&argument| argument.to_owned()));
        arguments
    }

    fn destroy(&self, answers: &Answers, record: &str, more: &[&str]) -> std::process::Output {
        let arguments = self.arguments(answers, record, more);
        run(&arguments.iter().map(String::as_str).collect::<Vec<_>>(), b"")
    }

    fn refuses(&self, answers: &Answers, record: &str, more: &[&str], code: i32, why: &str) -> Refusal {
        let arguments = self.arguments(answers, record, more);
        let refused = refusal(&arguments.iter().map(String::as_str).collect::<Vec<_>>(), b"");
        assert!(refused.why.contains(why), "not {why:?}: {}", refused.text);
        assert_eq!(refused.code, code, "{}", refused.text);
        refused
    }
}
