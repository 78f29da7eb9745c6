//! One provider entry: when it asks, what it keeps, how long it believes it.

use std::collections::HashMap;
use std::time::Duration;

use hsm_kms::etcd::proto::EncryptedDekSourceType;
use hsm_kms::kms::proto::{DecryptRequest, StatusResponse};
use prost::Message;
use prost::bytes::Bytes;
use sha2::{Digest, Sha256};

use super::plugin::{Calls, Plugin};
use super::value::{self, DekSource, StoredValue};
use super::{Fault, Read, rules};

/// Between checks while all is well, and after a failed one.
const POLL_GOOD: Duration = Duration::from_mins(1);
const POLL_BAD: Duration = Duration::from_secs(10);
/// How long a verdict answers further checks.
const VERDICT_GOOD: Duration = Duration::from_secs(20);
const VERDICT_BAD: Duration = Duration::from_secs(3);
/// How long a seed may be written with after the last Status that named its `key_id`.
const SEED_LIFE: Duration = Duration::from_mins(3);
/// Age at which an opened seed may be dropped from the cache.
const CACHE_LIFE: Duration = Duration::from_hours(24);

pub struct Provider {
    name: String,
    plugin: Plugin,
    /// Set while the first check has not succeeded: a retry of its own beside the poll.
    prime_at: Option<Duration>,
    poll_at: Duration,
    verdict: Option<Verdict>,
    /// Status.version of the first answer; it may not change in one process.
    version: Option<String>,
    state: Option<State>,
    cache: HashMap<[u8; 32], Cached>,
}

struct Verdict {
    result: Result<(), Vec<String>>,
    until: Duration,
}

/// The seed for writing.
struct State {
    source: DekSource,
    sealed: Sealed,
    expires: Duration,
}

/// A sealed DEK source, as it stands in every object that it encrypted: what the cache goes by.
struct Sealed {
    source_type: EncryptedDekSourceType,
    ciphertext: Bytes,
    key_id: String,
    annotations: HashMap<String, Bytes>,
}

struct Cached {
    source: DekSource,
    expires: Duration,
}

