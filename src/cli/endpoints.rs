//! Where `serve` answers `/livez`, `/readyz`, `/metrics` and `/keyring`.

use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use tokio_stream::StreamExt;

use super::CliError;
use super::serve::{drill, system_error};
use crate::audit;
use crate::config::{Config, EndpointAddress};
use crate::exit::ExitCode;
use crate::keyring::{Current, NodeReport};
use crate::kms::peers::Peers;
use crate::kms::socket::{self, Listener};
use crate::kms::status::healthz;
use crate::observe::endpoints::{Answers, Endpoints};
use crate::observe::metrics::{METRICS, Snapshot};
use crate::record::UtcTime;

/// An address that is ours.
pub(super) enum Bound {
    Tcp(TcpListener),
    Unix(Listener),
}

/// After an accept that failed: too many open files, for one, which passes.
const PAUSE: Duration = Duration::from_millis(50);

/// Takes the address, or says why not.
pub(super) fn bind(address: &EndpointAddress) -> Result<Bound, CliError> {
    let refuse = |why: String, hint: String| CliError {
        code: ExitCode::BadUsage,
        what: "the endpoints cannot be served".to_owned(),
        why,
        hint,
    };
    match address {
        EndpointAddress::Tcp(address) => {
            let bound = TcpListener::bind(address).and_then(|listener| {
                listener.set_nonblocking(true)?;
                Ok(Bound::Tcp(listener))
            });
            bound.map_err(|error| {
                refuse(format!("{address}: {error}"), "name a free port of this machine under endpoints".to_owned())
            })
        }
        EndpointAddress::Unix(path) => {
            Listener::bind(path, 0o600).map(Bound::Unix).map_err(|error| refuse(error.to_string(), error.hint()))
        }
    }
}

impl Bound {
    /// Answers there for as long as this process lives. What is returned removes a Unix socket when it goes.
    pub(super) fn serve(self, current: Arc<Current>, config: &Config) -> Result<Option<Listener>, CliError> {
        let policy = config.health;
        let (cluster, report) = (config.cluster.clone(), config.kek.recovery_drill.clone());
        let health = {
            let current = Arc::clone(&current);
            move || healthz(&current.get().tokens().health(), policy)
        };
        let metrics = {
            let (current, health) = (Arc::clone(&current), health.clone());
            move || {
                let keyring = current.get();
                METRICS.text(&Snapshot {
                    key_id_hash: keyring.active().hash(),
                    epoch: keyring.epoch(),
                    is_current: current.refused().is_none(),
                    is_healthy: health() == "ok",
                    waiting: keyring.tokens().load(),
                    audit: audit::is_writing(),
                    activated: current.activated().map(UtcTime::unix_seconds),
                    tokens: keyring.tokens().each(),
                    recipients: keyring
                        .recipients()
                        .map(|recipient| (recipient.fingerprint().to_string(), recipient.scheme().word()))
                        .collect(),
                    recovery_drill: drill::last(report.as_deref(), &cluster, &keyring).map(UtcTime::unix_seconds),
                })
            }
        };
        let mut instance = [0; 16];
        getrandom::fill(&mut instance).map_err(system_error)?;
        let instance = data_encoding::HEXLOWER.encode(&instance);
        let keyring = move || {
            let report = NodeReport::new(&instance, &current.get(), current.head(), current.refused());
            report.map_or_else(String::new, |report| report.to_json())
        };
        let (health, metrics, keyring) = (Box::new(health), Box::new(metrics), Box::new(keyring));
        let endpoints = Endpoints::new(Answers { health, metrics, keyring });
        match self {
            Self::Tcp(listener) => {
                let listener = tokio::net::TcpListener::from_std(listener).map_err(system_error)?;
                tokio::spawn(async move {
                    loop {
                        match listener.accept().await {
                            Ok((stream, _)) => endpoints.accept(stream),
                            Err(_) => tokio::time::sleep(PAUSE).await,
                        }
                    }
                });
                Ok(None)
            }
            Self::Unix(listener) => {
                let mut incoming =
                    socket::incoming(listener.tokio().map_err(system_error)?, Peers::new(Peers::default_uids()));
                tokio::spawn(async move {
                    while let Some(stream) = incoming.next().await {
                        if let Ok(stream) = stream {
                            endpoints.accept(stream);
                        }
                    }
                });
                Ok(Some(listener))
            }
        }
    }
}
