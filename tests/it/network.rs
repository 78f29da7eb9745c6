//! The way to a network HSM cut, black-holed and slowed, as the plugin meets it: Yubico's own driver, its connector on the other
//! end of a TCP connection, the device behind it simulated.

use std::time::{Duration, Instant};

use hsm_kms::kms::proto::StatusRequest;
use serde_json::json;
use tonic::Code;

use crate::failover::{SEED, decrypt, encrypt};
use crate::faults::until;
use crate::harness::{Config, Plugin, run_ceremony_on};
use crate::yubihsm::device::Device;

const PERMITS: [&str; 2] = ["CKA_KEY_GEN_MECHANISM", "CKA_ALLOWED_MECHANISMS"];

/// Longest answer: the plugin's deadline, and room for a busy machine.
const ANSWERED: Duration = Duration::from_millis(2900);

#[tokio::test]
async fn a_cut_a_black_hole_and_a_slow_line_are_survived() {
    let device = Device::new();
    let record = run_ceremony_on(&device.section(), &PERMITS, device.directory());
    let config = Config::on(&device.section(), device.directory(), &record, "plugin");
    let mut plugin = Plugin::start(&config).healthy().await;
    let mut client = plugin.client().await;
    let sealed = encrypt(&mut client).await.unwrap();
    let key_id = client.status(StatusRequest {}).await.unwrap().into_inner().key_id;
    for fault in [json!({"refuse": true}), json!({"silent": true})] {
        device.set_faults(&fault);
        for _ in 0..3 {
            let began = Instant::now();
            let refused = decrypt(&mut client, &sealed).await.unwrap_err();
            assert!(matches!(refused.code(), Code::Unavailable | Code::DeadlineExceeded), "{fault}: {refused}");
            assert!(began.elapsed() < ANSWERED, "{fault}: {:?}", began.elapsed());
        }
        let status = client.status(StatusRequest {}).await.unwrap().into_inner();
        assert_eq!(status.key_id, key_id);
        device.set_faults(&json!({}));
        let began = Instant::now();
        until("the line", async || decrypt(&mut client, &sealed).await.is_ok_and(|found| found == SEED)).await;
        assert!(began.elapsed() < Duration::from_secs(10), "{fault}: {:?}", began.elapsed());
    }
    // A slow line costs its time and nothing else.
    device.set_faults(&json!({"delay_ms": 200}));
    for _ in 0..3 {
        assert_eq!(decrypt(&mut client, &sealed).await.unwrap(), SEED);
    }
    device.set_faults(&json!({}));
    until("health", async || client.status(StatusRequest {}).await.unwrap().get_ref().healthz == "ok").await;
    assert_eq!(plugin.stop().await.code(), Some(0));
}
