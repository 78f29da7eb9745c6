//! Clients that are not ours, in Go and Python, against the plugin.

use std::env;
use std::time::Duration;

use crate::harness::{Config, Plugin, TestToken, run_ceremony};
use crate::parts::{AUTHORITY, GRPC_GO, KMS_CLIENT, step};

/// Methods, refusals and each flipped bit, with the `:authority` of Kubernetes 1.32 and later, then of 1.29 to 1.31.
#[tokio::test]
async fn grpc_go_is_answered_as_the_contract_says() {
    let (_token, plugin) = serve("hsm@kms.sock").await;
    for authority in ["localhost", "derived"] {
        GRPC_GO.holds(&["basic", "--authority", authority], plugin.socket());
    }
}

#[tokio::test]
async fn a_hundred_callers_on_one_connection_are_served() {
    let (_token, plugin) = serve("hsm@kms.sock").await;
    for authority in ["localhost", "derived"] {
        GRPC_GO.holds(&["concurrent", "--calls", "100", "--authority", authority], plugin.socket());
    }
}

#[tokio::test]
async fn ten_connections_are_served_together() {
    let (_token, plugin) = serve("hsm@kms.sock").await;
    GRPC_GO.holds(&["connections", "--count", "10"], plugin.socket());
}

/// 20 s by default; `HSM_KMS_TEST_IDLE_SECONDS=600` for as long as an API server may be quiet.
#[tokio::test]
async fn an_idle_connection_stays_open() {
    let seconds = env::var("HSM_KMS_TEST_IDLE_SECONDS").unwrap_or_else(|_| "20".to_owned());
    let (_token, plugin) = serve("hsm@kms.sock").await;
    let mut client = GRPC_GO.start(&["idle", "--seconds", &seconds], plugin.socket());
    client.wait_for("before");
    client.allow(Duration::from_secs_f64(seconds.parse().unwrap()));
    client.holds();
}

#[tokio::test]
async fn grpcio_finds_the_golden_bytes_and_ignores_unknown_fields() {
    let (_token, plugin) = serve("hsm@kms.sock").await;
    let steps = KMS_CLIENT.holds(&[], plugin.socket());
    let count = |name: &str| steps.iter().filter(|step| step["step"] == name).count();
    assert_eq!((count("golden"), count("unknown-fields-ignored")), (6, 3));
}

#[tokio::test]
async fn every_authority_of_the_table_is_answered_as_documented() {
    for (name, answer) in [("hsm@kms.sock", "ok"), ("kms.sock", "rst PROTOCOL_ERROR")] {
        let (_token, plugin) = serve(name).await;
        let steps = AUTHORITY.holds(&["--expect"], plugin.socket());
        let of_this_socket = steps.iter().find(|step| step["who"] == "1.29 to 1.31, this socket").unwrap();
        assert_eq!(of_this_socket["outcome"], answer, "{name}");
        assert!(step(&steps, "settings")["seconds"].as_f64().unwrap() < 1.0);
    }
}

/// A healthy plugin on a socket of this file name.
async fn serve(name: &str) -> (TestToken, Plugin) {
    let token = TestToken::new();
    let record = run_ceremony(&token, token.directory());
    let mut config = Config::new(&token, &record, "plugin");
    config.value["socket"]["path"] = token.directory().join(name).to_str().into();
    let plugin = Plugin::start(&config).healthy().await;
    (token, plugin)
}
