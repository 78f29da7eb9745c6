//! The KEK again, from its shares, on a token that never had it. After a refusal nothing is on that token.

use std::fs;

use serde_json::{Value, json};

use super::copies::Copy;
use super::custodians::{empty_token, hold, keys_on, staged};
use super::staged::{Staged, written};
use super::terminal::Terminal;
use crate::harness::{run, text};
use crate::refusal::refusal;

#[test]
fn enough_shares_restore_the_kek_and_nothing_less_does() {
    let mut staged = staged();
    let fresh = empty_token(&staged, 1);
    let shares = hold(&staged);
    let record = staged.record();
    // Another KEK's, of the same number.
    let strangers = hold(&super::custodians::staged());
    staged.plan["copies"] = json!([fresh.plan()]);
    let site = Site { staged: &staged, fresh: &fresh };
    let [first, second, third] = [0, 1, 2].map(|place| shares[place].as_str());

    // One of two, and the terminal is gone.
    let mut terminal = site.begin(&[]);
    terminal.answer("share 1 of 2", first);
    terminal.until_asked();
    let (status, _) = terminal.close();
    assert!(!status.success(), "{status}");
    // Or the custodian ends the input.
    let (status, screen) = site.restore(&[first, "\x04"], &[]);
    assert!(status == 2 && screen.contains("the terminal was closed at the question `share`"), "{screen}");
    site.has_nothing();
    site.refuses(&[first, &strangers[1]], "share 2 belongs to set");
    site.refuses(&[&strangers[0], &strangers[1]], "is not the secret of this set");

    // What is no share, or is there already, is asked for again, and never shown.
    let slip = first.replacen(&first[21..22], if &first[21..22] == "q" { "p" } else { "q" }, 1);
    let mut terminal = site.begin(&[]);
    terminal.answer("share 1 of 2", &slip);
    terminal.until_asked();
    assert!(terminal.news().contains("Not right: "), "{}", terminal.screen());
    terminal.answer("share 1 of 2", first);
    terminal.answer("share 2 of 2", &first.to_uppercase());
    terminal.until_asked();
    assert!(terminal.news().contains("Share 1 is there already."), "{}", terminal.screen());
    terminal.close();
    site.has_nothing();
    site.refuses(&[first, first, first, first, first, first], "the question `share` was not answered");

    // No terminal at all, and no such token.
    let plan = staged.plan_file();
    let arguments = ["ceremony", "restore", "--plan", &plan, "--copy"];
    let refused = refusal(&[&arguments[..], &[&fresh.serial]].concat(), first.as_bytes());
    assert!(refused.code == 2 && refused.why.contains("needs a terminal"), "{}", refused.text);
    let refused = refusal(&[&arguments[..], &["0123456789abcdef"]].concat(), b"");
    assert!(refused.code == 2 && refused.hint.contains(&fresh.serial), "{}", refused.text);
    site.has_nothing();

    let (status, screen) = site.restore(&[third, second], &["--json"]);
    assert_eq!(status, 0, "{screen}");
    assert!(screen.contains("they restore the KEK") && screen.contains("it is the KEK of the record"), "{screen}");
    assert!(!shares.iter().any(|share| screen.contains(&share[16..])), "a share was shown");
    let kek = &record["kek"];
    assert_eq!(keys_on(&staged, &fresh), [&kek["label"], &kek["id"]].map(|text| text.as_str().unwrap()));
    let (status, screen) = site.end(site.start("clone-check", &["--json"]));
    assert_eq!(status, 0, "{screen}");
    assert!(screen.contains("\"opened\": 3"), "{screen}");
    // Before any share is asked for.
    site.refuses_with_keys(&[], "1 object(s) with label \"kek\"");
    // It has not moved: the first token still has it.
    staged.has_the_key_of_its_record();
}

