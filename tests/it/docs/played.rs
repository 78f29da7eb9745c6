//! The commands in the documents are run, block by block, on real parts.
//!
//! A page is played in a folder of its own, in which places such as /etc/hsm-kms are folders. A comment right in front of a block
//! names the test that runs its commands elsewhere, or says why nothing does.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::env;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;

use data_encoding::BASE64;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::{Block, blocks, documents, is_test, root};
use crate::api_server_stack::PROVIDER;
use crate::ceremony::staged::Staged;
use crate::etcd::Etcd;
use crate::harness::{CLUSTER, Config, LABEL, Plugin, TestToken, run, run_ceremony, text, wait_for};
use crate::parts::API_SERVER_STACK;
use crate::rotation::site::Site;

/// The pages that a test here plays.
const PLAYED: [&str; 9] = [
    "docs/ceremony.md",
    "docs/getting-started.md",
    "docs/hsm/softhsm2.md",
    "docs/inventory.md",
    "docs/probe.md",
    "docs/profiles.md",
    "docs/recovery.md",
    "docs/rotation.md",
    "docs/runbooks/hsm-unreachable.md",
];

/// What a comment says of a block that goes on until the end of its page.
const BACKGROUND: &str = "played in the background";

#[test]
fn every_block_is_played_or_says_why_not() {
    let (mut played, mut elsewhere, mut not, mut wrong) = (0, 0, Vec::new(), Vec::new());
    for path in documents() {
        let name = text(path.strip_prefix(root()).unwrap());
        for block in blocks(&fs::read_to_string(&path).unwrap()).iter().filter(|block| block.is_shell()) {
            let place = format!("{name}:{}", block.line);
            match block.note.as_deref().map(|note| note.split_once("played").unwrap_or((note, ""))) {
                Some(("", " in the background")) => played += 1,
                None if PLAYED.contains(&name.as_str()) => played += 1,
                None => wrong.push(format!("{place}: nothing plays it, and no comment says why")),
                Some(("", test)) if test.strip_prefix(" by ").is_some_and(is_test) => elsewhere += 1,
                Some(("not ", why)) if why.starts_with(": ") => not.push(format!("{place}{why}")),
                Some((word, rest)) => {
                    wrong.push(format!("{place}: there is no such test, or it is no reason: {word}{rest}"));
                }
            }
        }
    }
    println!("{played} blocks are played here, {elsewhere} by other tests, {} by none:\n{}", not.len(), not.join("\n"));
    assert!(wrong.is_empty(), "{wrong:#?}\nwrite <!-- played by module::test --> or <!-- not played: why --> above it");
    assert!(played > 25, "{played} blocks are played");
}

#[test]
fn profiles() {
    Page::open("docs/profiles.md").play_all(&Stage::new());
}

#[test]
fn probing() {
    let stage = Stage::with_token();
    Page::open("docs/hsm/softhsm2.md").play_all(&stage);
    Page::open("docs/probe.md").play_all(&stage);
}

#[tokio::test]
async fn an_outage() {
    let stage = Stage::with_token();
    let _plugin = stage.serve().await;
    Page::open("docs/runbooks/hsm-unreachable.md").play_all(&stage);
}

#[tokio::test]
async fn what_a_store_needs() {
    let mut stage = Stage::with_token();
    let plugin = stage.serve().await;
    let etcd = stage.etcd();
    write_secret(&etcd, plugin.socket(), "db-password");
    etcd.snapshot(&stage.path("/var/backups/etcd.db"));

    let mut page = Page::open("docs/inventory.md");
    assert!(page.play(&stage).contains(PROVIDER));
    page.play_all(&stage);
    assert!(stage.work().join("inventory.html").is_file());
    assert!(!fs::read(stage.work().join("db-password.pb")).unwrap().is_empty());
}

#[tokio::test]
async fn a_rotation() {
    let mut site = Site::prepare(2);
    let keyring = site.keyring();
    fs::remove_file(&keyring).unwrap();
    let mut stage = Stage::new();
    stage.put("/etc/hsm-kms", keyring.parent().unwrap());

    let mut page = Page::open("docs/rotation.md");
    page.play(&stage);
    for _ in 0..3 {
        let token = site.clone_token();
        site.add_node(token, None).await;
    }
    page.play(&stage);
    for (number, name) in (0..3).zip(["node-1.json", "node-2.json", "node-3.json"]) {
        site.hand_out(number);
        site.nodes[number].plugin().hang_up();
        site.followed(number).await;
        fs::write(stage.work().join(name), site.nodes[number].report().to_string()).unwrap();
    }
    page.play_all(&stage);
}

