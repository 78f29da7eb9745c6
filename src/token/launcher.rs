//! The front's handle for the launcher process, which starts the workers (`src/worker/launcher.rs`).

use std::io::Error as IoError;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::process::Stdio;
use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::UnixStream;
use tokio::process::{Child, Command};

use crate::wire::link::{self, launched::Outcome};
use crate::wire::{self, FrameBuffer, Receiver};
use crate::worker;

/// Starts workers. Cheap to clone; the launcher ends with the last clone.
#[derive(Clone)]
pub struct Launcher {
    requests: Arc<StdUnixStream>,
}

/// A worker's process, as the launcher tells of it. When it goes, nothing is killed: the worker ends with its control socket.
pub(super) struct Process {
    /// As a number in logs.
    pub(super) id: u32,
    life: UnixStream,
    frames: FrameBuffer,
}

impl Launcher {
    /// Starts the launcher, from within a runtime. Its workers are started with these, by their places in the list. While this
    /// process serves, the launcher does not end.
    pub fn start(places: &link::Places) -> Result<(Self, Child), IoError> {
        let (requests, remote) = StdUnixStream::pair()?;
        let mut command = Command::new("/proc/self/exe");
        command.arg0("hsm-kms").arg("worker-launcher");
        // As with a worker: Ctrl-C is for the front.
        command.process_group(0);
        command.stdin(Stdio::from(OwnedFd::from(remote))).stdout(Stdio::null()).stderr(Stdio::inherit());
        let pins: Vec<_> = places.places.iter().map(worker::pin_variable).collect();
        worker::keep_of_environment(&mut command, &pins);
        let child = command.spawn()?;
        wire::send(&requests, places, &[])?;
        requests.set_nonblocking(true)?;
        Ok((Self { requests: Arc::new(requests) }, child))
    }

    /// Starts a worker for this place. Its control socket, over which it waits for its Start.
    pub(super) async fn launch(&self, place: u32) -> Result<(StdUnixStream, Process), IoError> {
        let (life, remote) = StdUnixStream::pair()?;
        wire::send(&*self.requests, &link::Launch { place }, &[remote.as_fd()])?;
        drop(remote);
        life.set_nonblocking(true)?;
        let life = UnixStream::from_std(life)?;
        let mut receiver = Receiver::default();
        loop {
            let outcome = receiver.take::<link::Launched>().map_err(IoError::other)?.and_then(|it| it.outcome);
            let control = receiver.descriptors().pop();
            match (outcome, control) {
                (Some(Outcome::Started(id)), Some(control)) => {
                    return Ok((control.into(), Process { id, life, frames: receiver.into_frames() }));
                }
                (Some(Outcome::Failed(why)), _) => return Err(IoError::other(why)),
                (Some(_), _) => return Err(IoError::other("the launcher's answer makes no sense")),
                (None, _) => {}
            }
            if life.async_io(Interest::READABLE, || receiver.receive(&life)).await? == 0 {
                return Err(IoError::other("the launcher is gone"));
            }
        }
    }
}

impl Process {
    /// Waits for its end, and says how it ended. May be dropped and called again.
    pub(super) async fn ended(&mut self) -> String {
        let mut bytes = [0; 256];
        loop {
            match self.frames.take::<link::Launched>() {
                Ok(Some(link::Launched { outcome: Some(Outcome::Ended(status)) })) => return status,
                Ok(Some(_)) => continue,
                Ok(None) => {}
                Err(error) => return error.to_string(),
            }
            match self.life.read(&mut bytes).await {
                Ok(count @ 1..) => self.frames.push(bytes.get(..count).unwrap_or_default()),
                _ => return "its launcher does not know how".to_owned(),
            }
        }
    }

    /// Asks for its end, at once.
    pub(super) async fn kill(&mut self) {
        let mut frame = Vec::new();
        wire::append(&link::Kill {}, &mut frame);
        // If that fails, it has ended before.
        let _ = self.life.write_all(&frame).await;
    }
}
