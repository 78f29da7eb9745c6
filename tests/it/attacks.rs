//! What an attacker can do who has the PIN and a session on the token: against a KEK as the ceremony makes it, and against a key that
//! somebody made without care, which shows that the attacks work.
//!
//! The results stand in docs/attacks.md, a column for each module, and a test fails if they are others. To write them anew:
//! `HSM_KMS_ATTACKS=write`. A test of this file runs once, whatever `HSM_KMS_TEST_MODULE` says.

mod intruder;
mod list;
mod outside;
mod plant;
mod results;

use std::fs;
use std::path::Path;

use serde_json::Value;

use self::intruder::{Outcome, Task, Verdict, Work};
use self::results::{Column, Table};
use crate::conformance;
use crate::door::when_asked;
use crate::faults::{faults, until};
use crate::harness::{Config, Plugin, TestToken, run};
use crate::parts::record_run;
use hsm_kms::kms::proto::StatusRequest;

/// A module that is attacked.
struct Module<'a> {
    /// As in `expectations/`, and in the head of the tables.
    name: &'static str,
    /// Attacks that it lets succeed: it cannot be helped, or docs/attacks.md says what follows.
    lets: &'a [&'a str],
    /// Attacks that must succeed on a key with default attributes, at least. None: it makes no such key.
    teeth: usize,
    /// Whether a key is not extractable unless the template says so, so that the careless key has to say it.
    is_strict: bool,
}

/// Whoever may log in may destroy: `CKA_DESTROYABLE` is not there on most, and a token can be initialised anew anyway.
const DESTROY: &str = "destroy it";
/// SHA-256 of 256 random bits tells nothing but whether a guess is right.
const DIGEST: &str = "digest it by C_DigestKey";

async fn attack(module: &Module<'_>, token: TestToken) {
    let record = conformance::kek_of(module.name, &token);
    let seal = conformance::seal_of(module.name);
    let mut column = Column::new(module.name, Work::new(&record, seal, Task::Attack).run(&token));
    if module.teeth > 0 {
        let task = Task::AttackCareless { extractable: module.is_strict };
        let careless = Column::new(module.name, Work::new(&record, seal, task).run(&token));
        assert!(careless.done().len() >= module.teeth, "{}: the attacks have no teeth: {careless:?}", module.name);
        Table::Careless.check(&careless);
    }
    for (name, outcome) in substitute(&token, &record, seal).await {
        column.push(name, outcome);
    }
    Table::Kek.check(&column);
    let done = column.done();
    assert_eq!(done, module.lets, "{} lets these succeed", module.name);
    if column.gives_the_value() {
        assert_is_refused(token.profile);
    }
    record_run(&format!("attacks: {}", conformance::component_of(module.name)));
}

/// Puts keys of known values in the place of the KEK. What the plugin says of them, or how the module refuses them.
async fn substitute(token: &TestToken, record: &Path, seal: &str) -> Vec<(&'static str, Outcome)> {
    let work = |task| Work::new(record, seal, task).run(token).remove(0).1;
    let mut outcomes = Vec::new();
    let twin = work(Task::Create);
    outcomes.push((
        "create a key of known value with its id and label, beside it",
        said_of("twin", token, record, twin).await,
    ));
    outcomes.push((DESTROY, work(Task::Destroy)));
    let created = work(Task::Create);
    outcomes.push(("create a key of known value in its place", said_of("created", token, record, created).await));
    let _ = work(Task::Destroy);
    let unwrapped = work(Task::Unwrap);
    outcomes.push(("unwrap a key of known value in its place", said_of("unwrapped", token, record, unwrapped).await));
    outcomes
}

/// If the module let a key be planted, what the plugin then says. It must not serve.
async fn said_of(name: &str, token: &TestToken, record: &Path, planted: Outcome) -> Outcome {
    if planted.verdict != Verdict::Done {
        return planted;
    }
    let mut plugin = Plugin::start(&Config::new(token, record, name));
    let mut client = plugin.client().await;
    let mut healthz = String::new();
    until("the plugin's judgement", async || {
        healthz = client.status(StatusRequest {}).await.unwrap().into_inner().healthz;
        healthz == "ok" || !faults(&plugin).is_empty() && !healthz.contains("is being reached")
    })
    .await;
    drop(client);
    plugin.stop().await;
    if healthz == "ok" {
        return Outcome::done("the plugin serves it");
    }
    let (_, why) = healthz.split_once(": ").unwrap();
    Outcome::refused(&format!("plugin: {why}"))
}

/// A module that gives the KEK's value away is refused by its profile, and there is no switch for it.
fn assert_is_refused(profile: &str) {
    let name = profile.split('/').next().unwrap();
    let shown = run(&["profiles", "show", name, "--json"], b"");
    let shown: Value = serde_json::from_slice(&shown.stdout).unwrap();
    let refusal = &shown["profiles"][0]["refuse"];
    assert!(refusal.is_string(), "{name} gives the KEK's value away, and its profile does not refuse it: {shown:#}");
}

#[tokio::test]
async fn softhsm2() {
    let module = Module { name: "softhsm2", lets: &[DIGEST, DESTROY], teeth: 3, is_strict: true };
    attack(&module, TestToken::softhsm2()).await;
}

