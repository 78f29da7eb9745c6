//! Ceremonies that were never held, with all that their documents are made from.

use std::fs;
use std::path::Path;

use hsm_kms::attributes::{AttributeName, AttributeValue, Attributes, KeyUse};
use hsm_kms::ceremony::paper::{self, Report, ReportEvent};
use hsm_kms::ceremony::transcript::CeremonyKind;
use hsm_kms::ceremony::{Plan, Refusal, WitnessedPlan, steps};
use hsm_kms::envelope::Blob;
use hsm_kms::record::{
    Ceremony as Held, CeremonyId, CkaId, KekRecord, Kind, Module, Origin, Participant, Proof, Sha256Digest, Token,
    TokenCopy, TokenKey, UtcTime, Witnessed,
};
use hsm_kms::recovery::HybridKey;
use serde_json::{Value, json};

/// A ceremony.
pub struct Ceremony {
    pub plan: Plan,
    pub record: KekRecord,
    pub record_sha256: Sha256Digest,
    pub head: Sha256Digest,
    pub events: Vec<ReportEvent>,
    pub refusals: Vec<Refusal>,
    pub exceptions: Vec<String>,
    pub bags: Vec<String>,
}

/// What must not come through as it is.
pub const HOSTILE: &str = "<script>alert('1')</script>";

const LONGEST: &str = "Wilhelmina-Alexandrina von Hohenzollern-Sigmaringen'Oldenburg";

impl Ceremony {
    /// Eight people, two copies, an exception, many events, and texts that are long or hostile.
    pub fn large() -> Self {
        let people = [
            (&LONGEST[..60], "administrator"),
            ("José Núñez-O'Neill", "operator"),
            ("Emmy Noether", "witness"),
            ("Ida Noddack", "witness"),
            ("Mary Somerville", "custodian"),
            ("Lise Meitner", "custodian"),
            ("Émilie du Châtelet", "custodian"),
            ("Chien-Shiung Wu", "witness"),
        ];
        let mut plan = plan("prod-eu-1.with-a-name-that-is-as-long-as-a-cluster-can-be-named", &people);
        plan["site"] = json!(format!("Frankfurt, building 3, room 112 {HOSTILE} & \"the vault\""));
        plan["kek"] = json!({"label": "kek-2026-with-a-label-of-forty-bytes-ok", "permit": ["CKA_COPYABLE"]});
        plan["previous"] = json!("ab".repeat(32));
        plan["copies"] = json!([copy("00000000000000000000000000000001"), copy("77e1c0aa")]);
        let directory = tempfile::tempdir().unwrap();
        plan["recipients"] = json!([recipient(directory.path(), 1), recipient(directory.path(), 2)]);
        let exceptions = vec![
            format!("clock: the wall clock was 75 s ahead. Decided by José Núñez-O'Neill. {HOSTILE}"),
            "x".repeat(400),
        ];
        Self::of(&plan, Kind::Rehearsal, exceptions)
    }

    /// The fewest people, and no copy.
    pub fn small() -> Self {
        let people = [
            ("Ada Lovelace", "administrator"),
            ("Grace Hopper", "operator"),
            ("Emmy Noether", "witness"),
            ("Mary Somerville", "custodian"),
        ];
        Self::of(&plan("prod-eu-1", &people), Kind::Production, Vec::new())
    }

    /// Five shares.
    pub fn import() -> Self {
        let people = [
            ("Ada Lovelace", "administrator"),
            ("Grace Hopper", "operator"),
            ("Emmy Noether", "witness"),
            ("Mary Somerville", "custodian"),
            ("Lise Meitner", "custodian"),
            ("Ida Noddack", "custodian"),
            ("Sofja Kowalewskaja", "custodian"),
            ("Maria Mitchell", "custodian"),
        ];
        let mut plan = plan("prod-eu-1", &people);
        plan["import"] = json!({"shares": 5, "threshold": 3});
        Self::of(&plan, Kind::Production, Vec::new())
    }

    /// A seal that needs a MAC key beside the KEK.
    pub fn with_mac_key() -> Self {
        let people = [
            ("Ada Lovelace", "administrator"),
            ("Grace Hopper", "operator"),
            ("Emmy Noether", "witness"),
            ("Mary Somerville", "custodian"),
        ];
        let mut plan = plan("prod-eu-1", &people);
        plan["token"] =
            json!({"profile": "opencryptoki-soft/v3-8", "label": "kek", "module": "/usr/lib/libopencryptoki.so"});
        plan["kek"] = json!({"label": "kek-2026", "permit": ["CKA_COPYABLE"]});
        Self::of(&plan, Kind::Production, Vec::new())
    }

