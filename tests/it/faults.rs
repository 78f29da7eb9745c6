//! A plugin that has served and now meets a fault: what it must then say, to whom, and how often.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use hsm_kms::kms::client::Client;
use hsm_kms::kms::proto::{DecryptRequest, EncryptRequest, EncryptResponse, StatusRequest};
use serde_json::{Value, json};
use tonic::Code;

use crate::harness::{Config, LABEL, Plugin, TestToken, run_ceremony, text, write_secret};
use crate::parts;

/// A token whose KEK has sealed a seed. No plugin runs.
pub struct Served {
    pub token: TestToken,
    pub record: PathBuf,
    pub config: Config,
    /// The content of the right PIN file.
    pub pin: String,
    sealed: EncryptResponse,
}

/// A fault, as the plugin must report it.
pub struct Down {
    /// The class and the public text, as in `healthz`.
    pub healthz: &'static str,
    /// Part of the log line: what is wrong, and with which thing.
    pub why: String,
    /// Part of the hint in the log line.
    pub hint: &'static str,
}

/// The spy module of the package `opensc`, between plugin and module, which writes down the calls that it sees.
pub struct Spy(PathBuf);

/// No token's PIN.
pub const WRONG_PIN: &str = "no-pin-of-any-token-6029481735";

const SEED: &[u8; 32] = b"a seed that must not be in a log";

impl Served {
    pub async fn new() -> Self {
        let token = TestToken::new();
        let record = run_ceremony(&token, token.directory());
        let config = Config::new(&token, &record, "plugin");
        let mut plugin = Plugin::start(&config).healthy().await;
        let sealed = encrypt(&mut plugin.client().await).await.unwrap();
        plugin.stop().await;
        let pin = fs::read_to_string(&token.pin).unwrap();
        Self { token, record, config, pin, sealed }
    }

    /// Puts the spy between plugin and module.
    pub fn spy(&mut self) -> Spy {
        let output = self.token.directory().join("spy");
        File::create(&output).unwrap();
        let section = &mut self.config.value["token"];
        section["module"] = text(&parts::installed("/usr/lib/x86_64-linux-gnu/pkcs11-spy.so".into())).into();
        section["environment"]["PKCS11SPY"] = text(&self.token.module).into();
        section["environment"]["PKCS11SPY_OUTPUT"] = text(&output).into();
        section["sandbox"]["read"] = json!([self.token.module.parent()]);
        section["sandbox"]["write"] = json!([self.token.directory()]);
        Spy(output)
    }

    /// Lets the plugin read a copy of the record with this change.
    pub fn edit_record(&mut self, edit: impl FnOnce(&mut Value)) {
        let mut record = serde_json::from_slice(&fs::read(&self.record).unwrap()).unwrap();
        edit(&mut record);
        let edited = self.token.directory().join("edited.json");
        fs::write(&edited, record.to_string()).unwrap();
        self.config.value["kek"]["record"] = text(&edited).into();
    }

    /// Writes this into the PIN file, as its only content.
    pub fn put_pin(&self, content: &str) {
        // In one step: a worker that starts just now must find the one or the other.
        let new = self.token.directory().join("new-pin");
        write_secret(&new, content);
        fs::rename(new, &self.token.pin).unwrap();
    }

    /// Waits until the log has the fault as its `times`th, then asks all three methods: they answer with the fault, and the log
    /// has it once.
    pub async fn is_down(&self, plugin: &Plugin, times: usize, down: &Down) {
        until(&format!("fault {times} in the log"), async || faults(plugin).len() >= times).await;
        let mut client = plugin.client().await;
        until(down.healthz, async || self.healthz(&mut client).await == down.healthz).await;

        let (class, public) = down.healthz.split_once(": ").unwrap();
        let code = match class {
            "pin-or-config" => Code::FailedPrecondition,
            "gone" => Code::Unavailable,
            other => panic!("no fault has the class {other}"),
        };
        for refused in [encrypt(&mut client).await.map(drop), self.decrypt(&mut client).await.map(drop)] {
            let status = refused.unwrap_err();
            assert_eq!((status.code(), status.message()), (code, public));
        }
        self.reports_once(plugin, times, down);
    }

    /// The log has `times` faults, and the last is this one. Nothing panicked.
    pub fn reports_once(&self, plugin: &Plugin, times: usize, down: &Down) {
        let faults = faults(plugin);
        assert_eq!(faults.len(), times, "{faults:#?}");
        let last = faults.last().unwrap();
        let (class, _) = down.healthz.split_once(": ").unwrap();
        let (what, hint) = last.split_once(" hint=").unwrap();
        assert!(what.contains(&format!("class=\"{class}\"")) || hint.contains(&format!("class=\"{class}\"")), "{last}");
        assert!(last.contains(&down.why), "{:?} is not in {last}", down.why);
        assert!(hint.contains(down.hint), "{:?} is not in {hint}", down.hint);
        self.keeps_secrets(plugin);
    }

    /// Waits until it serves again: with the key_id that it always had, and what was sealed before opens.
    pub async fn heals(&self, plugin: &Plugin) {
        let mut client = plugin.client().await;
        until("the plugin to serve", async || encrypt(&mut client).await.is_ok()).await;
        assert_eq!(self.healthz(&mut client).await, "ok");
        assert_eq!(self.decrypt(&mut client).await.unwrap(), SEED);
        self.keeps_secrets(plugin);
    }

