//! The machine loses power anywhere, and the ceremony is resumed: one KEK at the end, the record's, and a transcript that holds.
//!
//! strace kills the program at a system call. What the system had not written by then is lost in a real power cut, not here: so
//! the last event is also torn.

use std::fs::{self, File};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::thread;

use hsm_kms::ceremony::transcript;
use hsm_kms::record::Sha256Digest;
use rustix::process::Signal;

use super::staged::{Answers, Staged, with, written};
use crate::harness::text;

/// Where the program is killed.
#[derive(Clone, Copy, Debug)]
enum Cut {
    /// Before the event of this number is written, from 1.
    Before(usize),
    /// Once it is written.
    After(usize),
    /// Amid it.
    Amid(usize),
}

/// Every event of a ceremony, and every place between two.
#[test]
fn a_ceremony_that_is_cut_off_at_any_event_goes_on_to_one_kek() {
    let events = {
        let staged = Staged::new();
        staged.hold(&staged.answers(), &[]);
        staged.events().len()
    };
    assert!(events > 50, "{events}");
    // What is whole and what is torn are resumed alike: every other event is enough for each.
    let cuts = (1..=events)
        .flat_map(|event| [Cut::Before(event), if event % 2 == 1 { Cut::Amid(event) } else { Cut::After(event) }]);
    let outcomes = on_all(cuts.collect(), |site, cut| site.cut_at_event(*cut));
    let count = |name: &str| outcomes.iter().filter(|outcome| **outcome == name).count();
    // Only the first event may be cut off so that there is no ceremony; after the last there is nothing to be done.
    assert_eq!(count("nothing had begun"), 2, "{outcomes:?}");
    assert_eq!(count("goes on") + 2, outcomes.len(), "{outcomes:?}");
}

/// Every change that the module makes to the token's files. A token that such a cut destroys is the module's fault, and counted.
#[test]
fn a_token_that_is_cut_off_amid_a_change_holds_one_kek_or_none() {
    let changes = {
        let site = Site::new();
        site.changes_of_the_token()
    };
    assert!(changes.len() > 5, "{changes:?}");
    let outcomes = on_all(changes, |site, (call, number)| site.cut_at_call(call, *number));
    let count = |name: &str| outcomes.iter().filter(|outcome| **outcome == name).count();
    let kinds = ["goes on", "half a key was destroyed", "beside a shell", "the token is lost"];
    println!("{:?}", kinds.map(|kind| (kind, count(kind))));
    assert!(count("goes on") > 0 && kinds.map(count).iter().sum::<usize>() == outcomes.len(), "{outcomes:?}");
}

/// Each of these cuts, on several tokens at once.
fn on_all<T: Send + Sync>(cuts: Vec<T>, work: impl Fn(&Site, &T) -> &'static str + Sync) -> Vec<&'static str> {
    let (cuts, outcomes) = (Mutex::new(cuts.into_iter()), Mutex::new(Vec::new()));
    thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                let site = Site::new();
                loop {
                    let Some(cut) = cuts.lock().unwrap().next() else { return };
                    let outcome = work(&site, &cut);
                    outcomes.lock().unwrap().push(outcome);
                }
            });
        }
    });
    outcomes.into_inner().unwrap()
}

/// Tokens in use at once.
const AT_ONCE: usize = 3;

/// A rehearsed ceremony, and the files of its token as they were before.
struct Site {
    staged: Staged,
    arguments: Vec<String>,
    digest: Sha256Digest,
    files: PathBuf,
}

impl Site {
    fn new() -> Self {
        let staged = Staged::new();
        let arguments = staged.arguments(&staged.answers());
        let digest = staged.lint()["plan_sha256"].as_str().unwrap().parse().unwrap();
        let files = staged.file("token-as-it-was");
        copy(&token_files(&staged), &files);
        Self { staged, arguments, digest, files }
    }

    /// Puts everything back to where it was before the ceremony.
    fn reset(&self) {
        let (token, output) = (token_files(&self.staged), self.staged.output());
        if token.is_dir() {
            fs::remove_dir_all(&token).unwrap();
        }
        copy(&self.files, &token);
        fs::remove_dir_all(&output).unwrap();
        fs::create_dir(&output).unwrap();
        self.staged.answers_file("answers.json", &self.staged.answers());
    }

    /// Runs the ceremony under strace with these options; whether it was killed.
    fn is_killed(&self, options: &[&str]) -> bool {
        let mut strace = Command::new("strace");
        strace.args(["-f", "-qq", "-o", "/dev/null"]).args(options).arg(env!("CARGO_BIN_EXE_hsm-kms"));
        strace.args(&self.arguments).env_remove("SOFTHSM2_CONF").env_remove("KRYOPTIC_CONF");
        let output = strace.stdin(Stdio::null()).output().unwrap();
        let is_killed = output.status.signal() == Some(Signal::KILL.as_raw());
        assert!(is_killed || output.status.success(), "{}", written(&output));
        is_killed
    }

    fn transcript(&self) -> PathBuf {
        self.staged.output().join("transcript.jsonl")
    }

