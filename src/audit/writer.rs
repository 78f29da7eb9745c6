//! The thread that writes, and what is known of it.

use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::event::{Event, LineHash, NONE};
use super::file::{AuditFile, OpenError, Unwritten};
use super::{Destination, OnFull, Settings};
use crate::observe::log;
use crate::observe::metrics::METRICS;

/// The handle of the thread.
pub(super) struct Writer {
    queue: SyncSender<Message>,
    shared: Arc<Shared>,
    pub(super) on_full: OnFull,
}

#[derive(Default)]
struct Shared {
    /// Lines that found no room in the queue, and are not yet told of.
    dropped: AtomicU64,
    /// A line was lost or late, and none was written since.
    is_failing: AtomicBool,
    must_reopen: AtomicBool,
}

enum Message {
    Event(jiff::Timestamp, Box<Event>, Option<oneshot::Sender<bool>>),
    /// Look around.
    Wake,
    /// The last one.
    Stop(SyncSender<()>),
}

/// The thread's own.
struct Thread {
    sink: Sink,
    chain: Option<Chain>,
    /// What stands at the end of the file without an end of its own. It stays, as the evidence that it is.
    torn: Option<Vec<u8>>,
    shared: Arc<Shared>,
    failing: Option<Failing>,
    looked: Instant,
    /// Why another file is not taken up.
    refused: Option<String>,
    told: Instant,
}

enum Sink {
    File { path: PathBuf, file: AuditFile },
    Journal { has_priority: bool },
}

/// Where a chain stands.
#[derive(Clone, Copy, Default)]
struct Chain {
    head: Option<LineHash>,
    /// The head that the log was last told.
    told: Option<LineHash>,
}

/// Lines are being lost.
struct Failing {
    lines: u64,
    tried: Instant,
    logged: Instant,
}

/// Lines that may wait: more than requests ever run at one time.
const QUEUE: usize = 4096;

/// How often the path is looked at, and how often a log that cannot be written is tried again.
const TICK: Duration = Duration::from_secs(1);

/// How often an error that lasts is logged.
const REMINDER: Duration = Duration::from_mins(1);

/// How often the head of a chain goes into the other log.
const HEAD_INTERVAL: Duration = Duration::from_mins(15);

impl Writer {
    pub(super) fn start(settings: &Settings) -> Result<Self, OpenError> {
        let mut chain = settings.chain.then(Chain::default);
        let mut torn = None;
        let sink = match &settings.to {
            Destination::File(path) => {
                let file = AuditFile::open(path)?;
                let end = file.end(path)?;
                if let Some(chain) = &mut chain {
                    chain.head = end.head;
                }
                torn = Some(end.torn).filter(|torn| !torn.is_empty());
                Sink::File { path: path.clone(), file }
            }
            Destination::Journal => Sink::Journal { has_priority: log::is_journal(&io::stdout()) },
        };
        let shared = Arc::new(Shared::default());
        let mut thread = Thread {
            sink,
            chain,
            torn,
            shared: Arc::clone(&shared),
            failing: None,
            looked: Instant::now(),
            refused: None,
            told: Instant::now(),
        };
        if let Some(torn) = &thread.torn {
            tracing::warn!(
                bytes = torn.len(),
                "the last line of the audit log is torn: power or disk failed while it was written"
            );
            thread.append(jiff::Timestamp::now(), None);
        }
        thread.tell_head("audit log opened");
        let (queue, messages) = sync_channel(QUEUE);
        thread::spawn(move || thread.run(&messages));
        Ok(Self { queue, shared, on_full: settings.on_full })
    }

    pub(super) fn send(&self, event: Event, answer: Option<oneshot::Sender<bool>>) {
        let message = Message::Event(jiff::Timestamp::now(), Box::new(event), answer);
        // Where it does not fit, the answer goes with it, and whoever waits learns that.
        if self.queue.try_send(message).is_err() {
            self.shared.dropped.fetch_add(1, Ordering::Relaxed);
            METRICS.audit_lost();
            if !self.shared.is_failing.swap(true, Ordering::Relaxed) {
                tracing::error!("audit lines are lost: the disk is slower than they come, or hangs");
            }
        }
    }

