//! Three nodes of one cluster: each with a clone of the token, a plugin and a copy of the keyring, which an operator hands out.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::faults::until;
use crate::handover;
use crate::harness::{CLUSTER, Config, Plugin, TestToken, free_address, program, run, text};

/// The machine of the operator, where the keyring is changed, and the nodes.
pub struct Site {
    token: TestToken,
    /// With the keyring and all records.
    operator: TempDir,
    pub nodes: Vec<Node>,
}

/// A clone of a token: the same keys, label, serial number and PIN in another place.
pub struct Clone {
    place: TempDir,
    section: Value,
}

/// A control-plane node.
pub struct Node {
    place: TempDir,
    /// Where its endpoints are.
    pub address: String,
    config: Config,
    _standby: Option<Clone>,
    pub plugin: Option<Plugin>,
}

impl Site {
    /// Nodes that serve a keyring with the first of so many KEKs. The tokens have all of them.
    pub async fn start(nodes: usize, keks: usize) -> Self {
        let mut site = Self::prepare(keks);
        for _ in 0..nodes {
            site.add_node(Clone::of(&site.token), None).await;
        }
        site
    }

    /// A token with so many KEKs, and a keyring with the first. No node.
    pub fn prepare(keks: usize) -> Self {
        let site = Self { token: TestToken::softhsm2(), operator: tempfile::tempdir().unwrap(), nodes: Vec::new() };
        (1..=keks).for_each(|kek| site.make_kek(kek));
        site.done(&["init", "--record", &site.record(1)]);
        site
    }

    /// Makes this KEK in the token that nodes are cloned from.
    pub fn make_kek(&self, kek: usize) {
        make_kek(&self.token.section(), &format!("kek-{kek}"), self.operator.path());
    }

    /// A clone of the token as it is now.
    pub fn clone_token(&self) -> Clone {
        Clone::of(&self.token)
    }

    /// A node with this token, and with a standby token.
    pub async fn add_node(&mut self, token: Clone, standby: Option<Clone>) {
        let record: Value = serde_json::from_slice(&fs::read(self.record(1)).unwrap()).unwrap();
        self.nodes.push(Node::new(token, standby, &record["token"]["serial"]));
        let node = self.nodes.len() - 1;
        self.hand_out(node);
        self.nodes[node].start().await;
    }

    /// The record of this KEK, from 1.
    pub fn record(&self, kek: usize) -> String {
        text(&self.operator.path().join(format!("kek-{kek}.json")))
    }

    pub fn keyring(&self) -> PathBuf {
        self.operator.path().join("keyring.json")
    }

    /// `hsm-kms keyring` with these arguments.
    pub fn keyring_command(&self, arguments: &[&str]) -> Output {
        let keyring = text(&self.keyring());
        run(&[&["keyring", arguments[0], "--keyring", &keyring, "--json"], &arguments[1..]].concat(), b"")
    }

    /// The same; it must succeed. What it prints is JSON.
    pub fn done(&self, arguments: &[&str]) -> Value {
        let output = self.keyring_command(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// The same; it must be refused with this exit code and reason.
    pub fn refused(&self, arguments: &[&str], code: i32, why: &str) {
        let output = self.keyring_command(arguments);
        let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {stdout}{stderr}");
        assert!(stderr.contains(why), "{arguments:?}: {stderr}");
    }

    /// Copies keyring and records to the node, each file at once, as a tool does that hands out files.
    pub fn hand_out(&self, node: usize) {
        for entry in fs::read_dir(self.operator.path()).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|extension| extension == "json") && path != self.keyring() {
                self.nodes[node].put(&path);
            }
        }
        self.nodes[node].put(&self.keyring());
    }

    /// Waits until the node serves the keyring as the operator has it.
    pub async fn followed(&self, node: usize) {
        let head = self.done(&["list"])["head"].clone();
        until("the keyring on a node", async || self.nodes[node].report()["head"] == head).await;
    }