    fn cut_at_event(&self, cut: Cut) -> &'static str {
        self.reset();
        let transcript = text(&self.transcript());
        let (call, number) = match cut {
            Cut::Before(number) => ("write", number),
            Cut::After(number) | Cut::Amid(number) => ("fsync", number),
        };
        let inject = format!("inject={call}:signal=SIGKILL:when={number}");
        let is_killed = self.is_killed(&["-P", &transcript, "-e", &format!("trace={call}"), "-e", &inject]);
        assert!(is_killed, "{cut:?}: it was not killed");
        if matches!(cut, Cut::Amid(_)) {
            let file = File::options().write(true).open(self.transcript()).unwrap();
            // Somewhere else each time.
            file.set_len(file.metadata().unwrap().len() - 1 - u64::try_from(number).unwrap() * 3).unwrap();
        }
        let resumed = self.staged.try_to_hold(&self.staged.answers(), &["--resume"]);
        if !resumed.status.success() {
            let text = written(&resumed);
            assert!(text.contains("there is no event"), "{cut:?}: {text}");
            self.staged.has_no_key();
            return "nothing had begun";
        }
        self.ended_well();
        "goes on"
    }

    /// One KEK, the record's, and a transcript that holds.
    fn ended_well(&self) {
        self.staged.has_the_key_of_its_record();
        let events = transcript::verify(&fs::read(self.transcript()).unwrap(), &self.digest).unwrap();
        let made = events.iter().filter(|event| event.data.contains_key("made")).count();
        assert!(made <= 1, "{made} keys were made");
    }

    /// System calls that change a file of the token in a ceremony: each with its number among all such calls.
    fn changes_of_the_token(&self) -> Vec<(String, usize)> {
        self.reset();
        let log = self.staged.file("strace");
        let mut strace = Command::new("strace");
        strace.args(["-f", "-qq", "-y", "-e", "trace=write,pwrite64,ftruncate,unlink", "-o"]).arg(&log);
        strace.arg(env!("CARGO_BIN_EXE_hsm-kms")).args(&self.arguments);
        let output = strace.env_remove("SOFTHSM2_CONF").env_remove("KRYOPTIC_CONF").output().unwrap();
        assert!(output.status.success(), "{}", written(&output));
        let (token, log) = (text(&token_files(&self.staged)), fs::read_to_string(log).unwrap());
        let mut numbers = std::collections::BTreeMap::new();
        let mut changes = Vec::new();
        for line in log.lines() {
            let Some((call, arguments)) = line.split_once(' ').and_then(|(_, call)| call.trim().split_once('(')) else {
                continue;
            };
            let number = numbers.entry(call.to_owned()).or_insert(0);
            *number += 1;
            if arguments.split(',').next().unwrap().contains(&token) {
                changes.push((call.to_owned(), *number));
            }
        }
        changes
    }

    fn cut_at_call(&self, call: &str, number: usize) -> &'static str {
        self.reset();
        let inject = format!("inject={call}:signal=SIGKILL:when={number}");
        assert!(self.is_killed(&["-e", &format!("trace={call}"), "-e", &inject]), "{call} {number}: it was not killed");
        let answers = self.staged.answers();
        let resumed = self.staged.try_to_hold(&answers, &["--resume"]);
        let said = written(&resumed);
        if resumed.status.success() {
            // SoftHSM2 makes a key attribute by attribute. Before it has a label or an id, nobody can tell whose it is; it has no
            // value either, and so is no key.
            let shells = self.staged.shells();
            assert!(shells <= 1, "{call} {number}: {shells} shells");
            self.ended_well();
            return if shells > 0 { "beside a shell" } else { "goes on" };
        }
        if said.contains("is not what a KEK needs") {
            // It had its name and no value, was judged as any key, and was destroyed.
            self.staged.has_no_key();
            self.staged.hold(&answers, &["--resume"]);
            self.ended_well();
            return "half a key was destroyed";
        }
        if said.contains("and the question is `destroy`") {
            // Nothing is destroyed unless somebody says so.
            self.staged.refuses(&approved(&answers, "no"), &["--resume"], "is not to be destroyed");
            self.staged.hold(&approved(&answers, "destroy"), &["--resume"]);
            self.ended_well();
            return "half a key was destroyed";
        }
        // The module itself no longer finds its token, or cannot read it.
        let lost = ["no token with label", "C_Login returned", "C_Initialize returned", "serial"];
        assert!(lost.iter().any(|reason| said.contains(reason)), "{call} {number}: {said}");
        "the token is lost"
    }
}

/// The answers of people who are asked what to do with what is left on the token.
fn approved(answers: &Answers, answer: &str) -> Answers {
    let mut answers = with(answers.clone(), "plan", "yes");
    let place = answers.iter().position(|(question, _)| question == "pin-2").unwrap() + 1;
    answers.insert(place, ("destroy".to_owned(), answer.to_owned()));
    answers
}

/// Where the module keeps the token.
fn token_files(staged: &Staged) -> PathBuf {
    let name = if staged.token.profile == "softhsm2" { "softhsm2/tokens" } else { "kryoptic.sql" };
    staged.token.directory().join(name)
}

fn copy(from: &Path, to: &Path) {
    let status = Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap();
    assert!(status.success());
}
