//! Several tokens with a copy of one KEK: who serves when one fails, and who does not.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use hsm_kms::kms::client::Client;
use hsm_kms::kms::proto::{DecryptRequest, EncryptRequest, EncryptResponse, StatusRequest};
use serde_json::{Value, json};
use tonic::Code;

use crate::fault_module::FaultModule;
use crate::faults::{WRONG_PIN, until};
use crate::handover;
use crate::harness::{Config, Plugin, TestToken, free_address, run_ceremony, write_secret};
use crate::processes::{self, signal, worker};

pub const SEED: &[u8; 32] = b"a seed of 32 bytes, as all are..";

/// Two tokens with one KEK, a fault module in front of each.
pub struct Pair {
    pub token: TestToken,
    pub config: Config,
    pub first: FaultModule,
    pub second: FaultModule,
}

impl Pair {
    pub fn new() -> Self {
        let token = TestToken::new();
        let record = run_ceremony(&token, token.directory());
        let mut config = Config::new(&token, &record, "plugin");
        let (first, second) = (FaultModule::new(&token, "first"), FaultModule::new(&token, "second"));
        first.stand_in_front(&mut config.value["token"]);
        let mut copy = copy_of(&token);
        second.stand_in_front(&mut copy);
        let record: Value = serde_json::from_slice(&fs::read(record).unwrap()).unwrap();
        config.value["standby"] = json!([{"token": copy, "serial": record["token"]["serial"]}]);
        Self { token, config, first, second }
    }
}

/// The section of a copy of the token, as a vendor's cloning makes one: the same keys, label and PIN in another place.
pub fn copy_of(token: &TestToken) -> Value {
    let place = token.directory().join("copy");
    fs::create_dir(&place).unwrap();
    let copy = |from: &str| {
        let status = Command::new("cp").arg("-a").arg(token.directory().join(from)).arg(&place).status().unwrap();
        assert!(status.success());
    };
    let (variable, configuration) = if token.profile == "softhsm2" {
        copy("softhsm2/tokens");
        (
            "SOFTHSM2_CONF",
            format!("directories.tokendir = {}\nobjectstore.backend = file\n", place.join("tokens").display()),
        )
    } else {
        copy("kryoptic.sql");
        let database = place.join("kryoptic.sql");
        ("KRYOPTIC_CONF", format!("[[slots]]\nslot = 1\ndbtype = \"sqlite\"\ndbargs = \"{}\"\n", database.display()))
    };
    let file = place.join("configuration");
    fs::write(&file, configuration).unwrap();
    let mut section = token.section();
    section["environment"] = json!({variable: file});
    section
}

pub async fn encrypt(client: &mut Client) -> Result<EncryptResponse, tonic::Status> {
    let request = EncryptRequest { plaintext: SEED.to_vec().into(), uid: "test".to_owned() };
    Ok(client.encrypt(request).await?.into_inner())
}

pub async fn decrypt(client: &mut Client, sealed: &EncryptResponse) -> Result<Vec<u8>, tonic::Status> {
    let EncryptResponse { ciphertext, key_id, annotations } = sealed.clone();
    let request = DecryptRequest { ciphertext, uid: "test".to_owned(), key_id, annotations };
    Ok(client.decrypt(request).await?.into_inner().plaintext.to_vec())
}

async fn status(client: &mut Client) -> String {
    client.status(StatusRequest {}).await.unwrap().into_inner().healthz
}

