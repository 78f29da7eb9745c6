//! A cluster with two KEKs of a rotation, both of which are lost; and the same cluster, restored.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use hsm_kms::etcd::inventory::Inventory;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::another_program::destroy_kek;
use crate::api_server_stack::plaintext_of;
use crate::emulator::{ApiServer, Plugin as Emulated};
use crate::etcd::Etcd;
use crate::failover::copy_of;
use crate::faults::until;
use crate::harness::{CLUSTER, Config, Plugin, TestToken, run, text};

pub const OBJECTS: usize = 10_000;
pub const FOLDER: &str = "/registry/secrets/default/";
const PROVIDER: &str = "kms";
/// Starts of API servers under each KEK, and so seeds.
const STARTS: usize = 4;

/// While all is well.
pub struct LostSite {
    pub token: TestToken,
    config: Config,
    plugin: Option<Plugin>,
    pub etcd: Option<Etcd>,
    /// With the keyring and the records.
    pub directory: TempDir,
    pub key: Key,
    /// Of the KEKs, in their order.
    pub key_ids: Vec<String>,
}

/// After the loss.
pub struct Lost {
    pub directory: TempDir,
    pub key: Key,
    pub key_ids: Vec<String>,
    pub snapshot: PathBuf,
    pub profile: &'static str,
    config: Config,
    _token: TestToken,
}

/// A recovery key.
#[derive(Clone)]
pub struct Key {
    pub private: PathBuf,
    pub public: PathBuf,
    pub fingerprint: String,
}

/// The cluster on a new token.
pub struct RestoredSite {
    /// Kept while its plugin runs.
    _token: Option<TestToken>,
    pub config: Config,
    plugin: Option<Plugin>,
    pub etcd: Etcd,
    pub record: PathBuf,
    pub directory: TempDir,
}

impl Key {
    pub fn make(directory: &Path, name: &str) -> Self {
        let (private, public) = (directory.join(format!("{name}.key")), directory.join(format!("{name}.json")));
        let output = run(&["recovery", "keygen", "--key", &text(&private), "--recipient", &text(&public)], b"");
        assert!(output.status.success(), "{output:?}");
        Self::of_files(private, public)
    }

    /// The key with this public half. The private one may be the file that names its HSM.
    pub fn of_files(private: PathBuf, public: PathBuf) -> Self {
        let value: Value = serde_json::from_slice(&fs::read(&public).unwrap()).unwrap();
        let fingerprint = value["recipient"]["fingerprint"].as_str().unwrap().to_owned();
        Self { private, public, fingerprint }
    }
}

impl LostSite {
    /// So many objects, each half of them under one of two KEKs and by four API servers.
    pub async fn new(token: TestToken, objects: usize) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let key = Key::make(directory.path(), "recovery");
        Self::with_key(token, objects, directory, key).await
    }

    /// The same with this recovery key.
    pub async fn with_key(token: TestToken, objects: usize, directory: TempDir, key: Key) -> Self {
        for label in ["kek-1", "kek-2"] {
            make_kek(&token.section(), label, &key, directory.path());
        }
        let place = |name: &str| text(&directory.path().join(name));
        let (keyring, endpoints) = (place("keyring.json"), place("endpoints.sock"));
        let change = |arguments: &[&str]| {
            let record = place(arguments[1]);
            let output = run(
                &[&["keyring", arguments[0], "--keyring", &keyring, "--record", &record], &arguments[2..]].concat(),
                b"",
            );
            assert!(output.status.success(), "{output:?}");
        };
        change(&["init", "kek-1.json"]);
        let mut config = Config::on(&token.section(), directory.path(), Path::new(""), "plugin");
        config.value["kek"] = json!({"keyring": keyring, "allow_trial": true});
        config.value["endpoints"] = json!(endpoints);
        let plugin = Plugin::start(&config).healthy().await;
        let etcd = Etcd::start(directory.path());
        let mut values = Vec::new();
        let mut key_ids = Vec::new();
        for kek in ["kek-1.json", "kek-2.json"] {
            if kek == "kek-2.json" {
                change(&["stage", kek]);
                plugin.hang_up();
                until("the staged KEK", async || {
                    let nodes = ["keyring", "converged", "--keyring", &keyring, "--nodes", &endpoints];
                    run(&nodes, b"").status.success()
                })
                .await;
                change(&["activate", kek, "--nodes", &endpoints]);
                plugin.hang_up();
                until("the activation", async || announced(&plugin) != key_ids[0]).await;
            }
            key_ids.push(announced(&plugin));
            values.extend(write(&plugin, values.len(), objects / 2).await);
        }
        etcd.fill(FOLDER, objects, |number| values[number].clone());
        Self { token, config, plugin: Some(plugin), etcd: Some(etcd), directory, key, key_ids }
    }

    pub fn etcd(&self) -> &Etcd {
        self.etcd.as_ref().unwrap()
    }

    pub fn plugin(&self) -> &Plugin {
        self.plugin.as_ref().unwrap()
    }

    pub fn audit(&self, more: &[&str]) -> Output {
        run(&[&["recovery", "audit", "--endpoint", self.etcd().url()], more].concat(), b"")
    }

    /// A clone, as a vendor's tool makes one: the same keys in another place. Returns the section `token` of it.
    pub fn clone_token(&mut self) -> Value {
        copy_of(&self.token)
    }

    /// A snapshot, and then the loss: the KEKs destroyed, the token wiped.
    pub async fn lose(mut self) -> Lost {
        let snapshot = self.etcd().snapshot(&self.directory.path().join("backup.db"));
        self.lose_token().await;
        self.lose_rest(snapshot)
    }

    /// All but this snapshot.
    pub fn lose_rest(mut self, snapshot: PathBuf) -> Lost {
        drop(self.etcd.take());
        let Self { token, config, directory, key, key_ids, .. } = self;
        let profile = token.profile;
        Lost { directory, key, key_ids, snapshot, profile, config, _token: token }
    }

    /// The loss alone.
    pub async fn lose_token(&mut self) {
        let mut plugin = self.plugin.take().unwrap();
        if self.token.profile == "yubihsm2" {
            plugin.kill();
            return;
        }
        for kek in ["kek-1.json", "kek-2.json"] {
            destroy_kek(&self.token, &self.directory.path().join(kek));
        }
        until("the loss", async || status(&plugin)["healthz"] != "ok").await;
        plugin.kill();
        for rest in ["softhsm2/tokens", "kryoptic.sql"] {
            let path = self.token.directory().join(rest);
            let _ = fs::remove_dir_all(&path);
            let _ = fs::remove_file(&path);
        }
    }
}

