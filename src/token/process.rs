//! A worker process: spawned by exec, told what to do over its standard input, given its ends of the session socketpairs.

use std::collections::BTreeMap;
use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::process::Stdio;
use std::time::Duration;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;
use tokio::process::{Child, Command};

use super::Failure;
use crate::class::Class;
use crate::pin::PinSource;
use crate::seal::SealForm;
use crate::wire::{self, FrameBuffer, link};

/// What a worker is started with.
#[derive(Clone)]
pub struct WorkerSpec {
    /// Module, token, PIN source and KEKs.
    pub start: link::Start,
    /// How the token seals, as in `start`.
    pub form: SealForm,
    /// PKCS#11 sessions to open, each with a thread of its own.
    pub sessions: usize,
    /// Variables that the vendor module needs (its configuration file, for one).
    pub environment: BTreeMap<String, String>,
    /// How often the KEK is proved.
    pub probe_interval: Duration,
}

/// A worker that serves.
pub(super) struct Worker {
    pub(super) child: Child,
    /// Kept open: its end is the worker's sign to stop.
    control: UnixStream,
    pub(super) sessions: Vec<UnixStream>,
}

/// Why a worker did not come to serve.
pub(super) struct StartFailure {
    pub(super) failure: Failure,
    /// What became of its login.
    pub(super) login: Login,
}

/// What became of a login.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Login {
    /// The start ended before.
    NotTried,
    /// The token said no.
    Refused,
    /// It ended in the middle: nobody knows whether the token counted it.
    Unknown,
    /// It succeeded.
    Passed,
}

/// Longest wait for the end of a process that was killed.
const KILL_LIMIT: Duration = Duration::from_secs(1);

/// Longest time from exec to Started. Network HSMs take seconds to connect.
const START_LIMIT: Duration = Duration::from_secs(10);

/// Variables that a worker inherits besides those configured.
const INHERITED: [&str; 6] = ["PATH", "HOME", "LANG", "TZ", "LD_LIBRARY_PATH", "CREDENTIALS_DIRECTORY"];

impl Worker {
    /// Starts a worker and waits until it serves or says why not.
    pub(super) async fn start(spec: &WorkerSpec) -> Result<(Self, link::TokenInfo), StartFailure> {
        let unstarted = |error| Failure::at_start(format!("the worker process cannot be started: {error}"));
        let mut worker =
            Self::spawn(spec).map_err(|error| StartFailure { failure: unstarted(error), login: Login::NotTried })?;
        let mut login = Login::NotTried;
        let started = started(&mut worker.control, &mut login);
        let outcome = tokio::time::timeout(START_LIMIT, started).await.unwrap_or_else(|_| {
            let seconds = START_LIMIT.as_secs();
            Err(Failure::at_start(format!("the worker did not start within {seconds} s")))
        });
        match outcome {
            Ok(token) => Ok((worker, token)),
            Err(failure) => {
                worker.kill().await;
                Err(StartFailure { failure, login })
            }
        }
    }

    /// Ends the process at once and reaps it: a hung call inside it cannot be ended otherwise. Waits no longer than [`KILL_LIMIT`]: a
    /// process in the middle of a device driver may not die, and must not hold up its successor.
    pub(super) async fn kill(&mut self) {
        if tokio::time::timeout(KILL_LIMIT, self.child.kill()).await.is_err() {
            tracing::error!(pid = self.child.id(), "a worker was killed and does not die");
        }
    }

