//! A ceremony's directory as a ceremony leaves it, from a story that a test may change beforehand.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use hsm_kms::ceremony::evidence::{Statement, allowed_signers, write_sums};
use hsm_kms::ceremony::transcript::{self, CeremonyKind, EventKind, Opening, Transcript};
use hsm_kms::ceremony::{People, Person};
use hsm_kms::record::{KekRecord, Sha256Digest};
use serde_json::{Map, Value, json};
use tempfile::TempDir;

pub const PEOPLE: [(&str, &str); 5] = [
    ("Ada Lovelace", "administrator"),
    ("Grace Hopper", "operator"),
    ("Emmy Noether", "witness"),
    ("Mary Somerville", "custodian"),
    ("Lise Meitner", "custodian"),
];

/// What happened, and what the files say of it.
pub struct Story {
    pub plan: Value,
    /// Who signed in by the transcript.
    pub present: Vec<Value>,
    /// The record, but for what is only known at the end.
    pub record: Value,
    /// The check that the transcript has an exception for.
    pub excepted: &'static str,
    pub kind: CeremonyKind,
}

/// A ceremony's directory, and the private keys of its people and of a stranger.
pub struct Evidence {
    folder: TempDir,
}

impl Evidence {
    /// The evidence of a ceremony in which nothing went wrong, signed by all.
    pub fn new() -> Self {
        Self::of(|_| {})
    }

    /// The evidence of another story, signed by all who are in its record.
    pub fn of(change: impl FnOnce(&mut Story)) -> Self {
        let evidence = Self::unsigned(change);
        for place in 1..=PEOPLE.len() {
            if evidence.took_part(place) {
                evidence.sign(place, place, "hsm-kms-ceremony");
            }
        }
        evidence
    }

    /// The same, before anybody signed.
    pub fn unsigned(change: impl FnOnce(&mut Story)) -> Self {
        let evidence = Self { folder: tempfile::tempdir().unwrap() };
        let people: Vec<_> = (1..=PEOPLE.len()).map(|place| evidence.person(place)).collect();
        evidence.make_key(0);
        let mut story = Story::new(&people);
        change(&mut story);
        story.write(&evidence.path());
        evidence
    }

    /// The directory.
    pub fn path(&self) -> PathBuf {
        self.folder.path().join("ceremony")
    }

    /// The private key of the person at this place of the plan, from 1; 0 is a stranger.
    pub fn key(&self, place: usize) -> PathBuf {
        self.folder.path().join(format!("key-{place}"))
    }

    /// A file of the directory.
    pub fn file(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }

    /// Where the signature of a person lies.
    pub fn signature(&self, place: usize) -> PathBuf {
        self.file(&format!("signatures/{place}-{}.sig", PEOPLE[place - 1].1))
    }

    /// Puts a signature by the key of one person where another's belongs.
    pub fn sign(&self, place: usize, by: usize, namespace: &str) {
        fs::create_dir_all(self.file("signatures")).unwrap();
        fs::write(self.signature(place), self.signed(by, namespace)).unwrap();
    }

    /// A signature over the statement.
    pub fn signed(&self, by: usize, namespace: &str) -> Vec<u8> {
        let mut command = Command::new("ssh-keygen");
        command.args(["-q", "-Y", "sign", "-n", namespace, "-f"]).arg(self.key(by));
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(&fs::read(self.file("statement.txt")).unwrap()).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success());
        output.stdout
    }

    /// Writes another text in place of one in a file.
    pub fn edit(&self, name: &str, old: &str, new: &str) {
        let text = fs::read_to_string(self.file(name)).unwrap();
        assert!(text.contains(old), "{old} is not in {name}");
        fs::write(self.file(name), text.replacen(old, new, 1)).unwrap();
    }

    /// Makes the sums good again.
    pub fn sum_up(&self) {
        fs::remove_file(self.file("SHA256SUMS")).unwrap();
        write_sums(&self.path()).unwrap();
    }

    fn took_part(&self, place: usize) -> bool {
        let record: Value = serde_json::from_slice(&fs::read(self.file("kek-record.json")).unwrap()).unwrap();
        let mut people = record["witnessed"]["people"].as_array().unwrap().iter();
        people.any(|person| person["name"] == PEOPLE[place - 1].0)
    }

    fn person(&self, place: usize) -> Value {
        let (name, role) = PEOPLE[place - 1];
        json!({"name": name, "role": role, "key": self.make_key(place)})
    }

    /// Makes a key, and returns the public one without its comment.
    fn make_key(&self, place: usize) -> String {
        let mut command = Command::new("ssh-keygen");
        command.args(["-q", "-t", "ed25519", "-N", "", "-C", "", "-f"]).arg(self.key(place));
        assert!(command.status().unwrap().success());
        let public = fs::read_to_string(self.key(place).with_extension("pub")).unwrap();
        public.split_whitespace().take(2).collect::<Vec<_>>().join(" ")
    }
}