#[tokio::test]
async fn a_recovery_key() {
    let stage = Stage::with_token();
    let mut page = Page::open("docs/recovery.md");
    assert!(page.play(&stage).contains("fingerprint"));
    page.play(&stage);
    assert_eq!(fs::read_dir(stage.path("/dev/shm/sheets")).unwrap().count(), 5);

    let recipient = stage.work().join("recipient.json");
    let fingerprint = crate::recovery_keys::fingerprint(&recipient);
    let _plugin = stage.serve_with(&json!([{"file": recipient, "fingerprint": fingerprint}])).await;
    page.play_all(&stage);
    assert!(stage.path("/etc/hsm-kms/recovery-drill.json").is_file());
}

#[test]
fn a_ceremony() {
    let staged = Staged::new();
    let stage = Stage::with_token();
    fs::copy(staged.plan_file(), stage.work().join("plan.yaml")).unwrap();
    let mut page = Page::open("docs/ceremony.md");
    page.play(&stage);
    page.play(&stage);
    assert!(stage.work().join("script.html").is_file());
    page.play(&stage);
    // The last is a trial, by the plan that stands in front of it.
    let trial = page.blocks_marked("yaml").into_iter().find(|text| text.contains("kind: trial")).unwrap();
    fs::write(stage.work().join("plan.yaml"), stage.placed(&trial)).unwrap();
    page.play(&stage);
    assert!(stage.path("/etc/hsm-kms/kek-record.json").is_file());
}

/// From nothing to an encrypted Secret. The API server's own encryption code stands for the cluster.
#[test]
fn getting_started() {
    let mut stage = Stage::new();
    let etcd = stage.etcd();
    let mut page = Page::open("docs/getting-started.md");
    while !page.is_next("etcdctl") {
        page.play(&stage);
    }
    write_secret(&etcd, &stage.path(SOCKET), "first");
    page.play_all(&stage);
}

const SOCKET: &str = "/run/hsm-kms/hsm@kms.sock";

/// Has the API server's code encrypt a Secret, and puts it into etcd.
fn write_secret(etcd: &Etcd, socket: &Path, name: &str) {
    let mut stack = API_SERVER_STACK.start(&["script"], socket);
    stack.say(&format!("write {name}"));
    let written = stack.wait_for("write");
    let stored = BASE64.decode(written["stored"].as_str().unwrap().as_bytes()).unwrap();
    etcd.put(&format!("/registry/secrets/default/{name}"), &stored);
    stack.holds();
}

/// A page, and those of its blocks that are still to be played.
struct Page {
    name: &'static str,
    left: VecDeque<Block>,
}

impl Page {
    fn open(name: &'static str) -> Self {
        assert!(PLAYED.contains(&name), "{name}");
        let mut left = blocks(&fs::read_to_string(root().join(name)).unwrap());
        left.retain(|block| block.is_shell() && block.note.as_deref().is_none_or(|note| note == BACKGROUND));
        Self { name, left: left.into() }
    }

    /// Plays the next block; its standard output.
    fn play(&mut self, stage: &Stage) -> String {
        let block = self.left.pop_front().unwrap_or_else(|| panic!("{} has no more blocks", self.name));
        stage.run(&block, &format!("{}:{}", self.name, block.line))
    }

    /// Whether the next block has this command.
    fn is_next(&self, command: &str) -> bool {
        self.left.front().is_some_and(|block| block.text.contains(command))
    }

    /// Plays the rest.
    fn play_all(mut self, stage: &Stage) {
        while !self.left.is_empty() {
            self.play(stage);
        }
    }

    fn blocks_marked(&self, mark: &str) -> Vec<String> {
        let all = blocks(&fs::read_to_string(root().join(self.name)).unwrap());
        all.into_iter().filter(|block| block.mark == mark).map(|block| block.text).collect()
    }
}

/// Where a page is played.
struct Stage {
    directory: TempDir,
    token: Option<TestToken>,
    /// Commands that go on.
    background: RefCell<Vec<Child>>,
    /// What stands in the documents, and what takes its place.
    places: Vec<(String, String)>,
}

