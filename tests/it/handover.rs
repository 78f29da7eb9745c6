//! The socket outlives the process: systemd holds it, and no connect is refused while one plugin takes another's place. And what
//! the endpoints beside it say.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use hsm_kms::kms::client;
use hsm_kms::kms::proto::StatusRequest;
use serde_json::json;

use crate::fault_module::FaultModule;
use crate::faults::{encrypt, until};
use crate::harness::{Config, Plugin, TestToken, run_ceremony, wait_for};

/// systemd's own program for sockets that are passed on: it starts the plugin at the first connection.
fn activated(config: &Config, mode: &str) -> Child {
    let mut command = Command::new("systemd-socket-activate");
    command.arg("--listen").arg(config.socket()).arg(env!("CARGO_BIN_EXE_hsm-kms")).args(["serve", "--config"]);
    let child = command.arg(config.write()).stdin(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    wait_for("the socket", || config.socket().exists().then_some(()));
    Command::new("chmod").arg(mode).arg(config.socket()).status().unwrap();
    child
}

#[tokio::test]
async fn a_socket_that_was_passed_on_is_served_and_stays() {
    let token = TestToken::new();
    let record = run_ceremony(&token, token.directory());
    let config = Config::new(&token, &record, "plugin");
    let mut child = activated(&config, "600");
    let mut client = client::connect(&config.socket(), Duration::from_secs(20)).await.unwrap();
    until("the plugin", async || {
        client.status(StatusRequest {}).await.is_ok_and(|answer| answer.get_ref().healthz == "ok")
    })
    .await;
    assert!(encrypt(&mut client).await.is_ok());
    drop(client);
    rustix::process::kill_process(rustix::process::Pid::from_child(&child), rustix::process::Signal::TERM).unwrap();
    assert!(child.wait().unwrap().success());
    assert!(config.socket().exists(), "the socket is systemd's");
}

/// One holder of the socket, many plugins one after the other: every connect succeeds, and every call is answered.
#[tokio::test]
async fn restarts_refuse_no_connection() {
    let token = TestToken::new();
    let record = run_ceremony(&token, token.directory());
    let config = Config::new(&token, &record, "plugin");
    config.write();
    // What systemd does: it holds the socket, and starts the program again each time that it ends.
    let holder = "import os, socket, subprocess, sys\n\
        s = socket.socket(socket.AF_UNIX); s.bind(sys.argv[1]); os.chmod(sys.argv[1], 0o600); s.listen(512)\n\
        os.dup2(s.fileno(), 3); os.set_inheritable(3, True)\n\
        for _ in range(6):\n \
            pid = os.fork()\n \
            if pid == 0:\n  \
                os.environ.update(LISTEN_FDS='1', LISTEN_PID=str(os.getpid()))\n  \
                os.execv(sys.argv[2], [sys.argv[2], 'serve', '--config', sys.argv[3]])\n \
            print(pid, flush=True)\n \
            os.waitpid(pid, 0)\n";
    let mut holder = Command::new("/usr/bin/python3")
        .args(["-c", holder])
        .arg(config.socket())
        .arg(env!("CARGO_BIN_EXE_hsm-kms"))
        .arg(config.write())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    wait_for("the socket", || UnixStream::connect(config.socket()).ok());
    let pids = holder.stdout.take().unwrap();
    let socket = config.socket();
    let caller = tokio::spawn(async move {
        let mut answered = 0;
        loop {
            // A new connection for each call, as a client that starts anew makes.
            let Ok(mut client) = client::connect(&socket, Duration::from_secs(20)).await else { return answered };
            if client.status(StatusRequest {}).await.is_ok() {
                answered += 1;
            }
            // The raw connect is what must never be refused while somebody holds the socket.
            UnixStream::connect(&socket).unwrap();
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    });
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(pids));
    for _ in 0..5 {
        let pid: i32 = lines.next().unwrap().unwrap().parse().unwrap();
        tokio::time::sleep(Duration::from_millis(400)).await;
        rustix::process::kill_process(rustix::process::Pid::from_raw(pid).unwrap(), rustix::process::Signal::TERM)
            .unwrap();
    }
    let last: i32 = lines.next().unwrap().unwrap().parse().unwrap();
    tokio::time::sleep(Duration::from_millis(400)).await;
    assert!(!caller.is_finished(), "a connect was refused");
    caller.abort();
    rustix::process::kill_process(rustix::process::Pid::from_raw(last).unwrap(), rustix::process::Signal::TERM)
        .unwrap();
    assert!(holder.wait().unwrap().success());
}

#[test]
fn a_socket_that_is_another_or_too_open_is_refused() {
    let token = TestToken::new();
    let record = run_ceremony(&token, token.directory());
    let config = Config::new(&token, &record, "plugin");
    let mut child = activated(&config, "666");
    let connected = UnixStream::connect(config.socket()).unwrap();
    // systemd-socket-activate becomes the plugin, which ends.
    let status = wait_for("the refusal", || child.try_wait().unwrap());
    assert_eq!(status.code(), Some(2));
    drop(connected);
}

/// One request on a connection of its own: status line and body.
fn get(address: &str, path: &str) -> (u16, String) {
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
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
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
    for line in [
        "hsm_kms_requests_total{method=\"Encrypt\",code=\"OK\"} 3",
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
    assert!(
        metrics.contains("hsm_kms_healthy 0")
            && metrics.contains("hsm_kms_hsm_failures_total{token=\"kek\",position=\"0\",class=\"gone\"}")
    );

    // Nobody can hold the endpoints up: idle connections beyond the limit are closed.
    let idle: Vec<_> = (0..40).map(|_| TcpStream::connect(&address).unwrap()).collect();
    fault.clear();
    until("the token", async || encrypt(&mut client).await.is_ok()).await;
    drop(idle);
    until("the endpoints", async || get_ok(&address)).await;
    plugin.stop().await;
}

/// Whether the endpoint answers at all.
fn get_ok(address: &str) -> bool {
    let Ok(mut stream) = TcpStream::connect(address) else { return false };
    let _ = write!(stream, "GET /readyz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).is_ok() && answer.starts_with("HTTP/1.1 200")
}
