//! `hsm-kms serve`: the front process. Socket first, HSM second: the API server must never find the socket gone.

pub(super) mod drill;
mod follow;
pub(super) mod keks;
mod lockdown;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use listenfd::ListenFd;
use rustix::process::Signal;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinHandle;
use tonic::transport::Server;

use super::{CliError, endpoints};
use crate::audit::{self, Event};
use crate::config::Config;
use crate::exit::ExitCode;
use crate::keyring::{Current, Kek, Keyring, KeyringFile, RewrapTable};
use crate::kms::peers::Peers;
use crate::kms::proto::key_management_service_server::KeyManagementServiceServer;
use crate::kms::service::{MAX_MESSAGE_BYTES, Service};
use crate::kms::socket::{self, Listener};
use crate::memory::{self, Paging};
use crate::observe::log;
use crate::token::{Launcher, Tokens};

/// Serve KMS v2 on a Unix socket
#[derive(Debug, Args)]
pub(super) struct ServeArgs {
    /// Configuration file (docs/configuration.md)
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
}

/// Requests of one connection that run at a time; further ones wait in the client. Each may hold a message in memory. An API server that
/// starts has one connection and may ask for thousands of seeds.
const STREAMS: u32 = 1024;

/// Largest header list of a request, in bytes. The API server's have some 200.
const HEADER_BYTES: u32 = 8 * 1024;

/// A peer that answers no ping is gone, or never spoke HTTP/2: its connection is closed.
const PING_INTERVAL: Duration = Duration::from_secs(30);
const PING_LIMIT: Duration = Duration::from_secs(30);

/// What a request may take longer than its deadline, until its last byte is there.
const TRANSFER_LIMIT: Duration = Duration::from_millis(500);

/// Longest time for RPCs in flight to finish after SIGTERM.
const DRAIN_LIMIT: Duration = Duration::from_secs(3);

/// Longest time after that for tokens that are just being started. A login takes less; one that hangs is not waited for.
const LOGIN_LIMIT: Duration = Duration::from_secs(3);

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
    let paging = memory::protect().map_err(system_error)?;
    if paging == Paging::Unlocked && memory::machine_swaps() {
        tracing::warn!(
            "this machine swaps, and memory that holds DEK seeds and PIN cannot be locked: set LimitMEMLOCK=infinity in the unit, \
             give CAP_IPC_LOCK, or switch swap off"
        );
    }
    for warning in config.warnings() {
        tracing::warn!("{warning}");
    }
    let profiles: BTreeMap<_, _> = config.tokens().map(|token| (token.profile.full_name(), &token.profile)).collect();
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
    lockdown::check(&config)?;
    let (keks, file) = keks::load(&config)?;
    let rewrapped = keks::rewrap_table(&config, &keks)?;

    // One thread: everything in this process waits, nothing computes; a second one would cost a wake-up per request.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(system_error)?;
    let served = runtime.block_on(serve(config, keks, file, rewrapped));
    audit::stop();
    // The worker ends with its control socket; nothing here is worth waiting for.
    runtime.shutdown_background();
    served
}

