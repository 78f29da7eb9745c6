//! The keyring that is served now, and how another takes its place while requests run.

use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::{Instant, timeout_at};

use super::{Keyring, KeyringFile};
use crate::record::{Sha256Digest, UtcTime};

/// The keyring that is served now.
pub struct Current {
    keyring: RwLock<Arc<Keyring>>,
    /// Hash of the last event of the file that it is from.
    head: RwLock<Option<Sha256Digest>>,
    /// When the KEK that seals became active, or was made.
    activated: RwLock<Option<UtcTime>>,
    /// Why the file on the disk is not served.
    refused: RwLock<Option<String>>,
    look: Option<Look>,
}

/// A further look at the file, for a key_id that nobody knows.
struct Look {
    asked: Notify,
    /// When one was last asked for.
    last: Mutex<Option<Instant>>,
    runs: watch::Sender<bool>,
}

/// How long the keyring before stays: an API server seals right after the Status that named another key_id, and with a limit
/// of some seconds.
pub const LINGER: Duration = Duration::from_secs(10);

/// Least time between two looks that unknown `key_id`s ask for. They come from etcd, so anybody's may come, and often.
const LOOK_PAUSE: Duration = Duration::from_secs(5);

impl Current {
    /// Serves this keyring, which no other follows.
    pub fn fixed(keyring: Keyring) -> Self {
        let made = keyring.keks().iter().map(|kek| kek.record.ceremony.time).max();
        Self {
            activated: RwLock::new(made),
            keyring: RwLock::new(Arc::new(keyring)),
            head: RwLock::default(),
            refused: RwLock::default(),
            look: None,
        }
    }

    /// Serves this keyring, from this file; whoever calls [`Current::asked`] follows the file.
    pub fn followed(keyring: Keyring, file: &KeyringFile) -> Self {
        let look = Look { asked: Notify::new(), last: Mutex::default(), runs: watch::Sender::new(false) };
        Self {
            head: RwLock::new(Some(file.head())),
            activated: RwLock::new(file.last_activation()),
            look: Some(look),
            ..Self::fixed(keyring)
        }
    }

    /// The keyring now. Held for as long as one request, it stays whole, with its workers.
    pub fn get(&self) -> Arc<Keyring> {
        Arc::clone(&self.keyring.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Hash of the last event of the file that the keyring is from. `None`: it is from no such file.
    pub fn head(&self) -> Option<Sha256Digest> {
        *self.head.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// When the KEK that seals became active; where it is the only one, when the ceremony made it.
    pub fn activated(&self) -> Option<UtcTime> {
        *self.activated.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Why the file on the disk is not served.
    pub fn refused(&self) -> Option<String> {
        self.refused.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Keeps why the file on the disk is not served. Whether that is news.
    pub fn refuse(&self, why: Option<&str>) -> bool {
        let mut refused = self.refused.write().unwrap_or_else(PoisonError::into_inner);
        let is_news = refused.as_deref() != why;
        *refused = why.map(ToOwned::to_owned);
        is_news
    }

    /// Serves another keyring from now on. The one before stays for a while, for those who were told of it.
    pub fn replace(&self, next: Keyring, file: &KeyringFile) {
        *self.head.write().unwrap_or_else(PoisonError::into_inner) = Some(file.head());
        *self.activated.write().unwrap_or_else(PoisonError::into_inner) = file.last_activation();
        let next = Arc::new(next);
        let before = std::mem::replace(&mut *self.keyring.write().unwrap_or_else(PoisonError::into_inner), next);
        tokio::spawn(async move {
            tokio::time::sleep(LINGER).await;
            drop(before);
        });
    }

    /// Has the file looked at, and waits for what comes of it; not more often than every 5 s.
    pub async fn look_again(&self, deadline: Instant) {
        let Some(look) = &self.look else { return };
        let mut runs = look.runs.subscribe();
        {
            let mut last = look.last.lock().unwrap_or_else(PoisonError::into_inner);
            if last.is_none_or(|last| last.elapsed() >= LOOK_PAUSE) {
                *last = Some(Instant::now());
                look.runs.send_replace(true);
                look.asked.notify_one();
            }
        }
        let _ = timeout_at(deadline, runs.wait_for(|runs| !runs)).await;
    }

    /// Waits until somebody asks for a look.
    pub async fn asked(&self) {
        match &self.look {
            Some(look) => look.asked.notified().await,
            None => std::future::pending().await,
        }
    }

    /// The file was looked at: whoever waits goes on.
    pub fn looked(&self) {
        if let Some(look) = &self.look {
            look.runs.send_replace(false);
        }
    }
}
