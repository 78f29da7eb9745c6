use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use clap::Parser;
use tempfile::TempDir;
use tokio::sync::oneshot;
use tonic::codegen::http;
use tonic::{Response, Status};
use tower::util::MapRequestLayer;

use super::*;
use crate::kms::peers::Peers;
use crate::kms::proto::key_management_service_server::{KeyManagementService, KeyManagementServiceServer};
use crate::kms::proto::{DecryptResponse, EncryptResponse};
use crate::kms::socket::{Listener, incoming};

/// Seals by reversing. Refuses with the code named by the text after `fail `, hangs on `hang`.
#[derive(Clone)]
struct Fake {
    status: StatusResponse,
}

#[tonic::async_trait]
impl KeyManagementService for Fake {
    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        Ok(Response::new(self.status.clone()))
    }

    async fn encrypt(&self, request: Request<EncryptRequest>) -> Result<Response<EncryptResponse>, Status> {
        let EncryptRequest { plaintext, uid } = request.into_inner();
        assert!(!uid.is_empty());
        if plaintext == "hang" {
            std::future::pending::<()>().await;
        }
        if let Some(code) = plaintext.strip_prefix(b"fail ") {
            let code = std::str::from_utf8(code).unwrap().parse::<i32>().unwrap();
            return Err(Status::new(Code::from(code), "because"));
        }
        Ok(Response::new(EncryptResponse {
            ciphertext: plaintext.iter().rev().copied().collect(),
            key_id: "key-1".to_owned(),
            annotations: [("uid.example.com".to_owned(), Bytes::from(uid))].into(),
        }))
    }

    async fn decrypt(&self, request: Request<DecryptRequest>) -> Result<Response<DecryptResponse>, Status> {
        let request = request.into_inner();
        assert_eq!(request.key_id, "key-1");
        assert_eq!(request.annotations["uid.example.com"], "uid-1");
        Ok(Response::new(DecryptResponse { plaintext: request.ciphertext.iter().rev().copied().collect() }))
    }
}

/// `:authority` and `grpc-timeout` of each request.
type Headers = Arc<Mutex<Vec<(String, String)>>>;

struct Server {
    _directory: TempDir,
    socket: PathBuf,
    headers: Headers,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    fn start(status: StatusResponse) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("hsm@kms.sock");
        let headers = Headers::default();
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::spawn({
            let (socket, headers) = (socket.clone(), Arc::clone(&headers));
            move || serve(&socket, Fake { status }, headers, stopped)
        });
        Self { _directory: directory, socket, headers, stop: Some(stop), thread: Some(thread) }
    }

    fn call(&self, method: &str, options: &[&str], input: &[u8]) -> (Result<(), CliError>, Vec<u8>) {
        call(&self.socket, method, options, input)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.stop.take().unwrap().send(());
        let result = self.thread.take().unwrap().join();
        assert!(result.is_ok() || std::thread::panicking());
    }
}

fn serve(socket: &Path, fake: Fake, headers: Headers, stopped: oneshot::Receiver<()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let listener = Listener::bind(socket, 0o600).unwrap();
        let layer = MapRequestLayer::new(move |request: http::Request<tonic::body::Body>| {
            let authority = request.uri().authority().unwrap().to_string();
            let timeout = request.headers()["grpc-timeout"].to_str().unwrap().to_owned();
            headers.lock().unwrap().push((authority, timeout));
            request
        });
        let serving = tonic::transport::Server::builder().layer(layer).serve_with_incoming(
            KeyManagementServiceServer::new(fake),
            incoming(listener.tokio().unwrap(), Peers::new(Peers::default_uids())),
        );
        tokio::select! {
            result = serving => result.unwrap(),
            _ = stopped => {}
        }
    });
}

fn call(socket: &Path, method: &str, options: &[&str], mut input: &[u8]) -> (Result<(), CliError>, Vec<u8>) {
    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: CallArgs,
    }
    let start = ["call", method, "--socket", socket.to_str().unwrap()];
    let line = Line::try_parse_from(start.iter().chain(options)).unwrap();
    let mut output = Vec::new();
    let result = execute(line.args.method, &mut input, &mut output);
    (result, output)
}

fn healthy() -> StatusResponse {
    StatusResponse { version: "v2".to_owned(), healthz: "ok".to_owned(), key_id: "key-1".to_owned() }
}

#[test]
fn status_prints_a_table_or_json() {
    let server = Server::start(healthy());
    let hash = key_id::hash("key-1");
    let (result, output) = server.call("status", &[], b"");
    result.unwrap();
    let table = format!("version  v2\nhealthz  ok\nkey_id   key-1\nhash     {hash}\n");
    assert_eq!(String::from_utf8(output).unwrap(), table);

    let (result, output) = server.call("status", &["--json"], b"");
    result.unwrap();
    let expected = serde_json::json!({"version": "v2", "healthz": "ok", "key_id": "key-1", "key_id_hash": hash});
    assert_eq!(serde_json::from_slice::<serde_json::Value>(&output).unwrap(), expected);

    let headers = server.headers.lock().unwrap().clone();
    assert_eq!(headers.len(), 2);
    for (authority, timeout) in headers {
        assert_eq!(authority, "localhost");
        let microseconds: u64 = timeout.strip_suffix('u').unwrap().parse().unwrap();
        assert!((1_000_000..=3_000_000).contains(&microseconds), "{timeout}");
    }
}