impl Stage {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut stage = Self { directory, token: None, background: RefCell::default(), places: Vec::new() };
        for name in ["bin", "work"] {
            fs::create_dir(stage.directory().join(name)).unwrap();
        }
        symlink(env!("CARGO_BIN_EXE_hsm-kms"), stage.directory().join("bin/hsm-kms")).unwrap();
        symlink(root().join("scripts"), stage.work().join("scripts")).unwrap();
        for place in ["/etc/hsm-kms", "/run/hsm-kms", "/etc/kubernetes", "/srv", "/var/backups", "/dev/shm"] {
            let real = stage.directory().join(place.trim_start_matches('/'));
            fs::create_dir_all(&real).unwrap();
            stage.put(place, &real);
        }
        stage
    }

    /// With a SoftHSM2 token `kek`, whose files are in /etc/hsm-kms.
    fn with_token() -> Self {
        let mut stage = Self::new();
        let token = TestToken::softhsm2();
        stage.put("/etc/hsm-kms", &token.directory().join("softhsm2"));
        stage.token = Some(token);
        stage
    }

    /// A plugin on the documented socket, with a KEK in the token; its record is in /etc/hsm-kms.
    async fn serve(&self) -> Plugin {
        self.serve_with(&json!([])).await
    }

    /// The same, with these recipients.
    async fn serve_with(&self, recipients: &Value) -> Plugin {
        let token = self.token.as_ref().unwrap();
        let directory = self.path("/etc/hsm-kms");
        let record = if recipients == &json!([]) {
            run_ceremony(token, &directory)
        } else {
            let plan = json!({"version": 1, "kind": "trial", "cluster": CLUSTER, "token": token.section(),
                "kek": {"label": LABEL}, "recipients": recipients, "output": directory});
            let path = directory.join("plan.yaml");
            fs::write(&path, plan.to_string()).unwrap();
            let output = run(&["ceremony", "run", "--json", "--plan", &text(&path)], b"");
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            directory.join("kek-record.json")
        };
        let mut config = Config::new(token, &record, "plugin");
        config.value["socket"]["path"] = json!(self.path(SOCKET));
        Plugin::start(&config).healthy().await
    }

    /// An etcd with TLS where the documents have the cluster's.
    fn etcd(&mut self) -> Etcd {
        let etcd = Etcd::start_tls(self.directory());
        for (name, file) in [("ca.crt", "ca.crt"), ("server.crt", "client.crt"), ("server.key", "client.key")] {
            let real = self.directory().join(file);
            self.put(&format!("/etc/kubernetes/pki/etcd/{name}"), &real);
        }
        self.put("https://127.0.0.1:2379", Path::new(etcd.url()));
        etcd
    }

    fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Where the commands are run.
    fn work(&self) -> PathBuf {
        self.directory().join("work")
    }

    /// Puts something in the place of what is documented.
    fn put(&mut self, documented: &str, real: &Path) {
        self.places.retain(|(name, _)| name != documented);
        self.places.push((documented.to_owned(), text(real)));
    }

    /// What is at a documented path.
    fn path(&self, documented: &str) -> PathBuf {
        PathBuf::from(self.placed(documented))
    }

    /// The text with real places. What was put is not looked at again.
    fn placed(&self, documented: &str) -> String {
        let mut rest = documented;
        let mut placed = String::new();
        while let Some(first) = rest.chars().next() {
            let found =
                self.places.iter().filter(|(name, _)| rest.starts_with(name)).max_by_key(|(name, _)| name.len());
            if let Some((name, real)) = found {
                placed.push_str(real);
                rest = &rest[name.len()..];
            } else {
                placed.push(first);
                rest = &rest[first.len_utf8()..];
            }
        }
        placed
    }

    /// Runs the commands of a block as its reader would, in one shell that stops at the first that fails.
    fn run(&self, block: &Block, place: &str) -> String {
        let commands = match block.mark.as_str() {
            "console" => block.text.lines().filter_map(|line| line.strip_prefix("$ ")).collect::<Vec<_>>().join("\n"),
            _ => block.text.clone(),
        };
        let script = self.placed(&commands);
        // What goes on takes the place of its shell, so that it can be ended.
        let script = if block.note.is_some() { format!("exec {script}") } else { script };
        let paths = format!("{}:{}", self.directory().join("bin").display(), env::var("PATH").unwrap());
        let mut shell = Command::new("bash");
        shell.args(["-euo", "pipefail", "-c", &script]).current_dir(self.work()).env("PATH", paths);
        if self.token.is_some() {
            shell.env("SOFTHSM2_CONF", self.path("/etc/hsm-kms/softhsm2.conf"));
        }
        shell.stdin(Stdio::null());
        if block.note.is_some() {
            let log = fs::File::create(self.directory().join("background.log")).unwrap();
            let child = shell.stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap();
            self.background.borrow_mut().push(child);
            let socket = text(&self.path(SOCKET));
            wait_for("the plugin", || {
                run(&["call", "status", "--socket", &socket], b"").status.success().then_some(())
            });
            return String::new();
        }
        let output = shell.output().unwrap();
        let [stdout, stderr] = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        assert!(output.status.success(), "{place}: {}\n{commands}\n{stdout}\n{stderr}", output.status);
        stdout
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        for child in self.background.get_mut() {
            let _ = child.kill();
            let _ = child.wait();
        }
        if thread::panicking() {
            eprintln!("{}", fs::read_to_string(self.directory().join("background.log")).unwrap_or_default());
        }
    }
}