impl Story {
    fn new(people: &[Value]) -> Self {
        let plan = json!({
            "version": 1,
            "kind": "production",
            "cluster": "prod-eu-1",
            "site": "Frankfurt, building 3, room 112",
            "serial": "0f1e2d3c4b5a6978",
            "token": {"profile": "softhsm2", "label": "kek"},
            "kek": {"label": "kek-1"},
            "people": people,
            "copies": [
                {"serial": "1a2b3c4d5e6f7081", "token": {"profile": "softhsm2", "label": "copy-1"}},
                {"serial": "2b3c4d5e6f708192", "token": {"profile": "softhsm2", "label": "copy-2"}},
            ],
            "output": "/srv/ceremony",
        });
        let formats = include_str!("../../../docs/formats.md");
        let mut blocks = formats.split("```json\n").skip(1).map(|block| block.split("```").next().unwrap());
        let mut record: Value = serde_json::from_str(blocks.next().unwrap()).unwrap();
        let mut witnessed: Value = serde_json::from_str(blocks.next().unwrap()).unwrap();
        let present: Vec<_> = PEOPLE[..4].iter().map(|(name, role)| json!({"name": name, "role": role})).collect();
        witnessed["people"] = json!(present);
        witnessed["exceptions"] = json!(["default-route: eth0 has one; Ada Lovelace: the cable is out"]);
        record["kind"] = json!("production");
        record["recovery"] = json!("copies");
        record["witnessed"] = witnessed;
        Self { plan, present, record, excepted: "default-route", kind: CeremonyKind::Production }
    }

    fn write(mut self, directory: &Path) {
        fs::create_dir(directory).unwrap();
        let file = |name: &str| directory.join(name);
        let plan = serde_json_canonicalizer::to_vec(&self.plan).unwrap();
        let plan_sha256 = Sha256Digest::of(&plan);
        fs::write(file("plan.lock.json"), &plan).unwrap();
        let opening = Opening {
            ceremony_id: self.record["ceremony"]["id"].as_str().unwrap().parse().unwrap(),
            kind: self.kind,
            plan_sha256,
            tool: "hsm-kms 0.1.0".to_owned(),
            tool_sha256: Sha256Digest([7; 32]),
        };
        let mut transcript = Transcript::create(directory, &opening).unwrap();
        let mut write =
            |step: &str, kind, data: Value| transcript.append(step, kind, data.as_object().unwrap().clone());
        for (step, result) in [
            ("people", json!({"present": self.present})),
            ("clock", json!({"machine": "12:00", "seconds_off": -2, "holds": true})),
            ("plan", json!({"words": "legal winner thank year wave sausage worth useful legal winner thank yellow"})),
            ("preflight", json!({"checks": 14, "found": ["swap is off", "core dumps are off", "caf\u{e9} \u{1f511}"]})),
            ("login", json!({"logged_in": true})),
            ("generate", json!({"made": ["kek-1"], "cka_ids": ["a0a1a2a3a4a5a6a7a8a9aaabacadaeaf"]})),
            ("read-back", json!({"attributes": self.record["kek"]["attributes"]})),
            (
                "negative-tests",
                json!({"refusals": [{"attempt": "read CKA_VALUE", "answer": "CKR_ATTRIBUTE_SENSITIVE"}]}),
            ),
            ("proofs", json!({"challenge_sha256": [self.record["proofs"][0]["challenge_sha256"]]})),
            ("copies", json!({"proved": 2, "recovery": "copies"})),
            ("attestation", json!({"attestation": null})),
        ] {
            write(step, EventKind::Intent, json!({"step": step, "attempts": 1})).unwrap();
            match step {
                "people" => {
                    for (name, _) in PEOPLE {
                        write(step, EventKind::Answer, json!({"question": "name", "answer": name})).unwrap();
                    }
                }
                "preflight" => {
                    let data = json!({"check": self.excepted, "reason": "the cable is out", "by": "Ada Lovelace"});
                    write(step, EventKind::Exception, data).unwrap();
                }
                "copies" => {
                    for copy in self.record["witnessed"]["copies"].as_array().unwrap() {
                        let data =
                            json!({"check": "copy", "serial": copy["serial"], "library": copy["library"], "opened": 3});
                        write(step, EventKind::Check, data).unwrap();
                    }
                }
                _ => {}
            }
            write(step, EventKind::Result, result).unwrap();
        }
        write("record", EventKind::Intent, json!({"file": "kek-record.json"})).unwrap();
        self.record["witnessed"]["plan_sha256"] = json!(plan_sha256);
        let head = transcript.head();
        self.record["witnessed"]["transcript_head"] = json!(head);
        let record = KekRecord::parse(self.record.to_string().as_bytes()).unwrap();
        let json = record.to_json().unwrap();
        fs::write(file("kek-record.json"), &json).unwrap();
        let record_sha256 = json!({"record_sha256": Sha256Digest::of(&json)});
        for (step, kind) in [("record", EventKind::Result), ("closing", EventKind::Closed)] {
            transcript.append(step, kind, object(&record_sha256)).unwrap();
        }

        let people: Vec<Person> = serde_json::from_value(self.plan["people"].clone()).unwrap();
        let events = transcript::verify(&fs::read(file("transcript.jsonl")).unwrap(), &plan_sha256).unwrap();
        let statement = Statement::new(&record, json.as_bytes(), plan_sha256, &events);
        fs::write(file("statement.txt"), statement.to_string()).unwrap();
        fs::write(file("allowed_signers"), allowed_signers(&People::new(people).unwrap())).unwrap();
        fs::write(file("script.html"), "<p>script</p>\n").unwrap();
        fs::write(file("report.html"), "<p>report</p>\n").unwrap();
        write_sums(directory).unwrap();
    }
}

fn object(value: &Value) -> Map<String, Value> {
    value.as_object().unwrap().clone()
}