    /// The addresses of these nodes, as `--nodes` takes them.
    pub fn addresses(&self, nodes: &[usize]) -> String {
        nodes.iter().map(|node| self.nodes[*node].address.clone()).collect::<Vec<_>>().join(",")
    }
}

impl Clone {
    fn of(token: &TestToken) -> Self {
        let place = tempfile::tempdir().unwrap();
        let from = token.directory().join("softhsm2/tokens");
        assert!(Command::new("cp").arg("-a").arg(from).arg(place.path()).status().unwrap().success());
        let (variable, tokens) = (place.path().join("softhsm2.conf"), place.path().join("tokens"));
        let content = format!("directories.tokendir = {}\nobjectstore.backend = file\n", tokens.display());
        fs::write(&variable, content).unwrap();
        let mut section = token.section();
        section["environment"] = json!({"SOFTHSM2_CONF": variable});
        Self { place, section }
    }
}

impl Node {
    /// The file of its configuration.
    pub fn config(&self) -> &Path {
        self.config.write()
    }

    fn new(token: Clone, standby: Option<Clone>, serial: &Value) -> Self {
        let Clone { place, section } = token;
        let address = free_address();
        let mut config = Config::on(&section, place.path(), Path::new(""), "plugin");
        config.value["kek"] = json!({"keyring": place.path().join("keyring.json"), "allow_trial": true});
        config.value["endpoints"] = json!(address);
        if let Some(standby) = &standby {
            config.value["standby"] = json!([{"token": standby.section, "serial": serial}]);
        }
        Self { place, address, config, _standby: standby, plugin: None }
    }

    /// The folder with its keyring.
    pub fn place(&self) -> &Path {
        self.place.path()
    }

    /// Loses its first token: the files are gone.
    pub fn lose_token(&self) {
        fs::rename(self.place.path().join("tokens"), self.place.path().join("lost")).unwrap();
    }

    /// The section `token` of its configuration.
    pub fn section(&self) -> Value {
        self.config.value["token"].clone()
    }

    /// Starts the plugin, and waits until it is healthy.
    pub async fn start(&mut self) {
        self.start_by(program()).await;
    }

    /// The same, by this command.
    pub async fn start_by(&mut self, command: Command) {
        self.plugin = Some(Plugin::start_by(&self.config, command).healthy().await);
    }

    /// Stops the plugin at once, as a machine stops.
    pub fn kill(&mut self) {
        self.plugin.take().unwrap().kill();
    }

    pub fn plugin(&self) -> &Plugin {
        self.plugin.as_ref().unwrap()
    }

    /// Puts a copy of this file into its folder.
    pub fn put(&self, file: &Path) {
        let (name, temporary) = (file.file_name().unwrap(), self.place.path().join("copy"));
        fs::copy(file, &temporary).unwrap();
        fs::rename(&temporary, self.place.path().join(name)).unwrap();
    }

    /// What it says of its keyring.
    pub fn report(&self) -> Value {
        let (code, body) = handover::get(&self.address, "/keyring");
        assert_eq!(code, 200);
        serde_json::from_str(&body).unwrap()
    }

    /// The line of its metrics that begins so, and what follows.
    pub fn metric(&self, name: &str) -> Option<String> {
        let (_, metrics) = handover::get(&self.address, "/metrics");
        metrics.lines().find_map(|line| line.strip_prefix(name).map(|rest| rest.trim().to_owned()))
    }
}

/// Makes a KEK with this label by a ceremony; its record is `label`.json in this folder.
fn make_kek(section: &Value, label: &str, directory: &Path) {
    let output = tempfile::tempdir().unwrap();
    let plan = json!({
        "version": 1,
        "kind": "trial",
        "cluster": CLUSTER,
        "token": section,
        "kek": {"label": label},
        "output": output.path(),
    });
    let path = output.path().join("plan.yaml");
    fs::write(&path, format!("{plan:#}\n")).unwrap();
    let made = run(&["ceremony", "run", "--json", "--plan", &text(&path)], b"");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    fs::copy(output.path().join("kek-record.json"), directory.join(format!("{label}.json"))).unwrap();
}
