//! The steps of the suite.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use hsm_kms::envelope::{Blob, MAX_PLAINTEXT_BYTES};
use hsm_kms::kms::client::Client;
use hsm_kms::kms::proto::{DecryptRequest, EncryptRequest, EncryptResponse, StatusRequest};
use rustix::process::{Pid, Signal};
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tonic::{Code, Status};

use super::expectations::{Expectations, Given, differences};
use crate::fault_module::FaultModule;
use crate::faults::{faults, until};
use crate::harness::{Config, Plugin, TestToken, hold_ceremony, write_secret};
use crate::processes::{is_alive, signal, wait_for_worker_after, worker};

/// The ceremony finds out what the token gives away, and stops there. Each on a token of its own: what was given is gone.
pub fn what_is_given_away(new_token: fn() -> TestToken, expected: &Expectations) {
    for (found_before, Given { attempt, .. }) in expected.gives.iter().enumerate() {
        let token = new_token();
        let section = hiding(&token, &expected.gives[..found_before]);
        let output = hold_ceremony(&section, &expected.permit(), token.directory());
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{errors}");
        assert!(errors.contains(&format!("the token did what it must refuse: {attempt}\n")), "{errors}");
        assert!(!token.directory().join("kek-record.json").exists());
    }
}

/// A ceremony with the module's profile, while what the token gives away is hidden. Returns the record's path.
pub fn ceremony(token: &TestToken, expected: &Expectations) -> PathBuf {
    let section = hiding(token, &expected.gives);
    let output = hold_ceremony(&section, &expected.permit(), token.directory());
    assert!(output.status.success(), "the ceremony failed: {}", String::from_utf8_lossy(&output.stderr));

    let outcome: Value = serde_json::from_slice(&output.stdout).unwrap();
    let mut refuses: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for refusal in outcome["refusals"].as_array().unwrap() {
        let [attempt, answer] = ["attempt", "answer"].map(|name| refusal[name].as_str().unwrap());
        if !answer.contains(HIDDEN) {
            refuses.entry(attempt.split(' ').next().unwrap().to_owned()).or_default().insert(answer.to_owned());
        }
    }
    let path = token.directory().join("kek-record.json");
    let record = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let mut differences = differences(&expected.record, &record, "record");
    if refuses != expected.refuses {
        differences.push(format!("refuses: {refuses:#?}, expected {:#?}", expected.refuses));
    }
    assert!(differences.is_empty(), "{differences:#?} in {record:#}");
    path
}

const HIDDEN: &str = "CKR_FUNCTION_REJECTED";

/// The section of the token. If there are functions to hide, the fault module in front refuses them.
fn hiding(token: &TestToken, given: &[Given]) -> Value {
    let mut section = token.section();
    if !given.is_empty() {
        let hider = FaultModule::new(token, "hider");
        let rule = |Given { function, .. }: &Given| json!({"function": function, "action": {"return": HIDDEN}});
        hider.set(&json!({"rules": given.iter().map(rule).collect::<Vec<_>>()}));
        hider.stand_in_front(&mut section);
    }
    section
}

/// Serves this record, and tries all that a plugin must do and must refuse.
pub async fn service(token: &TestToken, record: &Path, expected: &Expectations) {
    let config = Config::new(token, record, "service");
    let mut plugin = Plugin::start(&config).healthy().await;
    let sealed = seals_every_length(&plugin, expected).await;
    refuses_what_was_changed(&plugin, &sealed).await;
    serves_many_at_once(&plugin).await;
    outlives_its_worker(&plugin, &sealed).await;
    assert_eq!(plugin.stop().await.code(), Some(0));
    assert_eq!(faults(&plugin), [""; 0], "{}", plugin.log());

    let mut plugin = Plugin::start(&config).healthy().await;
    assert_eq!(decrypt(&mut plugin.client().await, &sealed).await.unwrap(), SEED, "after a restart");
    assert_eq!(plugin.stop().await.code(), Some(0));
    let pin = fs::read_to_string(&token.pin).unwrap();
    for secret in [pin.trim_end(), std::str::from_utf8(SEED).unwrap(), "panicked"] {
        assert!(!plugin.log().contains(secret), "{secret:?} is in the log");
    }
}

const SEED: &[u8; 32] = b"a seed of 32 bytes, as all are..";

