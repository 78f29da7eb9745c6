//! People who say no, are not there, or type something else. Nothing happens to the token.

use serde_json::json;

use super::staged::{Staged, with};

#[test]
fn too_few_people_or_the_wrong_ones_hold_no_ceremony() {
    let staged = Staged::new();
    for (position, lacking) in [(1, "administrator"), (2, "operator"), (3, "no witness"), (4, "no custodian")] {
        let answers = with(staged.answers(), &format!("person-{position}"), "absent");
        let resume: &[&str] = if position == 1 { &[] } else { &["--resume"] };
        let refusal = staged.refuses(&answers, resume, "the ceremony cannot be held: ");
        assert!(refusal.why.contains(lacking), "{}", refusal.text);
        assert_eq!(refusal.code, 1, "{}", refusal.text);
    }
    staged.has_no_key();
    staged.hold(&staged.answers(), &["--resume"]);
}

/// A fifth person may be away; then the record does not name them.
#[test]
fn the_record_names_those_who_were_there() {
    let mut staged = Staged::new();
    let mut more = staged.plan["people"][3].clone();
    more["name"] = json!("Lise Meitner");
    more["role"] = json!("witness");
    let key = staged.plan["people"][2]["key"].as_str().unwrap().to_owned();
    // Another key: the last byte of the base64 text carries six bits of it.
    let other = if key.ends_with('A') { 'B' } else { 'A' };
    more["key"] = json!(format!("{}{other}", &key[..key.len() - 1]));
    staged.plan["people"].as_array_mut().unwrap().push(more);
    let mut answers = staged.answers();
    answers.insert(4, ("person-5".to_owned(), "absent".to_owned()));
    staged.rehearse_with(&answers);
    staged.hold(&answers, &[]);
    let people = staged.record()["witnessed"]["people"].clone();
    assert_eq!(people.as_array().unwrap().len(), 4);
    assert!(!people.to_string().contains("Meitner"));
}

#[test]
fn a_no_stops_the_ceremony_before_the_token_is_touched() {
    let mut staged = Staged::new();
    let fault = staged.behind_fault_module();
    let mut resume: &[&str] = &[];
    for (question, why) in [
        ("plan", "the plan is not the one on the printed script"),
        ("program", "the program is not the release that was agreed to"),
    ] {
        let refusal = staged.refuses(&with(staged.answers(), question, "no"), resume, why);
        assert_eq!((refusal.code, refusal.error.as_str()), (1, "the ceremony was interrupted"), "{}", refusal.text);
        resume = &["--resume"];
    }
    assert_eq!(fault.calls("*"), 0);
    staged.has_no_key();
}

/// A name, a time and a yes are asked for three times, and then no more.
#[test]
fn a_question_is_asked_three_times() {
    let staged = Staged::new();
    let mut resume: &[&str] = &[];
    for (question, wrong) in [
        ("person-2", "Grace"),
        ("clock", "25:00"),
        ("clock", "1405"),
        ("clock", "-1:30"),
        ("plan", "y"),
        ("program", "YES"),
        ("no-recovery", "no-recovery"),
        ("bag-1", ""),
    ] {
        let mut answers = with(staged.answers(), question, wrong);
        let place = answers.iter().position(|(name, _)| name == question).unwrap();
        for _ in 0..2 {
            answers.insert(place, answers[place].clone());
        }
        staged.refuses(&answers, resume, &format!("the question `{question}` was not answered in three attempts"));
        resume = &["--resume"];
    }
    // The second answer may be the right one.
    let mut answers = staged.answers();
    answers.insert(4, ("clock".to_owned(), "noon".to_owned()));
    staged.hold(&answers, resume);
    staged.has_the_key_of_its_record();
}

#[test]
fn answers_to_other_questions_are_no_answers() {
    let staged = Staged::new();
    let mut swapped = staged.answers();
    swapped.swap(4, 5);
    let why = "the file of answers has an answer to `plan`, and the question is `clock`";
    let refusal = staged.refuses(&swapped, &[], why);
    assert_eq!(refusal.code, 2, "{}", refusal.text);
    let mut short = staged.answers();
    short.truncate(5);
    staged.refuses(&short, &["--resume"], "has no further answer, and the question is `plan`");
    let empty = with(staged.answers(), "pin-1", "");
    staged.refuses(&empty, &["--resume"], "a half of the PIN is empty");
    let differs = {
        let mut answers = staged.answers();
        answers.last_mut().unwrap().1 = "B 2".to_owned();
        answers
    };
    staged.refuses(&differs, &["--resume"], "the number of a bag was typed in two ways");
    staged.hold(&staged.answers(), &["--resume"]);
    staged.has_the_key_of_its_record();
}