#[tokio::test]
async fn kryoptic() {
    let module = Module { name: "kryoptic", lets: &[DIGEST, DESTROY], teeth: 3, is_strict: true };
    attack(&module, TestToken::kryoptic()).await;
}

/// It gives the KEK away in nine ways: its profile refuses it.
#[tokio::test]
async fn nss() {
    let lets = [&ALL_WRAPS[..], &COPIES_OF_NSS, &["use it for AES-ECB", "use it for AES-CBC", "use it for AES-CTR"]];
    let lets = [&lets.concat()[..], &[DIGEST, "derive by AES_CBC_ENCRYPT_DATA", DESTROY]].concat();
    attack(&Module { name: "nss", lets: &lets, teeth: 3, is_strict: false }, TestToken::nss()).await;
}

/// It has no `CKA_COPYABLE` and no `CKA_ALLOWED_MECHANISMS`; the plan has to permit that.
#[tokio::test]
async fn opencryptoki() {
    let lets = [&COPIES[..], &["use it for AES-ECB", DIGEST, DESTROY]].concat();
    attack(&Module { name: "opencryptoki", lets: &lets, teeth: 3, is_strict: false }, TestToken::opencryptoki()).await;
}

/// The driver keeps label and id on the device, apart from the key.
#[tokio::test]
async fn yubihsm2() {
    let lets = ["set another CKA_LABEL", "set another CKA_ID", DESTROY];
    attack(&Module { name: "yubihsm2", lets: &lets, teeth: 0, is_strict: true }, TestToken::yubihsm2()).await;
}

/// Its attributes stand in a file: its profile refuses it.
#[tokio::test]
async fn tpm2() {
    let sets = ["EXTRACTABLE true", "SENSITIVE false", "PRIVATE false", "WRAP true", "UNWRAP true", "DERIVE true"];
    let others = ["SIGN true", "COPYABLE true", "MODIFIABLE true"];
    let sets: Vec<_> = sets.into_iter().chain(others).map(|what| format!("set CKA_{what}")).collect();
    let lets: Vec<_> = sets.iter().map(String::as_str).chain(LAST_OF_TPM2).collect();
    attack(&Module { name: "tpm2", lets: &lets, teeth: 0, is_strict: true }, TestToken::tpm2()).await;
    assert_is_refused("tpm2");
}

const COPIES: [&str; 5] = [
    "copy it for the session",
    "copy it with CKA_WRAP true",
    "copy it with CKA_DERIVE true, and derive",
    "copy it with CKA_SIGN true",
    "copy it with another label",
];

const COPIES_OF_NSS: [&str; 6] =
    [COPIES[0], "copy it with CKA_EXTRACTABLE true", COPIES[1], COPIES[2], COPIES[3], COPIES[4]];

const ALL_WRAPS: [&str; 8] = [
    "wrap it by AES-ECB",
    "wrap it by AES-CBC",
    "wrap it by AES-CBC-PAD",
    "wrap it by AES-KW",
    "wrap it by AES-KW with padding",
    "wrap it by AES-KWP",
    "wrap it by RSA PKCS#1",
    "wrap it by RSA-OAEP",
];

const LAST_OF_TPM2: [&str; 6] = [
    "set another CKA_LABEL",
    "set another CKA_ID",
    "use it for AES-ECB",
    "use it for AES-CTR",
    "set CKA_ALLOWED_MECHANISMS to more",
    DESTROY,
];

/// SoftHSM2's token is a folder. Whoever copies it and has the PIN has the KEK; no plugin can know. Beside the first it is seen, since
/// the module does not start with two tokens of one serial number.
#[tokio::test]
async fn a_copied_token() {
    let token = TestToken::softhsm2();
    let record = conformance::kek_of("softhsm2", &token);
    let settings = Path::new(&token.environment["SOFTHSM2_CONF"]);
    let tokens = settings.with_file_name("tokens");
    let first = fs::read_dir(&tokens).unwrap().map(|entry| entry.unwrap().path()).find(|path| path.is_dir()).unwrap();
    let copy_to = |folder: &Path| {
        let copy = folder.join("00000000-1111-2222-3333-444444444444");
        fs::create_dir_all(&copy).unwrap();
        for file in fs::read_dir(&first).unwrap().map(Result::unwrap) {
            fs::copy(file.path(), copy.join(file.file_name())).unwrap();
        }
    };
    let elsewhere = token.directory().join("elsewhere");
    copy_to(&elsewhere);
    let text = fs::read_to_string(settings).unwrap();
    let settings = token.directory().join("elsewhere.conf");
    fs::write(&settings, text.replace(tokens.to_str().unwrap(), elsewhere.to_str().unwrap())).unwrap();
    let mut config = Config::new(&token, &record, "elsewhere");
    config.value["token"]["environment"]["SOFTHSM2_CONF"] = settings.to_str().into();
    Plugin::start(&config).healthy().await.stop().await;

    copy_to(&tokens);
    let said = said_of("copied", &token, &record, Outcome::done("a copy")).await;
    assert_eq!(said.to_string(), "plugin: the HSM cannot be reached");
}

/// In the child it attacks.
#[test]
fn attacks_when_asked() {
    when_asked(|door, work: Work| work.attack(door));
}
