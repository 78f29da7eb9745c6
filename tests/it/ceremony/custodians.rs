//! A ceremony for a KEK that comes in shares: three custodians, any two of whom restore it; and the verdict on its evidence.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use super::copies::Copy;
use super::staged::{Answers, Staged, clock, written};
use super::terminal::Terminal;
use crate::harness::{run, text};
use crate::refusal::refusal;

/// A plan with three custodians and no copies.
pub fn staged() -> Staged {
    let mut staged = Staged::new();
    staged.add_person("Lise Meitner", "custodian", "custodian-2");
    staged.add_person("Ida Noddack", "custodian", "custodian-3");
    staged.plan["import"] = json!({"shares": 3, "threshold": 2});
    // SoftHSM2 does not tell the length of such a key, and every rehearsal is held on it.
    staged.plan["kek"]["permit"] = json!(["CKA_VALUE_LEN"]);
    staged
}

/// A token without a key, of the same label and PIN, made before the ceremony.
pub fn empty_token(staged: &Staged, number: u32) -> Copy {
    let copy = Copy::planned(&staged.token, &staged.serial(), number);
    copy.make();
    copy
}

/// Labels and ids of the keys on another token, in the tool's words.
pub fn keys_on(staged: &Staged, copy: &Copy) -> Vec<String> {
    let objects = staged.tool(&copy.section(), &["--list-objects", "--type", "secrkey"]);
    let is_name = |line: &&str| line.trim().starts_with("label:") || line.trim().starts_with("ID:");
    objects.lines().filter(is_name).map(|line| line.split_whitespace().last().unwrap().to_owned()).collect()
}

/// Who signs in, and what all compare.
pub fn opening(staged: &Staged) -> Answers {
    let mut answers = Answers::new();
    for (position, person) in staged.plan["people"].as_array().unwrap().iter().enumerate() {
        answers.push((format!("person-{}", position + 1), person["name"].as_str().unwrap().to_owned()));
    }
    for (question, answer) in [("clock", clock().as_str()), ("plan", "yes"), ("program", "yes")] {
        answers.push((question.to_owned(), answer.to_owned()));
    }
    answers
}

/// Arguments of a run that goes on although nobody rehearsed: shares are not known beforehand, so that a rehearsal takes people.
pub fn without_rehearsal(staged: &Staged) -> Vec<String> {
    let mut arguments = staged.bare_arguments();
    let answers = staged.answers_file("opening.json", &opening(staged));
    let first = [&arguments[..], &["--answers".to_owned(), answers]].concat();
    let refused = refusal(&first.iter().map(String::as_str).collect::<Vec<_>>(), b"");
    assert!(refused.why.contains("`rehearsal`"), "{}", refused.text);
    staged.except("rehearsal");
    arguments.push("--resume".to_owned());
    arguments
}

/// What is typed until the KEK is made.
pub fn open(terminal: &mut Terminal, staged: &Staged, halves: &[String; 2]) {
    for person in staged.plan["people"].as_array().unwrap() {
        let name = person["name"].as_str().unwrap();
        terminal.answer(&format!("{name}, "), name);
    }
    terminal.answer("time on the wall clock", &clock());
    terminal.answer("the same as on every printed script?", "yes");
    terminal.answer("the release that was agreed to?", "yes");
    pin(terminal, halves);
}

pub fn pin(terminal: &mut Terminal, halves: &[String; 2]) {
    terminal.answer("Mary Somerville: half 1", &halves[0]);
    terminal.answer("Lise Meitner: half 2", &halves[1]);
}

/// Each custodian gets a share, and types it back; returns them as they stood on the screen.
pub fn hand_out(terminal: &mut Terminal) -> Vec<String> {
    (1..=3)
        .map(|_| {
            let share = show(terminal);
            terminal.answer("type it back", &share);
            share
        })
        .collect()
}

/// A custodian writes the next share down.
pub fn show(terminal: &mut Terminal) -> String {
    terminal.answer("type \"alone\"", "alone");
    terminal.until_asked();
    let news = terminal.news();
    let (_, share) = news.split_once("hks1").unwrap_or_else(|| panic!("no share: {news}"));
    let (share, _) = share.split_once(" > ").unwrap();
    terminal.answer("type \"written\"", "written");
    format!("hks1{}", share.split_whitespace().collect::<String>())
}

/// The KEK is in the token: the copies get it, and the ceremony closes.
pub fn close(terminal: &mut Terminal, halves: &[String; 2], copies: usize) {
    for _ in 0..copies {
        pin(terminal, halves);
    }
    for bag in ["A 0017", "none"] {
        terminal.answer("number of bag", bag);
        terminal.answer("the same again", bag);
    }
}

/// A whole ceremony; returns its shares.
pub fn hold(staged: &Staged) -> Vec<String> {
    let mut terminal = Terminal::start(&without_rehearsal(staged));
    open(&mut terminal, staged, &staged.halves);
    let shares = hand_out(&mut terminal);
    close(&mut terminal, &staged.halves, staged.plan["copies"].as_array().map_or(0, Vec::len));
    let (status, screen) = terminal.end();
    assert_eq!(status.code(), Some(0), "{screen}");
    shares
}

/// Everybody signs the evidence; before the last has, neither program says that it holds, and then both do.
pub fn sign(staged: &Staged, directory: &Path) {
    let mut custodians = 0;
    for person in staged.plan["people"].as_array().unwrap() {
        assert_eq!(verdicts(directory), [1, 1]);
        let [name, role] = ["name", "role"].map(|field| person[field].as_str().unwrap());
        custodians += usize::from(role == "custodian");
        let key = if role == "custodian" && custodians > 1 { format!("{role}-{custodians}") } else { role.to_owned() };
        let arguments = ["ceremony", "sign", &text(directory), "--as", name, "--key", &text(&staged.file(&key))];
        let output = run(&arguments, b"");
        assert!(output.status.success(), "{}", written(&output));
    }
    assert_eq!(verdicts(directory), [0, 0]);
}

/// Exit codes of `verify-record` and of `scripts/verify-ceremony`.
fn verdicts(directory: &Path) -> [i32; 2] {
    [verdict(directory).0, second_opinion(directory).0]
}

/// Exit code of `verify-record`, and the checks that do not hold.
pub fn verdict(directory: &Path) -> (i32, Vec<String>) {
    let output = run(&["ceremony", "verify-record", "--json", &text(directory)], b"");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let checks = report["checks"].as_array().unwrap().iter().filter(|check| check["holds"] == json!(false));
    let failed = checks.map(|check| check["name"].as_str().unwrap().to_owned()).collect();
    (output.status.code().unwrap(), failed)
}

/// Exit code of `scripts/verify-ceremony`, and all that it says.
pub fn second_opinion(directory: &Path) -> (i32, String) {
    let script = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("scripts/verify-ceremony");
    let output = Command::new(script).arg(directory).output().unwrap();
    (output.status.code().unwrap(), written(&output))
}