    /// A line was not written in time. It may be, later; until then nothing waits for the next ones.
    pub(super) fn hangs(&self) {
        if !self.shared.is_failing.swap(true, Ordering::Relaxed) {
            tracing::error!("an audit line was not written in time: the disk is slow, or hangs");
        }
    }

    pub(super) fn is_writing(&self) -> bool {
        !self.shared.is_failing.load(Ordering::Relaxed)
    }

    pub(super) fn reopen(&self) {
        self.shared.must_reopen.store(true, Ordering::Relaxed);
        // A full queue wakes it anyway.
        let _ = self.queue.try_send(Message::Wake);
    }

    pub(super) fn stop(&self, limit: Duration) {
        self.send(Event::Stop, None);
        let (done, ended) = sync_channel(1);
        if self.queue.try_send(Message::Stop(done)).is_err() || ended.recv_timeout(limit).is_err() {
            tracing::error!("the last audit lines may not be written");
        }
    }
}

impl Thread {
    fn run(mut self, messages: &Receiver<Message>) {
        loop {
            let message = messages.recv_timeout(TICK);
            self.look();
            match message {
                Ok(Message::Event(time, event, answer)) => {
                    let written = self.write(time, &event);
                    if let Some(answer) = answer {
                        // Whoever asked may have gone away.
                        let _ = answer.send(written);
                    }
                }
                Ok(Message::Wake) | Err(RecvTimeoutError::Timeout) => self.try_again(),
                Ok(Message::Stop(done)) => {
                    self.sync();
                    self.tell_head("audit log closed");
                    let _ = done.send(());
                    return;
                }
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    /// Writes the line, and before it how many were lost. Whether it was written.
    fn write(&mut self, time: jiff::Timestamp, event: &Event) -> bool {
        if self.failing.as_ref().is_some_and(|failing| failing.tried.elapsed() < TICK) {
            self.lost(None);
            return false;
        }
        self.append(time, Some(event))
    }

    /// After a failure: tells of what was lost, if that can be written by now.
    fn try_again(&mut self) {
        let is_due = self.failing.as_ref().is_none_or(|failing| failing.tried.elapsed() >= TICK);
        let Shared { is_failing, dropped, .. } = &*self.shared;
        if is_due && (is_failing.load(Ordering::Relaxed) || dropped.load(Ordering::Relaxed) > 0) {
            self.append(jiff::Timestamp::now(), None);
        }
    }

    fn append(&mut self, time: jiff::Timestamp, event: Option<&Event>) -> bool {
        let dropped = self.shared.dropped.swap(0, Ordering::Relaxed);
        let lines = dropped + self.failing.as_ref().map_or(0, |failing| failing.lines);
        let lost = (lines > 0).then_some(Event::Lost { lines });
        match self.put(lost.iter().chain(event), time) {
            Ok(()) => {
                self.failing = None;
                self.shared.is_failing.store(false, Ordering::Relaxed);
                if lines > 0 {
                    tracing::warn!(lines, "the audit log is written again; lines were lost");
                }
                true
            }
            Err(error) => {
                self.shared.dropped.fetch_add(dropped, Ordering::Relaxed);
                if event.is_some() {
                    self.lost(Some(&error));
                } else {
                    self.fails(&error);
                }
                false
            }
        }
    }

    /// Writes these events, behind the word that the line before is torn, if it is: all, or none.
    fn put<'a>(&mut self, events: impl Iterator<Item = &'a Event>, time: jiff::Timestamp) -> io::Result<()> {
        let mut chain = self.chain;
        let mut bytes = Vec::new();
        if let Some(torn) = &self.torn {
            let whole = chain.and_then(|chain| chain.head).map(LineHash::text);
            if let Some(chain) = &mut chain {
                chain.head = Some(LineHash::of(torn));
            }
            bytes.push(b'\n');
            add(&mut bytes, &Event::Torn { bytes: torn.len(), whole }, time, &mut chain);
        }
        for event in events {
            if let Sink::Journal { has_priority: true } = self.sink {
                // sd-daemon(3): a notice.
                bytes.extend_from_slice(b"<5>");
            }
            add(&mut bytes, event, time, &mut chain);
        }
        match &mut self.sink {
            Sink::File { file, path } => {
                if let Err(Unwritten { error, is_torn }) = file.append(&bytes) {
                    if is_torn && let Ok(end) = file.end(path) {
                        self.torn = Some(end.torn).filter(|torn| !torn.is_empty());
                        if let (Some(chain), true) = (&mut self.chain, end.head.is_some()) {
                            chain.head = end.head;
                        }
                    }
                    return Err(error);
                }
            }
            Sink::Journal { .. } => {
                let mut out = io::stdout().lock();
                out.write_all(&bytes).and_then(|()| out.flush())?;
            }
        }
        (self.chain, self.torn) = (chain, None);
        Ok(())
    }

    fn lost(&mut self, error: Option<&io::Error>) {
        METRICS.audit_lost();
        if let Some(error) = error {
            self.fails(error);
        }
        if let Some(failing) = &mut self.failing {
            failing.lines += 1;
        }
    }

    fn fails(&mut self, error: &io::Error) {
        self.shared.is_failing.store(true, Ordering::Relaxed);
        let now = Instant::now();
        let failing = self.failing.get_or_insert(Failing { lines: 0, tried: now, logged: now });
        failing.tried = now;
        if failing.logged == now || failing.logged.elapsed() >= REMINDER {
            failing.logged = now;
            tracing::error!(%error, hint = "make room on its disk; it is tried again each second", "the audit log cannot be written");
        }
    }

    /// Takes up another file, if one stands under the path or none does; and tells the head from time to time.
    fn look(&mut self) {
        let is_asked = self.shared.must_reopen.swap(false, Ordering::Relaxed);
        if !is_asked && self.looked.elapsed() < TICK {
            return;
        }
        self.looked = Instant::now();
        if self.told.elapsed() >= HEAD_INTERVAL {
            self.tell_head("audit log");
        }
        let Sink::File { path, file } = &mut self.sink else { return };
        if file.is_at(path) {
            self.refused = None;
            return;
        }
        let next = match AuditFile::open(path) {
            // Its own lines would stand between ours.
            Ok(next) if self.chain.is_some() => next.must_be_empty(path).map(|()| next),
            next => next,
        };
        match next {
            Ok(next) => {
                // What the disk says to that, it says to the next line, too.
                let _ = file.sync();
                *file = next;
                self.refused = None;
                // It stays in the file that it is in.
                self.torn = None;
                self.tell_head("audit log goes on in another file");
                self.append(jiff::Timestamp::now(), Some(&Event::Reopened));
            }
            Err(error) => {
                let why = error.to_string();
                if self.refused.as_ref() != Some(&why) {
                    tracing::error!(
                        hint = error.hint(),
                        "the audit log goes on in the file that was moved away: {why}"
                    );
                    self.refused = Some(why);
                }
            }
        }
    }

    fn tell_head(&mut self, what: &str) {
        self.told = Instant::now();
        let Some(chain) = &mut self.chain else { return };
        if chain.told != chain.head {
            chain.told = chain.head;
            if let Some(head) = chain.head {
                tracing::info!(head = head.text(), "{what}");
            }
        }
    }

    fn sync(&self) {
        if let Sink::File { file, .. } = &self.sink
            && let Err(error) = file.sync()
        {
            tracing::error!(%error, "the audit log may not be on the disk");
        }
    }
}

fn add(bytes: &mut Vec<u8>, event: &Event, time: jiff::Timestamp, chain: &mut Option<Chain>) {
    let previous = chain.map(|chain| chain.head.map_or_else(|| NONE.to_owned(), LineHash::text));
    let line = event.line(time, previous);
    if let Some(chain) = chain {
        chain.head = Some(LineHash::of(line.as_bytes()));
    }
    bytes.extend_from_slice(line.as_bytes());
    bytes.push(b'\n');
}
