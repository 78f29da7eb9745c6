//! The running plugin, as the API server meets it: socket, Status, who may connect, and the process behind it.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;
use std::time::{Duration, Instant};

use tokio::net::UnixStream;
use tokio::time::timeout;
use tonic::Request;

use super::checks::{CORE, MEMORY, PEERS, SANDBOX, SOCKET, STATUS};
use super::{NO_CONFIG, Subject, process};
use crate::finding::Finding;
use crate::kms::client;
use crate::kms::proto::{StatusRequest, StatusResponse};

/// Longest wait for a connection, and for Status: as long as the API server waits.
const LIMIT: Duration = Duration::from_secs(3);

/// An answer that takes longer than this, from memory, comes from a process in trouble.
const SLOW: Duration = Duration::from_secs(1);

/// A socket that somebody listens on.
pub(super) struct Contact {
    /// The user of the process that listens.
    pub(super) uid: Option<u32>,
    /// Process ids of the plugin and of its workers, if they can be told.
    pub(super) processes: Result<Vec<u32>, String>,
    /// What Status said, and how long that took.
    pub(super) status: Result<(StatusResponse, Duration), String>,
}

/// Calls the plugin, if its socket is known.
pub(super) fn contact(subject: &Subject<'_>) -> Option<Contact> {
    let path = subject.socket()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().ok()?;
    runtime.block_on(async {
        let stream = timeout(LIMIT, UnixStream::connect(path)).await.ok()?.ok()?;
        let peer = stream.peer_cred().ok()?;
        drop(stream);
        let began = Instant::now();
        let status = timeout(LIMIT, status(path))
            .await
            .unwrap_or_else(|_| Err(format!("no answer within {} s", LIMIT.as_secs())));
        let pid = peer.pid().and_then(|pid| u32::try_from(pid).ok());
        let processes = process::plugin(pid, subject.config_path);
        let uid = processes.as_ref().ok().and_then(|pids| process::uid(*pids.first()?)).or(Some(peer.uid()));
        Some(Contact { uid, processes, status: status.map(|answer| (answer, began.elapsed())) })
    })
}

async fn status(path: &Path) -> Result<StatusResponse, String> {
    let mut client = client::connect(path, LIMIT).await.map_err(|error| error.to_string())?;
    let answer = client.status(Request::new(StatusRequest {})).await;
    answer.map(tonic::Response::into_inner).map_err(|status| format!("{:?}: {}", status.code(), status.message()))
}

pub(super) fn check(subject: &Subject<'_>, contact: Option<&Contact>) -> Vec<Finding> {
    let mut findings = vec![socket(subject, contact), status_row(subject, contact), peers(subject)];
    match contact.map(|contact| &contact.processes) {
        Some(Ok(pids)) => findings.extend([process::memory(pids), process::core(pids), process::sandbox(pids)]),
        Some(Err(why)) => findings.extend([&MEMORY, &CORE, &SANDBOX].map(|check| Finding::not_checked(check, why))),
        None => findings.extend([&MEMORY, &CORE, &SANDBOX].map(|check| Finding::not_checked(check, NO_PLUGIN))),
    }
    findings
}

/// Why a check was not made that needs the running plugin.
pub(super) const NO_PLUGIN: &str = "no plugin answers on the socket";

fn socket(subject: &Subject<'_>, contact: Option<&Contact>) -> Finding {
    let Some(path) = subject.socket() else { return Finding::not_checked(&SOCKET, NO_CONFIG) };
    let shown = path.display();
    let start = "start it: systemctl start hsm-kms, or hsm-kms serve; then look into its log";
    let found = match fs::symlink_metadata(path) {
        Ok(found) => found,
        Err(error) if error.kind() == ErrorKind::PermissionDenied => {
            let advice = "run it as root, or as a user of socket.peers";
            return Finding::failed(&SOCKET, format!("{shown}: {error}"), advice);
        }
        Err(error) => return Finding::failed(&SOCKET, format!("{shown}: {error}"), start),
    };
    if !found.file_type().is_socket() {
        return Finding::failed(&SOCKET, format!("{shown} is no socket"), "look what it is, and move it away");
    }
    let mode = found.mode() & 0o777;
    let seen = format!("{shown}, mode {mode:04o}, uid {}", found.uid());
    let most = subject.config().map_or(0o660, |config| config.socket.mode);
    if mode & !most != 0 {
        let found = format!("{seen}: more open than {most:04o}");
        return Finding::failed(&SOCKET, found, format!("set SocketMode={most:04o} in the socket unit, or restart"));
    }
    if contact.is_some() {
        return Finding::ok(&SOCKET, format!("{seen}; somebody listens"));
    }
    let own = rustix::process::geteuid().as_raw();
    match rustix::fs::access(path, rustix::fs::Access::WRITE_OK) {
        Err(rustix::io::Errno::ACCESS) => {
            Finding::not_checked(&SOCKET, format!("uid {own} may not connect to {seen}: run it as root"))
        }
        _ => Finding::failed(&SOCKET, format!("{seen}: nobody listens"), start),
    }
}

fn status_row(subject: &Subject<'_>, contact: Option<&Contact>) -> Finding {
    let Some(contact) = contact else { return Finding::not_checked(&STATUS, NO_PLUGIN) };
    let runbook = "see the plugin's log, and docs/runbooks/hsm-unreachable.md";
    match &contact.status {
        Err(why) => {
            let own = rustix::process::geteuid().as_raw();
            if is_refused(subject, own, contact) {
                return Finding::not_checked(&STATUS, format!("uid {own} may not connect: run it as root"));
            }
            Finding::failed(&STATUS, why, runbook)
        }
        Ok((answer, took)) => {
            let seen = format!("{} in {} ms, version {}", answer.healthz, took.as_millis(), answer.version);
            if answer.healthz != "ok" {
                Finding::failed(&STATUS, seen, runbook)
            } else if answer.version != "v2" {
                Finding::failed(&STATUS, seen, "see that the socket belongs to hsm-kms")
            } else if *took > SLOW {
                Finding::warning(&STATUS, seen, "see what else keeps this machine busy")
            } else {
                Finding::ok(&STATUS, seen)
            }
        }
    }
}

/// Whether the plugin closes this user's connections.
fn is_refused(subject: &Subject<'_>, own: u32, contact: &Contact) -> bool {
    match subject.config().map(|config| &config.socket.peers) {
        Some(Some(peers)) => !peers.contains(&own),
        _ => own != 0 && contact.uid != Some(own),
    }
}

fn peers(subject: &Subject<'_>) -> Finding {
    match subject.config().map(|config| &config.socket.peers) {
        None => Finding::not_checked(&PEERS, NO_CONFIG),
        Some(None) => Finding::ok(&PEERS, "root and the plugin's own user, the default"),
        Some(Some(peers)) => {
            let listed = peers.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
            if peers.contains(&0) {
                Finding::ok(&PEERS, format!("uid {listed}"))
            } else {
                let found = format!("uid {listed}, and not root, as whom kube-apiserver usually runs");
                Finding::warning(&PEERS, found, "add 0 to socket.peers unless the API server runs as one of these")
            }
        }
    }
}
