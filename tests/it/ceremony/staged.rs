//! A ceremony that can be held: a token, a plan with four people, a rehearsal, and what the people answer.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use hsm_kms::record::UtcTime;
use hsm_kms::recovery::HybridKey;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::copies::Copy;
use crate::fault_module::FaultModule;
use crate::harness::{CLUSTER, LABEL, TestToken, run, text};
use crate::refusal::{Refusal, refusal};

/// Who takes part.
pub const PEOPLE: [(&str, &str); 4] = [
    ("Ada Lovelace", "administrator"),
    ("Grace Hopper", "operator"),
    ("Emmy Noether", "witness"),
    ("Mary Somerville", "custodian"),
];

/// What a rehearsal tells its people to type.
pub const REHEARSED_HALVES: [&str; 2] = ["1234", "5678"];

/// Answers by the names of their questions, in order.
pub type Answers = Vec<(String, String)>;

/// A token, and a plan for it.
pub struct Staged {
    pub token: TestToken,
    /// The plan. A test changes it before the first command.
    pub plan: Value,
    /// The PIN of the token, in halves.
    pub halves: [String; 2],
    directory: TempDir,
}

impl Staged {
    /// On a token of the module under test.
    pub fn new() -> Self {
        Self::on(TestToken::new())
    }

    pub fn on(token: TestToken) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let people: Vec<_> = PEOPLE
            .iter()
            .map(|(name, role)| json!({"name": name, "role": role, "key": signing_key(directory.path(), role)}))
            .collect();
        let mut section = token.section();
        let label = section["label"].clone();
        // Two people type it.
        section.as_object_mut().unwrap().remove("pin");
        let output = directory.path().join("evidence");
        fs::create_dir(&output).unwrap();
        let plan = json!({
            "version": 1,
            "kind": "production",
            "cluster": CLUSTER,
            "site": "Room 112",
            "serial": serial(&token, label.as_str().unwrap()),
            "token": section,
            "kek": {"label": LABEL},
            "people": people,
            "output": output,
        });
        let pin = fs::read_to_string(&token.pin).unwrap();
        let (first, second) = pin.trim_end().split_at(pin.trim_end().len() / 2);
        let halves = [first.to_owned(), second.to_owned()];
        Self { token, plan, halves, directory }
    }

    /// Two tokens that copies of the KEK will be on, as the plan then says.
    pub fn with_copies(&mut self) -> [Copy; 2] {
        let serial = self.serial();
        let copies = [1, 2].map(|number| Copy::planned(&self.token, &serial, number));
        self.plan["copies"] = copies.iter().map(Copy::plan).collect();
        copies
    }

    /// The fault module, which the plan then names.
    pub fn behind_fault_module(&mut self) -> FaultModule {
        let fault = FaultModule::new(&self.token, "ceremony");
        fault.stand_in_front(&mut self.plan["token"]);
        fault
    }

    /// Serial number of the token.
    pub fn serial(&self) -> String {
        self.plan["serial"].as_str().unwrap().to_owned()
    }

    /// Where the evidence goes.
    pub fn output(&self) -> PathBuf {
        PathBuf::from(self.plan["output"].as_str().unwrap())
    }

    /// A file for the test's own use.
    pub fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Writes the plan's file, and returns its path.
    pub fn plan_file(&self) -> String {
        let path = self.file("plan.yaml");
        fs::write(&path, format!("{:#}\n", self.plan)).unwrap();
        text(&path)
    }

    /// What `plan lint` says of it: digest and words.
    pub fn lint(&self) -> Value {
        let output = run(&["ceremony", "plan", "lint", "--json", &self.plan_file()], b"");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// A recovery recipient, which the plan then names; and its private half.
    pub fn with_recipient(&mut self) -> HybridKey {
        let key = HybridKey::generate().unwrap();
        let recipient = key.recipient().unwrap();
        let path = self.file("recipient.json");
        fs::write(&path, recipient.to_json()).unwrap();
        self.plan["recipients"] = json!([{"file": path, "fingerprint": recipient.fingerprint()}]);
        key
    }

    /// What the four say when all goes well.
    pub fn answers(&self) -> Answers {
        self.answers_with(&self.halves)
    }

    fn answers_with(&self, halves: &[String; 2]) -> Answers {
        let count = |list: &str| self.plan[list].as_array().map_or(0, Vec::len);
        let fingerprints: Vec<_> = (0..count("recipients"))
            .map(|position| self.plan["recipients"][position]["fingerprint"].as_str().unwrap()[..16].to_owned())
            .collect();
        answers(halves, count("copies"), &fingerprints)
    }

    /// Rehearses the plan; returns the directory of the evidence.
    pub fn rehearse(&self) -> String {
        let output = self.file("rehearsal");
        if !output.exists() {
            fs::create_dir(&output).unwrap();
            let answers = self.answers_with(&REHEARSED_HALVES.map(str::to_owned));
            let rehearsed = self.rehearse_into(&output, &answers);
            assert!(rehearsed.status.success(), "{}", String::from_utf8_lossy(&rehearsed.stderr));
        }
        text(&output)
    }

    /// Rehearses it with these answers, but for the PIN, which is another there.
    pub fn rehearse_with(&self, answers: &Answers) {
        let [first, second] = REHEARSED_HALVES;
        let answers = with(with(answers.clone(), "pin-1", first), "pin-2", second);
        let output = self.file("rehearsal");
        fs::create_dir(&output).unwrap();
        let rehearsed = self.rehearse_into(&output, &answers);
        assert!(rehearsed.status.success(), "{}", written(&rehearsed));
    }

    /// A rehearsal that may fail.
    pub fn rehearse_into(&self, output: &Path, answers: &Answers) -> Output {
        let answers = self.answers_file("rehearsal-answers.json", answers);
        let arguments = ["ceremony", "rehearse", "--plan", &self.plan_file(), "--output", &text(output)];
        run(&[&arguments[..], &["--answers", &answers]].concat(), b"")
    }

    /// Arguments of a run by this file of answers, after a rehearsal.
    pub fn arguments(&self, answers: &Answers) -> Vec<String> {
        let mut arguments = self.bare_arguments();
        arguments.extend(["--rehearsal".to_owned(), self.rehearse()]);
        arguments.extend(["--answers".to_owned(), self.answers_file("answers.json", answers)]);
        arguments
    }

    /// Arguments of a run, without a rehearsal and answers.
    pub fn bare_arguments(&self) -> Vec<String> {
        let digest = self.lint()["plan_sha256"].as_str().unwrap().to_owned();
        ["ceremony", "run", "--plan", &self.plan_file(), "--expect-plan", &digest].map(str::to_owned).to_vec()
    }

    pub fn answers_file(&self, name: &str, answers: &Answers) -> String {
        let answers: Vec<_> =
            answers.iter().map(|(question, answer)| json!({"question": question, "answer": answer})).collect();
        let path = self.file(name);
        fs::write(&path, json!({"version": 1, "answers": answers}).to_string()).unwrap();
        text(&path)
    }

    /// Holds it by a file of answers; it must end well. Returns all that it wrote.
    pub fn hold(&self, answers: &Answers, more: &[&str]) -> String {
        let output = self.try_to_hold(answers, more);
        let written = written(&output);
        assert!(output.status.success(), "{written}");
        written
    }

    /// Holds it without a rehearsal, unless one is among these arguments.
    pub fn hold_with(&self, more: &[&str]) {
        let mut arguments = self.bare_arguments();
        arguments.extend(["--answers".to_owned(), self.answers_file("answers.json", &self.answers())]);
        let arguments: Vec<_> = arguments.iter().map(String::as_str).chain(more.iter().copied()).collect();
        let output = run(&arguments, b"");
        assert!(output.status.success(), "{}", written(&output));
    }

    /// The same; it may fail.
    pub fn try_to_hold(&self, answers: &Answers, more: &[&str]) -> Output {
        let arguments = self.arguments(answers);
        let arguments: Vec<_> = arguments.iter().map(String::as_str).chain(more.iter().copied()).collect();
        run(&arguments, b"")
    }

    /// It must be refused, for a reason with these words.
    pub fn refuses(&self, answers: &Answers, more: &[&str], why: &str) -> Refusal {
        let arguments = self.arguments(answers);
        let arguments: Vec<_> = arguments.iter().map(String::as_str).chain(more.iter().copied()).collect();
        let refusal = refusal(&arguments, b"");
        assert!(refusal.why.contains(why), "not {why:?}: {}", refusal.text);
        refusal
    }

    /// `ceremony exception` for this check.
    pub fn except(&self, check: &str) {
        let arguments = ["ceremony", "exception", "--plan", &self.plan_file(), "--check", check, "--json"];
        let output =
            run(&[&arguments[..], &["--reason", "it is a test", "--decided-by", "ada lovelace"]].concat(), b"");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    /// The record.
    pub fn record(&self) -> Value {
        serde_json::from_slice(&fs::read(self.output().join("kek-record.json")).unwrap()).unwrap()
    }

    /// Events of the transcript.
    pub fn events(&self) -> Vec<Value> {
        let transcript = fs::read_to_string(self.output().join("transcript.jsonl")).unwrap();
        transcript.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// Labels and ids of the secret keys on the token, as another program sees them. Not of nameless shells: see there.
    pub fn keys(&self) -> Vec<(String, String)> {
        self.objects().into_iter().filter(|(label, id)| !label.is_empty() || !id.is_empty()).collect()
    }

    /// Objects that have neither label nor id.
    pub fn shells(&self) -> usize {
        self.objects().len() - self.keys().len()
    }

    fn objects(&self) -> Vec<(String, String)> {
        let objects = self.tool(&self.plan["token"], &["--list-objects", "--type", "secrkey"]);
        let field = |object: &str, name: &str| {
            let line = object.lines().find_map(|line| line.trim().strip_prefix(name));
            line.unwrap_or_default().trim().to_owned()
        };
        objects
            .split("Secret Key Object")
            .skip(1)
            .map(|object| (field(object, "label:"), field(object, "ID:")))
            .collect()
    }

    /// What `pkcs11-tool` says of the token of this section, which has the same PIN.
    pub fn tool(&self, section: &Value, arguments: &[&str]) -> String {
        let mut tool = Command::new("pkcs11-tool");
        let environment = section["environment"].as_object().into_iter().flatten();
        tool.envs(environment.map(|(name, value)| (name, value.as_str().unwrap())));
        tool.arg("--module").arg(&self.token.module).arg("--token-label").arg(section["label"].as_str().unwrap());
        let output = tool.args(["--login", "--pin", &self.halves.concat()]).args(arguments).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// One more person; the private key goes into a file of this name.
    pub fn add_person(&mut self, name: &str, role: &str, file: &str) {
        let key = signing_key(self.directory.path(), file);
        self.plan["people"].as_array_mut().unwrap().push(json!({"name": name, "role": role, "key": key}));
    }

    /// There is one key on the token, and it is the record's.
    pub fn has_the_key_of_its_record(&self) {
        let record = self.record();
        let kek = &record["kek"];
        let expected = (kek["label"].as_str().unwrap().to_owned(), kek["id"].as_str().unwrap().to_owned());
        let keys = self.keys();
        assert_eq!(keys, [expected]);
    }

    /// Nothing is on the token.
    pub fn has_no_key(&self) {
        assert_eq!(self.keys(), []);
    }
}

/// Everything that a command wrote.
pub fn written(output: &Output) -> String {
    String::from_utf8_lossy(&[&output.stdout[..], &output.stderr].concat()).into_owned()
}

/// Puts another answer in place of the one, or all, to this question.
pub fn with(mut answers: Answers, question: &str, answer: &str) -> Answers {
    let mut found = false;
    for (name, old) in &mut answers {
        if name == question {
            answer.clone_into(old);
            found = true;
        }
    }
    assert!(found, "no question {question}");
    answers
}

/// What is answered when all goes well.
fn answers(halves: &[String; 2], copies: usize, fingerprints: &[String]) -> Answers {
    let mut answers: Answers = Vec::new();
    let mut add = |question: &str, answer: &str| answers.push((question.to_owned(), answer.to_owned()));
    for (position, (name, _)) in PEOPLE.iter().enumerate() {
        add(&format!("person-{}", position + 1), name);
    }
    add("clock", &clock());
    add("plan", "yes");
    for (position, begins) in fingerprints.iter().enumerate() {
        add(&format!("recipient-{}", position + 1), begins);
    }
    add("program", "yes");
    let mut pin = |question: &str| {
        for (position, half) in halves.iter().enumerate() {
            add(&format!("{question}-{}", position + 1), half);
        }
    };
    pin("pin");
    for copy in 1..=copies {
        add(&format!("copy-{copy}"), "copied");
        for (position, half) in halves.iter().enumerate() {
            add(&format!("copy-{copy}-pin-{}", position + 1), half);
        }
    }
    if copies < 2 && fingerprints.is_empty() {
        add("no-recovery", "NO-RECOVERY");
    }
    for (question, answer) in [("bag-1", "A 0017"), ("bag-1", "A 0017"), ("bag-2", "none"), ("bag-2", "none")] {
        add(question, answer);
    }
    answers
}

/// What a clock on the wall says.
pub fn clock() -> String {
    UtcTime::now().to_string()[11..16].to_owned()
}

/// A new OpenSSH key of this name: its public half, as plans have it.
fn signing_key(directory: &Path, name: &str) -> String {
    let path = directory.join(name);
    let mut tool = Command::new("ssh-keygen");
    let output = tool.args(["-q", "-t", "ed25519", "-N", "", "-C", "", "-f"]).arg(&path).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    fs::read_to_string(path.with_extension("pub")).unwrap().trim().to_owned()
}

/// Serial number of the token with this label, as another program sees it.
fn serial(token: &TestToken, label: &str) -> String {
    let output = Command::new("pkcs11-tool")
        .envs(&token.environment)
        .arg("--module")
        .arg(&token.module)
        .arg("--list-token-slots")
        .output()
        .unwrap();
    let slots = String::from_utf8_lossy(&output.stdout).into_owned();
    let value = |line: &str, name: &str| {
        let (found, value) = line.split_once(':')?;
        (found.trim() == name).then(|| value.trim().to_owned())
    };
    let mut lines = slots.lines().skip_while(|line| value(line, "token label").as_deref() != Some(label));
    lines.find_map(|line| value(line, "serial num")).unwrap_or_else(|| panic!("no serial number: {slots}"))
}
