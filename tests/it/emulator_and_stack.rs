//! The emulator beside kube-apiserver's own code: the same events, on one plugin, must end in the same verdicts.
//!
//! Compared: verdicts, number of calls, what is stored, that a good verdict is kept for 20 s, that a seed outlives a restart,
//! an unhealthy Status and an outage, and that it expires for writes three minutes after the last good `key_id`. For that
//! expiry the stack's clock can be moved.
//!
//! Not compared, since the rest of the stack goes by the machine's clock or its connection: the polls every 60 s and 10 s and
//! their number of calls during an outage, the cache of opened seeds (24 h), and when a stack comes back after an outage,
//! which depends on grpc-go's pauses between dials; the emulator has none.

use std::fs;
use std::time::{Duration, Instant};

use data_encoding::BASE64;
use hsm_kms::kms::proto::StatusRequest;
use prost::Message;
use rustix::process::Signal;
use serde_json::Value;

use crate::api_server_stack::{FOLDER, PROVIDER, configure, emulate, plaintext_of};
use crate::emulator::{ApiServer, Calls, Fault, StoredValue};
use crate::harness::Plugin;
use crate::parts::{API_SERVER_STACK, Running};

#[tokio::test]
async fn the_emulator_and_the_stack_judge_alike() {
    let (token, config) = configure();
    let mut plugin = Plugin::start(&config).healthy().await;
    // Seeds that neither side knows, to force a Decrypt when it is wanted.
    let mut foreign = Foreign::default();
    foreign.write(&plugin).await;
    foreign.write(&plugin).await;
    foreign.write(&plugin).await;
    let mut both = Both::start(&plugin).await;

    // Healthy.
    assert!(both.healthy().await);
    let [emulated, stored] = both.write("healthy").await.unwrap();
    compare_stored(&emulated, &stored);
    both.read("healthy", &emulated).await.unwrap();
    both.read("healthy", &stored).await.unwrap();
    assert_eq!(both.calls(), Calls { status: 1, encrypt: 1, decrypt: 1 });
    both.read("another", &emulated).await.unwrap_err();
    both.read("another", &stored).await.unwrap_err();

    // A restart with the same KEK: the next check, 20 s after the first, meets the new process and keeps the seed.
    assert_eq!(plugin.stop().await.code(), Some(0));
    plugin = Plugin::start(&config).healthy().await;
    both.until("another check", LONGEST_VERDICT, |both| both.calls_of_each().map(|calls| calls.status == 2)).await;
    assert!(both.healthy().await);
    let (name, value) = foreign.take();
    both.read(&name, &value).await.unwrap();
    assert_eq!(both.calls(), Calls { status: 2, encrypt: 1, decrypt: 2 });

    // healthz is not ok, but the key_id is the old one: unhealthy after 20 s, and writes go on.
    let [module_configuration] = token.environment.values().collect::<Vec<_>>()[..] else { panic!("one variable") };
    let away = format!("{module_configuration}.away");
    fs::rename(module_configuration, &away).unwrap();
    rustix::process::kill_process(plugin.pid(), Signal::HUP).unwrap();
    unhealthy(&plugin).await;
    assert!(both.healthy().await, "the last verdict still counts");
    both.until("a bad verdict", LONGEST_VERDICT, |both| both.verdicts.map(|good| !good)).await;
    assert_eq!(both.calls(), Calls { status: 3, encrypt: 1, decrypt: 2 });
    both.write("unhealthy").await.unwrap();
    API_SERVER_STACK.holds(&["refuse", "--expect", "unhealthy"], plugin.socket());

    // Gone: writes go on until the seed expires, reads as long as the seed is in the cache.
    plugin.kill();
    both.until("no answer", LONGEST_VERDICT, |both| both.unanswered).await;
    assert!(!both.healthy().await);
    both.write("gone").await.unwrap();
    both.later(181).await;
    let [emulated_error, error] = both.write("expired").await.unwrap_err();
    assert!(emulated_error.contains("expired") && error.contains("expired"), "{emulated_error}; {error}");
    both.read("healthy", &stored).await.unwrap();
    let (name, value) = foreign.take();
    both.read(&name, &value).await.unwrap_err();

    // Back: the same seed serves again.
    fs::rename(&away, module_configuration).unwrap();
    let plugin = Plugin::start(&config).healthy().await;
    both.until("a good verdict", LONGEST_DIAL, |both| both.verdicts).await;
    both.write("back").await.unwrap();
    both.read(&name, &value).await.unwrap();
    let [emulated_calls, calls] = both.calls_of_each();
    assert_eq!((emulated_calls.encrypt, calls.encrypt), (1, 1));

    // Both start anew: one Encrypt, and one Decrypt for each seed that an object needs.
    let before = both.calls_of_each()[1];
    both.anew(&plugin).await;
    let (name, value) = foreign.take();
    for (name, value) in [("healthy", &emulated), ("healthy", &stored), (&name, &value), (&name, &value)] {
        both.read(name, value).await.unwrap();
    }
    let [emulated_calls, calls] = both.calls_of_each();
    assert_eq!(emulated_calls, Calls { status: 1, encrypt: 1, decrypt: 3 });
    assert_eq!(calls, Calls { status: before.status + 1, encrypt: before.encrypt + 1, decrypt: before.decrypt + 3 });
    assert_eq!(both.stack.end().code(), Some(0));
}

