//! A worker process: started by the launcher, told what to do over its standard input, given its ends of the session
//! socketpairs.

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;
use tokio::time::{Instant, timeout, timeout_at};

use super::Failure;
use super::lane::count_calls;
use super::launcher::{Launcher, Process};
use crate::class::Class;
use crate::pin::PinSource;
use crate::seal::SealForm;
use crate::wire::{self, FrameBuffer, link};

/// What a worker is started with.
#[derive(Clone)]
pub struct WorkerSpec {
    /// Token and KEKs.
    pub start: link::Start,
    /// How the token seals, as in `start`.
    pub form: SealForm,
    /// PKCS#11 sessions to open, each with a thread of its own.
    pub sessions: usize,
    /// Where the PIN is.
    pub pin: Option<PinSource>,
    /// Starts it.
    pub launcher: Launcher,
    /// Index of its token among the launcher's places.
    pub place: u32,
    /// How often the KEK is proved.
    pub probe_interval: Duration,
}

/// A worker that serves.
pub(super) struct Worker {
    pub(super) process: Process,
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

impl Worker {
    /// Starts a worker of the token at this place in the list, and waits until it serves or says why not.
    pub(super) async fn start(spec: &WorkerSpec, position: u64) -> Result<(Self, link::TokenInfo), StartFailure> {
        let deadline = Instant::now() + START_LIMIT;
        let late = || Failure::at_start(format!("the worker did not start within {} s", START_LIMIT.as_secs()));
        let unstarted = |error| Failure::at_start(format!("the worker process cannot be started: {error}"));
        let launched = timeout_at(deadline, Self::launch(spec)).await;
        let launched = launched.map_or_else(|_| Err(late()), |launched| launched.map_err(unstarted));
        let mut worker = launched.map_err(|failure| StartFailure { failure, login: Login::NotTried })?;
        let mut login = Login::NotTried;
        let started = timeout_at(deadline, started(&mut worker.control, position, &mut login)).await;
        let outcome = started.unwrap_or_else(|_| Err(late()));
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
        let ended = async {
            self.process.kill().await;
            self.process.ended().await;
        };
        if timeout(KILL_LIMIT, ended).await.is_err() {
            tracing::error!(pid = self.process.id, "a worker was killed and does not die");
        }
    }

    /// Has a process started, and tells it its Start.
    async fn launch(spec: &WorkerSpec) -> std::io::Result<Self> {
        let mut sessions = Vec::with_capacity(spec.sessions);
        let mut remotes = Vec::with_capacity(spec.sessions);
        for _ in 0..spec.sessions {
            let (session, remote) = StdUnixStream::pair()?;
            session.set_nonblocking(true)?;
            sessions.push(UnixStream::from_std(session)?);
            remotes.push(remote);
        }
        let (control, process) = spec.launcher.launch(spec.place).await?;
        let borrowed: Vec<_> = remotes.iter().map(AsFd::as_fd).collect();
        wire::send(&control, &spec.start, &borrowed)?;
        control.set_nonblocking(true)?;
        let control = UnixStream::from_std(control)?;
        tracing::trace!(pid = process.id, sessions = spec.sessions, "worker process started");
        Ok(Self { process, control, sessions })
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

/// Reads what the worker says of its start, and keeps what becomes of its login.
async fn started(control: &mut UnixStream, position: u64, login: &mut Login) -> Result<link::TokenInfo, Failure> {
    let lost = |detail: &str| Failure::at_start(detail.to_owned());
    let mut frames = FrameBuffer::default();
    let mut bytes = [0; 4096];
    loop {
        let count = control.read(&mut bytes).await.unwrap_or(0);
        if count == 0 {
            let mut failure: Failure = lost("the worker ended before it served: the vendor module may have crashed");
            failure.hint.push_str("; if it lacked a file, see token.sandbox in docs/configuration.md");
            return Err(failure);
        }
        frames.push(bytes.get(..count).unwrap_or_default());
        while let Some(started) = frames.take::<link::Started>().map_err(|error| lost(&error.to_string()))? {
            count_calls(position, &started.calls);
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
