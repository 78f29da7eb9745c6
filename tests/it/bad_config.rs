//! Files and inputs that cannot be used: three lines, the documented exit code, and nothing served.

use std::fs;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use hsm_kms::kms::proto::{EncryptRequest, StatusRequest};
use serde_json::{Value, json};

use crate::harness::{Config, Plugin, TestToken, run_ceremony, wait_for};
use crate::refusal::{refusal, serve_refuses};

const EXAMPLE: &str = include_str!("../../docs/examples/config.yaml");

#[test]
fn configurations_that_are_not_exactly_right_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.yaml");
    for (old, new, why, hint) in [
        ("  queue:", "  qeue:", "line 18, column 3: unknown key `limits.qeue`", "did you mean `queue`?"),
        ("log:", "logs:", "line 20, column 1: unknown key `logs`", "did you mean `log`?"),
        ("sessions: 2", "sessions: four", "line 17, column 13: `limits.sessions`", "correct the value"),
        ("sessions: 2", "sessions: 65", "`limits.sessions`", "correct the value"),
        ("trial: false", "trial: \"yes\"", "`kek.allow_trial`: expected a boolean", "correct the value"),
        ("  queue:", "\tqueue:", "tab at line 18", "replace each tab by spaces"),
        ("# Conf", "\u{feff}# Conf", "line 1: the file begins with a byte-order mark", "without a byte-order mark"),
        ("cluster:", "version: 1\ncluster:", "line 3, column 1: duplicate key `version`", "keep one of the two"),
        ("cluster: prod-eu-1\n", "", "missing key `cluster`", "add the key"),
        ("version: 1", "version: 2", "version 2 is not known, this release reads version 1", "a later one"),
        ("cluster: prod-eu-1", "cluster: [prod", "line ", "correct the line"),
        ("log:", "---\nlog:", "more than one YAML document", "keep one document"),
        ("profile: softhsm2", "profile: nshield", "unknown profile", ""),
        ("pin: { file: /etc/hsm-kms/pin }", "pin: 72659431", "`token.pin`", "correct the value"),
    ] {
        assert!(EXAMPLE.contains(old), "{old}");
        fs::write(&path, EXAMPLE.replacen(old, new, 1)).unwrap();
        let refusal = serve_refuses(&path, why);
        assert_eq!(refusal.error, "the configuration cannot be used");
        assert!(refusal.why.contains(path.to_str().unwrap()) && refusal.hint.contains(hint), "{}", refusal.text);
        assert!(!refusal.text.contains("72659431"), "what may be a PIN was printed");
    }
    for (content, why) in [
        (&b""[..], "the file is empty"),
        (b"\n\n# nothing\n", "the file is empty"),
        (b"version: \xff\n", "line 1: the file is not UTF-8 text"),
        ("#".repeat(70_000).as_bytes(), "the file has more than 65536 bytes"),
    ] {
        fs::write(&path, content).unwrap();
        serve_refuses(&path, why);
    }
    serve_refuses(&folder.path().join("nothing.yaml"), "the file cannot be read");
    serve_refuses(folder.path(), "the file cannot be read");
}