/// A good verdict is kept for 20 s; the stack's call may then take its 3 s.
const LONGEST_VERDICT: Duration = Duration::from_secs(25);
/// Longest pause between two of grpc-go's dials after an outage as short as this.
const LONGEST_DIAL: Duration = Duration::from_secs(40);
/// Between two looks: probes more often than any rule needs.
const PAUSE: Duration = Duration::from_millis(100);

/// An emulated API server and a real stack.
struct Both {
    server: ApiServer,
    stack: Running,
    /// How far on the machine's clock the emulator has come.
    clock: Instant,
    /// What they last said of their health.
    verdicts: [bool; 2],
    /// Whether the last verdict was that nobody answers.
    unanswered: [bool; 2],
}

impl Both {
    async fn start(plugin: &Plugin) -> Self {
        let server = emulate(plugin).await;
        let clock = Instant::now();
        let mut stack = API_SERVER_STACK.start(&["script"], plugin.socket());
        stack.wait_for("loaded");
        Self { server, stack, clock, verdicts: [false; 2], unanswered: [false; 2] }
    }

    /// New processes on both sides.
    async fn anew(&mut self, plugin: &Plugin) {
        self.server = emulate(plugin).await;
        self.clock = Instant::now();
        self.ask("fresh");
    }

    fn ask(&mut self, command: &str) -> Value {
        self.stack.say(command);
        self.stack.wait_for(command.split(' ').next().unwrap())
    }

    /// Lets the emulator's clock come to the machine's.
    async fn catch_up(&mut self) {
        let passed = self.clock.elapsed();
        self.server.advance(passed).await;
        self.clock += passed;
    }

    /// Moves the clock of both.
    async fn later(&mut self, seconds: u64) {
        self.server.advance(Duration::from_secs(seconds)).await;
        self.ask(&format!("later {seconds}"));
    }

    async fn look(&mut self) {
        self.catch_up().await;
        let emulated = self.server.readyz().await;
        let answer = self.ask("health");
        self.verdicts = [emulated.is_ok(), answer["done"] == true];
        let unanswered = matches!(emulated, Err(Fault::Unhealthy(reasons)) if reasons[0].starts_with("Status: "));
        self.unanswered =
            [unanswered, answer["error"].as_str().is_some_and(|error| error.contains("DeadlineExceeded"))];
    }

    /// The verdict of both.
    async fn healthy(&mut self) -> bool {
        self.look().await;
        assert_eq!(self.verdicts[0], self.verdicts[1], "emulator and stack");
        self.verdicts[0]
    }

