//! kube-apiserver's own encryption code as the client.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::emulator::{self, ApiServer};
use crate::etcd::{self, Etcd};
use crate::harness::{Config, Plugin, TestToken, run_ceremony, text};
use crate::parts::{API_SERVER_STACK, Running, step};

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

/// What each step of docs/migration.md must give, with each provider that a cluster may have today.
#[tokio::test]
async fn from_another_provider_to_this_one_and_back() {
    let (token, _, plugin) = serve().await;
    let kms = json!({"kms": {
        "apiVersion": "v2",
        "name": PROVIDER,
        "endpoint": format!("unix://{}", plugin.socket().display()),
        "timeout": "3s",
    }});
    // The key of a file, which is no secret here.
    let key = json!({"keys": [{"name": "key1", "secret": data_encoding::BASE64.encode(&[7; 32])}]});
    for (old, prefix) in [
        (json!({"aescbc": key}), "k8s:enc:aescbc:v1:key1:"),
        (json!({"secretbox": key}), "k8s:enc:secretbox:v1:key1:"),
        (json!({"identity": {}}), "k8s\0"),
    ] {
        let configuration = |name: &str, providers: &[&Value]| {
            let path = token.directory().join(format!("{name}.yaml"));
            let resources = json!([{"resources": ["secrets"], "providers": providers}]);
            let version = "apiserver.config.k8s.io/v1";
            let file = json!({"apiVersion": version, "kind": "EncryptionConfiguration", "resources": resources});
            fs::write(&path, file.to_string()).unwrap();
            text(&path)
        };
        let before = configuration("before", &[&old]);
        let added = configuration("added", &[&old, &kms]);
        let changed = configuration("changed", &[&kms, &old]);
        let alone = configuration("alone", &[&kms]);
        let mut node = Node::start(&plugin, &before);
        let of_old = node.write("a");
        assert!(of_old.starts_with(prefix.as_bytes()));

        node.fresh(&added);
        assert_eq!(node.read("a", &of_old), Ok(false));
        assert!(node.write("b").starts_with(prefix.as_bytes()));

        node.fresh(&changed);
        let of_kms = node.write("c");
        assert!(of_kms.starts_with(format!("k8s:enc:kms:v2:{PROVIDER}:").as_bytes()));
        assert_eq!(node.read("a", &of_old), Ok(true), "it is to be rewritten");
        let rewritten = node.write("a");
        // A node that is not so far reads it, too; and one that was not told of the plugin does not.
        let mut late = Node::start(&plugin, &added);
        assert_eq!(late.read("c", &of_kms), Ok(true));
        late.fresh(&before);
        late.read("c", &of_kms).unwrap_err();

        node.fresh(&alone);
        assert_eq!(node.read("a", &rewritten), Ok(false));
        let refused = node.read("a", &of_old).unwrap_err();
        assert!(refused.contains("no matching prefix found"), "{refused}");

        // And back.
        node.fresh(&changed);
        late.fresh(&added);
        assert_eq!(late.read("a", &rewritten), Ok(true));
        let back = late.write("a");
        assert_eq!(node.read("a", &back), Ok(true), "the other is not so far");
        late.fresh(&before);
        assert_eq!(late.read("a", &back), Ok(false));
    }
}

/// An API server with a configuration of several providers.
struct Node(Running);

impl Node {
    fn start(plugin: &Plugin, configuration: &str) -> Self {
        let mut stack = API_SERVER_STACK.start(&["script", "--configuration", configuration], plugin.socket());
        stack.wait_for("loaded");
        Self(stack)
    }

    fn ask(&mut self, line: &str) -> Result<Value, String> {
        self.0.say(line);
        let step = self.0.next().unwrap();
        if step["done"] == true { Ok(step) } else { Err(step["error"].to_string()) }
    }

    /// Starts anew, with another file.
    fn fresh(&mut self, configuration: &str) {
        self.ask(&format!("fresh {configuration}")).unwrap();
    }

    fn write(&mut self, name: &str) -> Vec<u8> {
        let step = self.ask(&format!("write {name}")).unwrap();
        data_encoding::BASE64.decode(step["stored"].as_str().unwrap().as_bytes()).unwrap()
    }

    /// Whether what it reads is to be rewritten.
    fn read(&mut self, name: &str, stored: &[u8]) -> Result<bool, String> {
        let step = self.ask(&format!("read {name} {}", data_encoding::BASE64.encode(stored)))?;
        let plaintext = data_encoding::BASE64.decode(step["plaintext"].as_str().unwrap().as_bytes()).unwrap();
        assert_eq!(plaintext, plaintext_of(name));
        Ok(step["stale"].as_bool().unwrap())
    }
}