impl Lost {
    /// The cluster on a clone of the token, with the keyring as it was.
    pub async fn on_clone(&self, section: &Value) -> RestoredSite {
        let directory = tempfile::tempdir().unwrap();
        let mut config = Config::on(section, directory.path(), Path::new(""), "plugin");
        config.value["kek"] = self.config.value["kek"].clone();
        let etcd = Etcd::restored(directory.path(), &self.snapshot);
        let plugin = Some(Plugin::start(&config).healthy().await);
        RestoredSite { _token: None, config, plugin, etcd, record: PathBuf::new(), directory }
    }
}

impl RestoredSite {
    /// A new KEK on a new token, with the same recipient, and etcd as the backup has it.
    pub async fn new(lost: &Lost, token: TestToken) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let record = make_kek(&token.section(), "kek-3", &lost.key, directory.path());
        let mut config = Config::on(&token.section(), directory.path(), &record, "plugin");
        config.value["endpoints"] = json!(directory.path().join("endpoints.sock"));
        let etcd = Etcd::restored(directory.path(), &lost.snapshot);
        let plugin = Some(Plugin::start(&config).healthy().await);
        Self { _token: Some(token), config, plugin, etcd, record, directory }
    }

    pub fn plugin(&self) -> &Plugin {
        self.plugin.as_ref().unwrap()
    }

    pub fn key_id(&self) -> String {
        announced(self.plugin())
    }

    pub fn place(&self, name: &str) -> String {
        text(&self.directory.path().join(name))
    }

    /// `recovery rewrap` of the backup into this file.
    pub fn rewrap(&self, lost: &Lost, table: &str, more: &[&str]) -> Output {
        self.rewrap_from(&["--snapshot", &text(&lost.snapshot)], lost, table, more)
    }

    pub fn rewrap_from(&self, source: &[&str], lost: &Lost, table: &str, more: &[&str]) -> Output {
        let (key, socket) = (text(&lost.key.private), text(self.plugin().socket()));
        let given = |flag: &str| more.contains(&flag);
        let mut arguments = vec!["recovery", "rewrap"];
        arguments.extend(source);
        let table = self.place(table);
        for (flag, value) in [("--key", &*key), ("--cluster", CLUSTER), ("--socket", &*socket), ("--table", &*table)] {
            if !(given(flag) || flag == "--key" && given("--token")) {
                arguments.extend([flag, value]);
            }
        }
        arguments.extend(more);
        run(&arguments, b"")
    }

    pub fn audit(&self, more: &[&str]) -> Output {
        run(&[&["recovery", "audit", "--endpoint", self.etcd.url()], more].concat(), b"")
    }

    /// Starts the plugin again, with this table or without one.
    pub async fn serve_with(&mut self, table: Option<&str>) {
        self.set_table(table);
        self.plugin.take().unwrap().stop().await;
        let _ = fs::remove_file(self.directory.path().join("plugin.log"));
        self.plugin = Some(Plugin::start(&self.config).healthy().await);
    }

    pub fn set_table(&mut self, table: Option<&str>) {
        match table {
            Some(table) => self.config.value["kek"]["rewrap_table"] = json!(self.place(table)),
            None => drop(self.config.value["kek"].as_object_mut().unwrap().remove("rewrap_table")),
        }
    }

    /// Reads every object by an API server that just started. Returns how many it would write anew.
    pub async fn read(&mut self, objects: usize) -> usize {
        let mut server = start(self.plugin()).await;
        let entries = self.etcd.list(FOLDER);
        assert_eq!(entries.len(), objects);
        let mut stale = 0;
        for (number, entry) in entries.iter().enumerate() {
            let read = server.read(&entry.key, &entry.value).await;
            let read = read.unwrap_or_else(|error| panic!("{}: {error}", entry.key));
            assert_eq!(read.plaintext, plaintext_of(&number.to_string()), "{}", entry.key);
            stale += usize::from(read.stale);
        }
        stale
    }

    /// Storage migration: every object is read and written.
    pub async fn migrate(&mut self, objects: usize) {
        let mut server = start(self.plugin()).await;
        let mut values = Vec::new();
        for entry in self.etcd.list(FOLDER) {
            let read = server.read(&entry.key, &entry.value).await.unwrap();
            values.push(server.write(&entry.key, &read.plaintext).unwrap());
        }
        self.etcd.fill(FOLDER, objects, |number| values[number].clone());
    }

    /// Objects by the KEK that they need.
    pub fn needed(&self) -> BTreeMap<String, u64> {
        let output = run(&["etcd", "inventory", "--json", "--endpoint", self.etcd.url()], b"");
        let inventory: Inventory = serde_json::from_slice(&output.stdout).unwrap();
        inventory.keks().iter().map(|kek| (kek.key_id.unwrap().to_owned(), kek.objects)).collect()
    }

    /// The line of its metrics that begins so, and what follows.
    pub fn metric(&self, name: &str) -> Option<String> {
        let mut curl = Command::new("curl");
        curl.args(["-s", "--unix-socket"]).arg(self.directory.path().join("endpoints.sock"));
        let output = curl.arg("http://localhost/metrics").output().unwrap();
        let metrics = String::from_utf8(output.stdout).unwrap();
        metrics.lines().find_map(|line| line.strip_prefix(name).map(|rest| rest.trim().to_owned()))
    }
}

