//! A plugin that has served and now meets a fault: what it must then say, to whom, and how often.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::Command;
//! What the plugin does while its PKCS#11 module fails: cases run side by side, each on a plugin of its own, one table at the end.
//!
//! Whatever the fault, these hold: the plugin never panics, every RPC is answered, Status answers throughout, no Decrypt gives
//! a wrong plaintext, and what Encrypt gave meanwhile opens later.

mod codes;
mod lies;
mod losses;

use std::any::Any;
use std::collections::{BTreeMap, VecDeque};
use std::fmt::Write as _;
use std::io::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use hsm_kms::kms::client::Client;
use hsm_kms::kms::proto::{DecryptRequest, EncryptRequest, EncryptResponse, StatusRequest};
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
        let section = &mut self.config.value["token"];
        section["module"] = text(&parts::installed("/usr/lib/x86_64-linux-gnu/pkcs11-spy.so".into())).into();
        section["environment"]["PKCS11SPY"] = text(&self.token.module).into();
        section["environment"]["PKCS11SPY_OUTPUT"] = text(&output).into();
        Spy(output)
    }

    /// Writes this into the PIN file, as its only content.
    pub fn put_pin(&self, content: &str) {
        let _ = fs::remove_file(&self.token.pin);
        write_secret(&self.token.pin, content);
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
use rustix::process::Signal;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tonic::Code;

use crate::fault_module::FaultModule;
use crate::harness::{Config, Plugin, TestToken, run_ceremony};

/// The plugin answers within 2.5 s. The rest is for a test machine that is busy with the other cases.
const ANSWER_LIMIT: Duration = Duration::from_millis(3000);
/// Status comes from memory.
const STATUS_LIMIT: Duration = Duration::from_millis(1000);
/// Longest wait for the first good Decrypt after a fault has ended.
const HEAL_LIMIT: Duration = Duration::from_secs(12);
const PAUSE: Duration = Duration::from_millis(20);
/// Plugins at once, per table.
const SIDE_BY_SIDE: usize = 8;

const PLAINTEXT: &[u8] = b"the seed that was sealed before the fault";

/// A token with a KEK, used by one case after the other: SoftHSM2 now and then shows a token half written to a process that
/// starts while another logs in.
struct Site {
    token: TestToken,
    record: PathBuf,
}

/// A plugin on the fault module, healthy when the case begins, and a seed that was sealed then.
struct Rig {
    fault: FaultModule,
    plugin: Plugin,
    client: Client,
    before: EncryptResponse,
    /// What Encrypt gave since, with its plaintext.
    sealed: Vec<(Vec<u8>, EncryptResponse)>,
}

/// What the callers met while a fault was on.
#[derive(Default)]
struct Observed {
    answers: BTreeMap<String, usize>,
    slowest: Duration,
    slowest_status: Duration,
    /// What Status says at the end.
    healthz: String,
}

type Check = Box<dyn FnOnce(&Site, usize) -> String + Send>;

/// A row of the table: its name and what to do.
struct Case(String, Check);

/// The case does `check` with a rig of its own; its text is the outcome, a panic a failure.
fn case<F>(name: impl Into<String>, check: F) -> Case
where
    F: AsyncFnOnce(&mut Rig) -> String + Send + 'static,
{
    let run = move |site: &Site, number: usize| {
        runtime().block_on(async {
            let mut rig = Rig::start(site, &format!("c{number}")).await;
            let outcome = check(&mut rig).await;
            rig.end().await;
            outcome
        })
    };
    Case(name.into(), Box::new(run))
}

/// Runs the cases and prints the table; fails if one of them did.
fn run(title: &str, cases: Vec<Case>) {
    let began = Instant::now();
    let count = cases.len();
    let queue: Mutex<VecDeque<_>> = Mutex::new(cases.into_iter().enumerate().collect());
    let rows = Mutex::new(BTreeMap::new());
    thread::scope(|scope| {
        for _ in 0..SIDE_BY_SIDE.min(count) {
            scope.spawn(|| {
                let token = TestToken::new();
                let record = run_ceremony(&token, token.directory());
                let site = Site { token, record };
                loop {
                    let next = queue.lock().unwrap().pop_front();
                    let Some((number, Case(name, check))) = next else { return };
                    let outcome =
                        catch_unwind(AssertUnwindSafe(|| check(&site, number))).map_err(|panic| text(&*panic));
                    rows.lock().unwrap().insert(number, (name, outcome));
                }
            });
        }
    });
    let rows = rows.into_inner().unwrap();
    let failed = rows.values().filter(|(_, outcome)| outcome.is_err()).count();
    let mut table = format!("\n{title}: {count} cases, {failed} failed\n");
    for (name, outcome) in rows.values() {
        let (word, text) = match outcome {
            Ok(text) => ("ok", text),
            Err(text) => ("FAILED", text),
        };
        let _ = writeln!(table, "{name:<48} {word:<6} {text}");
    }
    let _ = writeln!(table, "{title}: {:.1} s", began.elapsed().as_secs_f64());
    // Not by a print macro: the table is also for a run that passes.
    std::io::stderr().write_all(table.as_bytes()).unwrap();
    assert_eq!(failed, 0, "see the table");
}

impl Rig {
    async fn start(site: &Site, name: &str) -> Self {
        let fault = FaultModule::new(&site.token, name);
        let mut config = Config::new(&site.token, &site.record, name);
        fault.stand_in_front(&mut config.value["token"]);
        let plugin = Plugin::start(&config).healthy().await;
        let client = plugin.client().await;
        let before = client.clone().encrypt(encrypt(PLAINTEXT)).await.unwrap().into_inner();
        Self { fault, plugin, client, before, sealed: Vec::new() }
    }

    /// Asks for a new worker, as an operator does: the PIN may be tried once.
    fn hang_up(&self) {
        rustix::process::kill_process(self.plugin.pid(), Signal::HUP).unwrap();
    }

    /// Waits until the function was called more often than `before`.
    async fn called(&self, function: &str, before: usize) {
        let deadline = Instant::now() + HEAL_LIMIT;
        while self.fault.calls(function) <= before {
            assert!(Instant::now() < deadline, "{function} was not called");
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Several callers at once, twice; Status is polled all the while. What must hold under any fault is checked here.
    async fn traffic(&mut self) -> Observed {
        let mut observed = Observed::default();
        for round in 0..2 {
            let mut calls = JoinSet::new();
            for caller in 0..3 {
                let [sealing, opening] = [self.client.clone(), self.client.clone()];
                calls.spawn(seal(sealing, format!("round {round}, caller {caller}").into_bytes()));
                calls.spawn(open(opening, self.before.clone(), PLAINTEXT.to_vec()));
            }
            while !calls.is_empty() {
                tokio::select! {
                    Some(call) = calls.join_next() => {
                        let Call { method, code, took, sealed } = call.unwrap();
                        *observed.answers.entry(format!("{method} {code:?}")).or_default() += 1;
                        observed.slowest = observed.slowest.max(took);
                        self.sealed.extend(sealed);
                    }
                    () = tokio::time::sleep(PAUSE) => {
                        let (_, took) = self.status().await;
                        observed.slowest_status = observed.slowest_status.max(took);
                    }
                }
            }
        }
        observed.healthz = self.status().await.0;
        assert!(observed.slowest < ANSWER_LIMIT, "an answer took {:?}", observed.slowest);
        observed
    }

    /// What `healthz` says, and how long it took.
    async fn status(&mut self) -> (String, Duration) {
        let began = Instant::now();
        let answer = timeout(STATUS_LIMIT, self.client.status(StatusRequest {})).await;
        let healthz = answer.expect("Status did not answer").unwrap().into_inner().healthz;
        (healthz, began.elapsed())
    }

    /// Waits until both methods work again, by themselves, and returns how long that took.
    async fn heals(&mut self) -> Duration {
        let began = Instant::now();
        loop {
            let opened = open(self.client.clone(), self.before.clone(), PLAINTEXT.to_vec()).await;
            let sealed = seal(self.client.clone(), b"after the fault".to_vec()).await;
            if opened.code == Code::Ok && sealed.code == Code::Ok {
                self.sealed.extend(sealed.sealed);
                let took = began.elapsed();
                let (healthz, _) = self.status().await;
                assert_eq!(healthz, "ok");
                return took;
            }
            assert!(began.elapsed() < HEAL_LIMIT, "not healed: Decrypt {:?}, Encrypt {:?}", opened.code, sealed.code);
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// The fault on, traffic, the fault off: healed by itself.
    async fn survives(&mut self, function: &str, action: &serde_json::Value) -> String {
        let calls = self.fault.calls(function);
        self.fault.always(function, action);
        let observed = self.traffic().await;
        self.called(function, calls).await;
        self.fault.clear();
        format!("{observed}; healed in {}", millis(self.heals().await))
    }

    /// The same for a function that only a start calls: the worker is replaced while the fault is on.
    async fn survives_at_start(&mut self, function: &str, action: &serde_json::Value) -> String {
        let calls = self.fault.calls(function);
        self.fault.always(function, action);
        self.hang_up();
        self.called(function, calls).await;
        let observed = self.traffic().await;
        self.fault.clear();
        format!("{observed}; healed in {}", millis(self.heals().await))
    }

    /// As [`Rig::survives_at_start`], but only an operator's word heals it: nothing is served before, nobody logs in.
    async fn stops_at_start(&mut self, function: &str, action: &serde_json::Value) -> String {
        let [calls, logins] = [function, "C_Login"].map(|function| self.fault.calls(function));
        self.fault.always(function, action);
        self.hang_up();
        self.called(function, calls).await;
        let observed = self.traffic().await;
        assert_ne!(observed.healthz, "ok");
        let tried = self.fault.calls("C_Login") - logins;
        self.fault.clear();
        let more = self.traffic().await;
        assert!(more.none_served() && more.healthz != "ok", "served again without an operator: {more}");
        assert!(self.fault.calls("C_Login") - logins == tried && tried <= 1, "more than one login");
        self.hang_up();
        let healed = self.heals().await;
        assert_eq!(self.fault.calls("C_Login") - logins, tried + 1, "SIGHUP is for one login");
        format!("{observed}; {tried} logins until SIGHUP, then healed in {}", millis(healed))
    }

    /// The plugin has not panicked, and everything that Encrypt gave opens to what it was.
    async fn end(&mut self) {
        for (plaintext, sealed) in std::mem::take(&mut self.sealed) {
            let opened = open(self.client.clone(), sealed, plaintext.clone()).await;
            let name = String::from_utf8_lossy(&plaintext).into_owned();
            assert_eq!(opened.code, Code::Ok, "what Encrypt gave for {name:?} does not open");
        }
        let log = self.plugin.log();
        assert!(!log.contains("panicked"), "the plugin panicked:\n{log}");
    }
}

/// One call as its caller saw it.
struct Call {
    method: &'static str,
    code: Code,
    took: Duration,
    sealed: Option<(Vec<u8>, EncryptResponse)>,
}

async fn seal(mut client: Client, plaintext: Vec<u8>) -> Call {
    let began = Instant::now();
    let answer = timeout(ANSWER_LIMIT, client.encrypt(encrypt(&plaintext))).await.expect("Encrypt was not answered");
    let code = answer.as_ref().map_or_else(tonic::Status::code, |_| Code::Ok);
    let sealed = answer.ok().map(|answer| (plaintext, answer.into_inner()));
    Call { method: "Encrypt", code, took: began.elapsed(), sealed }
}

/// Opens it; if it opens, then to `plaintext`.
async fn open(mut client: Client, sealed: EncryptResponse, plaintext: Vec<u8>) -> Call {
    let began = Instant::now();
    let answer = timeout(ANSWER_LIMIT, client.decrypt(decrypt(sealed))).await.expect("Decrypt was not answered");
    if let Ok(answer) = &answer {
        assert_eq!(answer.get_ref().plaintext, plaintext, "a wrong plaintext");
    }
    let code = answer.map_or_else(|status| status.code(), |_| Code::Ok);
    Call { method: "Decrypt", code, took: began.elapsed(), sealed: None }
}

fn encrypt(plaintext: &[u8]) -> EncryptRequest {
    EncryptRequest { plaintext: plaintext.to_vec().into(), uid: "test".to_owned() }
}

fn decrypt(sealed: EncryptResponse) -> DecryptRequest {
    let EncryptResponse { ciphertext, key_id, annotations } = sealed;
    DecryptRequest { ciphertext, uid: "test".to_owned(), key_id, annotations }
}

impl std::fmt::Display for Observed {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (position, (answer, count)) in self.answers.iter().enumerate() {
            write!(formatter, "{}{count} {answer}", if position == 0 { "" } else { ", " })?;
        }
        let healthz = if self.healthz == "ok" { "ok" } else { "down" };
        write!(formatter, "; slowest {}, Status {healthz} {}", millis(self.slowest), millis(self.slowest_status))
    }
}

impl Observed {
    fn all_served(&self) -> bool {
        self.lost().is_empty()
    }

    /// The answers that were errors, with their number.
    fn lost(&self) -> Vec<String> {
        let lost = self.answers.iter().filter(|(answer, _)| !answer.ends_with(" Ok"));
        lost.map(|(answer, count)| format!("{count} {answer}")).collect()
    }

    fn none_served(&self) -> bool {
        !self.answers.keys().any(|answer| answer.ends_with(" Ok"))
    }
}

fn millis(duration: Duration) -> String {
    format!("{} ms", duration.as_millis())
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

fn text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
    text.unwrap_or("a panic without a text").replace('\n', " ")
}