#[test]
fn records_that_cannot_be_served_are_refused() {
    let served = Served::new();
    let record = served.record.to_string();
    let refuses = |content: &str, why: &str| {
        fs::write(&served.edited, content).unwrap();
        let refusal = serve_refuses(served.config().write(), why);
        assert!(refusal.error.starts_with("the KEK record ") && refusal.error.ends_with(" cannot be used"));
    };
    refuses("", "the file is empty");
    for length in (1..record.len()).step_by(record.len() / 20) {
        refuses(&record[..length], "line ");
    }
    refuses(&served.with("/cluster", json!("other")), "it is for cluster \"other\", the configuration says \"test\"");
    refuses(&served.with("/version", json!(2)), "version 2 is not known");
    refuses(&served.with("/kind", json!("other")), "`kind`");
    refuses(&served.with("/kind", json!("production")), "`witnessed`");
    refuses(&served.with("/recovery", json!("copies")), "`recovery`");
    refuses(&served.witnessed("rehearsal", 2), "in a rehearsal");
    refuses(&served.witnessed("production", 1), "proved no copies of the KEK and names no recovery recipient");
    refuses(&served.with("/recovery", json!("some")), "`recovery`");
    refuses(&served.with("/proofs", json!([])), "`proofs`");
    refuses(&record.replacen("\"cluster\"", "\"clutser\"", 1), "unknown key `clutser`");
    refuses(&record.replacen("{\"", "{\"recovery\": \"none\", \"", 1), "duplicate key `recovery`");
    refuses("[]", "line 1");

    fs::remove_file(&served.edited).unwrap();
    serve_refuses(served.config().write(), "the file cannot be read");
    fs::write(&served.edited, &record).unwrap();
    let mut config = served.config();
    config.value["kek"]["allow_trial"] = json!(false);
    let refusal = serve_refuses(config.write(), "as a trial");
    assert!(refusal.hint.contains("kek.allow_trial"), "{}", refusal.text);
    let mut config = served.config();
    config.value["cluster"] = json!("other");
    serve_refuses(config.write(), "it is for cluster \"test\", the configuration says \"other\"");
}

#[tokio::test]
async fn a_witnessed_kek_is_served_with_copies_or_with_the_loss_accepted() {
    let served = Served::new();
    for (copies, accept) in [(2, false), (0, true)] {
        fs::write(&served.edited, served.witnessed("production", copies)).unwrap();
        let mut config = served.config();
        config.value["kek"]["allow_trial"] = json!(false);
        config.value["kek"]["accept_data_loss"] = json!(accept);
        let mut plugin = Plugin::start(&config).healthy().await;
        assert_eq!(plugin.stop().await.code(), Some(0), "{copies} copies");
    }
}

/// Fields that only tell how the KEK was made. A new module or firmware must not stop a plugin, and nothing but a signature
/// could protect the others, which this version of the record does not have.
const NOTES: [&str; 11] = [
    "/ceremony/time",
    "/ceremony/tool",
    "/deviations",
    "/module/library",
    "/module/library_version",
    "/module/sha256",
    "/profile",
    "/token/firmware",
    "/token/label",
    "/token/manufacturer",
    "/token/model",
];

#[tokio::test]
async fn a_record_with_any_field_of_the_key_edited_is_not_served() {
    let served = Served::new();
    let mut leaves = Vec::new();
    leaves_of(&served.record, String::new(), &mut leaves);
    assert!(leaves.len() > 40, "{leaves:?}");
    let mut tried = 0;
    for leaf in leaves.iter().filter(|leaf| !NOTES.contains(&leaf.as_str())) {
        for value in edits(leaf, served.record.pointer(leaf).unwrap()) {
            fs::write(&served.edited, served.with(leaf, value.clone())).unwrap();
            served.is_not_served(&format!("{leaf} is {value}")).await;
            tried += 1;
        }
    }
    assert!(tried > 40, "{tried}");
    // Each half is true, but they do not belong together.
    let mut swapped = served.record.clone();
    swapped["proofs"][0]["blob"] = served.record["proofs"][1]["blob"].clone();
    fs::write(&served.edited, swapped.to_string()).unwrap();
    served.is_not_served("a proof's blob is another's").await;
}

#[tokio::test]
async fn a_record_with_its_notes_edited_is_served() {
    let served = Served::new();
    for leaf in NOTES {
        let value = match leaf {
            "/ceremony/time" => json!("2020-01-01T00:00:00Z"),
            "/deviations" => json!(["CKA_COPYABLE was permitted"]),
            "/module/sha256" => json!("0".repeat(64)),
            _ => json!("another"),
        };
        fs::write(&served.edited, served.with(leaf, value)).unwrap();
        let mut plugin = Plugin::start(&served.config()).healthy().await;
        assert_eq!(plugin.stop().await.code(), Some(0), "{leaf}");
    }
}

