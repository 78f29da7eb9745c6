//! kube-apiserver's own encryption code as the client.

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};

use crate::emulator::{self, ApiServer};
use crate::etcd::{self, Etcd};
use crate::harness::{Config, Plugin, TestToken, run_ceremony};
use crate::parts::{API_SERVER_STACK, step};

/// The provider's name in every configuration of the stack.
pub const PROVIDER: &str = "hsm-kms";

/// Where the stack's secrets lie in etcd.
pub const FOLDER: &str = "/registry/secrets/default/";

/// The plaintext that the stack makes for a secret of this name and expects to read: it follows from the name.
pub fn plaintext_of(name: &str) -> Vec<u8> {
    let mut text = format!("k8s\0{MARKER}{name}:");
    let mut block = Sha256::digest(name);
    while text.len() < 200 {
        text.push_str(&data_encoding::HEXLOWER.encode(&block));
        block = Sha256::digest(block);
    }
    text.truncate(200);
    text.into_bytes()
}

/// Stands in every plaintext of the stack.
const MARKER: &str = "PLAINTEXT-OF-";

#[tokio::test]
async fn a_fresh_stack_reads_what_another_wrote() {
    let (_token, _, plugin) = serve().await;
    let steps = API_SERVER_STACK.holds(&["roundtrip", "--count", "20"], plugin.socket());
    assert_eq!(step(&steps, "encrypt")["prefix"], format!("k8s:enc:kms:v2:{PROVIDER}:"));
    let fresh = step(&steps, "fresh-stack");
    assert_eq!((&fresh["count"], &fresh["stale"]), (&20.into(), &0.into()));
    assert!(fresh["decrypts"].as_u64().unwrap() > 0);
}

/// The stack redials an absent plugin after growing pauses: after 30 s it may take another 25 s until it tries again.
#[tokio::test]
async fn a_stack_that_waited_30_s_for_the_plugin_works() {
    let (_token, config) = configure();
    let began = Instant::now();
    let mut stack = API_SERVER_STACK.start(&["late-start", "--wait", "25"], &config.socket());
    stack.wait_for("waiting");
    thread::sleep(Duration::from_secs(30).saturating_sub(began.elapsed()));
    let _plugin = Plugin::start(&config);
    let steps = stack.holds();
    assert!(step(&steps, "fresh-stack")["decrypts"].as_u64().unwrap() > 0);
}

/// By the operator, and by a crash: the file of the dead socket still lies there then.
#[tokio::test]
async fn a_stack_outlives_restarts_of_the_plugin() {
    let (_token, config, mut plugin) = serve().await;
    for crash in [false, true] {
        let mut stack = API_SERVER_STACK.start(&["restart", "--wait", "20"], plugin.socket());
        stack.wait_for("restart-now");
        if crash {
            plugin.kill();
        } else {
            assert_eq!(plugin.stop().await.code(), Some(0));
        }
        plugin = Plugin::start(&config);
        stack.say("done");
        let steps = stack.holds();
        assert_eq!(step(&steps, "decrypt-on-old-connection")["ok"], true);
    }
}

/// Whether the stack sees faults: on plugins that each have one.
#[test]
fn the_stack_refuses_plugins_that_misbehave() {
    let misbehave = |mode: &str, test: &dyn Fn(&Path)| {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("plugin.sock");
        let mut plugin = API_SERVER_STACK.start(&["misbehave", "--mode", mode], &socket);
        plugin.wait_for("serving");
        test(&socket);
    };
    for mode in ["mismatch", "unhealthy", "encrypt-error", "annotation", "version", "gone"] {
        misbehave(mode, &|socket| {
            let steps = API_SERVER_STACK.holds(&["refuse", "--expect", mode], socket);
            assert_eq!(step(&steps, "refused")["case"], mode);
        });
    }
    // These two pass every health check; a fresh stack finds them.
    for mode in ["wrong-plaintext", "decrypt-error"] {
        misbehave(mode, &|socket| {
            let steps = API_SERVER_STACK.start(&["roundtrip"], socket).does_not_hold();
            assert_eq!(step(&steps, "read-back")["ok"], true);
            assert_eq!(step(&steps, "read")["ok"], false);
        });
    }
    misbehave("none", &|socket| {
        API_SERVER_STACK.holds(&["roundtrip"], socket);
        API_SERVER_STACK.start(&["refuse", "--expect", "unhealthy"], socket).does_not_hold();
    });
}

/// The stack writes into a real etcd and the emulator reads it; the emulator writes and the stack reads that.
#[tokio::test]
async fn etcd_holds_no_plaintext_and_either_reads_what_the_other_wrote() {
    const COUNT: usize = 20;
    let (token, config, mut plugin) = serve().await;
    let etcd = Etcd::start(token.directory());
    API_SERVER_STACK.holds(&["store", "--etcd", etcd.url(), "--count", &COUNT.to_string()], plugin.socket());

    let mut server = emulate(&plugin).await;
    let stored = etcd.list(FOLDER);
    assert_eq!(stored.len(), COUNT);
    for entry in &stored {
        assert!(entry.value.starts_with(format!("k8s:enc:kms:v2:{PROVIDER}:").as_bytes()), "{}", entry.key);
        let read = server.read(&entry.key, &entry.value).await.unwrap();
        assert_eq!(read.plaintext, plaintext_of(entry.key.strip_prefix(FOLDER).unwrap()));
        assert!(!read.stale);
        assert!(server.read("/registry/secrets/default/moved", &entry.value).await.is_err());
    }
    assert_eq!(server.calls(0).decrypt, 1, "one seed for all");

    for number in 0..COUNT {
        let name = format!("emulated-{number}");
        let key = format!("{FOLDER}{name}");
        etcd.put(&key, &server.write(&key, &plaintext_of(&name)).unwrap());
    }
    let verify = ["verify", "--etcd", etcd.url(), "--count", &(2 * COUNT).to_string()];
    let steps = API_SERVER_STACK.holds(&verify, plugin.socket());
    let fresh = step(&steps, "fresh-stack");
    assert_eq!((&fresh["stale"], &fresh["decrypts"]), (&0.into(), &2.into()), "two seeds, one key_id");

    // Nor does anything live in the plugin's process alone.
    drop(server);
    assert_eq!(plugin.stop().await.code(), Some(0));
    let plugin = Plugin::start(&config).healthy().await;
    API_SERVER_STACK.holds(&verify, plugin.socket());

    // The search itself is checked by a value that nobody encrypted.
    etcd.put("/control", b"NOT-ENCRYPTED");
    let files = etcd.stop();
    assert!(files.iter().any(|(path, _)| path.extension().is_some_and(|extension| extension == "wal")));
    assert!(etcd::holds(&files, b"NOT-ENCRYPTED") && etcd::holds(&files, b"k8s:enc:kms:v2:"));
    assert!(!etcd::holds(&files, MARKER.as_bytes()));
}

/// A configuration on a token with a KEK.
pub fn configure() -> (TestToken, Config) {
    let token = TestToken::new();
    let record = run_ceremony(&token, token.directory());
    let config = Config::new(&token, &record, "hsm");
    (token, config)
}

/// A healthy plugin.
pub async fn serve() -> (TestToken, Config, Plugin) {
    let (token, config) = configure();
    let plugin = Plugin::start(&config).healthy().await;
    (token, config, plugin)
}

/// An emulated API server on this plugin.
pub async fn emulate(plugin: &Plugin) -> ApiServer {
    ApiServer::start([(PROVIDER, emulator::Plugin::real(plugin.client().await))]).await
}