    fn spawn(spec: &WorkerSpec) -> std::io::Result<Self> {
        let (control, remote_control) = StdUnixStream::pair()?;
        let mut sessions = Vec::with_capacity(spec.sessions);
        let mut remotes = Vec::with_capacity(spec.sessions);
        for _ in 0..spec.sessions {
            let (session, remote) = StdUnixStream::pair()?;
            session.set_nonblocking(true)?;
            sessions.push(UnixStream::from_std(session)?);
            remotes.push(OwnedFd::from(remote));
        }
        send_start(&control, &spec.start, &remotes)?;
        drop(remotes);
        control.set_nonblocking(true)?;
        let control = UnixStream::from_std(control)?;

        // The running binary itself, also after its file was replaced by an upgrade.
        let mut command = Command::new("/proc/self/exe");
        // Not killed on drop: that happens only when this process ends, and with it the worker ends, but not amid a login.
        command.arg0("hsm-kms").arg("worker");
        // Ctrl-C in a terminal goes to the whole group: it must not meet a worker in the middle of its login.
        command.process_group(0);
        command.stdin(Stdio::from(OwnedFd::from(remote_control))).stdout(Stdio::null()).stderr(Stdio::inherit());
        let pin_variable = match spec.start.pin.as_ref().and_then(|pin| pin.source.as_ref()) {
            Some(link::pin_source::Source::Environment(name)) => Some(name.as_str()),
            _ => None,
        };
        for (name, _) in std::env::vars_os() {
            let kept = name.to_str().is_some_and(|name| INHERITED.contains(&name) || Some(name) == pin_variable);
            if !kept {
                command.env_remove(name);
            }
        }
        command.envs(&spec.environment);
        let child = command.spawn()?;
        tracing::trace!(pid = child.id(), sessions = spec.sessions, "worker process started");
        Ok(Self { child, control, sessions })
    }
}

/// The PIN source as a worker is told it.
pub fn wire_pin(source: &PinSource) -> link::PinSource {
    use link::pin_source::Source;
    let source = match source {
        PinSource::Credential(name) => Source::Credential(name.clone()),
        PinSource::Descriptor(number) => Source::Descriptor(*number),
        PinSource::Environment(name) => Source::Environment(name.clone()),
        PinSource::File(path) => Source::File(path.display().to_string()),
    };
    link::PinSource { source: Some(source) }
}

impl Failure {
    fn at_start(detail: String) -> Self {
        Self {
            class: Class::Gone,
            public: "the HSM cannot be reached".to_owned(),
            detail,
            hint: "check the HSM, the module's own configuration and the log above; the plugin keeps trying".to_owned(),
        }
    }
}

fn send_start(control: &StdUnixStream, start: &link::Start, remotes: &[OwnedFd]) -> std::io::Result<()> {
    let mut frame = Vec::new();
    wire::append(start, &mut frame);
    let borrowed: Vec<_> = remotes.iter().map(AsFd::as_fd).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(crate::worker::MAX_SESSIONS))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !ancillary.push(SendAncillaryMessage::ScmRights(&borrowed)) {
        return Err(std::io::Error::other("too many sessions"));
    }
    let sent = sendmsg(control, &[IoSlice::new(&frame)], &mut ancillary, SendFlags::NOSIGNAL)?;
    if sent != frame.len() {
        return Err(std::io::Error::other("the worker's start message does not fit the socket buffer"));
    }
    Ok(())
}

/// Reads what the worker says of its start, and keeps what becomes of its login.
async fn started(control: &mut UnixStream, login: &mut Login) -> Result<link::TokenInfo, Failure> {
    let lost = |detail: &str| Failure::at_start(detail.to_owned());
    let mut frames = FrameBuffer::default();
    let mut bytes = [0; 4096];
    loop {
        let count = control.read(&mut bytes).await.unwrap_or(0);
        if count == 0 {
            return Err(lost("the worker ended before it served: the vendor module may have crashed"));
        }
        frames.push(bytes.get(..count).unwrap_or_default());
        while let Some(started) = frames.take::<link::Started>().map_err(|error| lost(&error.to_string()))? {
            match started.outcome {
                // Unknown until it says more.
                Some(link::started::Outcome::LoggingIn(begun)) => {
                    *login = if begun { Login::Unknown } else { Login::Passed }
                }
                Some(link::started::Outcome::Token(token)) => return Ok(token),
                Some(link::started::Outcome::Failure(failure)) => {
                    if *login == Login::Unknown {
                        *login = Login::Refused;
                    }
                    return Err(failure.into());
                }
                None => {}
            }
        }
    }
}
