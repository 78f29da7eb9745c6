//! The PIN is nowhere but in the heads of two people: not in evidence, logs, on the screen, or in a core file.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;

use rustix::process::Signal;
use serde_json::json;

use super::staged::{Staged, with, written};
use super::terminal::Terminal;
use super::whole::{arguments, close, open};

#[test]
fn the_pin_is_in_no_file_and_on_no_screen() {
    let mut staged = Staged::new();
    let copies = staged.with_copies();
    let mut terminal = Terminal::start(&arguments(&staged, &[]));
    open(&mut terminal, &staged);
    close(&mut terminal, &staged, &copies);
    let (status, screen) = terminal.end();
    assert_eq!(status.code(), Some(0), "{screen}");
    let canaries = Canaries::of(&staged);
    canaries.are_not_in("the screen", screen.as_bytes());
    canaries.are_not_beneath(&staged.output());

    // By a file of answers, and where the login fails.
    let staged = Staged::new();
    let canaries = Canaries::of(&staged);
    let log = written(&staged.try_to_hold(&with(staged.answers(), "pin-2", "a-wrong-half-5081"), &[]));
    canaries.are_not_in("the log", log.as_bytes());
    assert!(!log.contains("a-wrong-half-5081"), "{log}");
    canaries.are_not_beneath(&staged.output());
    staged.except("pin-counter");
    let log = staged.hold(&staged.answers(), &["--resume"]);
    canaries.are_not_in("the log", log.as_bytes());
    canaries.are_not_beneath(&staged.output());
}

/// A module that crashes amid the ceremony, with the PIN in memory, leaves no core file, whatever the limits allow.
#[test]
fn a_crash_leaves_no_core_file() {
    let mut staged = Staged::new();
    let fault = staged.behind_fault_module();
    let arguments = arguments(&staged, &[]);
    for function in ["C_Login", "C_Encrypt"] {
        fault.always(function, &json!("crash"));
        let here = tempfile::tempdir().unwrap();
        let mut terminal = Terminal::start_in(here.path(), &arguments);
        open(&mut terminal, &staged);
        let (status, screen) = terminal.end();
        assert_eq!(status.signal(), Some(Signal::SEGV.as_raw()), "{status}: {screen}");
        assert!(!status.core_dumped(), "{function}: {status}");
        let left: Vec<_> = fs::read_dir(here.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert!(left.is_empty(), "{function}: {left:?}");
        fs::remove_dir_all(staged.output()).unwrap();
        fs::create_dir(staged.output()).unwrap();
    }
}

/// Each half, and the whole.
struct Canaries(Vec<String>);

impl Canaries {
    fn of(staged: &Staged) -> Self {
        let [first, second] = staged.halves.clone();
        assert!(first.len() > 8 && second.len() > 8, "too short to be found by accident only");
        Self(vec![first.clone() + &second, first, second])
    }

    fn are_not_in(&self, place: &str, content: &[u8]) {
        for canary in &self.0 {
            let found = content.windows(canary.len()).any(|part| part == canary.as_bytes());
            assert!(!found, "the PIN is in {place}");
        }
    }

    fn are_not_beneath(&self, directory: &Path) {
        let mut count = 0;
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                self.are_not_beneath(&path);
            } else {
                self.are_not_in(&path.display().to_string(), &fs::read(&path).unwrap());
                count += 1;
            }
        }
        assert!(count > 0 || directory.ends_with("signatures"), "{} is empty", directory.display());
    }
}
