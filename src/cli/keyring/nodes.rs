//! What the nodes say of their keyrings: asked at their endpoints, or read from files that were collected.

use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::time::Duration;

use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;

use crate::cli::CliError;
use crate::cli::serve::system_error;
use crate::exit::ExitCode;
use crate::keyring::NodeReport;
use crate::record::UtcTime;
use crate::strict::{self, MAX_FILE_BYTES};

/// Longest wait for one node.
const LIMIT: Duration = Duration::from_secs(5);

/// Oldest report that still tells of a node. Clocks may differ a little.
const FRESH: Duration = Duration::from_hours(1);

/// The reports of all nodes, in their order. None may be missing, old, or a second one of the same process.
pub(in crate::cli) fn reports(nodes: &[String]) -> Result<Vec<NodeReport>, CliError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(system_error)?;
    let mut reports: Vec<NodeReport> = Vec::new();
    for node in nodes {
        let unknown = |code, why: String| CliError {
            code,
            what: format!("the keyring of the node {node} is not known"),
            why,
            hint: "name the node's `endpoints` (address or socket), or a file with what it answers at /keyring now"
                .to_owned(),
        };
        let unreachable = |why: String| unknown(ExitCode::NotReachable, why);
        let bytes = runtime.block_on(async { get(node, "/keyring").await });
        let report = NodeReport::parse(&bytes.map_err(unreachable)?).map_err(|error| unreachable(error.to_string()))?;
        let age = UtcTime::now().since(report.time);
        if age > FRESH {
            let why = format!("its report is {} min old", age.as_secs() / 60);
            return Err(unknown(ExitCode::DoesNotHold, why));
        }
        if reports.iter().any(|other| other.instance == report.instance) {
            return Err(unknown(ExitCode::BadUsage, "another one that was named is the same process".to_owned()));
        }
        reports.push(report);
    }
    Ok(reports)
}

/// What a node answers at this path of its endpoints, given by their address or socket; or the content of a file.
pub(in crate::cli) async fn get(node: &str, path: &'static str) -> Result<Vec<u8>, String> {
    let answer = timeout(LIMIT, read(node, path)).await;
    answer.unwrap_or_else(|_| Err(format!("no answer within {} s", LIMIT.as_secs())))
}

async fn read(node: &str, asked: &'static str) -> Result<Vec<u8>, String> {
    let path = Path::new(node);
    match path.metadata() {
        Ok(metadata) if metadata.file_type().is_socket() => {
            ask(UnixStream::connect(path).await.map_err(|error| error.to_string())?, asked).await
        }
        Ok(_) => strict::read(path).map_err(|fault| fault.to_string()),
        Err(error) if node.contains('/') => Err(error.to_string()),
        Err(_) => ask(TcpStream::connect(node).await.map_err(|error| error.to_string())?, asked).await,
    }
}

async fn ask(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    asked: &'static str,
) -> Result<Vec<u8>, String> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|error| error.to_string())?;
    tokio::spawn(connection);
    let request = Request::get(asked).header("host", "localhost").body(Empty::<Bytes>::new());
    let answer = sender.send_request(request.map_err(|error| error.to_string())?).await;
    let answer = answer.map_err(|error| error.to_string())?;
    if answer.status() != StatusCode::OK {
        return Err(format!("it answered {}", answer.status()));
    }
    let body = Limited::new(answer.into_body(), MAX_FILE_BYTES).collect().await.map_err(|error| error.to_string())?;
    Ok(body.to_bytes().to_vec())
}