/// The JSON that a command printed; it must have succeeded.
pub fn report(output: &Output) -> Value {
    assert!(output.status.success(), "{}{}", text_of(&output.stdout), text_of(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

pub fn text_of(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Makes a KEK whose seeds are sealed to this key, too; its record is `label`.json.
pub fn make_kek(section: &Value, label: &str, key: &Key, directory: &Path) -> PathBuf {
    let output = tempfile::tempdir().unwrap();
    let permit: &[&str] = match section["profile"].as_str() {
        Some("yubihsm2") => &["CKA_KEY_GEN_MECHANISM", "CKA_ALLOWED_MECHANISMS"],
        _ => &[],
    };
    let plan = json!({
        "version": 1,
        "kind": "trial",
        "cluster": CLUSTER,
        "token": section,
        "kek": {"label": label, "permit": permit},
        "recipients": [{"file": key.public, "fingerprint": key.fingerprint}],
        "output": output.path(),
    });
    let path = output.path().join("plan.yaml");
    fs::write(&path, format!("{plan:#}\n")).unwrap();
    let made = run(&["ceremony", "run", "--json", "--plan", &text(&path)], b"");
    assert!(made.status.success(), "{}", text_of(&made.stderr));
    let record = directory.join(format!("{label}.json"));
    fs::copy(output.path().join("kek-record.json"), &record).unwrap();
    record
}

/// Values that so many API servers wrote one after the other, of the objects from this number on.
async fn write(plugin: &Plugin, from: usize, count: usize) -> Vec<Vec<u8>> {
    let mut values = Vec::new();
    for part in 0..STARTS {
        let mut server = start(plugin).await;
        for number in from + count * part / STARTS..from + count * (part + 1) / STARTS {
            values.push(server.write(&key_of(number), &plaintext_of(&number.to_string())).unwrap());
        }
    }
    values
}

pub fn key_of(number: usize) -> String {
    format!("{FOLDER}{number:06}")
}

pub async fn start(plugin: &Plugin) -> ApiServer {
    ApiServer::start([(PROVIDER, Emulated::real(plugin.client().await))]).await
}

fn announced(plugin: &Plugin) -> String {
    status(plugin)["key_id"].as_str().unwrap().to_owned()
}

fn status(plugin: &Plugin) -> Value {
    let output = run(&["call", "status", "--json", "--socket", &text(plugin.socket())], b"");
    serde_json::from_slice(&output.stdout).unwrap_or_default()
}
