//! `hsm-kms serve`: the front process. Socket first, HSM second: the API server must never find the socket gone.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use listenfd::ListenFd;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinHandle;
use tonic::transport::Server;

use super::{CliError, endpoints};
use crate::attributes::AttributeName;
use crate::config::{self, Config};
use crate::exit::ExitCode;
use crate::keyring::{self, Keyring};
use crate::kms::proto::key_management_service_server::KeyManagementServiceServer;
use crate::kms::service::{MAX_MESSAGE_BYTES, Service};
use crate::kms::socket::{self, Listener};
use crate::observe::log;
use crate::record::{KekRecord, Kind, Recovery, TokenKey};
use crate::token::{Tokens, WorkerSpec};
use crate::wire::link;

/// Serve KMS v2 on a Unix socket
#[derive(Debug, Args)]
pub(super) struct ServeArgs {
    /// Configuration file (docs/configuration.md)
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
}

/// Longest time for RPCs in flight to finish after SIGTERM.
const DRAIN_LIMIT: Duration = Duration::from_secs(3);

/// A look at what still runs, that often.
const QUIET: Duration = Duration::from_millis(50);

/// Serves until SIGTERM or SIGINT.
pub(super) fn run(args: &ServeArgs) -> Result<(), CliError> {
    let config = Config::load(&args.config).map_err(|error| CliError {
        code: ExitCode::BadUsage,
        what: "the configuration cannot be used".to_owned(),
        why: error.to_string(),
        hint: error.hint(),
    })?;
    log::start(config.log.format, config.log.level);
    for warning in config.warnings() {
        tracing::warn!("{warning}");
    }
    let tokens = || std::iter::once(&config.token).chain(config.standby.iter().map(|standby| &standby.token));
    let profiles: BTreeMap<_, _> = tokens().map(|token| (token.profile.full_name(), &token.profile)).collect();
    for (name, profile) in profiles {
        let unproved = profile.unproved();
        if !unproved.is_empty() {
            tracing::warn!(
                profile = name,
                "not proved by a test or on a device, only by documents or not at all: {}",
                unproved.join(", ")
            );
        }
    }
    let record = read_record(&config)?;
    let first = worker_spec(&config, &record, &config.token, None);
    let standby =
        config.standby.iter().map(|standby| worker_spec(&config, &record, &standby.token, Some(&standby.serial)));
    let specs = std::iter::once(first).chain(standby).collect();

    // One thread: everything in this process waits, nothing computes; a second one would cost a wake-up per request.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(system_error)?;
    let served = runtime.block_on(serve(&config, &record, specs));
    // The worker ends with its control socket; nothing here is worth waiting for.
    runtime.shutdown_background();
    served
}

async fn serve(config: &Config, record: &KekRecord, specs: Vec<WorkerSpec>) -> Result<(), CliError> {
    // First of all: until they are caught, these signals end the process and leave the socket behind.
    let mut terminate = signal(SignalKind::terminate()).map_err(system_error)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(system_error)?;
    let mut hangup = signal(SignalKind::hangup()).map_err(system_error)?;
    let path = &config.socket.path;
    // systemd's, if it started us for its socket; otherwise our own.
    let mut descriptors = ListenFd::from_env();
    if descriptors.len() > 1 {
        return Err(CliError {
            code: ExitCode::BadUsage,
            what: format!("the socket {} cannot be made", path.display()),
            why: format!("{} sockets were passed on", descriptors.len()),
            hint: "keep one ListenStream= in the socket unit".to_owned(),
        });
    }
    let passed_on = descriptors.take_unix_listener(0).map_err(system_error)?;
    let listener = match passed_on {
        Some(socket) => Listener::inherit(socket, path, config.socket.mode),
        None => Listener::bind(path, config.socket.mode),
    };
    let listener = listener.map_err(|error| CliError {
        code: ExitCode::BadUsage,
        what: format!("the socket {} cannot be made", path.display()),
        why: error.to_string(),
        hint: error.hint(),
    })?;
    // All that can fail for the configuration's sake comes before the first login.
    let bound = config.endpoints.as_ref().map(endpoints::bind).transpose()?;
    let incoming = socket::incoming(listener.tokio().map_err(system_error)?, socket::default_peers());
    let tokens = Tokens::start(specs, config.limits.queue);
    let keyring = Arc::new(Keyring::new(record, tokens.clone()));
    tracing::info!(
        socket = %path.display(),
        key_id_hash = keyring.active().hash(),
        cluster = record.cluster.as_str(),
        "serving KMS v2"
    );
    let endpoints = bound.map(|bound| bound.serve(Arc::clone(&keyring), config.health)).transpose()?;
    let service = KeyManagementServiceServer::new(Service::new(keyring, config.health, config.limits.deadline))
        .max_decoding_message_size(MAX_MESSAGE_BYTES);
    let (stop, stopped) = tokio::sync::watch::channel(());
    let mut serving = tokio::spawn({
        let mut stopped = stopped;
        async move {
            Server::builder()
                .serve_with_incoming_shutdown(service, incoming, async move { _ = stopped.changed().await })
                .await
        }
    });
    loop {
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            _ = hangup.recv() => tokens.restart(),
            ended = &mut serving => {
                let why = ended.map_or_else(|error| error.to_string(), |served| format!("{served:?}"));
                return Err(CliError {
                    code: ExitCode::NotReachable,
                    what: "the server ended by itself".to_owned(),
                    why,
                    hint: "see the log above, then start it again".to_owned(),
                });
            }
        }
    }
    tracing::info!("stopping: no new work, finishing what runs");
    drop(stop);
    if tokio::time::timeout(DRAIN_LIMIT, drained(serving, &tokens)).await.is_err() {
        tracing::warn!("requests were still running after {} s", DRAIN_LIMIT.as_secs());
    }
    drop(listener);
    drop(endpoints);
    Ok(())
}

