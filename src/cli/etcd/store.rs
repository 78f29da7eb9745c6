//! Which store a command reads, and what it says when it cannot.

use std::path::PathBuf;

use clap::{ArgGroup, Args};

use super::failure;
use crate::cli::CliError;
use crate::etcd::client::{Client, ClientError, Target};
use crate::etcd::snapshot::{Snapshot, SnapshotError};
use crate::exit::ExitCode;

/// The store.
#[derive(Args, Debug)]
#[command(group(ArgGroup::new("store").required(true).args(["endpoint", "snapshot"])))]
pub(in crate::cli) struct StoreArgs {
    /// A running etcd: `https://HOST:PORT`, or `http://HOST:PORT` without TLS
    #[arg(long, value_name = "URL")]
    endpoint: Option<String>,
    /// A file that `etcdctl snapshot save` wrote, or the `member/snap/db` of a stopped etcd
    #[arg(long, value_name = "FILE")]
    snapshot: Option<PathBuf>,
    /// The authority of etcd's certificate, PEM
    #[arg(long, value_name = "FILE", conflicts_with = "snapshot")]
    cacert: Option<PathBuf>,
    /// The client certificate, PEM
    #[arg(long, value_name = "FILE", conflicts_with = "snapshot", requires = "cert_key")]
    cert: Option<PathBuf>,
    /// The client certificate's key, PEM
    #[arg(long, value_name = "FILE", conflicts_with = "snapshot", requires = "cert")]
    cert_key: Option<PathBuf>,
}

/// Where to read.
pub(in crate::cli) enum Store {
    Live(Target),
    Snapshot(PathBuf),
}

impl StoreArgs {
    pub(in crate::cli) fn store(&self) -> Store {
        if let Some(file) = &self.snapshot {
            return Store::Snapshot(file.clone());
        }
        Store::Live(Target {
            // One of the two is there: clap has seen to it.
            endpoint: self.endpoint.clone().unwrap_or_default(),
            authority: self.cacert.clone(),
            identity: self.cert.clone().zip(self.cert_key.clone()),
        })
    }
}

pub(in crate::cli) async fn connect(target: &Target) -> Result<Client, CliError> {
    Client::connect(target).await.map_err(|error| not_read(target, &error))
}

pub(in crate::cli) fn open(file: &std::path::Path) -> Result<Snapshot, CliError> {
    Snapshot::open(file).map_err(|error| no_snapshot(&error))
}

pub(in crate::cli) fn no_snapshot(error: &SnapshotError) -> CliError {
    let (code, hint) = match error {
        SnapshotError::InUse(_) => (
            ExitCode::BadUsage,
            "read the running etcd by --endpoint, or save a snapshot of it: etcdctl snapshot save FILE",
        ),
        SnapshotError::Io { .. } => (ExitCode::BadUsage, "check the path, and that this user may read it"),
        SnapshotError::NoDatabase(_) => (
            ExitCode::DoesNotHold,
            "check that the file is complete; `etcdctl snapshot status FILE` must be able to read it",
        ),
    };
    failure(code, "the snapshot cannot be read", error.to_string(), hint)
}

pub(in crate::cli) fn not_read(target: &Target, error: &ClientError) -> CliError {
    let endpoint = &target.endpoint;
    let (code, hint) = match error {
        ClientError::Compacted { .. } => (
            ExitCode::DoesNotHold,
            "the API server compacts what is older than 5 minutes: use a higher --rate, or read a snapshot",
        ),
        ClientError::Connection(_) if target.identity.is_none() && endpoint.starts_with("https:") => {
            (ExitCode::NotReachable, "most etcds take only clients with a certificate: give --cert and --cert-key")
        }
        ClientError::Connection(_) => (
            ExitCode::NotReachable,
            "check that etcd serves clients there, https or http, and that its certificate is by --cacert and names this host",
        ),
        ClientError::File { .. } => (ExitCode::BadUsage, "check the path, and that this user may read it"),
        ClientError::Nonsense(_) => (ExitCode::DoesNotHold, "check that the endpoint is an etcd of version 3"),
        ClientError::Refused(_) => {
            (ExitCode::DoesNotHold, "check that the endpoint is etcd's client port, and that this client may read")
        }
        ClientError::Usage(_) => (ExitCode::BadUsage, "kubeadm has them in /etc/kubernetes/pki/etcd: --cacert ca.crt"),
    };
    failure(code, format!("etcd at {endpoint} cannot be read"), error.to_string(), hint)
}