    /// The text of Status. The key_id beside it never changes.
    pub async fn healthz(&self, client: &mut Client) -> String {
        let status = client.status(StatusRequest {}).await.unwrap().into_inner();
        assert_eq!((status.version.as_str(), &status.key_id), ("v2", &self.sealed.key_id));
        status.healthz
    }

    async fn decrypt(&self, client: &mut Client) -> Result<Vec<u8>, tonic::Status> {
        let EncryptResponse { ciphertext, key_id, annotations } = self.sealed.clone();
        let request = DecryptRequest { ciphertext, uid: "of a test".to_owned(), key_id, annotations };
        Ok(client.decrypt(request).await?.into_inner().plaintext.to_vec())
    }

    /// Neither PIN nor seed is in the log, and no panic.
    fn keeps_secrets(&self, plugin: &Plugin) {
        let log = plugin.log();
        for secret in ["panicked", std::str::from_utf8(SEED).unwrap(), self.pin.trim_end(), WRONG_PIN] {
            assert!(!log.contains(secret), "{secret:?} is in the log");
        }
    }
}

impl Spy {
    /// How many workers have loaded the module until now.
    pub fn starts(&self) -> usize {
        self.lines(|line| line.starts_with("Loaded: "))
    }

    /// How often [`WRONG_PIN`] has been tried on the token until now.
    ///
    /// SoftHSM2 counts no tries, but the spy sees them. It does not see what goes through Kryoptic's interface of PKCS#11 3.2,
    /// but Kryoptic counts, and locks the PIN at the tenth: so a copy of the token shows how many are left.
    pub fn wrong_logins(&self, token: &TestToken) -> usize {
        match token.profile {
            "softhsm2" => self.lines(|line| line.ends_with(": C_Login")),
            _ => 10 - wrong_logins_until_locked(token),
        }
    }

    fn lines(&self, sought: impl Fn(&str) -> bool) -> usize {
        let text = fs::read(&self.0).unwrap();
        String::from_utf8_lossy(&text).lines().filter(|line| sought(line)).count()
    }
}

/// Tries [`WRONG_PIN`] on the token, as another program would, and returns what it was told.
pub fn log_in_wrongly(token: &TestToken) -> String {
    pkcs11_tool(token, &token.environment, &["--login", "--pin", WRONG_PIN, "--list-objects"])
}

/// The token's flags, in the words of pkcs11-tool.
pub fn flags(token: &TestToken) -> String {
    let text = pkcs11_tool(token, &token.environment, &["--list-token-slots"]);
    text.lines().find(|line| line.contains("token flags")).unwrap().to_owned()
}

fn wrong_logins_until_locked(token: &TestToken) -> usize {
    let copy = token.directory().join("copy-to-lock");
    fs::copy(store(token), &copy).unwrap();
    let configuration = fs::read_to_string(&token.environment["KRYOPTIC_CONF"]).unwrap();
    let path = copy.with_extension("conf");
    fs::write(&path, configuration.replace(&text(&store(token)), &text(&copy))).unwrap();
    let environment = [("KRYOPTIC_CONF".to_owned(), text(&path))].into();
    let login = || pkcs11_tool(token, &environment, &["--login", "--pin", WRONG_PIN, "--list-objects"]);
    (1..=10).find(|_| login().contains("CKR_PIN_LOCKED")).unwrap()
}

fn pkcs11_tool(token: &TestToken, environment: &BTreeMap<String, String>, arguments: &[&str]) -> String {
    let mut tool = Command::new("pkcs11-tool");
    tool.envs(environment).arg("--module").arg(&token.module).args(["--token-label", LABEL]).args(arguments);
    let output = tool.output().unwrap();
    String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
}

/// Seals [`SEED`].
pub async fn encrypt(client: &mut Client) -> Result<EncryptResponse, tonic::Status> {
    let request = EncryptRequest { plaintext: SEED.to_vec().into(), uid: "of a test".to_owned() };
    Ok(client.encrypt(request).await?.into_inner())
}

/// The log lines that report a fault of the token.
pub fn faults(plugin: &Plugin) -> Vec<String> {
    plugin.log().lines().filter(|line| line.contains("token down: ")).map(str::to_owned).collect()
}

/// Polls, while this runtime goes on.
pub async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !holds().await {
        assert!(Instant::now() < deadline, "waited for {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Where the module under test keeps the token.
pub fn store(token: &TestToken) -> PathBuf {
    match token.profile {
        "softhsm2" => {
            let mut tokens = fs::read_dir(token.directory().join("softhsm2/tokens")).unwrap();
            let store = tokens.next().unwrap().unwrap().path();
            assert!(tokens.next().is_none());
            store
        }
        _ => token.directory().join("kryoptic.sql"),
    }
}

/// Copies the token as it is now. Returns what puts the copy back in its place.
pub fn back_up(token: &TestToken) -> impl FnOnce() {
    let (store, directory) = (store(token), token.directory());
    let (copy, replaced) = (directory.join("copy"), directory.join("replaced"));
    let status = Command::new("cp").arg("-a").args([&store, &copy]).status().unwrap();
    assert!(status.success());
    move || {
        // In one step each: a worker that starts just now writes into what it finds.
        fs::rename(&store, replaced).unwrap();
        fs::rename(copy, store).unwrap();
    }
}