/// A token that hangs, dies or says that it is gone: no request fails, and each has its answer within the API server's 3 s.
#[tokio::test]
async fn requests_go_to_the_second_token_while_the_first_fails() {
    for (function, action) in [
        ("*", json!("hang")),
        ("*", json!({"return": "CKR_DEVICE_REMOVED"})),
        ("C_Decrypt", json!("crash")),
        ("C_DecryptInit", json!({"return": "CKR_KEY_FUNCTION_NOT_PERMITTED"})),
    ] {
        // A plugin for each: requests go back to a token only after 30 s, and a fault there must be met.
        let pair = Pair::new();
        let mut plugin = Plugin::start(&pair.config).healthy().await;
        let mut client = plugin.client().await;
        let sealed = encrypt(&mut client).await.unwrap();
        until("both tokens", async || ready(&plugin) == 2).await;
        assert!(!plugin.log().contains(FAILING_OVER), "{}", plugin.log());
        let before = pair.first.calls(function);
        pair.first.always(function, &action);
        for _ in 0..20 {
            let began = Instant::now();
            assert_eq!(decrypt(&mut client, &sealed).await.unwrap(), SEED, "{function} {action}");
            let opened = encrypt(&mut client).await.unwrap();
            assert!(began.elapsed() < Duration::from_secs(3), "{function} {action}: {:?}", began.elapsed());
            assert_eq!(decrypt(&mut client, &opened).await.unwrap(), SEED);
            assert_eq!(status(&mut client).await, "ok", "{function} {action}");
        }
        assert!(pair.first.calls(function) > before, "{function} {action}: the first token was not asked");
        assert!(plugin.log().contains(FAILING_OVER), "{function} {action}: {}", plugin.log());
        pair.first.clear();
        // The operator's word starts the one that is in trouble anew.
        let before = ready(&plugin);
        plugin.hang_up();
        until("the first token again", async || ready(&plugin) > before).await;
        assert_eq!(decrypt(&mut client, &sealed).await.unwrap(), SEED);
        plugin.stop().await;
    }
}

const FAILING_OVER: &str = "failing over to another token";

/// How often a token has come to serve.
fn ready(plugin: &Plugin) -> usize {
    plugin.log().matches("token ready").count()
}

/// Requests go back to the first token, but not before it has been sound for a while.
#[tokio::test]
async fn requests_return_without_flapping() {
    let pair = Pair::new();
    let mut plugin = Plugin::start(&pair.config).healthy().await;
    let mut client = plugin.client().await;
    let sealed = encrypt(&mut client).await.unwrap();
    until("both tokens", async || plugin.log().matches("token ready").count() == 2).await;
    pair.first.always("*", &json!({"return": "CKR_DEVICE_REMOVED"}));
    assert_eq!(decrypt(&mut client, &sealed).await.unwrap(), SEED);
    pair.first.clear();
    until("the first token", async || plugin.log().matches("token ready").count() == 3).await;
    let sound = Instant::now();
    let mut returned = false;
    while !returned {
        assert_eq!(decrypt(&mut client, &sealed).await.unwrap(), SEED);
        returned = plugin.log().contains("going back to the token that is sound again");
        assert!(sound.elapsed() < Duration::from_mins(1), "it does not go back");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    assert!(sound.elapsed() > Duration::from_secs(25), "back after {:?}", sound.elapsed());
    let (first, second) = (pair.first.calls("C_Decrypt"), pair.second.calls("C_Decrypt"));
    for _ in 0..20 {
        assert_eq!(decrypt(&mut client, &sealed).await.unwrap(), SEED);
    }
    assert!(pair.first.calls("C_Decrypt") >= first + 20);
    // The prober's look at the other token, at most.
    assert!(pair.second.calls("C_Decrypt") <= second + 2);
    plugin.stop().await;
}

#[tokio::test]
async fn a_start_without_the_first_token_is_served_by_the_second() {
    let pair = Pair::new();
    pair.first.set(&json!({"rules": [{"function": "C_GetSlotList", "action": "no_slots"}]}));
    let mut plugin = Plugin::start(&pair.config).healthy().await;
    let mut client = plugin.client().await;
    let sealed = encrypt(&mut client).await.unwrap();
    assert_eq!(decrypt(&mut client, &sealed).await.unwrap(), SEED);
    assert!(plugin.log().contains("token down: no token with label"), "{}", plugin.log());
    plugin.stop().await;
}

/// Each token gets one login attempt; the other one serves.
#[tokio::test]
async fn a_wrong_pin_of_one_token_is_tried_once_while_the_other_serves() {
    let mut pair = Pair::new();
    let wrong = pair.token.directory().join("wrong-pin");
    write_secret(&wrong, WRONG_PIN);
    pair.config.value["standby"][0]["token"]["pin"] = json!({"file": wrong});
    let mut plugin = Plugin::start(&pair.config).healthy().await;
    let mut client = plugin.client().await;
    let sealed = encrypt(&mut client).await.unwrap();
    until("the refusal", async || plugin.log().contains("token down: C_Login returned CKR_PIN_INCORRECT")).await;
    // The first one goes: nothing may drive the PIN to a second attempt.
    pair.first.always("*", &json!({"return": "CKR_DEVICE_REMOVED"}));
    let refused = decrypt(&mut client, &sealed).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "{refused}");
    assert_eq!(pair.second.calls("C_Login"), 1);
    // Two outages, two reasons: the one that may pass is told.
    assert_eq!(status(&mut client).await.split(':').next(), Some("gone"));
    pair.first.clear();
    until("the first token", async || decrypt(&mut client, &sealed).await.is_ok()).await;
    assert_eq!(pair.second.calls("C_Login"), 1);
    plugin.stop().await;
}

