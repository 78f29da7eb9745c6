//! A running plugin, asked for what the API server would ask it.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::runtime::Runtime;
use tonic::{Code, Request, Status};

use super::failure;
use crate::cli::CliError;
use crate::cli::etcd::runtime;
use crate::envelope::Annotations;
use crate::exit::ExitCode;
use crate::key_id::KeyId;
use crate::kms::client::{self, Client};
use crate::kms::proto::{DecryptRequest, EncryptRequest, EncryptResponse, StatusRequest};
use crate::secret::Plaintext;

/// The plugin behind a socket.
pub(super) struct Plugin {
    runtime: Runtime,
    client: Client,
    socket: PathBuf,
    announced: KeyId,
    /// What it was asked before: whether it lacks the KEK.
    lacks: HashMap<String, bool>,
}

impl Plugin {
    /// Connects, and asks for Status, which must be `ok`.
    pub(super) fn connect(socket: &Path) -> Result<Self, CliError> {
        let not_usable = |why: String, hint: &str| {
            let what = format!("the plugin on {} cannot be used", socket.display());
            failure(ExitCode::NotReachable, what, why, hint)
        };
        let runtime = runtime()?;
        let connected = runtime.block_on(client::connect(socket, LIMIT));
        let mut client = connected.map_err(|error| {
            not_usable(error.last, "start `hsm-kms serve` with the KEK's record, and give its socket")
        })?;
        let look = "look into the plugin's log; check the way to the HSM";
        let status = runtime.block_on(client.status(limited(StatusRequest {})));
        let status = status.map_err(|error| not_usable(in_words(&error), look))?.into_inner();
        if status.healthz != "ok" {
            return Err(not_usable(format!("it says of itself: {}", status.healthz), look));
        }
        let announced = KeyId::parse(&status.key_id)
            .ok_or_else(|| not_usable("it announces no key_id of hsm-kms".to_owned(), "give the socket of hsm-kms"))?;
        Ok(Self { runtime, client, socket: socket.to_owned(), announced, lacks: HashMap::new() })
    }

    /// The key_id that it seals with.
    pub(super) fn announced(&self) -> &KeyId {
        &self.announced
    }

    /// Whether this is a KEK of hsm-kms that it does not have, a rewrap table aside. No HSM is asked.
    pub(super) fn lacks(&mut self, key_id: &str) -> Result<bool, CliError> {
        if let Some(known) = self.lacks.get(key_id) {
            return Ok(*known);
        }
        // No sealed blob: who has the KEK says so, who has not says that.
        let lacks = KeyId::parse(key_id).is_some()
            && self.decrypt(&[0], key_id, &Annotations::new())?.is_err_and(|status| status.code() == Code::NotFound);
        self.lacks.insert(key_id.to_owned(), lacks);
        Ok(lacks)
    }

    /// Opens a sealed seed. The outer error: the plugin or its HSM cannot be reached.
    pub(super) fn decrypt(
        &mut self,
        ciphertext: &[u8],
        key_id: &str,
        annotations: &Annotations,
    ) -> Result<Result<Plaintext, Status>, CliError> {
        let request = DecryptRequest {
            ciphertext: ciphertext.to_vec().into(),
            uid: UID.to_owned(),
            key_id: key_id.to_owned(),
            annotations: annotations.clone(),
        };
        match self.runtime.block_on(self.client.decrypt(limited(request))) {
            Ok(answer) => Ok(Ok(Plaintext::new(answer.into_inner().plaintext.into()))),
            Err(status) if is_outage(&status) => Err(self.lost(&status)),
            Err(status) => Ok(Err(status)),
        }
    }

    /// Seals with its active KEK.
    pub(super) fn encrypt(&mut self, plaintext: &Plaintext) -> Result<EncryptResponse, CliError> {
        let plaintext = plaintext.expose().to_vec().into();
        let request = EncryptRequest { plaintext, uid: UID.to_owned() };
        let answer = self.runtime.block_on(self.client.encrypt(limited(request)));
        answer.map(tonic::Response::into_inner).map_err(|status| self.lost(&status))
    }

    fn lost(&self, status: &Status) -> CliError {
        let what = format!("the plugin on {} does not answer", self.socket.display());
        let hint = "look into the plugin's log; check the way to the HSM, and do it again";
        failure(ExitCode::NotReachable, what, in_words(status), hint)
    }
}

/// What it answers instead.
pub(super) fn in_words(status: &Status) -> String {
    format!("{:?}: {}", status.code(), status.message())
}

fn is_outage(status: &Status) -> bool {
    matches!(
        status.code(),
        Code::Unavailable
            | Code::DeadlineExceeded
            | Code::Cancelled
            | Code::ResourceExhausted
            | Code::FailedPrecondition
    )
}

fn limited<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(LIMIT);
    request
}

/// For the HSM's answer, and before that for the socket.
const LIMIT: Duration = Duration::from_secs(10);
const UID: &str = "hsm-kms-recovery";
