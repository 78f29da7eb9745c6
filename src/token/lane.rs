//! One session of the worker, seen from the front: requests in order, replies in the same order.

use std::collections::VecDeque;
use std::io::ErrorKind;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::net::UnixStream;
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;
use zeroize::{Zeroize, Zeroizing};

use crate::observe::metrics::METRICS;
use crate::wire::{self, FrameBuffer, Spin, link};
use crate::worker::call_names;

/// What a request waits for.
pub(super) type Answer = oneshot::Receiver<link::reply::Outcome>;

/// The front's end of one session socketpair.
pub(super) struct Lane {
    queue: Mutex<Queue>,
    outgoing: Notify,
    load: AtomicUsize,
    /// Place of the token in the list, from 0.
    position: u64,
}

#[derive(Default)]
struct Queue {
    /// Encoded requests, not yet written.
    bytes: Vec<u8>,
    waiting: VecDeque<Waiting>,
    next_id: u64,
    /// When the worker last answered, or when it last got work while idle.
    progress: Option<Instant>,
    closed: bool,
}

struct Waiting {
    id: u64,
    answer: oneshot::Sender<link::reply::Outcome>,
}

impl Lane {
    pub(super) fn new(position: u64) -> Self {
        Self { queue: Mutex::default(), outgoing: Notify::new(), load: AtomicUsize::new(0), position }
    }

    /// Requests sent or queued and not yet answered.
    pub(super) fn load(&self) -> usize {
        self.load.load(Ordering::Relaxed)
    }

    /// Queues the work. `None`: the lane is closed.
    pub(super) fn send(&self, kek: u32, work: link::request::Work, deadline: Instant) -> Option<Answer> {
        let (answer, receiver) = oneshot::channel();
        let mut queue = self.queue();
        if queue.closed {
            return None;
        }
        queue.next_id += 1;
        let id = queue.next_id;
        let mut request = link::Request { id, kek, deadline: monotonic(deadline), work: Some(work) };
        wire::append(&request, &mut queue.bytes);
        if let Some(link::request::Work::Seal(seal)) = &mut request.work {
            seal.plaintext.zeroize();
        }
        if queue.waiting.is_empty() {
            queue.progress = Some(Instant::now());
        }
        queue.waiting.push_back(Waiting { id, answer });
        self.load.store(queue.waiting.len(), Ordering::Relaxed);
        drop(queue);
        // The write happens in `run`, after all tasks that are ready now: requests that come together go down together.
        self.outgoing.notify_one();
        Some(receiver)
    }

    /// How long the worker has been silent with work to do.
    pub(super) fn silent_for(&self) -> Duration {
        let queue = self.queue();
        match queue.progress {
            Some(progress) if !queue.waiting.is_empty() => progress.elapsed(),
            _ => Duration::ZERO,
        }
    }

    /// Carries requests and replies until the worker closes its end. Whoever still waits then learns that the lane closed.
    pub(super) async fn run(&self, stream: UnixStream) {
        let end = self.carry(&stream).await;
        tracing::debug!(reason = %end, "session link closed");
        self.close();
    }

    /// Takes no more work; whoever waits learns that the lane closed.
    pub(super) fn close(&self) {
        let mut queue = self.queue();
        queue.closed = true;
        queue.bytes.zeroize();
        queue.waiting.clear();
        self.load.store(0, Ordering::Relaxed);
    }

    async fn carry(&self, stream: &UnixStream) -> std::io::Error {
        let mut frames = FrameBuffer::default();
        let mut incoming = Zeroizing::new(vec![0; 64 * 1024]);
        let mut outgoing = Zeroizing::new(Vec::new());
        let mut spin = Spin::default();
        loop {
            let received = tokio::select! {
                ready = stream.readable() => ready.and_then(|()| stream.try_read(&mut incoming)),
                () = self.outgoing.notified() => {
                    let mut queue = self.queue();
                    outgoing.extend_from_slice(&queue.bytes);
                    queue.bytes.zeroize();
                    drop(queue);
                    match write(stream, &mut outgoing) {
                        Ok(()) if self.load() == 1 => match spin.receive(stream, &mut incoming) {
                            Some(received) => received,
                            None => continue,
                        },
                        Ok(()) => continue,
                        Err(error) => return error,
                    }
                }
                ready = stream.writable(), if !outgoing.is_empty() => {
                    match ready.and_then(|()| write(stream, &mut outgoing)) {
                        Ok(()) => continue,
                        Err(error) => return error,
                    }
                }
            };
            match received {
                Ok(0) => return ErrorKind::UnexpectedEof.into(),
                Ok(count) => {
                    let received = incoming.get_mut(..count).unwrap_or_default();
                    frames.push(received);
                    received.zeroize();
                    spin.learn(self.silent_for(), self.load() == 1);
                    if let Err(error) = self.deliver(&mut frames) {
                        return error;
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return error,
            }
        }
    }

    fn deliver(&self, frames: &mut FrameBuffer) -> std::io::Result<()> {
        let invalid = |error| std::io::Error::new(ErrorKind::InvalidData, error);
        while let Some(reply) = frames.take::<link::Reply>().map_err(invalid)? {
            count_calls(self.position, &reply.calls);
            let mut queue = self.queue();
            queue.progress = Some(Instant::now());
            if let Some(link::reply::Outcome::GoesOn(_)) = reply.outcome {
                continue;
            }
            let waiting = queue.waiting.pop_front();
            self.load.store(queue.waiting.len(), Ordering::Relaxed);
            drop(queue);
            match (waiting, reply.outcome) {
                (Some(waiting), Some(outcome)) if waiting.id == reply.id => {
                    // Nobody waits any more where the deadline has passed.
                    if let Err(link::reply::Outcome::Opened(mut opened)) = waiting.answer.send(outcome) {
                        opened.plaintext.zeroize();
                    }
                }
                _ => return Err(std::io::Error::new(ErrorKind::InvalidData, "a reply out of order")),
            }
        }
        Ok(())
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Counts what a worker of the token at this place in the list says that its module did.
pub(super) fn count_calls(position: u64, calls: &[link::Call]) {
    for call in calls {
        let (function, code) = call_names(call);
        METRICS.call(position, function, code, Duration::from_nanos(call.nanoseconds));
    }
}

fn write(stream: &UnixStream, outgoing: &mut Zeroizing<Vec<u8>>) -> std::io::Result<()> {
    while !outgoing.is_empty() {
        match stream.try_write(outgoing) {
            Ok(count) if count == outgoing.len() => outgoing.zeroize(),
            // What is left moves to a buffer of its own: the old one is wiped whole.
            Ok(count) => *outgoing = Zeroizing::new(outgoing.get(count..).unwrap_or_default().to_vec()),
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// The instant as `CLOCK_MONOTONIC` nanoseconds, which the worker shares.
fn monotonic(instant: Instant) -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let now = Duration::new(now.tv_sec.unsigned_abs(), u32::try_from(now.tv_nsec).unwrap_or(0));
    let left = instant.saturating_duration_since(Instant::now());
    u64::try_from(now.saturating_add(left).as_nanos()).unwrap_or(u64::MAX)
}
