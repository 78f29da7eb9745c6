//! What is counted, in the text format of `OpenMetrics`. Names and labels are public: docs/metrics.md lists them, and a test compares.

use std::borrow::Cow;
use std::sync::LazyLock;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

/// The metrics of this process.
pub static METRICS: LazyLock<Metrics> = LazyLock::new(Metrics::default);

/// All that is counted while requests run. What is only looked at stands in [`Snapshot`].
pub struct Metrics {
    requests: Family<RequestLabels, Counter>,
    durations: Family<MethodLabels, Histogram, fn() -> Histogram>,
    hsm_failures: Family<FailureLabels, Counter>,
    worker_starts: Family<StartLabels, Counter>,
    failovers: Counter,
    joined: Counter,
    reloads: Family<ReloadLabels, Counter>,
    seals: Family<SealLabels, Counter>,
    rewrapped: Counter,
    audit_lost: Counter,
    calls: Family<CallLabels, Counter>,
    call_durations: Family<FunctionLabels, Histogram, fn() -> Histogram>,
    logins: Family<LoginLabels, Counter>,
    connections_refused: Family<RefusalLabels, Counter>,
}

/// What is true at the moment of the question.
pub struct Snapshot {
    /// Hash of the key_id that Status announces, as the API server's metrics print it.
    pub key_id_hash: String,
    /// Activations of all KEKs so far.
    pub epoch: u64,
    /// What is served is the keyring file as it is.
    pub is_current: bool,
    /// What Status says is `ok`.
    pub is_healthy: bool,
    /// Requests that wait for a token or run on it.
    pub waiting: usize,
    /// Whether the audit log is written, if there is one.
    pub audit: Option<bool>,
    /// When the KEK that seals became active, in seconds since 1970.
    pub activated: Option<i64>,
    /// Each token, in the order of the list.
    pub tokens: Vec<TokenSnapshot>,
    /// Each recovery recipient of the KEK that seals: fingerprint and scheme.
    pub recipients: Vec<(String, &'static str)>,
    /// When one of their keys last proved to work, in seconds since 1970.
    pub recovery_drill: Option<i64>,
}

/// How a token stands.
pub struct TokenSnapshot {
    /// Its label, as configured.
    pub label: String,
    /// As docs/resilience.md draws it.
    pub state: TokenState,
    /// It serves, and requests had better go there.
    pub is_sound: bool,
    /// No PIN is tried there before the operator's word.
    pub is_pin_held_back: bool,
    /// Sessions that serve.
    pub sessions: usize,
    /// How long ago the KEK did its work there.
    pub proved_ago: Option<Duration>,
}

/// The states that docs/resilience.md draws.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[allow(missing_docs, reason = "docs/resilience.md has them")]
pub enum TokenState {
    Starting,
    Ready,
    Faulty,
    Down,
    Stopped,
}

impl TokenState {
    const ALL: [(Self, &str); 5] = [
        (Self::Starting, "starting"),
        (Self::Ready, "ready"),
        (Self::Faulty, "faulty"),
        (Self::Down, "down"),
        (Self::Stopped, "stopped"),
    ];
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct CallLabels {
    position: u64,
    function: &'static str,
    code: &'static str,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct FunctionLabels {
    position: u64,
    function: &'static str,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct LoginLabels {
    token: String,
    position: u64,
    outcome: &'static str,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct RefusalLabels {
    reason: &'static str,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct StateLabels {
    token: String,
    position: u64,
    state: &'static str,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct RequestLabels {
    method: &'static str,
    code: Cow<'static, str>,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct MethodLabels {
    method: &'static str,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct FailureLabels {
    token: String,
    position: u64,
    class: &'static str,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct StartLabels {
    token: String,
    position: u64,
    outcome: &'static str,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct ReloadLabels {
    outcome: &'static str,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct SealLabels {
    cka_id: String,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct TokenLabels {
    token: String,
    /// Place in the list, from 0: two tokens may have one label.
    position: u64,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct RecipientLabels {
    fingerprint: String,
    scheme: &'static str,
}

/// Upper bounds in seconds, up to the longest deadline.
const BUCKETS: [f64; 12] = [0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05, 0.25, 1.0, 2.0, 3.0];

/// Why a connection is refused: another user, too many, nobody knows whose.
pub const REFUSALS: [&str; 3] = ["this user may not connect", "too many are open", "its user is unknown"];

impl Default for Metrics {
    fn default() -> Self {
        let metrics = Self {
            requests: Family::default(),
            durations: Family::new_with_constructor(|| Histogram::new(BUCKETS)),
            hsm_failures: Family::default(),
            worker_starts: Family::default(),
            failovers: Counter::default(),
            joined: Counter::default(),
            reloads: Family::default(),
            seals: Family::default(),
            rewrapped: Counter::default(),
            audit_lost: Counter::default(),
            calls: Family::default(),
            call_durations: Family::new_with_constructor(|| Histogram::new(BUCKETS)),
            logins: Family::default(),
            connections_refused: Family::default(),
        };
        // There from the beginning, so that the first of each is seen as an increase.
        for outcome in ["served", "refused"] {
            drop(metrics.reloads.get_or_create(&ReloadLabels { outcome }));
        }
        for reason in REFUSALS {
            drop(metrics.connections_refused.get_or_create(&RefusalLabels { reason }));
        }
        metrics
    }
}

impl Metrics {
    /// An RPC ended with this code, `OK` or a name of `tonic::Code`.
    pub fn request(&self, method: &'static str, code: Cow<'static, str>, duration: Duration) {
        self.requests.get_or_create(&RequestLabels { method, code }).inc();
        let durations = self.durations.get_or_create(&MethodLabels { method });
        durations.observe(duration.as_secs_f64());
    }

    /// A PKCS#11 call failed for good, or a start did, on the token with this label at this place in the list, from 0.
    pub fn hsm_failure(&self, token: &str, position: u64, class: &'static str) {
        self.hsm_failures.get_or_create(&FailureLabels { token: token.to_owned(), position, class }).inc();
    }

    /// A worker was started, and came to serve or did not.
    pub fn worker_start(&self, token: &str, position: u64, serves: bool) {
        let outcome = if serves { "served" } else { "failed" };
        self.worker_starts.get_or_create(&StartLabels { token: token.to_owned(), position, outcome }).inc();
    }

    /// Requests began to go to another token.
    pub fn failover(&self) {
        self.failovers.inc();
    }

    /// A request got the answer of an identical one.
    pub fn joined(&self) {
        self.joined.inc();
    }

    /// A changed keyring file is served from now on, or was refused.
    pub fn reload(&self, served: bool) {
        let outcome = if served { "served" } else { "refused" };
        self.reloads.get_or_create(&ReloadLabels { outcome }).inc();
    }

    /// The KEK with this `CKA_ID` is about to seal.
    pub fn seal(&self, cka_id: &str) {
        self.seals.get_or_create(&SealLabels { cka_id: cka_id.to_owned() }).inc();
    }

    /// A seed of a lost KEK was opened through the rewrap table.
    pub fn rewrapped(&self) {
        self.rewrapped.inc();
    }

    /// A PKCS#11 call returned, in a worker of the token at this place in the list.
    pub fn call(&self, position: u64, function: &'static str, code: &'static str, duration: Duration) {
        self.calls.get_or_create(&CallLabels { position, function, code }).inc();
        let durations = self.call_durations.get_or_create(&FunctionLabels { position, function });
        durations.observe(duration.as_secs_f64());
    }

    /// A worker tried to log in.
    pub fn login(&self, token: &str, position: u64, outcome: &'static str) {
        self.logins.get_or_create(&LoginLabels { token: token.to_owned(), position, outcome }).inc();
    }

    /// A connection was closed before a byte was read.
    pub fn connection_refused(&self, reason: &'static str) {
        self.connections_refused.get_or_create(&RefusalLabels { reason }).inc();
    }

    /// A line of the audit log was lost.
    pub fn audit_lost(&self) {
        self.audit_lost.inc();
    }

    /// Everything, in the text format of `OpenMetrics` 1.0.
    pub fn text(&self, snapshot: &Snapshot) -> String {
        let mut registry = Registry::with_prefix("hsm_kms");
        registry.register("requests", "RPCs answered, by method and gRPC code", self.requests.clone());
        registry.register_with_unit("request_duration", "Time to the answer", Unit::Seconds, self.durations.clone());
        registry.register("hsm_failures", "Failures of a token, by class", self.hsm_failures.clone());
        registry.register("worker_starts", "Worker processes started", self.worker_starts.clone());
        registry.register("failovers", "Changes to another token because one failed", self.failovers.clone());
        registry.register("joined_requests", "Opens that got the answer of an identical one", self.joined.clone());
        registry.register("keyring_reloads", "Changed keyring files, by what became of them", self.reloads.clone());
        registry.register("seals", "Seals begun, by CKA_ID of the KEK", self.seals.clone());
        let help = "Decrypts of a lost KEK's seeds, answered through the rewrap table";
        registry.register("rewrap_table_decrypts", help, self.rewrapped.clone());
        registry.register("audit_lost", "Lines of the audit log that could not be written", self.audit_lost.clone());
        if let Some(is_writing) = snapshot.audit {
            let help = "1 while the audit log is written, 0 while lines are lost";
            gauge(&mut registry, "audit_writing", help, is_writing.into());
        }
        registry.register("pkcs11_calls", "PKCS#11 calls that returned, by function and code", self.calls.clone());
        let durations = self.call_durations.clone();
        registry.register_with_unit("pkcs11_call_duration", "Time in the vendor's module", Unit::Seconds, durations);
        registry.register("logins", "Logins to a token, by what became of them", self.logins.clone());
        let refused = self.connections_refused.clone();
        registry.register("connections_refused", "Connections closed before a byte was read", refused);
        let epoch = i64::try_from(snapshot.epoch).unwrap_or(i64::MAX);
        gauge(&mut registry, "keyring_epoch", "Activations of all KEKs so far", epoch);
        let help = "1 while the keyring file is served, 0 while it is refused";
        gauge(&mut registry, "keyring_current", help, snapshot.is_current.into());
        let waiting = i64::try_from(snapshot.waiting).unwrap_or(i64::MAX);
        gauge(&mut registry, "waiting_requests", "Requests that wait for a token or run on it", waiting);
        gauge(&mut registry, "healthy", "1 while Status says ok", snapshot.is_healthy.into());
        register_tokens(&mut registry, &snapshot.tokens);
        let help = "How many offline keys each new seed is also sealed to";
        let count = i64::try_from(snapshot.recipients.len()).unwrap_or(i64::MAX);
        gauge(&mut registry, "recovery_recipients", help, count);
        let recipients = Family::<RecipientLabels, Gauge>::default();
        for (fingerprint, scheme) in &snapshot.recipients {
            let labels = RecipientLabels { fingerprint: fingerprint.clone(), scheme };
            recipients.get_or_create(&labels).set(1);
        }
        registry.register("recovery_recipient_info", "Offline keys that seeds are also sealed to", recipients);
        if let Some(time) = snapshot.recovery_drill {
            let help = "When a recovery key last opened what this plugin had sealed; absent if it is not known";
            timestamp(&mut registry, "recovery_drill_timestamp", help, time);
        }
        if let Some(time) = snapshot.activated {
            let help = "When the KEK that seals became active; without a keyring, when it was made";
            timestamp(&mut registry, "kek_activated_timestamp", help, time);
        }
        let info = Family::<Vec<(String, String)>, Gauge>::default();
        let labels = vec![
            ("key_id_hash".to_owned(), snapshot.key_id_hash.clone()),
            ("version".to_owned(), env!("CARGO_PKG_VERSION").to_owned()),
        ];
        info.get_or_create(&labels).set(1);
        registry.register("info", "The KEK that new seeds are sealed with, and this release", info);
        let mut text = String::new();
        // Writing into a String does not fail.
        let _ = encode(&mut text, &registry);
        text
    }
}

fn gauge(registry: &mut Registry, name: &str, help: &str, value: i64) {
    let gauge = Gauge::<i64>::default();
    gauge.set(value);
    registry.register(name, help, gauge);
}

fn timestamp(registry: &mut Registry, name: &str, help: &str, seconds: i64) {
    let gauge = Gauge::<i64>::default();
    gauge.set(seconds);
    registry.register_with_unit(name, help, Unit::Seconds, gauge);
}

fn register_tokens(registry: &mut Registry, tokens: &[TokenSnapshot]) {
    type Ages = Family<TokenLabels, Gauge<f64, AtomicU64>>;
    let [up, held_back, sessions] = [0; 3].map(|_| Family::<TokenLabels, Gauge>::default());
    let (states, ages) = (Family::<StateLabels, Gauge>::default(), Ages::default());
    for (position, token) in (0..).zip(tokens) {
        let labels = TokenLabels { token: token.label.clone(), position };
        up.get_or_create(&labels).set(token.is_sound.into());
        held_back.get_or_create(&labels).set(token.is_pin_held_back.into());
        sessions.get_or_create(&labels).set(i64::try_from(token.sessions).unwrap_or(i64::MAX));
        if let Some(proved_ago) = token.proved_ago {
            ages.get_or_create(&labels).set(proved_ago.as_secs_f64());
        }
        for (state, word) in TokenState::ALL {
            let labels = StateLabels { token: token.label.clone(), position, state: word };
            states.get_or_create(&labels).set((token.state == state).into());
        }
    }
    registry.register("token_up", "1 while the token serves without a fault", up);
    registry.register("token_state", "1 for the state that the token is in", states);
    registry.register("pin_held_back", "1 while no PIN is tried before the operator's word", held_back);
    registry.register("sessions", "PKCS#11 sessions that serve", sessions);
    registry.register_with_unit("proof_age", "Since the KEK last did its work there", Unit::Seconds, ages);
}