/// Waits until all connections are closed, or only idle ones are left: a client that never began to speak HTTP/2, or is
/// stopped and does not answer our GOAWAY, keeps its connection open for as long as it likes.
async fn drained<T>(mut serving: JoinHandle<T>, tokens: &Tokens) {
    let mut idle = false;
    // Twice in a row: what ended just before the first look has had its answer written by the second.
    while tokio::time::timeout(QUIET, &mut serving).await.is_err() {
        let was_idle = std::mem::replace(&mut idle, tokens.load() == 0);
        if was_idle && idle {
            return;
        }
    }
}

/// The record, if this configuration may serve it.
fn read_record(config: &Config) -> Result<KekRecord, CliError> {
    let path = &config.kek.record;
    let refuse = |why: String, hint: String| CliError {
        code: ExitCode::BadUsage,
        what: format!("the KEK record {} cannot be used", path.display()),
        why,
        hint,
    };
    let record = KekRecord::read(path).map_err(|error| refuse(error.to_string(), error.hint()))?;
    if record.cluster != config.cluster {
        let why = format!(
            "it is for cluster {:?}, the configuration says {:?}",
            record.cluster.as_str(),
            config.cluster.as_str()
        );
        return Err(refuse(why, "use the record of this cluster's own ceremony".to_owned()));
    }
    let keys = [Some(&record.kek), record.mac_key.as_ref()];
    let lacks = |key: &&TokenKey| AttributeName::ALL.iter().any(|name| !key.attributes.contains_key(name));
    if let Some(key) = keys.into_iter().flatten().find(lacks) {
        let why = format!("it does not say of the key {:?} what each attribute was", key.label);
        return Err(refuse(why, "use the record as the ceremony wrote it".to_owned()));
    }
    if record.mac_key.is_some() != config.token.sealing.mac_mechanism().is_some() {
        let why = format!(
            "the ceremony was held with profile {}, whose seal {} a MAC key beside the KEK; that of {} does not go with it",
            record.profile,
            if record.mac_key.is_some() { "has" } else { "has no" },
            config.token.profile.full_name()
        );
        return Err(refuse(why, "set token.profile to that of the ceremony".to_owned()));
    }
    match (record.kind, record.recovery) {
        (Kind::Production, Recovery::Copies | Recovery::Shares) => {}
        (Kind::Production, Recovery::None) if config.kek.accept_data_loss => {
            tracing::warn!("no copy of the KEK was proved: if this token is lost, every secret in etcd is");
        }
        (Kind::Production, Recovery::None) => {
            let why = "the ceremony proved no copies of the KEK, so without this one token nothing opens".to_owned();
            let hint = "hold a ceremony that proves two copies; or set kek.accept_data_loss: true, and know that the loss of this \
                        token is then the loss of every secret in etcd, in backups too"
                .to_owned();
            return Err(refuse(why, hint));
        }
        (Kind::Rehearsal, _) => {
            let why = "the KEK was made in a rehearsal, on a token that is thrown away".to_owned();
            return Err(refuse(why, "hold the ceremony itself, and use its record".to_owned()));
        }
        (Kind::Trial, _) if config.kek.allow_trial => {
            tracing::warn!("TRIAL KEK: nobody witnessed how it was made; do not protect a real cluster with it");
        }
        (Kind::Trial, _) => {
            let why = "the KEK was made unattended, as a trial".to_owned();
            let hint = "hold a ceremony with witnesses, or set kek.allow_trial: true on a test cluster".to_owned();
            return Err(refuse(why, hint));
        }
    }
    Ok(record)
}

/// How often the KEK is proved while nothing else uses it, unless the device forgets an idle session sooner. With a call's limit of
/// 1.2 s a loss is known within 5 s.
const PROBE_INTERVAL: Duration = Duration::from_secs(2);

/// What the worker of this token is told. `copy`: the serial of a token that the KEK was not made in.
fn worker_spec(config: &Config, record: &KekRecord, token: &config::Token, copy: Option<&str>) -> WorkerSpec {
    let profile = &token.profile;
    let codes = profile
        .codes
        .iter()
        .map(|entry| link::CodeOverride {
            code: entry.code,
            function: entry.function.unwrap_or_default().to_owned(),
            class: entry.class.number(),
        })
        .collect();
    let start = link::Start {
        module: token.module.display().to_string(),
        manufacturers: profile.module.manufacturers.clone(),
        token_label: token.label.clone(),
        token_serial: copy.unwrap_or(&record.token.serial).to_owned(),
        pin: token.pin.as_ref().map(crate::token::wire_pin),
        user: profile.login.user as u32,
        pin_form: profile.login.pin as u32,
        init_reserved: token.init_reserved.clone().unwrap_or_default(),
        keks: vec![keyring::wire_kek(record, copy.is_some())],
        codes,
        sealing: Some(keyring::wire_sealing(&token.sealing)),
    };
    WorkerSpec {
        start,
        form: token.sealing.form,
        sessions: config.limits.sessions,
        environment: token.environment.clone(),
        probe_interval: profile.recover.probe.map_or(PROBE_INTERVAL, |idle| idle.min(PROBE_INTERVAL)),
    }
}

pub(super) fn system_error(error: impl std::fmt::Display) -> CliError {
    CliError {
        code: ExitCode::NotReachable,
        what: "the system refused a resource".to_owned(),
        why: error.to_string(),
        hint: "check limits on open files and memory".to_owned(),
    }
}
