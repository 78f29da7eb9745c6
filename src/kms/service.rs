//! The three RPCs: limits, deadlines, and the one mapping from failures to gRPC codes.
//!
//! Everything that a caller may send is hostile: ciphertext, key_id and annotations come from etcd.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tonic::{Code, Request, Response, Status};

use super::connection::Caller;
use super::proto::key_management_service_server::KeyManagementService;
use super::proto::{DecryptRequest, DecryptResponse, EncryptRequest, EncryptResponse, StatusRequest, StatusResponse};
use super::seals::Seals;
use super::status::{self, HealthPolicy};
use crate::audit::{self, Event, Rpc};
use crate::class::Class;
use crate::envelope::{MAX_PLAINTEXT_BYTES, annotations};
use crate::key_id::{self, KeyId};
use crate::keyring::{Current, HandleError, Keyring, RewrapError, RewrapTable};
use crate::observe::metrics::METRICS;
use crate::recovery::SealError;
use crate::secret::Plaintext;
use crate::token::{RequestError, Tokens};

/// KMS v2 over a keyring.
pub struct Service {
    keyring: Arc<Current>,
    health: HealthPolicy,
    /// Longest time for one RPC, whatever the caller allows.
    deadline: Duration,
    seals: Seals,
    /// The seeds of KEKs that were lost.
    rewrapped: Option<RewrapTable>,
}

/// Largest request message, in bytes. The API server sends less than 34 KiB (1 KiB of key_id and ciphertext each, 32 KiB of
/// annotations).
pub const MAX_MESSAGE_BYTES: usize = 64 * 1024;

impl Service {
    /// Serves what `keyring` is at the time; each RPC is answered within `deadline`. What lost KEKs sealed is opened through `rewrapped`.
    pub fn new(
        keyring: Arc<Current>,
        health: HealthPolicy,
        deadline: Duration,
        rewrapped: Option<RewrapTable>,
    ) -> Self {
        Self { keyring, health, deadline, seals: Seals::default(), rewrapped }
    }

    /// The keyring now; if it does not know this key_id, the one after a further look at its file.
    async fn keyring_with(&self, key_id: &KeyId, deadline: Instant) -> Arc<Keyring> {
        let keyring = self.keyring.get();
        if keyring.unwrap(key_id).is_some() || self.table_of(key_id).is_some() {
            return keyring;
        }
        drop(keyring);
        self.keyring.look_again(deadline).await;
        self.keyring.get()
    }

    /// The table, if it is about this KEK.
    fn table_of(&self, key_id: &KeyId) -> Option<&RewrapTable> {
        self.rewrapped.as_ref().filter(|table| table.knows(key_id))
    }

    fn deadline<T>(&self, request: &Request<T>) -> Instant {
        let allowed = grpc_timeout(request).map_or(self.deadline, |timeout| timeout.min(self.deadline));
        Instant::now() + allowed
    }
}

#[tonic::async_trait]
impl KeyManagementService for Service {
    async fn status(&self, request: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        let began = Instant::now();
        let keyring = self.keyring.get();
        if let Some(caller) = request.extensions().get::<Caller>() {
            caller.told.tell(&keyring);
        }
        let answer = StatusResponse {
            version: "v2".to_owned(),
            healthz: status::healthz(&keyring.tokens().health(), self.health),
            key_id: keyring.active().as_str().to_owned(),
        };
        METRICS.request("Status", Cow::Borrowed("OK"), began.elapsed());
        Ok(Response::new(answer))
    }

    async fn encrypt(&self, request: Request<EncryptRequest>) -> Result<Response<EncryptResponse>, Status> {
        let deadline = self.deadline(&request);
        let caller = request.extensions().get::<Caller>().cloned();
        let keyring = self.keyring.get();
        let keyring = match &caller {
            Some(caller) => caller.told.sealing(keyring),
            None => keyring,
        };
        let EncryptRequest { plaintext, uid } = request.into_inner();
        let call = Call::begin(Method::Encrypt, &uid, keyring.active().hash(), caller);
        let outcome = if audit::refuses() {
            Err(unaudited())
        } else if plaintext.is_empty() {
            Err(Status::invalid_argument("the plaintext is empty"))
        } else if plaintext.len() > MAX_PLAINTEXT_BYTES {
            Err(Status::invalid_argument(format!(
                "the plaintext has {} bytes; at most {MAX_PLAINTEXT_BYTES} can be sealed",
                plaintext.len()
            )))
        } else if let Err(spent) = self.seals.count(&keyring) {
            Err(spent)
        } else {
            let plaintext = Plaintext::new(plaintext.to_vec());
            keyring.wrap().seal(&plaintext, deadline).await.map_err(|error| to_status(&error))
        };
        let token = outcome.as_ref().ok().map(|sealed| sealed.token);
        let sealed = call.end(outcome, token, keyring.tokens(), deadline).await?;
        Ok(Response::new(EncryptResponse {
            ciphertext: sealed.ciphertext.into(),
            key_id: sealed.key_id.as_str().to_owned(),
            annotations: sealed.annotations,
        }))
    }

