//! When Status stops saying `ok`, and what it costs to find out: faults of one kind of work, devices that stay busy, PINs that two
//! tokens share.

use std::time::{Duration, Instant};

use hsm_kms::kms::client::Client;
use hsm_kms::kms::proto::StatusRequest;
use serde_json::json;

use crate::failover::{Pair, SEED, decrypt, encrypt};
use crate::fault_module::FaultModule;
use crate::faults::{WRONG_PIN, until};
use crate::handover;
use crate::harness::{Config, Plugin, TestToken, free_address, run_ceremony, write_secret};

async fn status(client: &mut Client) -> String {
    client.status(StatusRequest {}).await.unwrap().into_inner().healthz
}

/// A worker proves the KEK by opening, and comes back each time: that must not hide that sealing never succeeds.
#[tokio::test]
async fn a_token_that_never_seals_is_not_healthy() {
    let token = TestToken::new();
    let record = run_ceremony(&token, token.directory());
    for (function, action, word) in [
        ("C_Encrypt", json!("crash"), "gone"),
        ("C_EncryptInit", json!({"return": "CKR_SESSION_COUNT"}), "busy"),
        ("C_Encrypt", json!({"return": "CKR_DEVICE_ERROR"}), "gone"),
    ] {
        let mut config = Config::new(&token, &record, &format!("plugin-{}", word.len() + function.len()));
        let fault = FaultModule::new(&token, &format!("fault-{}-{word}", function.len()));
        fault.stand_in_front(&mut config.value["token"]);
        let mut plugin = Plugin::start(&config).healthy().await;
        let mut client = plugin.client().await;
        let sealed = encrypt(&mut client).await.unwrap();
        fault.always(function, &action);
        until("Status to tell", async || {
            assert!(encrypt(&mut client).await.is_err());
            status(&mut client).await.starts_with(word)
        })
        .await;
        // It stays so, whatever opens meanwhile.
        for _ in 0..20 {
            let _ = decrypt(&mut client, &sealed).await;
            assert!(status(&mut client).await.starts_with(word), "{action}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        fault.clear();
        // The prober finds out that it seals again.
        until("health", async || status(&mut client).await == "ok").await;
        assert!(encrypt(&mut client).await.is_ok());
        plugin.stop().await;
    }
}

/// Nothing to wait for: the one token stays busy, and the other is stopped.
#[tokio::test]
async fn a_request_does_not_wait_for_what_will_not_come() {
    let mut pair = Pair::new();
    let wrong = pair.token.directory().join("wrong-pin");
    write_secret(&wrong, WRONG_PIN);
    pair.config.value["standby"][0]["token"]["pin"] = json!({"file": wrong});
    let mut plugin = Plugin::start(&pair.config).healthy().await;
    let mut client = plugin.client().await;
    let sealed = encrypt(&mut client).await.unwrap();
    until("the refusal", async || plugin.log().contains("CKR_PIN_INCORRECT")).await;
    pair.first.always("C_DecryptInit", &json!({"return": "CKR_SESSION_COUNT"}));
    let began = Instant::now();
    assert!(decrypt(&mut client, &sealed).await.is_err());
    assert!(began.elapsed() < Duration::from_millis(1500), "{:?}", began.elapsed());
    plugin.stop().await;
}

/// They may be one device behind two connectors: a PIN that the one refused is not tried on the other.
#[tokio::test]
async fn tokens_with_one_pin_try_it_once() {
    let mut pair = Pair::new();
    let wrong = pair.token.directory().join("wrong-pin");
    write_secret(&wrong, WRONG_PIN);
    pair.config.value["token"]["pin"] = json!({"file": wrong});
    pair.config.value["standby"][0]["token"]["pin"] = json!({"file": wrong});
    let mut plugin = Plugin::start(&pair.config);
    let mut client = plugin.client().await;
    until("both to be down", async || plugin.log().matches("token down: ").count() == 2).await;
    assert!(status(&mut client).await.starts_with("pin-or-config: "));
    let logins = || pair.first.calls("C_Login") + pair.second.calls("C_Login");
    assert_eq!(logins(), 1);
    // The operator mends it: one login each.
    let right = std::fs::read_to_string(&pair.token.pin).unwrap();
    let new = pair.token.directory().join("new-pin");
    write_secret(&new, &right);
    std::fs::rename(new, &wrong).unwrap();
    plugin.hang_up();
    until("both tokens", async || plugin.log().matches("token ready").count() == 2).await;
    assert_eq!(logins(), 3);
    plugin.stop().await;
}

/// A token that cannot be reached at all has counted no login, however often it was tried.
#[tokio::test]
async fn a_start_that_fails_before_its_login_is_not_counted_as_one() {
    let token = TestToken::new();
    let record = run_ceremony(&token, token.directory());
    let mut config = Config::new(&token, &record, "plugin");
    let fault = FaultModule::new(&token, "fault");
    fault.stand_in_front(&mut config.value["token"]);
    fault.always("C_OpenSession", &json!("crash"));
    let mut plugin = Plugin::start(&config);
    until("four tries", async || fault.calls("C_OpenSession") >= 4).await;
    assert_eq!(fault.calls("C_Login"), 0);
    fault.clear();
    let mut client = plugin.client().await;
    until("the token", async || encrypt(&mut client).await.is_ok()).await;
    let sealed = encrypt(&mut client).await.unwrap();
    assert_eq!(decrypt(&mut client, &sealed).await.unwrap(), SEED);
    plugin.stop().await;
}

/// A corrupt blob on a slow HSM takes several attempts, each shorter than a hang, and all together longer than one.
#[tokio::test]
async fn a_corrupt_blob_on_a_slow_hsm_costs_no_worker() {
    let token = TestToken::new();
    let record = run_ceremony(&token, token.directory());
    let mut config = Config::new(&token, &record, "plugin");
    config.value["limits"] = json!({"deadline_ms": 2900});
    let fault = FaultModule::new(&token, "fault");
    fault.stand_in_front(&mut config.value["token"]);
    let mut plugin = Plugin::start(&config).healthy().await;
    let mut client = plugin.client().await;
    let sealed = encrypt(&mut client).await.unwrap();
    let mut corrupt = sealed.clone();
    let mut bytes = corrupt.ciphertext.to_vec();
    *bytes.last_mut().unwrap() ^= 1;
    corrupt.ciphertext = bytes.into();
    fault.always("C_Decrypt", &json!({"delay_ms": 600}));
    let refused = decrypt(&mut client, &corrupt).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::InvalidArgument, "{refused}");
    assert_eq!(decrypt(&mut client, &sealed).await.unwrap(), SEED);
    assert_eq!(plugin.log().matches("token ready").count(), 1, "{}", plugin.log());
    assert!(!plugin.log().contains("has hung"), "{}", plugin.log());
    plugin.stop().await;
}

/// A fleet that shares an HSM may ask it less often.
#[tokio::test]
async fn an_idle_plugin_proves_the_kek_as_often_as_it_is_told() {
    let token = TestToken::new();
    let record = run_ceremony(&token, token.directory());
    let mut plugins = Vec::new();
    for seconds in [30, 1] {
        let mut config = Config::new(&token, &record, &format!("plugin-{seconds}"));
        let address = free_address();
        config.value["endpoints"] = json!(address);
        config.value["limits"] = json!({"probe_seconds": seconds});
        plugins.push((Plugin::start(&config).healthy().await, address));
    }
    let age = |plugin: usize| -> f64 {
        let (_, metrics) = handover::get(&plugins[plugin].1, "/metrics");
        let line = metrics.lines().find(|line| line.starts_with("hsm_kms_proof_age_seconds{")).unwrap();
        line.rsplit(' ').next().unwrap().parse().unwrap()
    };
    tokio::time::sleep(Duration::from_millis(3500)).await;
    assert!(age(0) > 3.0, "{}", age(0));
    until("another proof", async || age(1) < 2.0).await;
}