impl Provider {
    pub async fn start(name: &str, plugin: Plugin, now: Duration) -> Self {
        assert!(!name.contains(':'), "the name of a KMS v2 provider holds no colon");
        let mut provider = Self {
            name: name.to_owned(),
            plugin,
            prime_at: None,
            poll_at: now + POLL_GOOD,
            verdict: None,
            version: None,
            state: None,
            cache: HashMap::new(),
        };
        if provider.check(now).await.is_err() {
            provider.prime_at = Some(now + POLL_BAD);
        }
        provider
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn calls(&self) -> Calls {
        self.plugin.calls()
    }

    pub fn key_id(&self) -> Option<&str> {
        self.state.as_ref().map(|state| state.sealed.key_id.as_str())
    }

    pub fn next_check(&self) -> Duration {
        self.prime_at.map_or(self.poll_at, |prime| prime.min(self.poll_at))
    }

    pub async fn check_if_due(&mut self, now: Duration) {
        if self.prime_at.is_some_and(|time| time <= now) {
            self.prime_at = self.check(now).await.is_err().then_some(now + POLL_BAD);
        }
        if self.poll_at <= now {
            let pause = if self.check(now).await.is_ok() { POLL_GOOD } else { POLL_BAD };
            self.poll_at = now + pause;
        }
    }

    /// Asks for Status unless the last verdict still counts; makes a new seed if the `key_id` is another.
    pub async fn check(&mut self, now: Duration) -> Result<(), Vec<String>> {
        if let Some(verdict) = self.verdict.as_ref().filter(|verdict| now < verdict.until) {
            return verdict.result.clone();
        }
        let reasons = match self.plugin.status().await {
            Ok(answer) => self.judge(now, answer).await,
            Err(status) => vec![format!("Status: {status}")],
        };
        let (result, life) = if reasons.is_empty() { (Ok(()), VERDICT_GOOD) } else { (Err(reasons), VERDICT_BAD) };
        self.verdict = Some(Verdict { result: result.clone(), until: now + life });
        result
    }

    async fn judge(&mut self, now: Duration, answer: StatusResponse) -> Vec<String> {
        let mut reasons = Vec::new();
        if answer.healthz != "ok" {
            reasons.push(format!("healthz is {:?}", answer.healthz));
        }
        if !matches!(answer.version.as_str(), "v2" | "v2beta1") {
            reasons.push(format!("version is {:?}", answer.version));
        }
        let pinned = self.version.get_or_insert_with(|| answer.version.clone());
        if *pinned != answer.version {
            reasons.push(format!("version changed from {pinned:?} to {:?}", answer.version));
        }
        // Whatever else is wrong, a valid key_id keeps the seed alive (kubernetes/kubernetes issue 138950).
        match rules::check_key_id(&answer.key_id) {
            Ok(()) => reasons.extend(self.follow(now, &answer.key_id).await.err()),
            Err(reason) => reasons.push(reason),
        }
        reasons
    }

    /// Keeps the seed if it is of this `key_id`; otherwise makes one. A failure leaves the old seed to its expiry.
    async fn follow(&mut self, now: Duration, key_id: &str) -> Result<(), String> {
        let expires = now + SEED_LIFE;
        if let Some(state) = self.state.as_mut().filter(|state| state.sealed.key_id == key_id) {
            state.expires = expires;
            return Ok(());
        }
        let source = DekSource::random_seed();
        let sealed = self.plugin.encrypt(&source).await.map_err(|status| format!("Encrypt: {status}"))?;
        rules::check_sealed(&sealed.ciphertext, &sealed.key_id, &sealed.annotations)?;
        if sealed.key_id != key_id {
            return Err("Encrypt's key_id is not Status's".to_owned());
        }
        let sealed = Sealed {
            source_type: EncryptedDekSourceType::HkdfSha256XnonceAesGcmSeed,
            ciphertext: sealed.ciphertext,
            key_id: sealed.key_id,
            annotations: sealed.annotations,
        };
        self.state = Some(State { source, sealed, expires });
        Ok(())
    }

    pub fn write(&mut self, now: Duration, path: &str, plaintext: &[u8]) -> Result<Vec<u8>, Fault> {
        let state = self.state.as_ref().ok_or_else(|| Fault::NeverPrimed(self.name.clone()))?;
        if now > state.expires {
            return Err(Fault::Expired(self.name.clone()));
        }
        let object = StoredValue {
            encrypted_data: state.source.seal(path, plaintext).into(),
            key_id: state.sealed.key_id.clone(),
            encrypted_dek_source: state.sealed.ciphertext.clone(),
            annotations: state.sealed.annotations.clone(),
            encrypted_dek_source_type: state.sealed.source_type.into(),
        };
        let (key, source) = (state.sealed.cache_key(), state.source.clone());
        self.keep(now, key, source);
        Ok(value::with_prefix(&self.name, &object))
    }

    pub async fn read(&mut self, now: Duration, path: &str, object: &[u8]) -> Result<Read, Fault> {
        let invalid = |reason: String| Fault::Invalid(reason);
        let object = StoredValue::decode(object).map_err(|error| invalid(error.to_string()))?;
        rules::check_sealed(&object.encrypted_dek_source, &object.key_id, &object.annotations).map_err(invalid)?;
        let source_type = EncryptedDekSourceType::try_from(object.encrypted_dek_source_type)
            .map_err(|error| invalid(error.to_string()))?;
        let written = &self.state.as_ref().ok_or_else(|| Fault::NeverPrimed(self.name.clone()))?.sealed;
        let stale = written.key_id != object.key_id || written.source_type != source_type;

        let sealed = Sealed {
            source_type,
            ciphertext: object.encrypted_dek_source,
            key_id: object.key_id,
            annotations: object.annotations,
        };
        let key = sealed.cache_key();
        let source = if let Some(cached) = self.cache.get(&key) {
            cached.source.clone()
        } else {
            let source = self.open(sealed).await?;
            self.keep(now, key, source.clone());
            source
        };
        let plaintext = source.open(path, &object.encrypted_data).ok_or(Fault::Authentication)?;
        Ok(Read { plaintext, stale })
    }

    async fn open(&mut self, sealed: Sealed) -> Result<DekSource, Fault> {
        let Sealed { source_type, ciphertext, key_id, annotations } = sealed;
        let request = DecryptRequest { ciphertext, uid: rules::uid(), key_id, annotations };
        let secret = self.plugin.decrypt(request).await.map_err(|status| Fault::Decrypt(Box::new(status)))?;
        DekSource::opened(source_type, &secret).ok_or_else(|| Fault::Invalid("the DEK source is too short".to_owned()))
    }

    /// Old seeds are dropped only when one is put in.
    fn keep(&mut self, now: Duration, key: [u8; 32], source: DekSource) {
        self.cache.insert(key, Cached { source, expires: now + CACHE_LIFE });
        self.cache.retain(|_, cached| now < cached.expires);
    }
}

impl Sealed {
    fn cache_key(&self) -> [u8; 32] {
        let mut hash = Sha256::new();
        let mut part = |bytes: &[u8]| {
            hash.update((bytes.len() as u64).to_be_bytes());
            hash.update(bytes);
        };
        part(&i32::from(self.source_type).to_be_bytes());
        part(&self.ciphertext);
        part(self.key_id.as_bytes());
        let mut annotations: Vec<_> = self.annotations.iter().collect();
        annotations.sort();
        for (name, value) in annotations {
            part(name.as_bytes());
            part(value);
        }
        hash.finalize().into()
    }
}
