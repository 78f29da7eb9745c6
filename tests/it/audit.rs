//! The audit log of a running plugin: what is in it, what becomes of it when the disk is full, and what is noticed when it is changed.

use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use hsm_kms::kms::client::Client;
use hsm_kms::kms::proto::{DecryptRequest, EncryptRequest, StatusRequest};
use rustix::process::{Resource, Rlimit, prlimit};
use serde_json::{Value, json};
use tonic::Code;

use crate::failover::{Pair, SEED, decrypt, encrypt};
use crate::faults::{WRONG_PIN, until};
use crate::handover::get;
use crate::harness::{
    Config, Plugin, TestToken, free_address, program, run, run_ceremony, text, wait_for, write_secret,
};
use crate::refusal::serve_refuses;

/// A plugin with a chained audit log.
struct Audited {
    token: TestToken,
    config: Config,
    path: PathBuf,
}

impl Audited {
    fn new() -> Self {
        let token = TestToken::new();
        let record = run_ceremony(&token, token.directory());
        let mut config = Config::new(&token, &record, "plugin");
        let path = token.directory().join("audit.log");
        config.value["audit"] = json!({"to": path, "chain": true});
        Self { token, config, path }
    }

    async fn start(&self) -> (Plugin, Client) {
        let plugin = Plugin::start(&self.config).healthy().await;
        let client = plugin.client().await;
        (plugin, client)
    }
}

/// The lines so far: none before the file is there, since the socket comes first.
fn lines(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn of<'a>(lines: &'a [Value], event: &str) -> Vec<&'a Value> {
    lines.iter().filter(|line| line["event"] == event).collect()
}

fn wait_for_line(path: &Path, event: &str) -> Value {
    wait_for(event, || of(&lines(path), event).first().map(|line| (*line).clone()))
}

fn verify(arguments: &[&str]) -> Output {
    run(&[&["audit", "verify"], arguments].concat(), b"")
}

