//! Ceremonies for a KEK in shares that stop in the middle: never two KEKs, and never one whose shares nobody has.

use serde_json::json;

use super::copies::Copy;
use super::custodians::{close, empty_token, hand_out, keys_on, open, pin, show, sign, staged, without_rehearsal};
use super::staged::Staged;
use super::terminal::Terminal;

/// Cut off, and begun anew on another terminal.
fn cut(mut terminal: Terminal, staged: &Staged, arguments: &[String]) -> Terminal {
    terminal.until_asked();
    terminal.close();
    let mut terminal = Terminal::start(arguments);
    open(&mut terminal, staged, &staged.halves);
    terminal
}

fn end(terminal: Terminal) -> String {
    let (status, screen) = terminal.end();
    assert_eq!(status.code(), Some(0), "{screen}");
    screen.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[test]
fn before_the_kek_is_in_the_token_the_papers_are_worth_nothing() {
    let staged = staged();
    let arguments = without_rehearsal(&staged);
    let mut terminal = Terminal::start(&arguments);
    open(&mut terminal, &staged, &staged.halves);
    let lost = show(&mut terminal);
    let mut terminal = cut(terminal, &staged, &arguments);
    terminal.until_asked();
    let told = terminal.screen().split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(told.contains("destroy those papers now"), "{told}");
    staged.has_no_key();
    let shares = hand_out(&mut terminal);
    assert_ne!(shares[0], lost);
    close(&mut terminal, &staged.halves, 0);
    end(terminal);
    staged.has_the_key_of_its_record();
    // The digest is that of the shares which count.
    let made = staged.events().into_iter().rfind(|event| event["step"] == "make").unwrap();
    assert_eq!(staged.record()["witnessed"]["shares"]["digest"], made["data"]["digest"]);
    sign(&staged, &staged.output());
}

#[test]
fn in_the_token_and_with_no_copy_to_make_it_is_the_kek() {
    let staged = staged();
    let arguments = without_rehearsal(&staged);
    let mut terminal = Terminal::start(&arguments);
    open(&mut terminal, &staged, &staged.halves);
    hand_out(&mut terminal);
    assert!(terminal.until_asked().contains("number of bag"));
    let made = staged.keys();
    let mut terminal = cut(terminal, &staged, &arguments);
    close(&mut terminal, &staged.halves, 0);
    let screen = end(terminal);
    assert!(screen.contains("it is verified now"), "{screen}");
    assert_eq!(staged.keys(), made);
    assert_eq!(staged.record()["witnessed"]["shares"]["threshold"], json!(2));
    staged.has_the_key_of_its_record();
    sign(&staged, &staged.output());
}

#[test]
fn in_the_token_and_not_in_the_copy_it_is_destroyed_if_the_administrator_says_so() {
    let mut staged = staged();
    let copy = empty_token(&staged, 1);
    staged.plan["copies"] = json!([copy.plan()]);
    let arguments = without_rehearsal(&staged);
    let mut terminal = Terminal::start(&arguments);
    open(&mut terminal, &staged, &staged.halves);
    hand_out(&mut terminal);
    assert!(terminal.until_asked().contains("half 1 of the PIN"));
    let lost = staged.keys();
    assert_eq!(lost.len(), 1);
    let mut terminal = cut(terminal, &staged, &arguments);
    terminal.answer("destroy it", "no");
    let (status, screen) = terminal.end();
    assert_eq!(status.code(), Some(1), "{screen}");
    assert_eq!(staged.keys(), lost);

    let mut terminal = Terminal::start(&arguments);
    open(&mut terminal, &staged, &staged.halves);
    terminal.answer("destroy it", "destroy");
    terminal.until_asked();
    staged.has_no_key();
    hand_out(&mut terminal);
    close(&mut terminal, &staged.halves, 1);
    end(terminal);
    staged.has_the_key_of_its_record();
    assert_ne!(staged.keys(), lost);
    assert_eq!(keys_on(&staged, &copy).len(), 2, "a label and an id");
    sign(&staged, &staged.output());
}

/// The KEK is in every token that was to get it: nothing of it is lost, and it goes on.
#[test]
fn in_the_token_and_in_its_copy_it_is_the_kek() {
    let mut staged = staged();
    let copy = empty_token(&staged, 1);
    staged.plan["copies"] = json!([copy.plan()]);
    let arguments = without_rehearsal(&staged);
    let mut terminal = Terminal::start(&arguments);
    open(&mut terminal, &staged, &staged.halves);
    hand_out(&mut terminal);
    pin(&mut terminal, &staged.halves);
    assert!(terminal.until_asked().contains("number of bag"));
    let made = (staged.keys(), keys_on(&staged, &copy));
    let mut terminal = cut(terminal, &staged, &arguments);
    close(&mut terminal, &staged.halves, 1);
    end(terminal);
    assert_eq!((staged.keys(), keys_on(&staged, &copy)), made);
    staged.has_the_key_of_its_record();
    sign(&staged, &staged.output());
}

/// One token has it and the next has not: that KEK is lost, and what is left of it is named.
#[test]
fn in_one_copy_of_two_it_is_lost_and_has_to_go_from_there_too() {
    let mut staged = staged();
    let copies = [1, 2].map(|number| empty_token(&staged, number));
    staged.plan["copies"] = copies.iter().map(Copy::plan).collect();
    let arguments = without_rehearsal(&staged);
    let mut terminal = Terminal::start(&arguments);
    open(&mut terminal, &staged, &staged.halves);
    hand_out(&mut terminal);
    pin(&mut terminal, &staged.halves);
    assert!(terminal.until_asked().contains("half 1 of the PIN"));
    let mut terminal = cut(terminal, &staged, &arguments);
    terminal.until_asked();
    let told = terminal.screen().split_whitespace().collect::<Vec<_>>().join(" ");
    let left = format!("It is also on the token with serial number {}. Destroy", copies[0].serial);
    assert!(told.contains(&left), "{told}");
    terminal.answer("destroy it", "destroy");
    hand_out(&mut terminal);
    // Nobody did.
    pin(&mut terminal, &staged.halves);
    let (status, screen) = terminal.end();
    assert_eq!(status.code(), Some(1), "{screen}");
    assert!(screen.contains("1 object(s) with label \"kek\""), "{screen}");
    staged.tool(&copies[0].section(), &["--delete-object", "--type", "secrkey", "--label", "kek"]);

    let mut terminal = Terminal::start(&arguments);
    open(&mut terminal, &staged, &staged.halves);
    terminal.answer("destroy it", "destroy");
    hand_out(&mut terminal);
    close(&mut terminal, &staged.halves, 2);
    end(terminal);
    assert_eq!(staged.record()["recovery"], json!("copies"));
    staged.has_the_key_of_its_record();
    let id = staged.record()["kek"]["id"].as_str().unwrap().to_owned();
    for copy in &copies {
        assert_eq!(keys_on(&staged, copy), ["kek", &id]);
    }
    sign(&staged, &staged.output());
}