    /// Asks for health, as a probe does, until both have come so far.
    async fn until(&mut self, what: &str, limit: Duration, reached: impl Fn(&mut Self) -> [bool; 2]) {
        let began = Instant::now();
        loop {
            self.look().await;
            let reached = reached(self);
            if reached == [true; 2] {
                return;
            }
            assert!(began.elapsed() < limit, "{what} within {limit:?}: emulator {}, stack {}", reached[0], reached[1]);
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// What each would store, or the error of each.
    async fn write(&mut self, name: &str) -> Result<[Vec<u8>; 2], [String; 2]> {
        self.catch_up().await;
        let emulated = self.server.write(&key(name), &plaintext_of(name));
        let answer = self.ask(&format!("write {name}"));
        match (emulated, answer["done"] == true) {
            (Ok(emulated), true) => Ok([emulated, bytes(&answer["stored"])]),
            (Err(fault), false) => Err([fault.to_string(), answer["error"].to_string()]),
            (emulated, _) => panic!("write {name}: emulator {emulated:?}, stack {answer}"),
        }
    }

    /// Reads a value under a name; neither may call it stale.
    async fn read(&mut self, name: &str, stored: &[u8]) -> Result<(), Fault> {
        self.catch_up().await;
        let emulated = self.server.read(&key(name), stored).await;
        let answer = self.ask(&format!("read {name} {}", BASE64.encode(stored)));
        match (emulated, answer["done"] == true) {
            (Ok(read), true) => {
                assert_eq!(read.plaintext, plaintext_of(name));
                assert_eq!(read.plaintext, bytes(&answer["plaintext"]));
                assert_eq!((read.stale, &answer["stale"]), (false, &Value::Bool(false)));
                Ok(())
            }
            (Err(fault), false) => Err(fault),
            (emulated, _) => panic!("read {name}: emulator {emulated:?}, stack {answer}"),
        }
    }

    /// The calls that were answered, which must be as many on both sides.
    fn calls(&mut self) -> Calls {
        let [emulated, calls] = self.calls_of_each();
        assert_eq!(emulated, calls, "emulator and stack");
        calls
    }

    fn calls_of_each(&mut self) -> [Calls; 2] {
        let answer = self.ask("calls");
        let count = |name: &str| u32::try_from(answer["calls"][name].as_u64().unwrap_or(0)).unwrap();
        let calls = Calls { status: count("Status OK"), encrypt: count("Encrypt OK"), decrypt: count("Decrypt OK") };
        [self.server.calls(0), calls]
    }
}

/// Values of API servers that are no more.
#[derive(Default)]
struct Foreign(Vec<(String, Vec<u8>)>);

impl Foreign {
    async fn write(&mut self, plugin: &Plugin) {
        let name = format!("foreign-{}", self.0.len());
        let stored = emulate(plugin).await.write(&key(&name), &plaintext_of(&name)).unwrap();
        self.0.push((name, stored));
    }

    fn take(&mut self) -> (String, Vec<u8>) {
        self.0.pop().unwrap()
    }
}

/// Both store the same kind of message, written the same way, under the same prefix.
fn compare_stored(emulated: &[u8], stored: &[u8]) {
    let prefix = format!("k8s:enc:kms:v2:{PROVIDER}:");
    let [emulated, stored] = [emulated, stored].map(|value| {
        let message = value.strip_prefix(prefix.as_bytes()).unwrap();
        let object = StoredValue::decode(message).unwrap();
        assert_eq!(object.encode_to_vec(), message);
        object
    });
    assert_eq!(emulated.key_id, stored.key_id);
    assert_eq!(emulated.annotations, stored.annotations);
    assert_eq!(emulated.encrypted_dek_source_type, stored.encrypted_dek_source_type);
    assert_eq!(emulated.encrypted_dek_source.len(), stored.encrypted_dek_source.len());
    assert_eq!(emulated.encrypted_data.len(), stored.encrypted_data.len());
}

/// Waits until the plugin says that it is not healthy.
async fn unhealthy(plugin: &Plugin) {
    let mut client = plugin.client().await;
    let deadline = Instant::now() + LONGEST_VERDICT;
    while client.status(StatusRequest {}).await.unwrap().get_ref().healthz == "ok" {
        assert!(Instant::now() < deadline, "the plugin stays healthy");
        tokio::time::sleep(PAUSE).await;
    }
}

fn key(name: &str) -> String {
    format!("{FOLDER}{name}")
}

fn bytes(text: &Value) -> Vec<u8> {
    BASE64.decode(text.as_str().unwrap().as_bytes()).unwrap()
}