#[tokio::test]
async fn each_event_is_a_line_and_any_change_is_noticed() {
    let audited = Audited::new();
    let (mut plugin, mut client) = audited.start().await;
    let hostile = format!("\u{1b}[2J\u{202e}\n{{\"event\":\"stop\"}}{}", "é".repeat(4000));
    let request = EncryptRequest { plaintext: SEED.to_vec().into(), uid: hostile.clone() };
    let sealed = client.encrypt(request).await.unwrap().into_inner();
    assert_eq!(decrypt(&mut client, &sealed).await.unwrap(), SEED);
    let mut foreign = sealed.clone();
    foreign.key_id = format!("hsm1-{}", "0".repeat(40));
    assert_eq!(decrypt(&mut client, &foreign).await.unwrap_err().code(), Code::NotFound);
    assert_eq!(plugin.stop().await.code(), Some(0));

    let found = fs::metadata(&audited.path).unwrap();
    assert_eq!(found.permissions().mode() & 0o7777, 0o600);
    let written = fs::read(&audited.path).unwrap();
    assert!(written.iter().all(|byte| matches!(byte, b' '..=b'~' | b'\n')));
    for secret in [&SEED[..], &sealed.ciphertext, &fs::read(&audited.token.pin).unwrap()] {
        assert!(!written.windows(secret.len()).any(|window| window == secret));
    }
    let found = lines(&audited.path);
    let events: Vec<_> = found.iter().map(|line| line["event"].as_str().unwrap()).collect();
    assert_eq!(events, ["start", "keyring", "login", "encrypt", "decrypt", "decrypt", "stop"]);
    let own = (rustix::process::geteuid().as_raw(), std::process::id());
    for line in &found[3..6] {
        assert_eq!((&line["peer_uid"], &line["peer_pid"]), (&own.0.into(), &own.1.into()), "{line}");
        assert!(line["duration_us"].as_u64().unwrap() > 0);
    }
    assert!(hostile.starts_with(found[3]["uid"].as_str().unwrap()) && found[3]["uid"].as_str().unwrap().len() <= 64);
    assert_eq!(
        (&found[3]["code"], &found[3]["token"], &found[3]["position"]),
        (&"OK".into(), &"kek".into(), &0.into())
    );
    assert_eq!(found[3]["key_id_hash"], hsm_kms::key_id::hash(&sealed.key_id));
    assert_eq!((&found[5]["code"], &found[5]["token"]), (&"NotFound".into(), &Value::Null));
    assert_eq!((&found[2]["outcome"], &found[2]["failure"]), (&"passed".into(), &Value::Null));

    // Another run goes on with the chain; the head is in the other log.
    let (mut plugin, _) = audited.start().await;
    plugin.stop().await;
    let path = text(&audited.path);
    let log = plugin.log();
    let head = log.rsplit("head=\"").next().unwrap().split('"').next().unwrap();
    let verified = verify(&["--head", head, &path]);
    assert_eq!(verified.status.code(), Some(0), "{verified:?}");
    let said = String::from_utf8(verified.stdout).unwrap();
    assert!(said.starts_with("the chain holds: 11 lines\n") && said.contains(head), "{said}");
    assert!(said.lines().all(|line| line.chars().count() <= 80), "{said}");

    let original = fs::read_to_string(&audited.path).unwrap();
    let code = |text: String, arguments: &[&str]| {
        fs::write(&audited.path, text).unwrap();
        let output = verify(arguments);
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let (changed, why) = code(original.replacen("\"OK\"", "\"KO\"", 1), &[&path]);
    assert!(changed == Some(1) && why.contains("audit.log, line 5: it does not follow"), "{why}");
    let without = original.lines().enumerate().filter(|(number, _)| *number != 4);
    let (removed, why) = code(without.map(|(_, line)| line.to_owned() + "\n").collect(), &[&path]);
    assert!(removed == Some(1) && why.contains("line 5: it does not follow"), "{why}");
    let shorter: String = original.lines().take(9).map(|line| line.to_owned() + "\n").collect();
    assert_eq!(code(shorter.clone(), &[&path]).0, Some(0));
    let (cut, why) = code(shorter, &["--head", head, &path]);
    assert!(cut == Some(1) && why.contains("no line has the hash"), "{why}");
    assert_eq!(code(original.clone(), &["--head", "sha256:00", &path]).0, Some(2));
    assert_eq!(code(original.clone(), &[&path, "/nonexistent"]).0, Some(2));

    // Power fails while a line is written.
    fs::write(&audited.path, &original[..original.len() - 40]).unwrap();
    let (mut plugin, _) = audited.start().await;
    plugin.stop().await;
    let verified = verify(&[&path]);
    assert!(
        verified.status.success() && String::from_utf8_lossy(&verified.stdout).contains("\ntorn:    1,"),
        "{verified:?}"
    );
    assert!(plugin.log().contains("the last line of the audit log is torn"));
}

/// The disk is full: `RLIMIT_FSIZE` of the running plugin, which `write` answers with EFBIG.
#[tokio::test]
async fn a_full_disk_is_never_silent() {
    let mut audited = Audited::new();
    let address = free_address();
    audited.config.value["endpoints"] = json!(address);
    // So that the limit is met by the audit log, and not by the other one.
    audited.config.value["audit"]["chain"] = json!(false);
    let padding = "{\"event\":\"padding\"}\n".repeat(50_000);
    let full = |plugin: &Plugin, room: Option<u64>| {
        let current = room.map(|room| fs::metadata(&audited.path).unwrap().len() + room);
        prlimit(Some(plugin.pid()), Resource::Fsize, Rlimit { current, maximum: None }).unwrap();
    };
    let metric = |name: &str| {
        let metrics = get(&address, "/metrics").1;
        let line = metrics.lines().find_map(|line| line.strip_prefix(&format!("{name} "))).map(ToOwned::to_owned);
        line.unwrap_or_else(|| panic!("{name}: {metrics}"))
    };
    fs::write(&audited.path, &padding).unwrap();
    fs::set_permissions(&audited.path, fs::Permissions::from_mode(0o600)).unwrap();

    for on_full in ["continue", "stop"] {
        let mut config = Config::new(&audited.token, Path::new(""), on_full);
        config.value.clone_from(&audited.config.value);
        config.value["audit"]["on_full"] = json!(on_full);
        let mut plugin = Plugin::start(&config).healthy().await;
        let mut client = plugin.client().await;
        let sealed = encrypt(&mut client).await.unwrap();
        assert_eq!(
            (metric("hsm_kms_audit_lost_total"), metric("hsm_kms_audit_writing")),
            ("0".to_owned(), "1".to_owned())
        );
        // Room for a piece of the next line: it is taken back.
        full(&plugin, Some(100));
        let answers = [encrypt(&mut client).await.map(|_| ()), decrypt(&mut client, &sealed).await.map(|_| ())];
        until("the loss", async || metric("hsm_kms_audit_lost_total") == "2").await;
        assert_eq!(metric("hsm_kms_audit_writing"), "0");
        assert_eq!(plugin.log().matches("ERROR the audit log cannot be written").count(), 1, "{}", plugin.log());
        let status = client.status(StatusRequest {}).await.unwrap().into_inner().healthz;
        if on_full == "continue" {
            assert!(answers.iter().all(Result::is_ok), "{answers:?}");
            assert_eq!((status.as_str(), get(&address, "/readyz").0), ("ok", 200));
        } else {
            for answer in answers {
                let refused = answer.unwrap_err();
                assert_eq!(refused.code(), Code::Unavailable);
                assert!(refused.message().contains("the audit log cannot be written"), "{refused:?}");
            }
            assert_eq!((status.starts_with("audit: "), get(&address, "/readyz").0), (true, 503), "{status}");
        }
        full(&plugin, None);
        // Also without a request that comes.
        until("the log", async || metric("hsm_kms_audit_writing") == "1").await;
        encrypt(&mut client).await.unwrap();
        plugin.stop().await;
        let written = fs::read_to_string(&audited.path).unwrap();
        let written: Vec<Value> =
            written[padding.len()..].lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let lost = of(&written, "lost");
        assert_eq!(lost.last().unwrap()["lines"], 2, "{lost:?}");
    }
}

/// A disk that hangs: standard output is a pipe, and nobody reads it.
#[tokio::test]
async fn a_disk_that_hangs_holds_up_no_request() {
    let mut audited = Audited::new();
    audited.config.value["limits"] = json!({"deadline_ms": 300});
    for on_full in ["continue", "stop"] {
        audited.config.value["audit"] = json!({"to": "journal", "on_full": on_full});
        let mut command = Command::new("bash");
        // The reader lives as long as the plugin, and only sleeps.
        command.args(["-c", "exec \"$@\" > >(exec sleep 30)", "bash", env!("CARGO_BIN_EXE_hsm-kms")]);
        let plugin = Plugin::start_by(&audited.config, command).healthy().await;
        let client = plugin.client().await;
        // More than pipe and queue hold, from somebody who needs no HSM.
        let mut callers = tokio::task::JoinSet::new();
        for _ in 0..64 {
            let mut client = client.clone();
            callers.spawn(async move {
                let mut codes = Vec::new();
                for _ in 0..if on_full == "stop" { 8 } else { 90 } {
                    let key_id = format!("hsm1-{}", "0".repeat(40));
                    let request = DecryptRequest { key_id, ..DecryptRequest::default() };
                    let began = Instant::now();
                    codes.push(client.decrypt(request).await.unwrap_err().code());
                    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
                }
                codes
            });
        }
        let codes = callers.join_all().await.concat();
        if on_full == "stop" {
            assert_eq!(codes.last(), Some(&Code::Unavailable));
            assert!(codes.contains(&Code::NotFound), "lines that were written are answered");
            let mut client = client.clone();
            let status = client.status(StatusRequest {}).await.unwrap().into_inner().healthz;
            assert!(status.starts_with("audit: "), "{status}");
            assert_eq!(plugin.log().matches("an audit line was not written in time").count(), 1);
        } else {
            assert!(codes.iter().all(|code| *code == Code::NotFound));
            assert_eq!(plugin.log().matches("audit lines are lost").count(), 1);
        }
    }
}

#[tokio::test]
async fn a_file_that_is_moved_away_is_followed_by_another() {
    let audited = Audited::new();
    let (mut plugin, mut client) = audited.start().await;
    let moved = |number: u8| audited.path.with_extension(number.to_string());
    encrypt(&mut client).await.unwrap();
    // By itself, as logrotate needs no signal.
    fs::rename(&audited.path, moved(1)).unwrap();
    wait_for("another file", || audited.path.exists().then_some(()));
    encrypt(&mut client).await.unwrap();
    wait_for_line(&audited.path, "encrypt");
    // In another's place: what is written meanwhile goes into the old one, and is not lost.
    fs::rename(&audited.path, moved(2)).unwrap();
    symlink("/nonexistent", &audited.path).unwrap();
    wait_for("the error", || plugin.log().contains("it is a symbolic link").then_some(()));
    encrypt(&mut client).await.unwrap();
    wait_for("the line", || (of(&lines(&moved(2)), "encrypt").len() == 2).then_some(()));
    fs::remove_file(&audited.path).unwrap();
    plugin.hang_up();
    wait_for("another file", || audited.path.exists().then_some(()));
    until("an answer", async || encrypt(&mut client).await.is_ok()).await;
    plugin.stop().await;
    assert_eq!(lines(&audited.path)[0]["event"], "reopened");
    assert_eq!(of(&lines(&moved(2)), "encrypt").len(), 2);
    let files = [moved(1), moved(2), audited.path.clone()].map(|path| text(&path));
    let verified = verify(&files.each_ref().map(String::as_str));
    assert!(verified.status.success(), "{verified:?}");
    let last = verify(&[&files[2]]);
    assert!(last.status.success() && String::from_utf8_lossy(&last.stdout).contains("\nbefore:  "), "{last:?}");
    assert_eq!(verify(&[&files[0], &files[2]]).status.code(), Some(1));
}

#[test]
fn a_file_that_cannot_be_written_safely_is_refused() {
    let mut audited = Audited::new();
    let mut refuses = |to: &str, chain: bool, why: &str| {
        audited.config.value["audit"] = json!({"to": to, "chain": chain});
        serve_refuses(audited.config.write(), why)
    };
    let link = audited.token.directory().join("link.log");
    symlink(audited.token.directory().join("elsewhere"), &link).unwrap();
    let refusal = refuses(&text(&link), true, "it is a symbolic link");
    assert_eq!(refusal.error, "the audit log cannot be opened");
    // A folder in which not even root makes files.
    refuses("/sys/kernel/audit.log", false, "/sys/kernel/audit.log: ");
    refuses("/nonexistent/audit.log", false, "No such file");
    refuses("journal", true, "a chain goes on where the file ends");
    refuses("audit.log", false, "expected an absolute path to a file, or `journal`");
}

#[tokio::test]
async fn failover_refused_logins_and_refused_peers_are_written_down() {
    let mut pair = Pair::new();
    let path = pair.token.directory().join("audit.log");
    pair.config.value["audit"] = json!({"to": path});
    let mut plugin = Plugin::start(&pair.config).healthy().await;
    let mut client = plugin.client().await;
    wait_for("both logins", || (of(&lines(&path), "login").len() == 2).then_some(()));
    encrypt(&mut client).await.unwrap();
    pair.first.always("*", &json!({"return": "CKR_DEVICE_REMOVED"}));
    encrypt(&mut client).await.unwrap();
    let failover = wait_for_line(&path, "failover");
    assert_eq!((&failover["from_position"], &failover["to_position"]), (&0.into(), &1.into()));
    plugin.stop().await;
    let positions: Vec<_> = of(&lines(&path), "encrypt").iter().map(|line| line["position"].clone()).collect();
    assert_eq!(positions, [0, 1]);
    pair.first.clear();

    let wrong = pair.token.directory().join("wrong-pin");
    write_secret(&wrong, WRONG_PIN);
    pair.config.value["standby"][0]["token"]["pin"] = json!({"file": wrong});
    pair.config.value["socket"]["peers"] = json!([rustix::process::geteuid().as_raw() + 1]);
    fs::remove_file(&path).unwrap();
    let _plugin = Plugin::start(&pair.config);
    let denied = wait_for_line(&path, "denied");
    assert_eq!(
        (&denied["reason"], &denied["peer_pid"]),
        (&"this user may not connect".into(), &std::process::id().into())
    );
    wait_for("both logins", || (of(&lines(&path), "login").len() == 2).then_some(()));
    let found = lines(&path);
    let refused = of(&found, "login").into_iter().find(|line| line["position"] == 1).unwrap();
    assert_eq!((&refused["outcome"], refused["failure"].is_string()), (&"refused".into(), true), "{refused}");
}

/// As systemd starts it: both streams go to the journal, each line with its priority.
#[tokio::test]
async fn lines_for_the_journal_have_a_priority() {
    let mut audited = Audited::new();
    audited.config.value["audit"] = json!({"to": "journal"});
    let log = File::create(audited.token.directory().join("plugin.log")).unwrap().metadata().unwrap();
    for (named, prefix) in [(format!("{}:{}", log.dev(), log.ino()), "<5>"), ("1:1".to_owned(), "")] {
        let mut command = program();
        command.env("JOURNAL_STREAM", named);
        let mut plugin = Plugin::start_by(&audited.config, command).healthy().await;
        plugin.stop().await;
        let log = plugin.log();
        let start = log.lines().find(|line| line.contains("\"event\":\"start\"")).unwrap();
        assert!(start.starts_with(&format!("{prefix}{{\"time\"")), "{log}");
        if prefix.is_empty() {
            assert!(log.lines().any(|line| line.starts_with("20") && line.contains(" INFO ")), "{log}");
        } else {
            assert!(log.lines().all(|line| line.starts_with('<')), "{log}");
            assert!(log.lines().any(|line| line.starts_with("<6>20") && line.contains(" INFO ")), "{log}");
        }
        fs::write(plugin.log_path(), "").unwrap();
    }
}