    pub fn witnessed(&self) -> &WitnessedPlan {
        self.plan.witnessed.as_ref().unwrap()
    }

    pub fn script(&self, kind: CeremonyKind) -> String {
        paper::script(&self.plan, self.witnessed(), kind)
    }

    pub fn report(&self, kind: CeremonyKind) -> String {
        paper::report(Report {
            plan: &self.plan,
            witnessed: self.witnessed(),
            record: &self.record,
            record_sha256: self.record_sha256,
            program_sha256: Sha256Digest([0x9c; 32]),
            transcript_head: self.head,
            events: &self.events,
            refusals: &self.refusals,
            exceptions: &self.exceptions,
            bags: &self.bags,
            people: &self.record.witnessed.as_ref().unwrap().people,
            kind,
        })
    }

    fn of(plan: &Value, kind: Kind, exceptions: Vec<String>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("plan.yaml");
        fs::write(&path, plan.to_string()).unwrap();
        let plan = Plan::load(&path).unwrap_or_else(|error| panic!("{error}"));
        let record = record(&plan, kind, &exceptions);
        let events = events(&plan);
        Self {
            record,
            record_sha256: Sha256Digest([0x3d; 32]),
            head: Sha256Digest([0x61; 32]),
            events,
            refusals: refusals(&plan.kek.label),
            exceptions,
            bags: vec!["A 00481516".to_owned(), "A 00481517".to_owned()],
            plan,
        }
    }
}

fn plan(cluster: &str, people: &[(&str, &str)]) -> Value {
    let person = |((name, role), number): (&(&str, &str), u8)| {
        let mut blob = b"\0\0\0\x0bssh-ed25519\0\0\0 ".to_vec();
        blob.extend([number; 32]);
        json!({"name": name, "role": role, "key": format!("ssh-ed25519 {}", data_encoding::BASE64.encode(&blob))})
    };
    json!({
        "version": 1,
        "kind": "production",
        "cluster": cluster,
        "site": "Frankfurt, building 3, room 112",
        "serial": "0f1e2d3c4b5a6978",
        "token": token(),
        "kek": {"label": "kek-2026"},
        "people": people.iter().zip(1..).map(person).collect::<Vec<_>>(),
        "output": "/srv/ceremony/prod-eu-1/2026-11-24",
    })
}

fn token() -> Value {
    json!({"profile": "softhsm2", "label": "kek", "module": "/usr/lib/softhsm/libsofthsm2.so"})
}

fn copy(serial: &str) -> Value {
    json!({"serial": serial, "token": token()})
}

/// A recovery recipient, as plans name it.
fn recipient(directory: &Path, number: u8) -> Value {
    let recipient = HybridKey::from_bytes(&[number; 32]).recipient().unwrap();
    let path = directory.join(format!("recipient-{number}.json"));
    fs::write(&path, recipient.to_json()).unwrap();
    json!({"file": path, "fingerprint": recipient.fingerprint()})
}

fn record(plan: &Plan, kind: Kind, exceptions: &[String]) -> KekRecord {
    let witnessed = plan.witnessed.as_ref().unwrap();
    let participant =
        |person: &hsm_kms::ceremony::Person| Participant { name: person.name.to_string(), role: person.role };
    let library = "Implementation of PKCS11".to_owned();
    let form = plan.token.sealing.form;
    let proof = |number: u8| {
        let (iv, ciphertext) = (vec![number; form.iv_length.into()], [number; 96]);
        let blob = Blob::new(form, &iv, &ciphertext).unwrap();
        Proof::new(blob, [number; 32])
    };
    KekRecord::new(
        kind,
        Held { id: CeremonyId::new([0xab; 16]), time: time(5000), tool: "hsm-kms 0.1.0".to_owned() },
        plan.cluster.clone(),
        plan.token.profile.full_name(),
        Module { library: library.clone(), library_version: "2.6".to_owned(), sha256: Sha256Digest([3; 32]) },
        Token {
            label: "kek".to_owned(),
            manufacturer: "SoftHSM project".to_owned(),
            model: "SoftHSM v2".to_owned(),
            serial: witnessed.serial.clone(),
            firmware: "2.6".to_owned(),
        },
        TokenKey {
            id: CkaId::new(&[0x5a; 16]).unwrap(),
            label: plan.kek.label.clone(),
            attributes: attributes(KeyUse::Encrypt, 0x1f, 0x1080, plan.token.sealing.mechanism),
        },
        plan.token.sealing.mac_mechanism().map(|mechanism| TokenKey {
            id: CkaId::new(&[0xa5; 16]).unwrap(),
            label: format!("{}-mac", plan.kek.label),
            attributes: attributes(KeyUse::Mac, 0x10, 0x350, mechanism),
        }),
        plan.recipients.clone(),
        vec![proof(1), proof(2), proof(3)],
        Vec::new(),
        Some(Witnessed {
            plan_sha256: witnessed.lock.digest,
            transcript_head: Sha256Digest([0x60; 32]),
            origin: Origin::Generated,
            people: witnessed.people.all().iter().map(participant).collect(),
            copies: witnessed
                .copies
                .iter()
                .map(|copy| TokenCopy { serial: copy.serial.clone(), library: library.clone() })
                .collect(),
            shares: None,
            exceptions: exceptions.to_vec(),
            previous_record_sha256: witnessed.previous,
        }),
    )
}

