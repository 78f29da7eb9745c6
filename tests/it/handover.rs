//! The socket outlives the process: systemd holds it, and no connect is refused while one plugin takes another's place. And what
//! the endpoints beside it say.

use std::fs::{self, Permissions};
use std::io::{BufRead, BufReader, Lines, Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use hsm_kms::kms::client;
use hsm_kms::kms::proto::StatusRequest;
use rustix::process::{Pid, Signal};
use serde_json::{Value, json};

use crate::fault_module::FaultModule;
use crate::faults::{encrypt, until};
use crate::harness::{Config, Plugin, TestToken, free_address, run_ceremony, wait_for};

/// systemd's own program for sockets that are passed on: it starts the plugin at the first connection.
fn activated(config: &Config, socket: &Path, mode: u32) -> Child {
    let mut command = Command::new("systemd-socket-activate");
    command.arg("--listen").arg(socket).arg(env!("CARGO_BIN_EXE_hsm-kms")).args(["serve", "--config"]);
    let child = command.arg(config.write()).stdin(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    wait_for("the socket", || socket.exists().then_some(()));
    fs::set_permissions(socket, Permissions::from_mode(mode)).unwrap();
    child
}

#[tokio::test]
async fn a_socket_that_was_passed_on_is_served_and_stays() {
    let token = TestToken::new();
    let record = run_ceremony(&token, token.directory());
    let config = Config::new(&token, &record, "plugin");
    let mut child = activated(&config, &config.socket(), 0o600);
    let mut client = client::connect(&config.socket(), Duration::from_secs(20)).await.unwrap();
    until("the plugin", async || {
        client.status(StatusRequest {}).await.is_ok_and(|answer| answer.get_ref().healthz == "ok")
    })
    .await;
    assert!(encrypt(&mut client).await.is_ok());
    drop(client);
    rustix::process::kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    assert!(child.wait().unwrap().success());
    assert!(config.socket().exists(), "the socket is systemd's");
}

/// One holder of the socket, many plugins one after the other: every connect succeeds, and each plugin answers calls.
#[tokio::test]
async fn restarts_refuse_no_connection() {
    let token = TestToken::new();
    let record = run_ceremony(&token, token.directory());
    let config = Config::new(&token, &record, "plugin");
    let mut holder = Holder::start(&config);
    let (answered, connects) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let caller = tokio::spawn({
        let (socket, answered) = (config.socket(), Arc::clone(&answered));
        async move {
            loop {
                // A new connection for each call, as a client that starts anew makes.
                let called = async {
                    let mut client = client::connect(&socket, Duration::from_secs(20)).await.ok()?;
                    client.status(StatusRequest {}).await.ok()
                };
                if called.await.is_some() {
                    answered.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
    });
    // The raw connect is what must never be refused while somebody holds the socket.
    let stop = Arc::new(AtomicBool::new(false));
    let connector = std::thread::spawn({
        let (socket, connects, stop) = (config.socket(), Arc::clone(&connects), Arc::clone(&stop));
        move || {
            while !stop.load(Ordering::Relaxed) {
                UnixStream::connect(&socket)?;
                connects.fetch_add(1, Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(2));
            }
            Ok::<_, std::io::Error>(())
        }
    });
    for round in 0..PLUGINS {
        let plugin = holder.next_plugin();
        // Two: the first may have been answered by the plugin before, just when it ended.
        let (calls, connected) = (answered.load(Ordering::Relaxed), connects.load(Ordering::Relaxed));
        until(&format!("plugin {round} to answer"), async || answered.load(Ordering::Relaxed) >= calls + 2).await;
        until("a connect", async || connects.load(Ordering::Relaxed) > connected || connector.is_finished()).await;
        rustix::process::kill_process(plugin, Signal::TERM).unwrap();
    }
    // The holder is still there after its last plugin.
    let connected = connects.load(Ordering::Relaxed);
    until("a connect without a plugin", async || {
        connects.load(Ordering::Relaxed) > connected || connector.is_finished()
    })
    .await;
    stop.store(true, Ordering::Relaxed);
    connector.join().unwrap().expect("a connect was refused");
    assert!(!caller.is_finished());
    caller.abort();
}

/// What systemd does, in a process of its own: it holds the socket, and starts the program again each time that it ends. Ends with
/// this value, and its plugin too.
pub struct Holder {
    child: Child,
    plugins: Lines<BufReader<ChildStdout>>,
    /// The one that runs now.
    plugin: Option<Pid>,
}

/// How many plugins a holder starts, one after the other.
const PLUGINS: usize = 6;

impl Holder {
    pub fn start(config: &Config) -> Self {
        let program = "import os, socket, sys\n\
            s = socket.socket(socket.AF_UNIX); s.bind(sys.argv[1]); os.chmod(sys.argv[1], 0o600); s.listen(512)\n\
            os.dup2(s.fileno(), 3); os.set_inheritable(3, True)\n\
            for _ in range(int(sys.argv[4])):\n \
                pid = os.fork()\n \
                if pid == 0:\n  \
                    os.environ.update(LISTEN_FDS='1', LISTEN_PID=str(os.getpid()))\n  \
                    os.execv(sys.argv[2], [sys.argv[2], 'serve', '--config', sys.argv[3]])\n \
                print(pid, flush=True)\n \
                os.waitpid(pid, 0)\n\
            sys.stdin.read()\n";
        let mut child = Command::new("/usr/bin/python3")
            .args(["-c", program])
            .arg(config.socket())
            .arg(env!("CARGO_BIN_EXE_hsm-kms"))
            .arg(config.write())
            .arg(PLUGINS.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let plugins = BufReader::new(child.stdout.take().unwrap()).lines();
        let holder = Self { child, plugins, plugin: None };
        wait_for("the socket", || UnixStream::connect(config.socket()).ok());
        holder
    }

    /// Waits until the next plugin has been started.
    pub fn next_plugin(&mut self) -> Pid {
        let pid = self.plugins.next().unwrap().unwrap().parse().unwrap();
        *self.plugin.insert(Pid::from_raw(pid).unwrap())
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        // The holder first, or it would start the next one.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Some(plugin) = self.plugin {
            let _ = rustix::process::kill_process(plugin, Signal::KILL);
        }
    }
}

/// systemd kills the workers as soon as the front has ended, and `SoftHSM2` rewrites its token's file in each login.
#[tokio::test]
async fn a_stop_does_not_cut_a_login() {
    let token = TestToken::new();
    let record = run_ceremony(&token, token.directory());
    let mut config = Config::new(&token, &record, "plugin");
    let fault = FaultModule::new(&token, "login");
    fault.stand_in_front(&mut config.value["token"]);
    fault.always("C_Login", &json!({"delay_ms": 1000}));
    let mut plugin = Plugin::start(&config);
    wait_for("a login", || (fault.calls("C_Login") > 0).then_some(()));
    assert!(plugin.stop().await.success());
    let log = plugin.log();
    let (before, _) = log.split_once("token ready: logged in").unwrap_or_else(|| panic!("no login in {log}"));
    assert!(before.contains("stopping"), "{log}");
}

#[test]
fn a_socket_that_is_too_open_or_another_is_refused() {
    let token = TestToken::new();
    let record = run_ceremony(&token, token.directory());
    let mut config = Config::new(&token, &record, "plugin");
    let passed_on = config.socket();
    let refusal = |config: &Config, mode| {
        // It becomes the plugin at the first connection, and that ends. Its socket has a name before it listens.
        let mut child = activated(config, &passed_on, mode);
        let _connected = wait_for("a listener", || UnixStream::connect(&passed_on).ok());
        let status = wait_for("the refusal", || child.try_wait().unwrap());
        assert_eq!(status.code(), Some(2));
        let mut text = String::new();
        child.stderr.take().unwrap().read_to_string(&mut text).unwrap();
        text
    };
    let text = refusal(&config, 0o666);
    assert!(text.contains("the socket that was passed on has mode 0666, more open than 0600"), "{text}");

    fs::remove_file(&passed_on).unwrap();
    config.value["socket"]["path"] = json!(token.directory().join("another@kms.sock"));
    let text = refusal(&config, 0o600);
    assert!(text.contains(&format!("the socket that was passed on listens on {}", passed_on.display())), "{text}");
}

/// One request on a connection of its own: status line and body.
pub fn get(address: &str, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

#[tokio::test]
async fn the_endpoints_tell_what_status_tells() {
    let token = TestToken::new();
    let record = run_ceremony(&token, token.directory());
    let mut config = Config::new(&token, &record, "plugin");
    let fault = FaultModule::new(&token, "endpoints");
    fault.stand_in_front(&mut config.value["token"]);
    let address = free_address();
    config.value["endpoints"] = json!(address);
    let mut plugin = Plugin::start(&config).healthy().await;
    let mut client = plugin.client().await;
    for _ in 0..3 {
        encrypt(&mut client).await.unwrap();
    }
    assert_eq!(get(&address, "/livez"), (200, "ok\n".to_owned()));
    assert_eq!(get(&address, "/readyz"), (200, "ok\n".to_owned()));
    assert_eq!(get(&address, "/secrets").0, 404);
    let (code, metrics) = get(&address, "/metrics");
    assert_eq!(code, 200);
    let record: Value = serde_json::from_slice(&fs::read(&record).unwrap()).unwrap();
    let id = record["kek"]["id"].as_str().unwrap();
    for line in [
        "hsm_kms_requests_total{method=\"Encrypt\",code=\"OK\"} 3",
        &format!("hsm_kms_seals_total{{cka_id=\"{id}\"}} 3"),
        "hsm_kms_healthy 1",
        "hsm_kms_token_up{token=\"kek\",position=\"0\"} 1",
        "hsm_kms_worker_starts_total{token=\"kek\",position=\"0\",outcome=\"served\"} 1",
        "# EOF",
    ] {
        assert!(metrics.lines().any(|found| found == line), "{line}\n{metrics}");
    }
    assert!(metrics.contains("hsm_kms_request_duration_seconds_bucket{le=\"0.001\",method=\"Encrypt\"}"), "{metrics}");
    assert!(metrics.contains("hsm_kms_info{key_id_hash=\"sha256:"), "{metrics}");

    fault.always("*", &json!({"return": "CKR_DEVICE_REMOVED"}));
    assert!(encrypt(&mut client).await.is_err());
    until("the loss", async || get(&address, "/readyz").0 == 503).await;
    assert_eq!(get(&address, "/livez").0, 200);
    let (_, metrics) = get(&address, "/metrics");
    for line in ["hsm_kms_healthy 0", "hsm_kms_token_up{token=\"kek\",position=\"0\"} 0"] {
        assert!(metrics.lines().any(|found| found == line), "{line}\n{metrics}");
    }
    let failures = "hsm_kms_hsm_failures_total{token=\"kek\",position=\"0\",class=\"gone\"} ";
    assert!(metrics.contains(failures), "{metrics}");
    let age = proof_age(&metrics);
    until("the proof to age", async || proof_age(&get(&address, "/metrics").1) > age).await;

    // Nobody can hold the endpoints up by saying nothing.
    let idle: Vec<_> = (0..40).map(|_| TcpStream::connect(&address).unwrap()).collect();
    fault.clear();
    until("the token", async || encrypt(&mut client).await.is_ok()).await;
    assert_eq!(get(&address, "/livez"), (200, "ok\n".to_owned()));
    until("readiness", async || get(&address, "/readyz").0 == 200).await;
    let (_, metrics) = get(&address, "/metrics");
    for line in ["hsm_kms_healthy 1", "hsm_kms_token_up{token=\"kek\",position=\"0\"} 1"] {
        assert!(metrics.lines().any(|found| found == line), "{line}\n{metrics}");
    }
    drop(idle);
    plugin.stop().await;
}

/// `hsm_kms_proof_age_seconds` of the one token.
fn proof_age(metrics: &str) -> f64 {
    let line = metrics.lines().find(|line| line.starts_with("hsm_kms_proof_age_seconds{"));
    line.and_then(|line| line.rsplit(' ').next()).unwrap().parse().unwrap()
}
