//! A plugin that has served and now meets a fault: what it must then say, to whom, and how often.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use hsm_kms::kms::client::Client;
use hsm_kms::kms::proto::{DecryptRequest, EncryptRequest, EncryptResponse, StatusRequest};
use tonic::Code;

use crate::harness::{Config, Plugin, TestToken, run_ceremony, text};
use crate::parts;

/// A token whose KEK has sealed a seed. No plugin runs.
pub struct Served {
    pub token: TestToken,
    pub record: PathBuf,
    pub config: Config,
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

/// The calls that reach a module, as OpenSC's spy module between it and the plugin writes them down.
pub struct Spy(PathBuf);

const SEED: &[u8; 32] = b"a seed that must not be in a log";

impl Served {
    pub async fn new() -> Self {
        let token = TestToken::new();
        let record = run_ceremony(&token, token.directory());
        let config = Config::new(&token, &record, "plugin");
        let mut plugin = Plugin::start(&config).healthy().await;
        let sealed = encrypt(&mut plugin.client().await).await.unwrap();
        plugin.stop().await;
        Self { token, record, config, sealed }
    }

    /// Puts the spy between plugin and module.
    pub fn spy(&mut self) -> Spy {
        let output = self.token.directory().join("spy");
        let section = &mut self.config.value["token"];
        section["module"] = text(&parts::installed("/usr/lib/x86_64-linux-gnu/pkcs11-spy.so".into())).into();
        section["environment"]["PKCS11SPY"] = text(&self.token.module).into();
        section["environment"]["PKCS11SPY_OUTPUT"] = text(&output).into();
        Spy(output)
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
        let pin = fs::read_to_string(&self.token.pin).unwrap_or_default();
        for secret in ["panicked", std::str::from_utf8(SEED).unwrap(), pin.trim_end()] {
            assert!(secret.is_empty() || !log.contains(secret), "{secret:?} is in the log");
        }
    }
}

impl Spy {
    /// How often the PKCS#11 function was called until now.
    pub fn calls(&self, function: &str) -> usize {
        let text = fs::read(&self.0).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        text.lines().filter(|line| line.split_once(": ").is_some_and(|(_, name)| name == function)).count()
    }
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
    let (store, copy) = (store(token), token.directory().join("copy"));
    let status = Command::new("cp").arg("-a").args([&store, &copy]).status().unwrap();
    assert!(status.success());
    move || {
        if store.is_dir() {
            fs::remove_dir_all(&store).unwrap();
        }
        fs::rename(copy, store).unwrap();
    }
}