/// Those of a key that is as it must be, but that it may be copied.
fn attributes(purpose: KeyUse, kind: u64, generate: u64, mechanism: u64) -> Attributes {
    let value = |name| match name {
        AttributeName::KeyType => AttributeValue::Number(kind),
        AttributeName::ValueLen => AttributeValue::Number(32),
        AttributeName::KeyGenMechanism => AttributeValue::Number(generate),
        AttributeName::AllowedMechanisms => AttributeValue::Mechanisms(vec![mechanism]),
        AttributeName::Copyable => AttributeValue::UNAVAILABLE,
        AttributeName::AlwaysSensitive
        | AttributeName::Local
        | AttributeName::NeverExtractable
        | AttributeName::Private
        | AttributeName::Sensitive
        | AttributeName::Token => AttributeValue::Bool(true),
        right => AttributeValue::Bool(purpose.rights().contains(&right)),
    };
    AttributeName::ALL.into_iter().map(|name| (name, value(name))).collect()
}

/// As a transcript has them: for each step an intent, answers and checks, a result.
fn events(plan: &Plan) -> Vec<ReportEvent> {
    let mut events = Vec::new();
    let mut add = |step: &str, kind: &str, text: String| {
        let seq = events.len() as u64;
        events.push(ReportEvent { seq, time: time(seq * 47), step: step.to_owned(), kind: kind.to_owned(), text });
    };
    add("people", "opened", format!("hsm-kms 0.1.0 {}", "9c".repeat(32)));
    for step in steps(plan, plan.witnessed.as_ref().unwrap()) {
        let name = step.id.name();
        add(name, "intent", step.title.to_owned());
        add(name, "answer", format!("typed by the operator: {HOSTILE}"));
        add(name, "check", format!("it is {}", "ab".repeat(32)));
        add(name, "result", "done, as it must be".to_owned());
    }
    add("closing", "closed", "record_sha256 3d3d3d3d".to_owned());
    events
}

fn refusals(key: &str) -> Vec<Refusal> {
    let refused = |attempt: &str, answer: &str| Refusal {
        key: key.to_owned(),
        attempt: attempt.to_owned().into(),
        answer: answer.to_owned(),
    };
    vec![
        refused("read CKA_VALUE", "the token did not give it"),
        refused("set CKA_EXTRACTABLE true", "C_SetAttributeValue: CKR_ATTRIBUTE_READ_ONLY (0x10)"),
        refused("copy with CKA_EXTRACTABLE true", "C_CopyObject: CKR_ATTRIBUTE_READ_ONLY (0x10)"),
        refused("wrap it under another key by CKM_AES_KEY_WRAP_KWP", "C_WrapKey: CKR_KEY_UNEXTRACTABLE (0x6a)"),
        refused(
            "wrap it under another key by CKM_AES_KEY_WRAP_PAD",
            "not tried, no such mechanism: C_WrapKey: CKR_MECHANISM_INVALID (0x70)",
        ),
    ]
}

fn time(seconds: u64) -> UtcTime {
    let (hours, minutes, seconds) = (9 + seconds / 3600, seconds / 60 % 60, seconds % 60);
    format!("2026-11-24T{hours:02}:{minutes:02}:{seconds:02}Z").parse().unwrap()
}
