//! The plugin that an entry talks to: a real one on its socket, or a fake that a test scripts.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hsm_kms::kms::client::Client;
use hsm_kms::kms::proto::{DecryptRequest, EncryptRequest, EncryptResponse, StatusRequest, StatusResponse};
use prost::bytes::Bytes;
use tonic::{Code, Request, Status};

use super::rules;
use super::value::DekSource;

/// A plugin and the count of calls to it.
pub struct Plugin {
    kind: Kind,
    calls: Calls,
}

/// Calls made by one entry, answered or not.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Calls {
    pub status: u32,
    pub encrypt: u32,
    pub decrypt: u32,
}

enum Kind {
    Real(Client),
    Fake(Arc<Mutex<Fake>>),
}

/// A plugin in memory. A test changes its fields while the API server runs.
pub struct Fake {
    /// Every call fails with this code: no plugin, or one that is cut off.
    pub down: Option<Code>,
    pub status: StatusResponse,
    /// The `key_id` that Encrypt returns, if not Status's.
    pub encrypt_key_id: Option<String>,
    /// The ciphertext that Encrypt returns, if not one of its own.
    pub ciphertext: Option<Bytes>,
    pub annotations: HashMap<String, Bytes>,
    /// What it sealed: `key_id` and plaintext, the ciphertext being the position.
    sealed: Vec<(String, Bytes)>,
}

impl Plugin {
    /// A running plugin.
    pub fn real(client: Client) -> Self {
        Self { kind: Kind::Real(client), calls: Calls::default() }
    }

    /// A scripted plugin; several entries and processes may share one.
    pub fn fake(fake: &Arc<Mutex<Fake>>) -> Self {
        Self { kind: Kind::Fake(Arc::clone(fake)), calls: Calls::default() }
    }

    pub fn calls(&self) -> Calls {
        self.calls
    }

    pub async fn status(&mut self) -> Result<StatusResponse, Status> {
        self.calls.status += 1;
        match &mut self.kind {
            Kind::Real(client) => Ok(client.status(request(StatusRequest {})).await?.into_inner()),
            Kind::Fake(fake) => fake.lock().unwrap().up().map(|fake| fake.status.clone()),
        }
    }

    pub async fn encrypt(&mut self, source: &DekSource) -> Result<EncryptResponse, Status> {
        self.calls.encrypt += 1;
        let plaintext = Bytes::copy_from_slice(source.secret());
        match &mut self.kind {
            Kind::Real(client) => {
                let message = EncryptRequest { plaintext, uid: rules::uid() };
                Ok(client.encrypt(request(message)).await?.into_inner())
            }
            Kind::Fake(fake) => fake.lock().unwrap().up().map(|fake| fake.encrypt(plaintext)),
        }
    }

    pub async fn decrypt(&mut self, message: DecryptRequest) -> Result<Bytes, Status> {
        self.calls.decrypt += 1;
        match &mut self.kind {
            Kind::Real(client) => Ok(client.decrypt(request(message)).await?.into_inner().plaintext),
            Kind::Fake(fake) => fake.lock().unwrap().up()?.decrypt(&message),
        }
    }
}

impl Fake {
    /// A healthy plugin with this `key_id`.
    pub fn new(key_id: &str) -> Arc<Mutex<Self>> {
        let status = StatusResponse { version: "v2".to_owned(), healthz: "ok".to_owned(), key_id: key_id.to_owned() };
        Arc::new(Mutex::new(Self {
            down: None,
            status,
            encrypt_key_id: None,
            ciphertext: None,
            annotations: [("version.example.com".to_owned(), Bytes::from("1"))].into(),
            sealed: Vec::new(),
        }))
    }

    fn up(&mut self) -> Result<&mut Self, Status> {
        match self.down {
            Some(code) => Err(Status::new(code, "down")),
            None => Ok(self),
        }
    }

    fn encrypt(&mut self, plaintext: Bytes) -> EncryptResponse {
        let key_id = self.encrypt_key_id.clone().unwrap_or_else(|| self.status.key_id.clone());
        self.sealed.push((key_id.clone(), plaintext));
        let position = format!("sealed {}", self.sealed.len() - 1);
        let ciphertext = self.ciphertext.clone().unwrap_or_else(|| position.into());
        EncryptResponse { ciphertext, key_id, annotations: self.annotations.clone() }
    }

    fn decrypt(&self, message: &DecryptRequest) -> Result<Bytes, Status> {
        self.sealed
            .iter()
            .enumerate()
            .find(|(position, (key_id, _))| {
                message.ciphertext == format!("sealed {position}") && message.key_id == *key_id
            })
            .map(|(_, (_, plaintext))| plaintext.clone())
            .ok_or_else(|| Status::invalid_argument("not sealed here"))
    }
}

fn request<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(TIMEOUT);
    request
}

/// The default of a provider's `timeout`.
const TIMEOUT: Duration = Duration::from_secs(3);
