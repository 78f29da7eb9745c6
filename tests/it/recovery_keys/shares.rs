//! `recovery split` and `combine`: sheets, files, and people who type.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::{SoftKey, fingerprint, secret, succeeds};
use crate::ceremony::terminal::Terminal;
use crate::harness::{run, text};
use crate::paper::print::{Paper, Printed};
use crate::refusal::{Refusal, refusal};

/// A key in five shares, three of which are needed; their words, and files with them.
struct Split {
    directory: TempDir,
    key: SoftKey,
    words: Vec<Vec<String>>,
    files: Vec<String>,
}

impl Split {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let key = SoftKey::new(directory.path(), "a");
        let words = sheets(directory.path(), "set", &key);
        let mut split = Self { directory, key, words, files: Vec::new() };
        for number in 0..5 {
            let words = split.words[number].clone();
            let file = split.file(&format!("share-{number}"), &words);
            split.files.push(file);
        }
        split
    }

    /// A file with these words.
    fn file(&self, name: &str, words: &[String]) -> String {
        let path = self.directory.path().join(name);
        fs::write(&path, words.join("\n")).unwrap();
        text(&path)
    }

    fn refused(&self, files: &[&String]) -> Refusal {
        let recipient = text(&self.key.recipient);
        let refused = refusal(&combine(&recipient, files), b"");
        assert_eq!(refused.code, 1, "{}", refused.text);
        refused
    }
}

fn combine<'a>(recipient: &'a str, files: &[&'a String]) -> Vec<&'a str> {
    let shares = files.iter().flat_map(|file| ["--share", file.as_str()]);
    ["recovery", "combine", "--recipient", recipient].into_iter().chain(shares).collect()
}

/// Splits the key 3 of 5 into a folder; the words of each sheet.
fn sheets(directory: &Path, name: &str, key: &SoftKey) -> Vec<Vec<String>> {
    let folder = directory.join(name);
    fs::create_dir(&folder).unwrap();
    let output = succeeds(&split(&text(&key.key), &text(&key.recipient), &text(&folder)));
    assert!(output.contains("needed    3 of 5") && output.contains("RAM disk"), "{output}");
    assert!(output.contains(&fingerprint(&key.recipient)));
    (1..=5).map(|number| words(&sheet(&folder, number))).collect()
}

fn split<'a>(key: &'a str, recipient: &'a str, folder: &'a str) -> [&'a str; 12] {
    let [three, five] = ["3", "5"];
    [
        "recovery",
        "split",
        "--key",
        key,
        "--threshold",
        three,
        "--shares",
        five,
        "--recipient",
        recipient,
        "--sheets",
        folder,
    ]
}

fn sheet(folder: &Path, number: usize) -> PathBuf {
    folder.join(format!("share-{number}-of-5.html"))
}

/// The words of a sheet, which are numbered.
fn words(sheet: &Path) -> Vec<String> {
    let html = fs::read_to_string(sheet).unwrap();
    let words: Vec<String> = (1..=36)
        .map(|place| {
            let (_, rest) = html.split_once(&format!("<small>{place}</small><b>")).unwrap();
            rest.split_once("</b>").unwrap().0.to_owned()
        })
        .collect();
    assert_eq!(html.matches("<small>").count(), 36);
    words
}

