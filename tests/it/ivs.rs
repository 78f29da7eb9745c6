//! IVs of real seals, over restarts of plugin and worker.

use std::collections::HashSet;

use hsm_kms::envelope::Blob;
use hsm_kms::kms::proto::EncryptRequest;
use rustix::process::Signal;

use crate::harness::{Config, Plugin, TestToken, run_ceremony};
use crate::processes::{signal, wait_for_worker_after, worker};

const SEALS: usize = 200;

#[tokio::test]
async fn no_seal_has_the_iv_of_another() {
    let token = TestToken::new();
    let record = run_ceremony(&token, token.directory());
    let config = Config::new(&token, &record, "plugin");
    let mut ivs = HashSet::new();
    for _ in 0..2 {
        let mut plugin = Plugin::start(&config).healthy().await;
        seal(&plugin, &mut ivs).await;
        let first = worker(&plugin).unwrap();
        signal(first, Signal::KILL);
        wait_for_worker_after(&plugin, first);
        plugin = plugin.healthy().await;
        seal(&plugin, &mut ivs).await;
        plugin.stop().await;
    }
    assert_eq!(ivs.len(), 4 * SEALS);
}

async fn seal(plugin: &Plugin, ivs: &mut HashSet<Vec<u8>>) {
    let mut client = plugin.client().await;
    for _ in 0..SEALS {
        let request = EncryptRequest { plaintext: vec![1; 32].into(), uid: "iv".to_owned() };
        let sealed = client.encrypt(request).await.unwrap().into_inner();
        let blob = Blob::parse(&sealed.ciphertext).unwrap();
        assert!(ivs.insert(blob.iv().to_vec()), "an IV again, after {}", ivs.len());
    }
}
