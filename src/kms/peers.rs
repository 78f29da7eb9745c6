//! Who may connect, and how often: by what the kernel says of the peer (`SO_PEERCRED`, unix(7)), before a byte is read.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::net::UnixStream;

use crate::audit::{self, Event};
use crate::observe::metrics::METRICS;

/// Open connections of one process, at most. An API server has one per provider entry.
pub const CONNECTIONS_PER_PROCESS: usize = 64;

/// Open connections of all processes, at most: below the 1024 descriptors that a process has by default.
pub const CONNECTIONS: usize = 512;

/// Refusals in the log: no more than one in this time, however many connect.
const LOG_PAUSE: Duration = Duration::from_secs(1);

/// The users that may connect, and the connections that are open.
#[derive(Debug)]
pub struct Peers {
    allowed: Vec<u32>,
    open: Arc<Mutex<Open>>,
    logged: Option<Instant>,
    /// Refusals since the last one that was logged.
    refused: u64,
}

/// A connection's place among those that are open, given back on drop.
#[derive(Debug)]
pub struct Place {
    user: u32,
    process: i32,
    open: Arc<Mutex<Open>>,
}

#[derive(Debug, Default)]
struct Open {
    /// By process.
    each: BTreeMap<i32, usize>,
    all: usize,
}

impl Peers {
    /// Users with one of these uids.
    pub fn new(allowed: Vec<u32>) -> Self {
        Self { allowed, open: Arc::default(), logged: None, refused: 0 }
    }

    /// The uids that may connect by default: root, as whom kube-apiserver usually runs, and this process's own.
    pub fn default_uids() -> Vec<u32> {
        let own = rustix::process::geteuid().as_raw();
        if own == 0 { vec![0] } else { vec![0, own] }
    }

    /// A place for this connection. `None`: close it.
    pub fn admit(&mut self, stream: &UnixStream) -> Option<Place> {
        let (uid, process) = match stream.peer_cred() {
            Ok(peer) => (peer.uid(), peer.pid().unwrap_or(0)),
            Err(error) => {
                self.refuse("its user is unknown", None, || {
                    tracing::warn!(%error, "connection refused: its user is unknown");
                });
                return None;
            }
        };
        if !self.allowed.contains(&uid) {
            let allowed = self.allowed.clone();
            self.refuse("this user may not connect", Some((uid, process)), || {
                tracing::warn!(uid, process, ?allowed, "connection refused: this user may not connect");
            });
            return None;
        }
        let place = Open::enter(&self.open, uid, process);
        if place.is_none() {
            self.refuse("too many are open", Some((uid, process)), || {
                tracing::warn!(uid, process, "connection refused: too many are open");
            });
        }
        place
    }

    fn refuse(&mut self, reason: &'static str, peer: Option<(u32, i32)>, line: impl FnOnce()) {
        self.refused += 1;
        METRICS.connection_refused(reason);
        if self.logged.is_none_or(|at| at.elapsed() >= LOG_PAUSE) {
            self.logged = Some(Instant::now());
            line();
            let connections = std::mem::take(&mut self.refused);
            let (user, process) = peer.unzip();
            audit::record(|| Event::Denied { connections, reason, peer_uid: user, peer_pid: process });
        }
    }
}

impl Place {
    /// The uid and the process id of the peer, as the kernel told them.
    pub fn peer(&self) -> (u32, i32) {
        (self.user, self.process)
    }
}

impl Open {
    fn enter(open: &Arc<Mutex<Self>>, user: u32, process: i32) -> Option<Place> {
        let mut counts = lock(open);
        if counts.all >= CONNECTIONS || counts.each.get(&process).is_some_and(|count| *count >= CONNECTIONS_PER_PROCESS)
        {
            return None;
        }
        counts.all += 1;
        *counts.each.entry(process).or_default() += 1;
        Some(Place { user, process, open: Arc::clone(open) })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counts = lock(&self.open);
        counts.all = counts.all.saturating_sub(1);
        if let Some(count) = counts.each.get_mut(&self.process) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                counts.each.remove(&self.process);
            }
        }
    }
}

fn lock(open: &Mutex<Open>) -> MutexGuard<'_, Open> {
    open.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_has_its_share_and_gives_it_back() {
        let open = Arc::default();
        let mut held: Vec<_> = (0..CONNECTIONS_PER_PROCESS).map(|_| Open::enter(&open, 0, 1).unwrap()).collect();
        assert!(Open::enter(&open, 0, 1).is_none());
        assert!(Open::enter(&open, 0, 2).is_some(), "another process");
        held.pop();
        assert!(Open::enter(&open, 0, 1).is_some());
        drop(held);
        assert!(lock(&open).each.is_empty());
        assert_eq!(lock(&open).all, 0);
    }

    #[test]
    fn all_processes_together_have_theirs() {
        let open = Arc::default();
        let held: Vec<_> = (0..).map_while(|process| Open::enter(&open, 0, process)).collect();
        assert_eq!(held.len(), CONNECTIONS);
    }
}
