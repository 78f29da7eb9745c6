//! Ceremonies that stop in the middle, and go on.

use std::fs::{self, File};
use std::os::unix::process::ExitStatusExt;

use rustix::process::Signal;
use serde_json::json;

use super::staged::{Staged, with, written};
use super::terminal::Terminal;
use super::whole::{arguments, close, is_plain, open};
use crate::harness::{TestToken, run};

#[test]
fn a_terminal_that_is_closed_ends_the_program_and_the_ceremony_goes_on_at_another() {
    let mut staged = Staged::new();
    let copies = staged.with_copies();
    let mut terminal = Terminal::start(&arguments(&staged, &[]));
    open(&mut terminal, &staged);
    // The KEK is made, and no copy of it yet.
    assert!(terminal.until_asked().contains("copied"));
    let (status, screen) = terminal.close();
    // The end of the input may come before the signal, and whoever began with the signal ignored gets none: then the program says to nobody
    // that there was no answer.
    let had_no_answer = status.code() == Some(2);
    assert!(had_no_answer || status.signal() == Some(Signal::HUP.as_raw()), "{status}: {screen}");
    let made: Vec<_> = staged.keys();
    assert_eq!(made.len(), 1);

    let mut terminal = Terminal::start(&arguments(&staged, &["--resume"]));
    open(&mut terminal, &staged);
    close(&mut terminal, &staged, &copies);
    let (status, screen) = terminal.end();
    assert_eq!(status.code(), Some(0), "{screen}");
    is_plain(&screen, &staged);
    assert!(screen.contains("it is verified now"), "{screen}");
    assert_eq!(staged.keys(), made);
    staged.has_the_key_of_its_record();
}

/// A copy that is none stops the ceremony, and the KEK stays for the next attempt.
#[test]
fn a_copy_that_was_not_made_is_asked_for_again() {
    let mut staged = Staged::new();
    let copies = staged.with_copies();
    let refusal = staged.refuses(&staged.answers(), &[], &format!("serial number {}", copies[0].serial));
    assert_eq!((refusal.code, refusal.error.as_str()), (1, "the ceremony was interrupted"), "{}", refusal.text);
    let made = staged.keys();
    assert_eq!(made.len(), 1);
    // One of the two is not enough.
    copies[0].make();
    staged.refuses(&staged.answers(), &["--resume"], &format!("serial number {}", copies[1].serial));
    copies[1].make();
    staged.hold(&staged.answers(), &["--resume"]);
    assert_eq!(staged.keys(), made);
    assert_eq!(staged.record()["recovery"], "copies");
    staged.has_the_key_of_its_record();
}

#[test]
fn one_process_at_a_time_writes_a_transcript() {
    let staged = Staged::new();
    let mut terminal = Terminal::start(&arguments(&staged, &[]));
    terminal.until_asked();
    staged.refuses(&staged.answers(), &["--resume"], "is in use by another process");
    staged.refuses(&staged.answers(), &[], "is not empty");
    let plan = staged.plan_file();
    let except = ["ceremony", "exception", "--plan", &plan, "--check", "swap", "--reason", "a", "--decided-by"];
    let output = run(&[&except[..], &["Ada Lovelace"]].concat(), b"");
    assert!(written(&output).contains("is in use by another process"), "{}", written(&output));
    terminal.answer("Ada Lovelace, ", "Ada Lovelace");
    terminal.close();
    staged.hold(&staged.answers(), &["--resume"]);
    staged.has_the_key_of_its_record();
}

/// What is made of the transcript is made again if it is gone, without people.
#[test]
fn a_closed_ceremony_is_not_held_again() {
    let staged = Staged::new();
    staged.hold(&staged.answers(), &[]);
    let (keys, record) = (staged.keys(), staged.record());
    let transcript = fs::read(staged.output().join("transcript.jsonl")).unwrap();
    staged.hold(&Vec::new(), &["--resume"]);
    staged.refuses(&staged.answers(), &[], "is not empty");
    assert_eq!((staged.keys(), staged.record()), (keys, record));
    assert_eq!(fs::read(staged.output().join("transcript.jsonl")).unwrap(), transcript);
}