async fn serve(
    config: Config,
    keks: Vec<Kek>,
    file: Option<KeyringFile>,
    rewrapped: Option<RewrapTable>,
) -> Result<(), CliError> {
    // First of all: until they are caught, these signals end the process and leave the socket behind.
    let mut terminate = signal(SignalKind::terminate()).map_err(system_error)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(system_error)?;
    let hangup = signal(SignalKind::hangup()).map_err(system_error)?;
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
    // Before this process has anything that a child must not have.
    let (launcher, mut launcher_process) = Launcher::start(&keks::places(&config)).map_err(system_error)?;
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
    // While this thread is the only one: the audit log has a thread of its own.
    lockdown::front(&config)?;
    open_audit(&config)?;
    // A file at its limit (LimitFSIZE=) then fails a write, as a full disk does, and does not end the process.
    let _at_limit = signal(SignalKind::from_raw(Signal::XFSZ.as_raw())).map_err(system_error)?;
    let peers = Peers::new(config.socket.peers.clone().unwrap_or_else(Peers::default_uids));
    let incoming = socket::incoming(listener.tokio().map_err(system_error)?, peers);
    let tokens = Tokens::start(keks::specs(&config, &keks, &launcher), config.limits.queue);
    let keyring = Keyring::new(config.cluster.as_str(), keks, tokens).map_err(|error| CliError {
        code: ExitCode::BadUsage,
        what: "the KEKs cannot be served".to_owned(),
        why: error.to_string(),
        hint: "stage each KEK once".to_owned(),
    })?;
    tracing::info!(
        socket = %path.display(),
        key_id_hash = keyring.active().hash(),
        epoch = keyring.epoch(),
        cluster = config.cluster.as_str(),
        "serving KMS v2"
    );
    follow::record(&keyring);
    drill::warn(config.kek.recovery_drill.as_deref(), &config.cluster, &keyring);
    let current = Arc::new(match &file {
        Some(file) => Current::followed(keyring, file),
        None => Current::fixed(keyring),
    });
    let endpoints = bound.map(|bound| bound.serve(Arc::clone(&current), &config)).transpose()?;
    let longest = config.limits.deadline;
    let service = Service::new(Arc::clone(&current), config.health, longest, rewrapped);
    let service = KeyManagementServiceServer::new(service).max_decoding_message_size(MAX_MESSAGE_BYTES);
    tokio::spawn(follow::run(config, launcher, file, Arc::clone(&current), hangup));
    let (stop, stopped) = tokio::sync::watch::channel(());
    let mut serving = tokio::spawn({
        let mut stopped = stopped;
        async move {
            Server::builder()
                .max_concurrent_streams(STREAMS)
                .http2_max_header_list_size(HEADER_BYTES)
                .http2_keepalive_interval(Some(PING_INTERVAL))
                .http2_keepalive_timeout(Some(PING_LIMIT))
                // Ours comes first, unless the request itself does not come in.
                .timeout(longest + TRANSFER_LIMIT)
                .serve_with_incoming_shutdown(service, incoming, async move { _ = stopped.changed().await })
                .await
        }
    });
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        ended = &mut serving => {
            let why = ended.map_or_else(|error| error.to_string(), |served| format!("{served:?}"));
            return Err(ended_by_itself("server", why));
        }
        ended = launcher_process.wait() => {
            // Without it no worker can be replaced.
            let why = ended.map_or_else(|error| error.to_string(), |status| status.to_string());
            return Err(ended_by_itself("launcher", why));
        }
    }
    tracing::info!("stopping: no new work, finishing what runs");
    drop(stop);
    if tokio::time::timeout(DRAIN_LIMIT, drained(serving, &current)).await.is_err() {
        tracing::warn!("requests were still running after {} s", DRAIN_LIMIT.as_secs());
    }
    // With this process ends all that it started, under systemd at once: a login that is cut can spoil a token.
    if tokio::time::timeout(LOGIN_LIMIT, current.get().tokens().settled()).await.is_err() {
        tracing::warn!("a token was still starting after {} s", LOGIN_LIMIT.as_secs());
    }
    drop(listener);
    drop(endpoints);
    Ok(())
}

fn open_audit(config: &Config) -> Result<(), CliError> {
    audit::start(config.audit.as_ref()).map_err(|error| CliError {
        code: ExitCode::BadUsage,
        what: "the audit log cannot be opened".to_owned(),
        why: error.to_string(),
        hint: error.hint(),
    })?;
    audit::record(|| Event::Start {
        version: env!("CARGO_PKG_VERSION"),
        cluster: config.cluster.as_str().to_owned(),
        pid: std::process::id(),
    });
    Ok(())
}

/// Waits until all connections are closed, or only idle ones are left: a client that never began to speak HTTP/2, or is
/// stopped and does not answer our GOAWAY, keeps its connection open for as long as it likes.
async fn drained<T>(mut serving: JoinHandle<T>, current: &Current) {
    let mut idle = false;
    // Twice in a row: what ended just before the first look has had its answer written by the second.
    while tokio::time::timeout(QUIET, &mut serving).await.is_err() {
        let was_idle = std::mem::replace(&mut idle, current.get().tokens().load() == 0);
        if was_idle && idle {
            return;
        }
    }
}

fn ended_by_itself(what: &str, why: String) -> CliError {
    CliError {
        code: ExitCode::NotReachable,
        what: format!("the {what} ended by itself"),
        why,
        hint: "see the log above, then start it again".to_owned(),
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