/// Plaintexts of many lengths, up to the longest. Returns a sealed [`SEED`].
async fn seals_every_length(plugin: &Plugin, expected: &Expectations) -> EncryptResponse {
    let mut client = plugin.client().await;
    let lengths: Vec<_> = expected.blob_bytes.keys().copied().collect();
    assert_eq!(lengths, [1, 16, 31, 32, 33, 255, MAX_PLAINTEXT_BYTES]);
    for (&length, &blob_bytes) in &expected.blob_bytes {
        let plaintext: Vec<u8> = (1..=length).map(|byte| byte.to_le_bytes()[0]).collect();
        let sealed = encrypt(&mut client, &plaintext).await.unwrap();
        assert_eq!(Blob::parse(&sealed.ciphertext).unwrap().form(), expected.form());
        assert_eq!(sealed.ciphertext.len(), blob_bytes, "the blob of {length} bytes");
        assert_eq!(decrypt(&mut client, &sealed).await.unwrap(), plaintext);
        assert!(!contains(&sealed.ciphertext, &plaintext) || length == 1);
    }
    for length in [0, MAX_PLAINTEXT_BYTES + 1] {
        let refused = encrypt(&mut client, &vec![1; length]).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{length} bytes: {refused}");
    }
    let [one, other] = [encrypt(&mut client, SEED).await.unwrap(), encrypt(&mut client, SEED).await.unwrap()];
    let [one_bytes, other_bytes] = [&one, &other].map(|sealed| Blob::parse(&sealed.ciphertext).unwrap());
    assert_ne!(one_bytes.ciphertext(), other_bytes.ciphertext(), "two seals of one text");
    assert_eq!((one.key_id.len(), &one.key_id), (45, &other.key_id));
    one
}

/// Every bit changed, every length but the right one, another `key_id`, another annotation. None of it costs a worker.
async fn refuses_what_was_changed(plugin: &Plugin, sealed: &EncryptResponse) {
    let mut client = plugin.client().await;
    let before = worker(plugin);
    let bytes = &sealed.ciphertext;
    let flipped = (0..bytes.len() * 8).map(|bit| {
        let mut changed = bytes.to_vec();
        changed[bit / 8] ^= 1 << (bit % 8);
        changed
    });
    let cut = (0..bytes.len()).map(|length| bytes[..length].to_vec());
    let longer = [1, 16].map(|more| [bytes, &vec![0; more][..]].concat());
    for (number, changed) in flipped.chain(cut).chain(longer).enumerate() {
        let changed = EncryptResponse { ciphertext: changed.into(), ..sealed.clone() };
        let refused = decrypt(&mut client, &changed).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "change {number}: {refused}");
    }
    let mut annotated = sealed.clone();
    annotated.annotations.insert("added.example.com".to_owned(), vec![1].into());
    let refused = decrypt(&mut client, &annotated).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
    let other = EncryptResponse { key_id: sealed.key_id.replace("hsm1-", "hsm1-0")[..45].to_owned(), ..sealed.clone() };
    let refused = decrypt(&mut client, &other).await.unwrap_err();
    assert_eq!(refused.code(), Code::NotFound, "{refused}");

    assert_eq!(health(&mut client).await, "ok");
    assert_eq!(decrypt(&mut client, sealed).await.unwrap(), SEED);
    if !(is_overloaded() && plugin.log().contains("a PKCS#11 call has hung")) {
        assert_eq!(worker(plugin), before, "a changed blob has cost the worker: {}", plugin.log());
    }
}

/// Callers on connections of their own: none is refused, and none gets what another sealed.
async fn serves_many_at_once(plugin: &Plugin) {
    const CALLERS: u8 = 8;
    const ROUNDS: u8 = 10;
    let mut callers = JoinSet::new();
    for caller in 0..CALLERS {
        let mut client = plugin.client().await;
        callers.spawn(async move {
            for round in 0..ROUNDS {
                let plaintext = [[caller; 16], [round; 16]].concat();
                let sealed = encrypt(&mut client, &plaintext).await.unwrap();
                assert_eq!(decrypt(&mut client, &sealed).await.unwrap(), plaintext);
            }
        });
    }
    while let Some(caller) = callers.join_next().await {
        caller.unwrap();
    }
}