    async fn decrypt(&self, request: Request<DecryptRequest>) -> Result<Response<DecryptResponse>, Status> {
        let deadline = self.deadline(&request);
        let caller = request.extensions().get::<Caller>().cloned();
        let DecryptRequest { ciphertext, uid, key_id, annotations } = request.into_inner();
        let call = Call::begin(Method::Decrypt, &uid, key_id::hash(&key_id), caller);
        let outcome = async {
            if audit::refuses() {
                return Err(unaudited());
            }
            let unknown = || Status::not_found("this plugin has no KEK with that key_id");
            let known = KeyId::parse(&key_id).ok_or_else(unknown)?;
            let keyring = self.keyring_with(&known, deadline).await;
            let checked =
                || annotations::check(&annotations).map_err(|error| Status::invalid_argument(error.to_string()));
            // A KEK that came back is used before the table.
            if let Some(handle) = keyring.unwrap(&known) {
                checked()?;
                return handle.open(&ciphertext, &annotations, deadline).await.map_err(|error| to_status(&error));
            }
            let table = self.table_of(&known).ok_or_else(unknown)?;
            checked()?;
            let opened = table.open(&keyring, &known, &ciphertext, &annotations, deadline).await;
            opened.inspect(|_| METRICS.rewrapped()).map_err(|error| of_table(&error))
        }
        .await;
        let token = outcome.as_ref().ok().map(|opened| opened.token);
        let opened = call.end(outcome, token, self.keyring.get().tokens(), deadline).await?;
        Ok(Response::new(DecryptResponse { plaintext: opened.plaintext.expose().to_vec().into() }))
    }
}

/// The one place that turns a failure into a gRPC status. Texts are public: they end in API server logs and health pages.
fn to_status(error: &HandleError) -> Status {
    let request = match error {
        HandleError::Blob(error) => return Status::invalid_argument(error.to_string()),
        HandleError::Recipient(error @ SealError::TooLong { .. }) => {
            return Status::invalid_argument(error.to_string());
        }
        HandleError::Recipient(error @ SealError::Failed(_)) => return Status::internal(error.to_string()),
        HandleError::Request(request) => request,
    };
    match request {
        RequestError::Deadline => Status::deadline_exceeded(request.to_string()),
        RequestError::QueueFull => Status::resource_exhausted(request.to_string()),
        RequestError::Failed(failure) => {
            let code = match failure.class {
                Class::Busy => Code::ResourceExhausted,
                Class::Data => Code::InvalidArgument,
                Class::Gone | Class::Login | Class::Session => Code::Unavailable,
                Class::PinOrConfig => Code::FailedPrecondition,
            };
            Status::new(code, failure.public.clone())
        }
    }
}

fn of_table(error: &RewrapError) -> Status {
    match error {
        RewrapError::Altered => Status::invalid_argument(error.to_string()),
        RewrapError::Missing { .. } | RewrapError::NoKek(_) => Status::not_found(error.to_string()),
        RewrapError::Handle(error) => to_status(error),
    }
}

/// The request was not, or could not be, written down.
fn unaudited() -> Status {
    Status::unavailable(audit::REFUSAL)
}

/// An RPC that runs, for its one line in each log. Dropped before its end, it was given up by the caller: cancelled, or past
/// its `grpc-timeout`, which the transport also watches.
struct Call<'a> {
    method: Method,
    uid: &'a str,
    key_id_hash: String,
    caller: Option<Caller>,
    began: Instant,
    /// Its line in the audit log is under way.
    audited: bool,
    ended: bool,
}

/// What is audited. Status is not: it is answered from memory, and asked for all the time.
#[derive(Clone, Copy)]
enum Method {
    Encrypt,
    Decrypt,
}

