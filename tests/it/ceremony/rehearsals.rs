//! Rehearsals: what counts as one, and what none can reach.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::staged::{PEOPLE, REHEARSED_HALVES, Staged, clock, with, written};
use super::terminal::Terminal;
use super::whole::is_plain;
use crate::harness::{TestToken, program, text};
use crate::refusal::{Refusal, refusal};

#[test]
fn a_rehearsal_is_held_as_the_ceremony_is_and_says_so_on_every_page() {
    let mut staged = Staged::new();
    staged.with_copies();
    let output = staged.file("rehearsal");
    fs::create_dir(&output).unwrap();
    let arguments = ["ceremony", "rehearse", "--plan", &staged.plan_file(), "--output", &text(&output)];
    let mut terminal = Terminal::start(&arguments.map(str::to_owned));
    for (name, _) in PEOPLE {
        terminal.answer(&format!("{name}, "), name);
    }
    terminal.answer("time on the wall clock", &clock());
    terminal.answer("printed script?", "yes");
    terminal.answer("agreed to?", "yes");
    let pin = |terminal: &mut Terminal| {
        terminal.answer("Mary Somerville: half 1", REHEARSED_HALVES[0]);
        terminal.answer("Grace Hopper: half 2", REHEARSED_HALVES[1]);
    };
    pin(&mut terminal);
    for _ in 0..2 {
        terminal.answer("type \"copied\"", "copied");
        pin(&mut terminal);
    }
    for bag in ["A 0017", "none"] {
        terminal.answer("number of bag", bag);
        terminal.answer("the same again", bag);
    }
    let (status, screen) = terminal.end();
    assert_eq!(status.code(), Some(0), "{screen}");
    is_plain(&screen, &staged);
    let pages: Vec<_> = screen.lines().filter(|line| line.starts_with("-- ") && line.contains(" of ")).collect();
    assert_eq!(pages.len(), 14, "{pages:?}");
    assert!(pages.iter().all(|page| page.contains("REHEARSAL")), "{pages:?}");
    let record: Value = serde_json::from_slice(&fs::read(output.join("kek-record.json")).unwrap()).unwrap();
    assert_eq!((&record["kind"], &record["recovery"]), (&json!("rehearsal"), &json!("copies")));
    assert!(fs::read_dir(staged.output()).unwrap().next().is_none());
}

/// No rehearsal, or one that does not count: the ceremony wants somebody to answer for that.
#[test]
fn only_a_rehearsal_of_this_plan_that_passed_lately_counts() {
    let mut staged = Staged::new();
    // Of another plan.
    staged.plan["site"] = json!("Room 113");
    let other = staged.rehearse();
    fs::rename(&other, staged.file("other")).unwrap();
    staged.plan["site"] = json!("Room 112");
    let good = staged.rehearse();
    let site = Site(&staged);
    assert!(site.refuses(None).why.contains("no rehearsal of this plan was given"));
    let other = site.refuses(Some(&staged.file("other")));
    assert!(other.why.contains("line 1"), "{}", other.text);
    site.refuses(Some(&staged.file("none")));

    let forged = |name: &str, change: &dyn Fn(&mut Vec<Value>)| {
        let copy = staged.file(name);
        fs::create_dir(&copy).unwrap();
        for file in ["kek-record.json", "transcript.jsonl", "plan.lock.json"] {
            fs::copy(Path::new(&good).join(file), copy.join(file)).unwrap();
        }
        forge(&copy, change);
        copy
    };
    let open = forged("open", &|events| drop(events.pop()));
    let open = site.refuses(Some(&open));
    assert!(open.why.contains("closed"), "{}", open.text);
    let real = forged("real", &|events| events[0]["data"]["kind"] = json!("production"));
    assert!(site.refuses(Some(&real)).why.contains("that was no rehearsal"));
    let aged = |days: i64| {
        let time = jiff::Timestamp::now() - jiff::SignedDuration::from_hours(24 * days);
        let time = time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        forged(&format!("{days} days"), &move |events| {
            for event in events {
                event["time"] = json!(time);
            }
        })
    };
    assert!(site.refuses(Some(&aged(31))).why.contains("31 days ago, and counts for 30"));
    site.refuses(Some(&aged(-2)));
    // A record that was exchanged.
    let exchanged = forged("exchanged", &|_| {});
    let record = exchanged.join("kek-record.json");
    fs::write(&record, fs::read_to_string(&record).unwrap() + "\n").unwrap();
    assert!(site.refuses(Some(&exchanged)).why.contains("record is not the one"));
    staged.has_no_key();

    // One of 30 days ago counts.
    let old = text(&aged(30));
    staged.hold_with(&["--resume", "--rehearsal", &old]);
    let exceptions = staged.record()["witnessed"]["exceptions"].to_string();
    assert!(!exceptions.contains("rehearsal"), "{exceptions}");
}