#[test]
fn any_three_of_five_shares_give_the_key_back() {
    let split = Split::new();
    let recipient = text(&split.key.recipient);
    let mut subsets = 0;
    for chosen in (0..32_u32).filter(|chosen| chosen.count_ones() == 3) {
        let files: Vec<_> = (0..5).filter(|place| chosen >> place & 1 == 1).map(|place| &split.files[place]).collect();
        let output = succeeds(&combine(&recipient, &files));
        assert_eq!(secret(&output), split.key.secret());
        subsets += 1;
    }
    assert_eq!(subsets, 10);
    // More than needed; and into a file of the owner's.
    let path = text(&split.directory.path().join("again"));
    let mut arguments = combine(&recipient, &split.files.iter().collect::<Vec<_>>());
    arguments.extend(["--key", &path]);
    assert!(!succeeds(&arguments).contains("hkr1"));
    assert_eq!(secret(&fs::read_to_string(&path).unwrap()), split.key.secret());
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn shares_that_do_not_give_the_key_are_refused() {
    let split = Split::new();
    let [first, second, third] = [&split.files[0], &split.files[1], &split.files[2]];
    let two = split.refused(&[first, third]);
    assert!(two.why.contains("2 of the 3 shares that are needed: 1 more"), "{}", two.text);
    let twice = split.refused(&[first, second, first]);
    assert!(twice.why.contains("share 1 is there twice"), "{}", twice.text);

    // One split of the same key is another set.
    let others = sheets(split.directory.path(), "other", &split.key);
    let other = split.file("other-share", &others[2]);
    let foreign = split.refused(&[first, second, &other]);
    assert!(foreign.why.contains("share 3 belongs to set"), "{}", foreign.text);

    // A word that is in the list: its row; one that is not: its place, and what was meant.
    let mut words = split.words[2].clone();
    words[19] = if words[19] == "abandon" { "zoo" } else { "abandon" }.to_owned();
    let wrong = split.refused(&[first, second, &split.file("wrong-word", &words)]);
    assert!(wrong.why.contains("row 4 does not fit: one of the words 19 to 24 is wrong"), "{}", wrong.text);
    words[19] = "abandno".to_owned();
    let wrong = split.refused(&[first, second, &split.file("no-word", &words)]);
    assert!(wrong.why.contains("word 20 is none of the list; the nearest is abandon"), "{}", wrong.text);
    let cut = split.refused(&[first, second, &split.file("cut", &words[..35])]);
    assert!(cut.why.contains("a share has 36 words, this text has 35"), "{}", cut.text);

    // Shares of another key, and the recipient of another key.
    let other_key = SoftKey::new(split.directory.path(), "b");
    let recipient = text(&other_key.recipient);
    let refused = refusal(&combine(&recipient, &[first, second, third]), b"");
    assert!(refused.code == 1 && refused.why.contains(&fingerprint(&other_key.recipient)), "{}", refused.text);
}

#[test]
fn a_key_is_not_split_in_vain() {
    let split = Split::new();
    let directory = split.directory.path();
    let (key, recipient) = (text(&split.key.key), text(&split.key.recipient));
    // Nothing is written over, and what was begun does not stay.
    let folder = directory.join("half");
    fs::create_dir(&folder).unwrap();
    fs::write(sheet(&folder, 3), "older").unwrap();
    let refused = refusal(&super::shares::split(&key, &recipient, &text(&folder)), b"");
    assert!(refused.code == 2 && refused.why.contains("exists"), "{}", refused.text);
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 1);

    let other = SoftKey::new(directory, "b");
    let refused = refusal(&super::shares::split(&key, &text(&other.recipient), &text(&folder)), b"");
    assert!(refused.code == 1 && refused.why.contains("the recipient is"), "{}", refused.text);

    let mut too_many = super::shares::split(&key, &recipient, &text(&folder)).map(str::to_owned);
    too_many[5] = "6".to_owned();
    let refused = refusal(&too_many.iter().map(String::as_str).collect::<Vec<_>>(), b"");
    assert!(refused.code == 2 && refused.why.contains("6 of 5 shares"), "{}", refused.text);

    // From standard input, so that it need not be on a disk.
    let folder = directory.join("piped");
    fs::create_dir(&folder).unwrap();
    let piped = run(&super::shares::split("-", &recipient, &text(&folder)), &fs::read(&split.key.key).unwrap());
    assert!(piped.status.success(), "{}", String::from_utf8_lossy(&piped.stderr));
    assert_eq!(fs::metadata(sheet(&folder, 1)).unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn a_sheet_is_one_page_and_has_one_share() {
    let directory = tempfile::tempdir().unwrap();
    let key = SoftKey::new(directory.path(), "a");
    let all = sheets(directory.path(), "set", &key);
    let html = fs::read_to_string(sheet(&directory.path().join("set"), 2)).unwrap();
    for lacking in ["http:", "https:", "src=", "href=", "<script", "@import", "url(", "hkr1"] {
        assert!(!html.contains(lacking), "{lacking}");
    }
    for paper in Paper::ALL {
        let printed = Printed::new("recovery-share", &html, paper);
        printed.is_tidy(1..=1);
        printed.has(&["Recovery share 2 of 5", "number 2; 3 are needed", "SECRET", "Custodian", "Signature"]);
        printed.has(&["Number of the envelope", &fingerprint(&key.recipient)]);
        printed.has(&all[1].iter().map(String::as_str).collect::<Vec<_>>());
        let text = all[0].concat();
        printed.lacks(&text);
    }
    // Of another share it has nothing but what all have: rows of it are not there.
    for row in all[0].chunks(6).skip(1) {
        let cells: Vec<_> = row.iter().map(|word| format!("<b>{word}</b>")).collect();
        assert!(cells.iter().any(|cell| !html.contains(cell)), "{row:?}");
    }
}

#[test]
fn people_type_their_shares_row_by_row() {
    let split = Split::new();
    let key = text(&split.directory.path().join("again"));
    let recipient = text(&split.key.recipient);
    let arguments = ["recovery", "combine", "--recipient", &recipient, "--key", &key].map(str::to_owned);
    let mut terminal = Terminal::start(&arguments);
    let row = |words: &[String], number: usize| words[number * 6..number * 6 + 6].join(" ");
    let type_share = |terminal: &mut Terminal, words: &[String]| {
        for number in 0..6 {
            terminal.answer(
                &format!("row {}, words {} to {}", number + 1, number * 6 + 1, number * 6 + 6),
                &row(words, number),
            );
        }
    };
    // The first with slips, each of which is asked for again at once.
    let first = &split.words[3];
    terminal.answer("row 1, words 1 to 6", "one two three");
    terminal.answer("row 1, words 1 to 6", &row(first, 1));
    assert!(terminal.screen().contains("row 1 has 3 words, and must have 6"), "{}", terminal.screen());
    let mut swapped = first[..6].to_vec();
    swapped.swap(1, 2);
    terminal.answer("row 1, words 1 to 6", &swapped.join(" "));
    terminal.answer("row 1, words 1 to 6", &row(first, 0).to_uppercase());
    assert!(terminal.screen().contains("one of the words 1 to 6 is wrong, or two of"), "{}", terminal.screen());
    for number in 1..6 {
        terminal.answer(&format!("row {}", number + 1), &row(first, number));
    }
    terminal.until_asked();
    // What was typed goes off the screen, and out of what can be scrolled back to.
    assert!(terminal.news().contains("\u{1b}[2J\u{1b}[3J"), "{}", terminal.news());
    assert!(terminal.news().contains("Share 4 of set"), "{}", terminal.news());
    // The same again, and rows of two shares.
    type_share(&mut terminal, first);
    terminal.until_asked();
    assert!(terminal.news().contains("Not taken: share 4 is there twice"), "{}", terminal.news());
    let mixed = [&split.words[0][..18], &split.words[1][18..]].concat();
    type_share(&mut terminal, &mixed);
    terminal.until_asked();
    assert!(terminal.news().contains("they are not the rows of one share"), "{}", terminal.news());
    for words in [&split.words[0], &split.words[1]] {
        type_share(&mut terminal, words);
    }
    let (status, screen) = terminal.end();
    assert!(status.success() && !screen.contains("hkr1"), "{screen}");
    assert_eq!(secret(&fs::read_to_string(&key).unwrap()), split.key.secret());
}

#[test]
fn a_key_is_not_shown_on_a_terminal_and_none_is_made_when_it_closes() {
    let split = Split::new();
    let recipient = text(&split.key.recipient);
    let arguments = ["recovery", "combine", "--recipient", &recipient].map(str::to_owned);
    let (status, screen) = Terminal::start(&arguments).end();
    assert_eq!(status.code(), Some(2));
    assert!(screen.contains("the key would be shown on the terminal"), "{screen}");

    let key = text(&split.directory.path().join("again"));
    let arguments = [&arguments[..], &["--key".to_owned(), key.clone()]].concat();
    let mut terminal = Terminal::start(&arguments);
    terminal.answer("row 1", &split.words[0][..6].join(" "));
    terminal.until_asked();
    let (status, _) = terminal.close();
    assert!(!status.success() && !Path::new(&key).exists());

    let refused = refusal(&["recovery", "combine", "--recipient", &recipient], b"abandon\n");
    assert!(refused.code == 2 && refused.why.contains("no terminal to type shares on"), "{}", refused.text);
}