/// A key with the right label and id that is not the KEK never serves, and a token with another serial is never logged in to.
#[tokio::test]
async fn only_a_copy_of_the_kek_stands_by() {
    let mut pair = Pair::new();
    let stranger = TestToken::new();
    run_ceremony(&stranger, stranger.directory());
    pair.config.value["standby"][0]["token"]["environment"]
        .as_object_mut()
        .unwrap()
        .extend(stranger.section()["environment"].as_object().unwrap().clone());
    let mut plugin = Plugin::start(&pair.config).healthy().await;
    until("the refusal", async || plugin.log().contains("token down: token \"kek\" has serial")).await;
    assert_eq!(pair.second.calls("C_Login"), 0);
    plugin.stop().await;

    let record: Value = read(&stranger.directory().join("kek-record.json"));
    pair.config.value["standby"][0]["serial"] = record["token"]["serial"].clone();
    pair.config.value["standby"][0]["token"]["pin"] = stranger.section()["pin"].clone();
    let mut plugin = Plugin::start(&pair.config).healthy().await;
    until("the refusal", async || plugin.log().contains("token down: no key with label \"kek\"")).await;
    pair.first.always("*", &json!({"return": "CKR_DEVICE_REMOVED"}));
    let mut client = plugin.client().await;
    assert_eq!(encrypt(&mut client).await.unwrap_err().code(), Code::Unavailable);
    plugin.stop().await;
}