#[test]
fn a_ceremony_without_a_rehearsal_needs_an_exception_and_the_record_says_so() {
    let staged = Staged::new();
    let site = Site(&staged);
    let refused = site.refuses(None);
    assert!(refused.hint.contains("exception --check rehearsal"), "{}", refused.text);
    staged.has_no_key();
    staged.except("rehearsal");
    staged.hold_with(&["--resume"]);
    let exceptions = staged.record()["witnessed"]["exceptions"].to_string();
    assert!(exceptions.contains("rehearsal: it is a test"), "{exceptions}");
    assert!(exceptions.contains("decided by Ada Lovelace"), "{exceptions}");
    staged.has_the_key_of_its_record();
}

/// Whatever the environment says, and however the rehearsal ends.
#[test]
fn a_rehearsal_does_not_reach_the_token_of_the_plan() {
    let mut staged = Staged::on(TestToken::softhsm2());
    let fault = staged.behind_fault_module();
    staged.with_copies();
    let home = staged.token.directory().to_owned();
    let production = staged.token.environment["SOFTHSM2_CONF"].clone();
    let before = files(&home);
    assert!(before.keys().any(|name| name.ends_with("token.object")));
    let answers = {
        let [first, second] = REHEARSED_HALVES;
        let mut answers = staged.answers();
        for (question, answer) in &mut answers {
            if question.ends_with("pin-1") {
                first.clone_into(answer);
            } else if question.ends_with("pin-2") {
                second.clone_into(answer);
            }
        }
        answers
    };
    let hostile: [&[(&str, &str)]; 4] = [
        &[],
        &[("SOFTHSM2_CONF", &production)],
        &[("SOFTHSM2_CONF", &production), ("HSM_KMS_FAULT_FORWARD", "/usr/lib/softhsm/libsofthsm2.so")],
        &[("SOFTHSM2_CONF", &production), ("XDG_CONFIG_HOME", &production), ("HOME", &production)],
    ];
    let wrong = with(answers.clone(), "pin-2", "0000");
    for (number, environment) in hostile.into_iter().enumerate() {
        for (name, answers, ends_well) in [("right", &answers, true), ("wrong", &wrong, false)] {
            let output = staged.file(&format!("{name}-{number}"));
            fs::create_dir(&output).unwrap();
            let answers = staged.answers_file("hostile.json", answers);
            let rehearsed = program()
                .args(["ceremony", "rehearse", "--plan", &staged.plan_file(), "--answers", &answers])
                .args(["--output", &text(&output)])
                .envs(environment.iter().copied())
                .output()
                .unwrap();
            assert_eq!(rehearsed.status.success(), ends_well, "{}", written(&rehearsed));
            assert_eq!(files(&home), before, "{environment:?} {name}");
            assert_eq!(fault.calls("*"), 0, "the plan's own module was loaded");
        }
    }
    assert!(fs::read_dir(staged.output()).unwrap().next().is_none());
    staged.has_no_key();
}

/// A ceremony on which a rehearsal is tried out.
struct Site<'a>(&'a Staged);

impl Site<'_> {
    /// It must be refused with this rehearsal; each time for the check `rehearsal`.
    fn refuses(&self, rehearsal: Option<&Path>) -> Refusal {
        let Self(staged) = self;
        let mut arguments = staged.bare_arguments();
        // Anew each time: the clock goes on.
        arguments.extend(["--answers".to_owned(), staged.answers_file("answers.json", &staged.answers())]);
        if staged.output().join("transcript.jsonl").exists() {
            arguments.push("--resume".to_owned());
        }
        if let Some(rehearsal) = rehearsal {
            arguments.extend(["--rehearsal".to_owned(), text(rehearsal)]);
        }
        let refused = refusal(&arguments.iter().map(String::as_str).collect::<Vec<_>>(), b"");
        assert!(refused.why.contains("the check `rehearsal` does not hold"), "{rehearsal:?}: {}", refused.text);
        refused
    }
}

/// Every file beneath, with its content.
fn files(directory: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut all = BTreeMap::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            all.extend(files(&path));
        } else {
            all.insert(text(&path), fs::read(&path).unwrap());
        }
    }
    all
}

/// Changes the events of a transcript, and chains them anew. A chain proves that nothing was changed after it was signed, not who
/// wrote it.
pub fn forge(directory: &Path, change: &dyn Fn(&mut Vec<Value>)) {
    let path = directory.join("transcript.jsonl");
    let lines = fs::read_to_string(&path).unwrap();
    let mut events: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    change(&mut events);
    let bytes =
        |name: &str| data_encoding::HEXLOWER.decode(events[0]["data"][name].as_str().unwrap().as_bytes()).unwrap();
    let start = [b"hsm-kms/ceremony/v1".to_vec(), bytes("plan_sha256"), bytes("tool_sha256")].concat();
    let mut hash = Sha256::digest(start).to_vec();
    let mut text = Vec::new();
    for mut event in events {
        event.as_object_mut().unwrap().remove("hash");
        let content = serde_json_canonicalizer::to_vec(&event).unwrap();
        hash = Sha256::digest([hash, content].concat()).to_vec();
        event["hash"] = json!(data_encoding::HEXLOWER.encode(&hash));
        text.extend(serde_json_canonicalizer::to_vec(&event).unwrap());
        text.push(b'\n');
    }
    fs::write(path, text).unwrap();
}
