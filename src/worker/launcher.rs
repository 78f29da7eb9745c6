//! The launcher process: starts the workers. The front cannot do it itself, since it has given up the right to start programs,
//! and what it starts would inherit its limits.
//!
//! It knows from the configuration what each worker is started with, before the front reads anything of a peer's: a front that
//! was taken over can ask for a worker, and not for another module or PIN. It never loads a module, and reads no PIN.

use std::io::{Error as IoError, ErrorKind, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::process::Stdio;
use std::sync::Arc;

use rustix::process::{Signal, set_parent_process_death_signal};
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::UnixStream;
use tokio::process::{Child, Command};
use tokio::signal::unix::{SignalKind, signal};

use crate::exit::ExitCode;
use crate::memory;
use crate::sandbox::{self, Mode};
use crate::wire::link::{self, launched::Outcome};
use crate::wire::{self, Receiver};

/// Variables that launcher and workers inherit besides those configured.
pub const INHERITED: [&str; 6] = ["PATH", "HOME", "LANG", "TZ", "LD_LIBRARY_PATH", "CREDENTIALS_DIRECTORY"];

/// Runs the launcher until the front goes away. `Err`: it was not started by a front.
pub fn run() -> Result<ExitCode, IoError> {
    // Its environment may hold a PIN for a worker.
    memory::protect()?;
    set_parent_process_death_signal(Some(Signal::KILL))?;
    let requests = StdUnixStream::from(std::io::stdin().as_fd().try_clone_to_owned()?);
    let mut receiver = Receiver::default();
    let by_hand = || IoError::new(ErrorKind::UnexpectedEof, "the launcher is started by `hsm-kms serve`, not by hand");
    let places: link::Places = receiver.next(&requests)?.ok_or_else(by_hand)?;
    let mode =
        Mode::from_number(places.sandbox).ok_or_else(|| IoError::other("the front asked for no known sandbox"))?;
    // Whether that holds the front has said: it has the same kernel.
    sandbox::launcher(mode).map_err(IoError::other)?;
    let places = places.places.into_iter().map(Arc::new).collect();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    // The workers end with this process, unless one is in the middle of a login: then it ends when it sees that the front has.
    runtime.block_on(serve(requests, receiver, places))?;
    Ok(ExitCode::Done)
}

async fn serve(requests: StdUnixStream, mut receiver: Receiver, places: Vec<Arc<link::Place>>) -> Result<(), IoError> {
    // A service manager may send these to all processes of its unit at once. The front acts on them, and then this one ends.
    let kinds = [SignalKind::terminate(), SignalKind::interrupt(), SignalKind::hangup()];
    let _caught = kinds.map(signal);
    requests.set_nonblocking(true)?;
    let requests = UnixStream::from_std(requests)?;
    loop {
        while let Some(link::Launch { place }) = receiver.take().map_err(IoError::other)? {
            let place = usize::try_from(place).ok().and_then(|place| places.get(place));
            if let (Some(place), Some(life)) = (place, receiver.descriptors().pop()) {
                tokio::spawn(look_after(Arc::clone(place), life));
            }
        }
        if requests.async_io(Interest::READABLE, || receiver.receive(&requests)).await? == 0 {
            return Ok(());
        }
    }
}

/// Starts a worker, tells the front of it and of its end, and kills it at the front's word.
async fn look_after(place: Arc<link::Place>, life: OwnedFd) {
    let Ok(mut life) = adopt(life) else { return };
    let (mut child, control) = match spawn(&place) {
        Ok(spawned) => spawned,
        Err(error) => return tell(&mut life, Outcome::Failed(error.to_string())).await,
    };
    let started = link::Launched { outcome: Some(Outcome::Started(child.id().unwrap_or_default())) };
    // A front that takes no interest any more closes the control socket, and the worker sees it.
    let _ = wire::send(&life, &started, &[control.as_fd()]);
    drop(control);
    let mut is_open = true;
    let mut bytes = [0; 16];
    let status = loop {
        tokio::select! {
            status = child.wait() => break status,
            read = life.read(&mut bytes), if is_open => match read {
                // Nothing but Kill comes down.
                Ok(1..) => drop(child.start_kill()),
                _ => is_open = false,
            },
        }
    };
    let status = status.map_or_else(|error| error.to_string(), |status| status.to_string());
    tell(&mut life, Outcome::Ended(status)).await;
}

fn adopt(life: OwnedFd) -> Result<UnixStream, IoError> {
    let life = StdUnixStream::from(life);
    life.set_nonblocking(true)?;
    UnixStream::from_std(life)
}

async fn tell(life: &mut UnixStream, outcome: Outcome) {
    let mut frame = Vec::new();
    wire::append(&link::Launched { outcome: Some(outcome) }, &mut frame);
    let _ = life.write_all(&frame).await;
}

/// A worker, and the front's end of its control socketpair.
fn spawn(place: &link::Place) -> Result<(Child, StdUnixStream), IoError> {
    let (mut control, remote) = StdUnixStream::pair()?;
    let mut frame = Vec::new();
    wire::append(place, &mut frame);
    // Before the front has the socket, so that the worker reads this first.
    control.write_all(&frame)?;
    // The running binary itself, also after its file was replaced by an upgrade.
    let mut command = Command::new("/proc/self/exe");
    // Not killed on drop: that happens only when this process ends, and with it the worker ends, but not amid a login.
    command.arg0("hsm-kms").arg("worker");
    // Ctrl-C in a terminal goes to the whole group: it must not meet a worker in the middle of its login.
    command.process_group(0);
    command.stdin(Stdio::from(OwnedFd::from(remote))).stdout(Stdio::null()).stderr(Stdio::inherit());
    keep_of_environment(&mut command, &[pin_variable(place)]);
    command.envs(&place.environment);
    Ok((command.spawn()?, control))
}

/// The variable that holds the PIN, if it is in one.
pub fn pin_variable(place: &link::Place) -> Option<&str> {
    match place.pin.as_ref().and_then(|pin| pin.source.as_ref()) {
        Some(link::pin_source::Source::Environment(name)) => Some(name),
        _ => None,
    }
}

/// Lets the command inherit the few variables that a launcher or worker may have, and these.
pub fn keep_of_environment(command: &mut Command, others: &[Option<&str>]) {
    for (name, _) in std::env::vars_os() {
        let kept = name.to_str().is_some_and(|name| INHERITED.contains(&name) || others.contains(&Some(name)));
        if !kept {
            command.env_remove(name);
        }
    }
}