#[tokio::test]
async fn call_refuses_what_is_not_its_own_output() {
    let good = json!({"ciphertext": "aGttcw==", "key_id": "hsm1-0", "annotations": {}});
    let edited = |place: &str, value: Value| {
        let mut edited = good.clone();
        set(&mut edited, place, value);
        edited.to_string()
    };
    for input in [
        String::new(),
        "SECRET".to_owned(),
        "[]".to_owned(),
        "{}".to_owned(),
        "null".to_owned(),
        good.to_string().trim_end_matches('}').to_owned(),
        format!("{good}{good}"),
        edited("/more", json!(1)),
        edited("/ciphertext", json!("SECRET!")),
        edited("/ciphertext", json!(["SECRET"])),
        edited("/key_id", json!(7)),
        edited("/annotations/a.b", json!("SECRET!")),
        edited("/annotations", json!("SECRET")),
        " ".repeat((1 << 20) + 1),
    ] {
        let refusal = refusal(&["call", "decrypt", "--socket", "/nonexistent/kms.sock"], input.as_bytes());
        assert_eq!(refusal.code, 2, "{}", refusal.text);
        assert_eq!(refusal.error, "cannot use the input");
        assert!(!refusal.text.contains("SECRET"), "{}", refusal.text);
    }

    // No plugin: a missing socket, one that is stale, and a file.
    let folder = tempfile::tempdir().unwrap();
    let [missing, stale, file] = ["missing", "stale", "file"].map(|name| folder.path().join(name));
    drop(UnixListener::bind(&stale).unwrap());
    fs::write(&file, "").unwrap();
    for socket in [missing, stale, file] {
        let socket = socket.to_str().unwrap();
        let calls: [(&[&str], &[u8]); 3] =
            [(&["status"], b""), (&["encrypt"], b"seed"), (&["decrypt"], &good_bytes(&good))];
        for (method, input) in calls {
            let refusal = refusal(&[&["call"], method, &["--socket", socket, "--timeout", "1"]].concat(), input);
            assert_eq!(refusal.code, 3, "{}", refusal.text);
            assert!(refusal.error.contains(socket), "{}", refusal.text);
        }
    }
}

fn good_bytes(good: &Value) -> Vec<u8> {
    good.to_string().into_bytes()
}

/// A token with a KEK, and a configuration that names an edited copy of its record.
struct Served {
    token: TestToken,
    record: Value,
    edited: PathBuf,
}

impl Served {
    fn new() -> Self {
        let token = TestToken::new();
        let record = run_ceremony(&token, token.directory());
        let record = serde_json::from_slice(&fs::read(record).unwrap()).unwrap();
        let edited = token.directory().join("edited.json");
        Self { token, record, edited }
    }

    fn config(&self) -> Config {
        Config::new(&self.token, &self.edited, "edited")
    }

    /// The record with another value at one place.
    fn with(&self, place: &str, value: Value) -> String {
        let mut record = self.record.clone();
        *record.pointer_mut(place).unwrap() = value;
        record.to_string()
    }

    /// The record as if people had held the ceremony and proved this many copies.
    fn witnessed(&self, kind: &str, copies: usize) -> String {
        let copy = |number| json!({"serial": format!("copy-{number}"), "library": "Implementation of PKCS11"});
        let mut record = self.record.clone();
        record["kind"] = json!(kind);
        record["recovery"] = json!(if copies >= 2 { "copies" } else { "none" });
        record["witnessed"] = json!({
            "plan_sha256": "0".repeat(64),
            "transcript_head": "1".repeat(64),
            "origin": "generated",
            "people": [{"name": "Ada Lovelace", "role": "administrator"}],
            "copies": (0..copies).map(copy).collect::<Vec<_>>(),
            "exceptions": [],
        });
        record.to_string()
    }

