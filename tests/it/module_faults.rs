//! What the plugin does while its PKCS#11 module fails: cases run side by side, each on a plugin of its own, one table at the
//! end. `HSM_KMS_TEST_FAULTS=TEXT` runs only the cases whose name contains the text.
//!
//! Whatever the fault, these hold: the plugin never panics, every RPC is answered, Status answers throughout, no Decrypt gives
//! a wrong plaintext, and what Encrypt gave meanwhile opens later.

mod codes;
mod lies;
mod losses;

use std::any::Any;
use std::collections::{BTreeMap, VecDeque};
use std::env;
use std::fmt::Write as _;
use std::io::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use hsm_kms::kms::client::Client;
use hsm_kms::kms::proto::{DecryptRequest, EncryptRequest, EncryptResponse, StatusRequest};
use rustix::process::Signal;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tonic::Code;

use crate::fault_module::FaultModule;
use crate::harness::{Config, Plugin, TestToken, run_ceremony};

/// The plugin answers within 2.5 s. The rest is for a test machine that is busy with the other cases.
const ANSWER_LIMIT: Duration = Duration::from_secs(3);
/// Status comes from memory.
const STATUS_LIMIT: Duration = Duration::from_secs(1);
/// Longest wait for the first good Decrypt after a fault has ended.
const HEAL_LIMIT: Duration = Duration::from_secs(12);
const PAUSE: Duration = Duration::from_millis(20);
/// Plugins at once: they mostly wait, but more would hold each other up on two cores.
const SIDE_BY_SIDE: usize = 16;

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

#[test]
fn the_plugin_survives_its_module() {
    let began = Instant::now();
    let only = env::var("HSM_KMS_TEST_FAULTS").unwrap_or_default();
    // The longest first.
    let cases = losses::cases().chain(codes::cases()).chain(lies::cases()).filter(|Case(name, _)| name.contains(&only));
    let queue: Mutex<VecDeque<_>> = Mutex::new(cases.enumerate().collect());
    let rows = Mutex::new(BTreeMap::new());
    thread::scope(|scope| {
        for _ in 0..SIDE_BY_SIDE {
            scope.spawn(|| {
                let mut site = None;
                loop {
                    let next = queue.lock().unwrap().pop_front();
                    let Some((number, Case(name, check))) = next else { return };
                    let ready = site.take().unwrap_or_else(Site::new);
                    let outcome =
                        catch_unwind(AssertUnwindSafe(|| check(&ready, number))).map_err(|panic| text(&*panic));
                    // A failed case may leave a worker that was killed while SoftHSM2 wrote its token.
                    site = outcome.is_ok().then_some(ready);
                    rows.lock().unwrap().insert(number, (name, outcome));
                }
            });
        }
    });
    report(&rows.into_inner().unwrap(), began.elapsed());
}

/// Prints the table; fails if a case did.
fn report(rows: &BTreeMap<usize, (String, Result<String, String>)>, took: Duration) {
    let mut table = "\n".to_owned();
    for (name, outcome) in rows.values() {
        let (word, text) = match outcome {
            Ok(text) => ("ok", text),
            Err(text) => ("FAILED", text),
        };
        let _ = writeln!(table, "{name:<58} {word:<6} {text}");
    }
    let failed = rows.values().filter(|(_, outcome)| outcome.is_err()).count();
    let _ = writeln!(table, "{} cases, {failed} failed, {:.1} s", rows.len(), took.as_secs_f64());
    // Not by a print macro: the table is also for a run that passes.
    std::io::stderr().write_all(table.as_bytes()).unwrap();
    assert!(failed == 0 && !rows.is_empty(), "see the table");
}

impl Site {
    fn new() -> Self {
        let token = TestToken::new();
        let record = run_ceremony(&token, token.directory());
        Self { token, record }
    }
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
