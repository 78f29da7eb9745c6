//! A client that dials as kube-apiserver does.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tokio::time::Instant;
use tonic::transport::{Channel, Endpoint};

use super::proto::key_management_service_client::KeyManagementServiceClient;

/// A client on one connection to a plugin.
pub type Client = KeyManagementServiceClient<Channel>;

/// Nobody accepted on the socket in time.
#[derive(Debug, thiserror::Error)]
#[error("no connection to {} within {} ms: {last}", path.display(), timeout.as_millis())]
pub struct ConnectError {
    /// The socket's path.
    pub path: PathBuf,
    /// How long it was tried.
    pub timeout: Duration,
    /// What the last try met.
    pub last: String,
}

/// Connects to the plugin on the socket `path`, trying again until `timeout` has passed.
///
/// As the API server does since Kubernetes 1.32: `:authority` is `localhost`, no TLS, no metadata, and a missing or refusing
/// socket is waited for (`WaitForReady`). Its pauses grow from 1 s to 120 s; here from 50 ms to 1 s.
pub async fn connect(path: &Path, timeout: Duration) -> Result<Client, ConnectError> {
    let deadline = Instant::now() + timeout;
    let mut pause = FIRST_PAUSE;
    let mut last = "the connection was not established".to_owned();
    loop {
        match tokio::time::timeout_at(deadline, dial(path)).await {
            Ok(Ok(channel)) => return Ok(KeyManagementServiceClient::new(channel)),
            Ok(Err(error)) => last = innermost(&error),
            Err(_) => {}
        }
        if Instant::now() + pause >= deadline {
            return Err(ConnectError { path: path.to_owned(), timeout, last });
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

async fn dial(path: &Path) -> Result<Channel, tonic::transport::Error> {
    let path = path.to_owned();
    let connector = tower::service_fn(move |_| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    });
    Endpoint::from_static("http://localhost").connect_with_connector(connector).await
}

fn innermost(error: &dyn Error) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}