fn read(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// One site with both modes of a vendor's HSM: blobs of each open on the other.
#[tokio::test]
async fn tokens_may_differ_in_the_iv_s_place() {
    let mut pair = Pair::new();
    let profile = pair.token.directory().join("suffix.yaml");
    let manufacturer = if pair.token.profile == "softhsm2" { "SoftHSM" } else { "Kryoptic" };
    fs::write(
        &profile,
        format!(
            "version: 1\nname: imitated\ntitle: Imitated\nmodule: {{ manufacturers: [{manufacturer}] }}\n\
             seal: {{ mechanism: aes-gcm, iv: {{ send: none, found: suffix, bytes: 16 }} }}\n\
             codes: {{ CKR_GENERAL_ERROR@C_Decrypt: data }}\nevidence: {{ default: unconfirmed }}\n"
        ),
    )
    .unwrap();
    pair.config.value["standby"][0]["token"]["profile"] = json!(profile);
    pair.second.set(&json!({"imitate": {"iv": "luna-fips"}}));
    let mut plugin = Plugin::start(&pair.config).healthy().await;
    let mut client = plugin.client().await;
    until("both tokens", async || plugin.log().matches("token ready").count() == 2).await;
    let of_first = encrypt(&mut client).await.unwrap();
    pair.first.always("*", &json!({"return": "CKR_DEVICE_REMOVED"}));
    assert_eq!(decrypt(&mut client, &of_first).await.unwrap(), SEED);
    let of_second = encrypt(&mut client).await.unwrap();
    assert_eq!((of_first.ciphertext[6], of_second.ciphertext[6]), (1, 3), "IV layouts sent and suffix");
    assert_eq!(decrypt(&mut client, &of_second).await.unwrap(), SEED);
    pair.first.clear();
    pair.second.set(&json!({"imitate": {"iv": "luna-fips"}, "rules": [{"function": "*", "action": {"return": "CKR_DEVICE_REMOVED"}}]}));
    until("the first token", async || decrypt(&mut client, &of_second).await.is_ok()).await;
    assert_eq!(decrypt(&mut client, &of_first).await.unwrap(), SEED);
    plugin.stop().await;
}

/// As after an API server's restart: many readers of few seeds, at one time.
#[tokio::test]
async fn a_thousand_opens_of_ten_seeds_reach_the_hsm_ten_times() {
    let token = TestToken::new();
    let record = run_ceremony(&token, token.directory());
    let mut config = Config::new(&token, &record, "plugin");
    let endpoints = free_address();
    config.value["endpoints"] = json!(endpoints);
    let fault = FaultModule::new(&token, "held");
    fault.stand_in_front(&mut config.value["token"]);
    let mut plugin = Plugin::start(&config).healthy().await;
    let mut client = plugin.client().await;
    let mut seeds = Vec::new();
    for _ in 0..10 {
        seeds.push(encrypt(&mut client).await.unwrap());
    }
    // The token is held at its new start, which has more time than a call: nothing is opened until all requests have come.
    let killed = worker(&plugin).unwrap();
    fault.always("C_Initialize", &json!("hang"));
    signal(killed, rustix::process::Signal::KILL);
    let held = processes::wait_for_worker_after(&plugin, killed);
    let before = fault.calls("C_Decrypt");
    let mut tasks = tokio::task::JoinSet::new();
    for index in 0..1000 {
        let (mut client, sealed) = (client.clone(), seeds[index % 10].clone());
        tasks.spawn(async move { decrypt(&mut client, &sealed).await });
    }
    until("all requests", async || {
        let (_, metrics) = handover::get(&endpoints, "/metrics");
        metrics.lines().any(|line| line == "hsm_kms_joined_requests_total 990")
    })
    .await;
    fault.clear();
    while let Some(opened) = tasks.join_next().await {
        assert_eq!(opened.unwrap().unwrap(), SEED);
    }
    assert_eq!(worker(&plugin), Some(held));
    // The worker proves the KEK at its start, and the prober may have had its time.
    let opened = fault.calls("C_Decrypt") - before;
    assert!((11..=13).contains(&opened), "{opened}");
    plugin.stop().await;
}

/// Coasting: the API server stays in service while an outage may pass, and hears at once of what only an operator can mend.
#[tokio::test]
async fn status_coasts_through_an_outage_and_not_over_a_denial() {
    let token = TestToken::new();
    let record = run_ceremony(&token, token.directory());
    let mut config = Config::new(&token, &record, "plugin");
    config.value["health"] = json!("coast");
    let fault = FaultModule::new(&token, "away");
    fault.stand_in_front(&mut config.value["token"]);
    let mut plugin = Plugin::start(&config).healthy().await;
    let mut client = plugin.client().await;
    let sealed = encrypt(&mut client).await.unwrap();
    fault.always("*", &json!({"return": "CKR_DEVICE_REMOVED"}));
    assert_eq!(decrypt(&mut client, &sealed).await.unwrap_err().code(), Code::Unavailable);
    until("the loss", async || plugin.log().contains("token down: ")).await;
    assert_eq!(status(&mut client).await, "ok");
    // What no time mends is not coasted over.
    fault.set(&json!({"rules": [{"function": "C_GetTokenInfo", "action": {"token_info": {"flags": ["CKF_USER_PIN_LOCKED"]}}}]}));
    until("the denial", async || status(&mut client).await.starts_with("pin-or-config: ")).await;
    fault.clear();
    plugin.hang_up();
    until("the token", async || status(&mut client).await == "ok").await;
    assert_eq!(decrypt(&mut client, &sealed).await.unwrap(), SEED);
    plugin.stop().await;
}

/// A login that hangs or crashes may have counted as a wrong PIN: two, and no third before the operator's word.
#[tokio::test]
async fn logins_without_an_answer_are_not_repeated_for_ever() {
    let token = TestToken::new();
    let record = run_ceremony(&token, token.directory());
    let mut config = Config::new(&token, &record, "plugin");
    let fault = FaultModule::new(&token, "login");
    fault.stand_in_front(&mut config.value["token"]);
    fault.always("C_Login", &json!("crash"));
    let mut plugin = Plugin::start(&config);
    let mut client = plugin.client().await;
    until("the stop", async || {
        status(&mut client).await == "pin-or-config: logins end without an answer; no more is tried"
    })
    .await;
    assert_eq!(fault.calls("C_Login"), 2);
    fault.clear();
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(fault.calls("C_Login"), 2, "it waits for the operator");
    plugin.hang_up();
    until("the token", async || status(&mut client).await == "ok").await;
    // The PIN is known to be right now: an outage amid a login may last as long as it likes.
    fault.set(&json!({"rules": [{"function": "C_Login", "times": 3, "action": "crash"}]}));
    signal(worker(&plugin).unwrap(), rustix::process::Signal::KILL);
    until("three crashes", async || fault.calls("C_Login") >= 6).await;
    until("the token", async || encrypt(&mut client).await.is_ok()).await;
    plugin.stop().await;
}