/// A key that does not prove to be the KEK of the record does not stay.
#[test]
fn what_does_not_prove_to_be_the_kek_is_destroyed() {
    let mut staged = staged();
    let fresh = empty_token(&staged, 1);
    let shares = hold(&staged);
    staged.plan["copies"] = json!([fresh.plan()]);
    // Whose proof blobs were sealed in another ceremony.
    let mut record = staged.record();
    record["ceremony"]["id"] = json!("0123456789abcdef0123456789abcdef");
    let path = staged.file("other-record.json");
    fs::write(&path, record.to_string()).unwrap();
    let site = Site { staged: &staged, fresh: &fresh };
    let (status, screen) = site.restore(&[&shares[0], &shares[1]], &["--record", &text(&path)]);
    assert_eq!(status, 1, "{screen}");
    assert!(screen.contains("error: the KEK was not restored"), "{screen}");
    site.has_nothing();
    let (status, screen) = site.restore(&[&shares[0], &shares[1]], &[]);
    assert_eq!(status, 0, "{screen}");
}

/// Only a KEK that came in shares goes out of them.
#[test]
fn a_kek_that_the_hsm_made_has_no_shares() {
    let mut staged = Staged::new();
    let fresh = empty_token(&staged, 1);
    staged.hold(&staged.answers(), &[]);
    staged.plan["copies"] = json!([fresh.plan()]);
    let site = Site { staged: &staged, fresh: &fresh };
    let (status, screen) = site.restore(&[], &[]);
    assert_eq!(status, 1, "{screen}");
    assert!(screen.contains("did not come in shares"), "{screen}");
    site.has_nothing();
}

#[test]
fn what_a_restoration_will_do_is_told_before() {
    let mut staged = Staged::new();
    let fresh = empty_token(&staged, 1);
    staged.plan["copies"] = json!([fresh.plan()]);
    let plan = staged.plan_file();
    let arguments = ["ceremony", "restore", "--plan", &plan, "--dry-run", "--json", "--copy"];
    let output = run(&[&arguments[..], &[&fresh.serial]].concat(), b"");
    assert!(output.status.success(), "{}", written(&output));
    let calls: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
    assert!(calls.iter().any(|call| call.as_str().unwrap().starts_with("C_UnwrapKey")), "{calls:?}");
    let refused = refusal(&[&arguments[..], &["0123456789abcdef"]].concat(), b"");
    assert_eq!(refused.code, 2, "{}", refused.text);
}

/// A token that is to get the KEK.
struct Site<'a> {
    staged: &'a Staged,
    fresh: &'a Copy,
}

impl Site<'_> {
    fn start(&self, command: &str, more: &[&str]) -> Terminal {
        let plan = self.staged.plan_file();
        let arguments = ["ceremony", command, "--plan", &plan, "--copy", &self.fresh.serial];
        let mut terminal =
            Terminal::start(&[&arguments[..], more].concat().iter().map(|&a| a.to_owned()).collect::<Vec<_>>());
        terminal.answer("first half of the PIN", &self.staged.halves[0]);
        terminal.answer("second half of the PIN", &self.staged.halves[1]);
        terminal
    }

    fn begin(&self, more: &[&str]) -> Terminal {
        self.start("restore", more)
    }

    fn restore(&self, shares: &[&str], more: &[&str]) -> (i32, String) {
        let mut terminal = self.begin(more);
        for share in shares {
            terminal.answer(" of 2", share);
        }
        self.end(terminal)
    }

    fn end(&self, terminal: Terminal) -> (i32, String) {
        let (status, screen) = terminal.end();
        let plain = screen.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(!self.staged.halves.iter().any(|half| half.len() > 8 && screen.contains(half)), "{screen}");
        (status.code().unwrap(), plain)
    }

    fn refuses(&self, shares: &[&str], why: &str) {
        self.refuses_with_keys(shares, why);
        self.has_nothing();
    }

    fn refuses_with_keys(&self, shares: &[&str], why: &str) {
        let (status, screen) = self.restore(shares, &[]);
        assert_eq!(status, 1, "{screen}");
        assert!(screen.contains(why), "not {why:?}: {screen}");
        assert!(!shares.iter().any(|share| screen.contains(&share[16..])), "a share was shown");
    }

    fn has_nothing(&self) {
        assert_eq!(keys_on(self.staged, self.fresh), [""; 0]);
    }
}