#[test]
fn an_unhealthy_status_is_shown_and_ends_with_1() {
    let cases = [
        (StatusResponse { healthz: "hsm\u{1b}[2Jdown".to_owned(), ..healthy() }, "healthz is not ok: hsm [2Jdown"),
        (StatusResponse { version: "v1".to_owned(), ..healthy() }, "version is \"v1\", not v2"),
        (StatusResponse { key_id: String::new(), ..healthy() }, "key_id has 0 bytes, not 1 to 1024"),
        (StatusResponse { key_id: "k".repeat(1025), ..healthy() }, "key_id has 1025 bytes, not 1 to 1024"),
    ];
    for (status, why) in cases {
        let server = Server::start(status);
        let (result, output) = server.call("status", &[], b"");
        let error = result.unwrap_err();
        assert_eq!((error.code, error.why.as_str()), (ExitCode::DoesNotHold, why));
        assert!(!output.is_empty() && !output.contains(&0x1b));
    }
}

#[test]
fn encrypt_prints_what_decrypt_reads() {
    let server = Server::start(healthy());
    for plaintext in [&b""[..], b"x", b"\x00\xff\n32 bytes of a seed, in the end.", &vec![7; 60_000]] {
        let (result, sealed) = server.call("encrypt", &["--uid", "uid-1"], plaintext);
        result.unwrap();
        assert_eq!(sealed.iter().position(|byte| *byte == b'\n'), Some(sealed.len() - 1));
        let (result, opened) = server.call("decrypt", &[], &sealed);
        result.unwrap();
        assert_eq!(opened, plaintext);
    }
}

#[test]
fn the_code_of_a_refusal_decides_how_it_ends() {
    let server = Server::start(healthy());
    for code in 1..=16 {
        let (result, output) = server.call("encrypt", &[], format!("fail {code}").as_bytes());
        let error = result.unwrap_err();
        let not_reachable = [Code::Unavailable, Code::DeadlineExceeded, Code::Cancelled].contains(&Code::from(code));
        let expected = if not_reachable { ExitCode::NotReachable } else { ExitCode::DoesNotHold };
        assert_eq!(error.code, expected, "{error}");
        assert!(error.why.contains("because"));
        assert!(output.is_empty());
    }
}

#[test]
fn a_hanging_plugin_is_left_at_the_deadline() {
    let server = Server::start(healthy());
    let error = server.call("encrypt", &["--timeout", "1"], b"hang").0.unwrap_err();
    assert_eq!(error.code, ExitCode::NotReachable);
    assert!(error.what.ends_with("did not answer in time"), "{error}");
}

#[test]
fn an_absent_plugin_is_waited_for_until_the_timeout() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("s");
    let error = call(&socket, "status", &["--timeout", "1"], b"").0.unwrap_err();
    assert_eq!(error.code, ExitCode::NotReachable);
    assert_eq!(error.why, "No such file or directory (os error 2) (tried for 1 s)");

    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    let error = call(&socket, "status", &["--timeout", "1"], b"").0.unwrap_err();
    assert_eq!(error.code, ExitCode::NotReachable);
    assert_eq!(error.why, "Connection refused (os error 111) (tried for 1 s)");
}

#[test]
fn a_late_plugin_is_met() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("s");
    let (stop, stopped) = oneshot::channel();
    std::thread::scope(|scope| {
        let caller = scope.spawn(|| call(&socket, "status", &["--timeout", "30"], b"").0);
        // Long enough for the first dial, which nothing shows, to find no socket.
        std::thread::sleep(Duration::from_millis(120));
        let server = scope.spawn(|| serve(&socket, Fake { status: healthy() }, Headers::default(), stopped));
        caller.join().unwrap().unwrap();
        stop.send(()).unwrap();
        server.join().unwrap();
    });
}

#[test]
fn what_listens_without_speaking_is_not_reachable() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("s");
    let _silent = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let error = call(&socket, "status", &["--timeout", "1"], b"").0.unwrap_err();
    assert_eq!(error.code, ExitCode::NotReachable);
}

#[test]
fn bad_input_is_refused_before_anything_is_sent() {
    let nowhere = Path::new("/nonexistent/s");
    let cases = [
        ("", "EOF while parsing a value at line 1 column 0"),
        ("{}", "missing field `ciphertext` at line 1 column 2"),
        (r#"{"ciphertext":"QUJD","key_id":"k"}"#, "missing field `annotations` at line 1 column 34"),
        (
            r#"{"ciphertext":"QUJD","key_id":"k","annotations":{},"more":1}"#,
            "unknown field `more`, expected one of `ciphertext`, `key_id`, `annotations` at line 1 column 57",
        ),
        (
            r#"{"ciphertext":"QUJD","ciphertext":"QUJD","key_id":"k","annotations":{}}"#,
            "duplicate field `ciphertext` at line 1 column 33",
        ),
        (
            r#"{"ciphertext":"QUJD","key_id":"k","annotations":"SECRET"}"#,
            "a value of the wrong type at line 1 column 56",
        ),
        (r#"{"ciphertext":"QUJ","key_id":"k","annotations":{}}"#, "ciphertext is not base64: invalid length at 0"),
        (
            r#"{"ciphertext":"QUJD","key_id":"k","annotations":{"a.b":"QU_D"}}"#,
            "a.b is not base64: invalid symbol at 2",
        ),
        (r#"{"ciphertext":"QUJD","key_id":"k","annotations":{}} x"#, "trailing characters at line 1 column 53"),
    ];
    for (input, why) in cases {
        let error = call(nowhere, "decrypt", &[], input.as_bytes()).0.unwrap_err();
        assert_eq!((error.code, error.why.as_str()), (ExitCode::BadUsage, why), "{input}");
    }
    let error = call(nowhere, "encrypt", &[], &vec![0; (1 << 20) + 1]).0.unwrap_err();
    assert_eq!((error.code, error.why.as_str()), (ExitCode::BadUsage, "it has more than 1048576 bytes"));
}