    /// The edited record is refused at the start, or the plugin is unhealthy and seals nothing.
    async fn is_not_served(&self, edit: &str) {
        let config = self.config();
        let Some(_plugin) = Quiet::start(&config) else { return };
        let mut client = hsm_kms::kms::client::connect(&config.socket(), Duration::from_secs(5)).await.unwrap();
        let began = Instant::now();
        let healthz = loop {
            let healthz = client.status(StatusRequest {}).await.unwrap().into_inner().healthz;
            if !healthz.starts_with("starting") {
                break healthz;
            }
            assert!(began.elapsed() < Duration::from_secs(20), "{edit}: {healthz}");
            tokio::time::sleep(Duration::from_millis(2)).await;
        };
        assert_ne!(healthz, "ok", "{edit} and the record is served");
        let request = EncryptRequest { plaintext: vec![7; 32].into(), uid: "edited".to_owned() };
        client.encrypt(request).await.unwrap_err();
    }
}

/// A plugin that may refuse to start. Killed when it goes.
struct Quiet(Child);

impl Quiet {
    /// The plugin once it listens; `None` if it refused to start, with exit code 2.
    fn start(config: &Config) -> Option<Self> {
        let mut command = Command::new(env!("CARGO_BIN_EXE_hsm-kms"));
        command.args(["serve", "--config"]).arg(config.write());
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let mut plugin = Self(child);
        let refused = wait_for("the socket", || match plugin.0.try_wait().unwrap() {
            None => UnixStream::connect(config.socket()).ok().map(|_| None),
            ended => Some(ended),
        });
        refused.map_or(Some(plugin), |status| {
            assert_eq!(status.code(), Some(2));
            None
        })
    }
}

impl Drop for Quiet {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// All places of a record with a value of their own. Lists of numbers or texts are one value.
fn leaves_of(value: &Value, place: String, leaves: &mut Vec<String>) {
    match value {
        Value::Object(members) => {
            for (name, member) in members {
                leaves_of(member, format!("{place}/{name}"), leaves);
            }
        }
        Value::Array(members) if members.first().is_some_and(Value::is_object) => {
            for (position, member) in members.iter().enumerate() {
                leaves_of(member, format!("{place}/{position}"), leaves);
            }
        }
        _ => leaves.push(place),
    }
}

/// Other values for this place that are well-formed, where there are any.
fn edits(place: &str, value: &Value) -> Vec<Value> {
    if place.starts_with("/kek/attributes/") {
        let other = match value {
            Value::Bool(flag) => json!(!flag),
            Value::Number(number) => json!(number.as_u64().unwrap() + 1),
            Value::Array(_) => json!([0x1082]),
            _ => json!(true),
        };
        let third = if *value == "unavailable" { json!(false) } else { json!("unavailable") };
        return vec![other, third];
    }
    if place.ends_with("/blob") {
        let mut blob = data_encoding::BASE64.decode(value.as_str().unwrap().as_bytes()).unwrap();
        *blob.last_mut().unwrap() ^= 1;
        return vec![json!(data_encoding::BASE64.encode(&blob))];
    }
    match (place, value) {
        ("/token/serial", _) => vec![json!("0000000000000000"), json!("")],
        (_, Value::String(text)) => {
            // Hex, names and words alike: another last letter, which is also a hex digit.
            let last = if text.ends_with('0') { '1' } else { '0' };
            vec![json!(format!("{}{last}", &text[..text.len() - 1]))]
        }
        (_, Value::Number(number)) => vec![json!(number.as_u64().unwrap() + 1)],
        other => panic!("no edit for {other:?}"),
    }
}

/// Puts a value at a place that may not be there yet.
fn set(value: &mut Value, place: &str, new: Value) {
    let (parent, name) = place.rsplit_once('/').unwrap();
    value.pointer_mut(parent).unwrap()[name] = new;
}