/// The disk takes some events and then no more: it says so, and with room the ceremony goes on.
#[test]
fn a_full_disk_stops_the_ceremony_at_any_event() {
    // A limit on the size of files stands for the disk: what is written beyond it fails. The files of this token are smaller.
    let on_small_files = || Staged::on(TestToken::softhsm2());
    let staged = on_small_files();
    staged.hold(&staged.answers(), &[]);
    let whole = fs::metadata(staged.output().join("transcript.jsonl")).unwrap().len();
    for part in 1..6 {
        let staged = on_small_files();
        let arguments = staged.arguments(&staged.answers());
        let limit = format!("--fsize={}", whole * part / 6);
        let mut limited = std::process::Command::new("prlimit");
        limited.args([&limit, "--", "env", "--ignore-signal=XFSZ", env!("CARGO_BIN_EXE_hsm-kms")]).args(&arguments);
        let log = staged.file("log");
        let output = limited
            .env_remove("SOFTHSM2_CONF")
            .env_remove("KRYOPTIC_CONF")
            .stderr(File::create(&log).unwrap())
            .output()
            .unwrap();
        let said = written(&output) + &fs::read_to_string(&log).unwrap();
        assert_ne!(output.status.code(), Some(0), "{said}");
        assert!(said.contains("why: ") && said.contains("File too large"), "{part}: {said}");
        staged.hold(&staged.answers(), &["--resume"]);
        staged.has_the_key_of_its_record();
    }
}

/// People who are there say that it may go on, each failed check by its name.
#[test]
fn a_clock_that_is_wrong_stops_the_ceremony_until_somebody_answers_for_it() {
    let staged = Staged::new();
    let hours: u32 = super::staged::clock()[..2].parse().unwrap();
    let wrong = with(staged.answers(), "clock", &format!("{:02}:30", (hours + 6) % 24));
    let refusal = staged.refuses(&wrong, &[], "the check `clock` does not hold");
    assert!(refusal.hint.contains("exception --check clock"), "{}", refusal.text);
    staged.has_no_key();
    // Not by itself, and not by another check's exception.
    staged.refuses(&wrong, &["--resume"], "the check `clock` does not hold");
    staged.except("swap");
    staged.refuses(&wrong, &["--resume"], "the check `clock` does not hold");
    staged.except("clock");
    staged.hold(&wrong, &["--resume"]);
    let exceptions = staged.record()["witnessed"]["exceptions"].clone();
    let texts: Vec<_> = exceptions.as_array().unwrap().iter().map(|text| text.as_str().unwrap()).collect();
    let clock: Vec<_> = texts.iter().filter(|text| text.starts_with("clock: ")).collect();
    assert!(matches!(clock[..], [text] if text.contains("it is a test (decided by Ada Lovelace)")), "{texts:?}");
    assert!(!texts.iter().any(|text| text.starts_with("swap")), "{texts:?}");
}

/// One login, and none after it: many tokens lock at the third.
#[test]
fn a_wrong_pin_is_tried_once() {
    let mut staged = Staged::new();
    let fault = staged.behind_fault_module();
    let wrong = with(staged.answers(), "pin-2", "wrong");
    staged.rehearse();
    let refusal = staged.refuses(&wrong, &[], "C_Login returned CKR_PIN_INCORRECT");
    assert_eq!(refusal.code, 1, "{}", refusal.text);
    assert_eq!(fault.calls("C_Login"), 1);
    staged.has_no_key();
    // A token that counts says so, and the people decide.
    let counts = written(&staged.try_to_hold(&staged.answers(), &["--resume"]));
    if counts.contains("the check `pin-counter` does not hold") {
        assert_eq!(fault.calls("C_Login"), 1, "{counts}");
        staged.except("pin-counter");
        staged.hold(&staged.answers(), &["--resume"]);
    }
    assert_eq!(fault.calls("C_Login"), 2);
    staged.has_the_key_of_its_record();
}

/// No login at all on a token that says that one more wrong PIN is the last, or one too many.
#[test]
fn a_pin_on_its_last_try_is_not_tried() {
    for flag in ["CKF_USER_PIN_FINAL_TRY", "CKF_USER_PIN_LOCKED"] {
        let mut staged = Staged::new();
        let fault = staged.behind_fault_module();
        fault.always("C_GetTokenInfo", &json!({"token_info": {"flags": [flag]}}));
        let refusal = staged.refuses(&staged.answers(), &[], "the check `pin` does not hold");
        assert!(refusal.hint.contains("no exception helps"), "{}", refusal.text);
        assert_eq!(fault.calls("C_Login"), 0);
    }
}