impl<'a> Call<'a> {
    fn begin(method: Method, uid: &'a str, key_id_hash: String, caller: Option<Caller>) -> Self {
        // The uid comes from outside; Debug escapes it, and no real one is longer than a UUID.
        let uid = uid.get(..uid.floor_char_boundary(64)).unwrap_or_default();
        Self { method, uid, key_id_hash, caller, began: Instant::now(), audited: false, ended: false }
    }

    /// Writes both lines. Where the operator wants it so, the outcome is given only when the audit log has its line.
    async fn end<T>(
        mut self,
        outcome: Result<T, Status>,
        token: Option<usize>,
        tokens: &Tokens,
        deadline: Instant,
    ) -> Result<T, Status> {
        let code = |outcome: &Result<T, Status>| match outcome {
            Ok(_) => Cow::Borrowed("OK"),
            Err(status) => Cow::Owned(format!("{:?}", status.code())),
        };
        self.audited = true;
        let written = audit::request(|| {
            let label = token.and_then(|token| tokens.label(token)).map(ToOwned::to_owned);
            self.event(code(&outcome).into_owned(), label, token)
        });
        let outcome = if written.wait(deadline).await { outcome } else { Err(unaudited()) };
        self.ended = true;
        let Self { uid, key_id_hash, .. } = &self;
        let (method, micros) = (self.method.word(), self.micros());
        METRICS.request(method, code(&outcome), self.began.elapsed());
        match &outcome {
            Ok(_) => tracing::debug!(method, ?uid, key_id_hash, micros, code = "OK"),
            Err(status) => {
                let code = status.code();
                tracing::warn!(method, ?uid, key_id_hash, micros, ?code, reason = status.message(), "refused");
            }
        }
        outcome
    }

    fn event(&self, code: String, token: Option<String>, position: Option<usize>) -> Event {
        let caller = self.caller.as_ref();
        let rpc = Rpc {
            uid: self.uid.to_owned(),
            key_id_hash: self.key_id_hash.clone(),
            code,
            token,
            position,
            duration_us: self.micros(),
            peer_uid: caller.map(|caller| caller.uid),
            peer_pid: caller.map(|caller| caller.pid),
        };
        match self.method {
            Method::Encrypt => Event::Encrypt(rpc),
            Method::Decrypt => Event::Decrypt(rpc),
        }
    }

    fn micros(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_micros()).unwrap_or(u64::MAX)
    }
}

impl Method {
    fn word(self) -> &'static str {
        match self {
            Self::Encrypt => "Encrypt",
            Self::Decrypt => "Decrypt",
        }
    }
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        if !self.ended {
            let Self { uid, key_id_hash, .. } = &*self;
            let (method, micros) = (self.method.word(), self.micros());
            METRICS.request(method, Cow::Borrowed("Cancelled"), self.began.elapsed());
            if !self.audited {
                audit::record(|| self.event("Cancelled".to_owned(), None, None));
            }
            tracing::warn!(method, ?uid, key_id_hash, micros, code = "Cancelled", "the caller gave up");
        }
    }
}

/// The caller's `grpc-timeout` (gRPC over HTTP/2, "Timeout"): at most 8 digits and a unit.
fn grpc_timeout<T>(request: &Request<T>) -> Option<Duration> {
    let text = request.metadata().get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 {
        return None;
    }
    let value: u64 = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(value.checked_mul(3600)?)),
        "M" => Some(Duration::from_secs(value.checked_mul(60)?)),
        "S" => Some(Duration::from_secs(value)),
        "m" => Some(Duration::from_millis(value)),
        "u" => Some(Duration::from_micros(value)),
        "n" => Some(Duration::from_nanos(value)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timeout_is_read_in_every_unit_and_in_no_other_form() {
        let read = |text: &'static str| {
            let mut request = Request::new(());
            request.metadata_mut().insert("grpc-timeout", text.parse().unwrap());
            grpc_timeout(&request)
        };
        assert_eq!(read("2H"), Some(Duration::from_hours(2)));
        assert_eq!(read("3M"), Some(Duration::from_mins(3)));
        assert_eq!(read("3S"), Some(Duration::from_secs(3)));
        assert_eq!(read("2999m"), Some(Duration::from_millis(2999)));
        assert_eq!(read("5u"), Some(Duration::from_micros(5)));
        assert_eq!(read("99999999n"), Some(Duration::from_nanos(99_999_999)));
        for wrong in ["", "S", "3", "-3S", "123456789S", "3s", "3 S"] {
            assert_eq!(read(wrong), None, "{wrong}");
        }
    }
}