/// The worker is killed: another takes its place, and what was sealed before opens.
async fn outlives_its_worker(plugin: &Plugin, sealed: &EncryptResponse) {
    let mut client = plugin.client().await;
    let killed: Pid = worker(plugin).unwrap();
    signal(killed, Signal::KILL);
    wait_for_worker_after(plugin, killed);
    assert!(!is_alive(killed));
    until("a seed to open again", async || decrypt(&mut client, sealed).await.is_ok_and(|seed| seed == SEED)).await;
    assert_eq!(health(&mut client).await, "ok");
    encrypt(&mut client, SEED).await.unwrap();
}

/// A wrong PIN is tried once, however often the plugin is asked. With the right one, and on request, it serves.
pub async fn wrong_pin(token: &TestToken, record: &Path, expected: &Expectations) {
    let counter = FaultModule::new(token, "counter");
    let mut config = Config::new(token, record, "pin");
    counter.stand_in_front(&mut config.value["token"]);
    let right = fs::read_to_string(&token.pin).unwrap();
    assert_ne!(right.trim_end(), expected.wrong_pin.pin);
    put_pin(token, &expected.wrong_pin.pin);
    let mut plugin = Plugin::start(&config);
    let mut client = plugin.client().await;
    let refused = "pin-or-config: the token refused the login; it is not tried again";
    until(refused, async || health(&mut client).await == refused).await;
    // Longer than the first pauses between the starts that a token which is away would get.
    let asked_until = Instant::now() + Duration::from_secs(2);
    while Instant::now() < asked_until {
        assert_eq!(encrypt(&mut client, SEED).await.unwrap_err().code(), Code::FailedPrecondition);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(counter.calls("C_Login"), 1, "{}", plugin.log());
    let [fault] = faults(&plugin).try_into().unwrap();
    let why = format!("C_Login returned {}", expected.wrong_pin.code);
    assert!(fault.contains(&why), "{why:?} is not in {fault}");
    assert!(!plugin.log().contains(&expected.wrong_pin.pin), "the PIN is in the log");

    put_pin(token, &right);
    plugin.hang_up();
    until("the plugin to serve", async || encrypt(&mut client, SEED).await.is_ok()).await;
    assert_eq!(health(&mut client).await, "ok");
    assert_eq!(counter.calls("C_Login"), 2);
    drop(client);
    assert_eq!(plugin.stop().await.code(), Some(0));
}

fn put_pin(token: &TestToken, pin: &str) {
    fs::remove_file(&token.pin).unwrap();
    write_secret(&token.pin, pin);
}

async fn health(client: &mut Client) -> String {
    client.status(StatusRequest {}).await.unwrap().into_inner().healthz
}

async fn encrypt(client: &mut Client, plaintext: &[u8]) -> Result<EncryptResponse, Status> {
    let request = EncryptRequest { plaintext: plaintext.to_vec().into(), uid: "test".to_owned() };
    let mut patience = PATIENCE;
    loop {
        match client.encrypt(request.clone()).await {
            Err(status) if patience.lasts(&status) => {}
            outcome => return Ok(outcome?.into_inner()),
        }
    }
}

async fn decrypt(client: &mut Client, sealed: &EncryptResponse) -> Result<Vec<u8>, Status> {
    let EncryptResponse { ciphertext, key_id, annotations } = sealed.clone();
    let request = DecryptRequest { ciphertext, uid: "test".to_owned(), key_id, annotations };
    let mut patience = PATIENCE;
    loop {
        match client.decrypt(request.clone()).await {
            Err(status) if patience.lasts(&status) => {}
            outcome => return Ok(outcome?.into_inner().plaintext.to_vec()),
        }
    }
}

/// How often to ask again if there was no answer in time. Only where many processes want each core: four of them stand behind
/// each call to the TPM, and the plugin rightly takes it for hung after a second.
struct Patience(u8);

const PATIENCE: Patience = Patience(5);

impl Patience {
    fn lasts(&mut self, status: &Status) -> bool {
        let is_late = matches!(status.code(), Code::Unavailable | Code::DeadlineExceeded) && is_overloaded();
        self.0 = self.0.saturating_sub(1);
        is_late && self.0 > 0
    }
}

/// Whether more than two processes want each core now.
fn is_overloaded() -> bool {
    let load = fs::read_to_string("/proc/loadavg").unwrap();
    let running: usize = load.split([' ', '/']).nth(3).unwrap().parse().unwrap();
    running > 2 * std::thread::available_parallelism().unwrap().get()
}

fn contains(bytes: &[u8], sought: &[u8]) -> bool {
    bytes.windows(sought.len()).any(|window| window == sought)
}
