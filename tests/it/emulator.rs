//! kube-apiserver as the client of KMS v2 plugins, with a clock that tests move.
//!
//! For what needs hours or many nodes. It follows the apiserver's rules for polling, seeds, expiry, caches and staleness
//! (Kubernetes 1.29 to 1.37, `options/encryptionconfig/config.go` and `storage/value/encrypt/envelope/kmsv2/`), not its code.
//! Calls take no emulated time, whatever they take on the wall.

mod plugin;
mod provider;
mod rules;
#[cfg(test)]
mod tests;
mod value;

use std::time::Duration;

use tonic::Status;

pub use self::plugin::{Calls, Fake, Plugin};
use self::provider::Provider;
pub use self::value::{DekSource, StoredValue, with_prefix};

/// One API server process with its KMS v2 provider entries: the first writes, all read.
pub struct ApiServer {
    now: Duration,
    providers: Vec<Provider>,
}

/// Why the API server could not do something.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// The entry never completed Status and Encrypt in this process: neither writes nor reads.
    #[error("provider {0} was never primed")]
    NeverPrimed(String),
    /// No good Status for three minutes: no writes.
    #[error("the seed of provider {0} has expired")]
    Expired(String),
    /// The verdict that `/readyz/kms-providers` shows.
    #[error("unhealthy: {}", .0.join("; "))]
    Unhealthy(Vec<String>),
    /// The stored value names no provider entry of this process.
    #[error("no provider has the value's prefix")]
    NoProvider,
    /// The stored value or the opened DEK source breaks a rule.
    #[error("invalid: {0}")]
    Invalid(String),
    /// The plugin answered Decrypt with an error.
    #[error("Decrypt: {0}")]
    Decrypt(#[source] Box<Status>),
    /// The value does not open: wrong seed, changed bytes, or another object's path.
    #[error("the value does not open")]
    Authentication,
}

/// An object as it was read.
#[derive(Debug)]
pub struct Read {
    /// The object's plaintext.
    pub plaintext: Vec<u8>,
    /// Whether the next update rewrites it even if nothing changed.
    pub stale: bool,
}

impl ApiServer {
    /// Starts a process at time zero. Each entry is checked once; a failed check does not stop the start.
    pub async fn start(entries: impl IntoIterator<Item = (&str, Plugin)>) -> Self {
        let mut server = Self { now: Duration::ZERO, providers: Vec::new() };
        for (name, plugin) in entries {
            server.providers.push(Provider::start(name, plugin, server.now).await);
        }
        server
    }

    /// Moves the clock and does, at their times, all checks that fall due until then.
    pub async fn advance(&mut self, by: Duration) {
        let end = self.now + by;
        while let Some(provider) = self.providers.iter_mut().min_by_key(|provider| provider.next_check()) {
            let time = provider.next_check();
            if time > end {
                break;
            }
            self.now = time;
            provider.check_if_due(time).await;
        }
        self.now = end;
    }

    /// Answers `/readyz/kms-providers`, as a kubelet or a load balancer asks it.
    pub async fn readyz(&mut self) -> Result<(), Fault> {
        let mut reasons = Vec::new();
        for provider in &mut self.providers {
            if let Err(more) = provider.check(self.now).await {
                reasons.extend(more);
            }
        }
        if reasons.is_empty() { Ok(()) } else { Err(Fault::Unhealthy(reasons)) }
    }

    /// Encrypts an object for etcd. No plugin is called. `path` is its full etcd key, such as `/registry/secrets/a/b`.
    pub fn write(&mut self, path: &str, plaintext: &[u8]) -> Result<Vec<u8>, Fault> {
        self.providers.first_mut().ok_or(Fault::NoProvider)?.write(self.now, path, plaintext)
    }

    /// Decrypts what etcd holds under `path`. Calls Decrypt if the seed is not in the cache.
    pub async fn read(&mut self, path: &str, stored: &[u8]) -> Result<Read, Fault> {
        for (position, provider) in self.providers.iter_mut().enumerate() {
            if let Some(object) = value::strip_prefix(provider.name(), stored) {
                let mut read = provider.read(self.now, path, object).await?;
                read.stale |= position != 0;
                return Ok(read);
            }
        }
        Err(Fault::NoProvider)
    }

    /// How often the plugin of this entry was called.
    pub fn calls(&self, entry: usize) -> Calls {
        self.providers[entry].calls()
    }

    /// The `key_id` of this entry's current seed.
    pub fn key_id(&self, entry: usize) -> Option<&str> {
        self.providers[entry].key_id()
    }
}
