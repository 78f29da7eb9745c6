//! Whether a token holds the KEK of a record: the key that made it, or a copy.

use std::io::{Seek, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::fs::{MemfdFlags, memfd_create};
use secrecy::ExposeSecret;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::import::Restored;
use super::site::Site;
use super::{CeremonyError, without_core_dumps};
use crate::attributes::{Attributes, Deviation, KeyUse, deviations};
use crate::config::Token as TokenPlan;
use crate::pkcs11::{self, KekKeys, Key, Session};
use crate::record::{KekRecord, TokenKey};
use crate::secret::Pin;

/// What a token proved.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct KeyProof {
    /// Its serial number.
    pub serial: String,
    /// `libraryDescription` of its module.
    pub library: String,
    /// How many proof blobs it opened: all of the record's.
    pub opened: usize,
}

/// Whether the key is to be the very one that the ceremony made, or may be a copy: attributes that tell of a key's birth differ
/// there.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Sameness {
    /// The token of the record.
    Original,
    /// Another token.
    Copy,
}

/// Logs in, once, finds the KEK, compares every attribute and opens every proof blob.
pub fn verify(
    plan: &TokenPlan,
    serial: &str,
    record: &KekRecord,
    pin: Option<&Pin>,
    sameness: Sameness,
) -> Result<KeyProof, CeremonyError> {
    Ok(Visit::new(plan, serial, pin)?.prove(record, sameness)?.1)
}

/// The same, and then destroys the keys: nothing that has not proved to be this KEK.
pub fn destroy(
    plan: &TokenPlan,
    serial: &str,
    record: &KekRecord,
    pin: Option<&Pin>,
    sameness: Sameness,
) -> Result<KeyProof, CeremonyError> {
    let visit = Visit::new(plan, serial, pin)?;
    if let Some(proof) = visit.finish_destruction(plan, record, sameness)? {
        return Ok(proof);
    }
    let (keys, proof) = visit.prove(record, sameness)?;
    [Some(keys.key), keys.mac].into_iter().flatten().try_for_each(|key| visit.login.destroy(key))?;
    Ok(proof)
}

/// How many keys with label and `CKA_ID` of the record are on the token.
pub fn count(plan: &TokenPlan, serial: &str, record: &KekRecord, pin: Option<&Pin>) -> Result<usize, CeremonyError> {
    let visit = Visit::new(plan, serial, pin)?;
    let keys = [Some(&record.kek), record.mac_key.as_ref()].into_iter().flatten();
    let counts = keys.map(|key| Ok(visit.login.keys(&key.label, key.id.as_bytes())?.len()));
    Ok(counts.sum::<Result<usize, pkcs11::Error>>()?)
}

/// A token with the user logged in to it.
pub(super) struct Visit<'a> {
    plan: &'a TokenPlan,
    site: Site,
    pub(super) login: Session,
}

impl<'a> Visit<'a> {
    /// Finds the token with this serial number, and logs in. One attempt.
    pub(super) fn new(plan: &'a TokenPlan, serial: &str, pin: Option<&Pin>) -> Result<Self, CeremonyError> {
        without_core_dumps()?;
        let site = Site::open(plan, Some(serial))?;
        let found = &site.token.info().serial;
        if found != serial {
            return Err(CeremonyError::OtherToken { expected: serial.to_owned(), found: found.clone() });
        }
        site.token.require(&plan.sealing)?;
        let login = site.token.login(plan.profile.login.user, pin)?;
        Ok(Self { plan, site, login })
    }

    /// An interrupted run may have destroyed the KEK, and not the MAC key beside it, which then proves nothing any more: it is told by label,
    /// `CKA_ID` and attributes.
    fn finish_destruction(
        &self,
        plan: &TokenPlan,
        record: &KekRecord,
        sameness: Sameness,
    ) -> Result<Option<KeyProof>, CeremonyError> {
        let Some(mac) = record.mac_key.as_ref().filter(|_| plan.sealing.mac_mechanism().is_some()) else {
            return Ok(None);
        };
        if !self.login.keys(&record.kek.label, record.kek.id.as_bytes())?.is_empty() {
            return Ok(None);
        }
        let key = audit(&self.login, mac, KeyUse::Mac, sameness)?;
        self.login.destroy(key)?;
        let serial = self.site.token.info().serial.clone();
        Ok(Some(KeyProof { serial, library: self.site.module.info()?.library, opened: 0 }))
    }

    /// The keys of the record, found in a new session, compared and proved; they are handles of the token's.
    pub(super) fn prove(&self, record: &KekRecord, sameness: Sameness) -> Result<(KekKeys, KeyProof), CeremonyError> {
        let serial = self.site.token.info().serial.clone();
        if sameness == Sameness::Copy && serial == record.token.serial {
            return Err(CeremonyError::SameToken { serial });
        }
        let session = self.site.token.open_session()?;
        let audited = |key: &TokenKey, purpose| audit(&session, key, purpose, sameness);
        let key = audited(&record.kek, self.plan.sealing.kek_use())?;
        let mac = record.mac_key.as_ref().map(|key| audited(key, KeyUse::Mac)).transpose()?;
        let keys = KekKeys { key, mac };
        let opened = open_proofs(self.plan, &session, keys, record)?;
        Ok((keys, KeyProof { serial, library: self.site.module.info()?.library, opened }))
    }
}

/// The key, if its attributes are those of the record.
fn audit(session: &Session, key: &TokenKey, purpose: KeyUse, sameness: Sameness) -> Result<Key, CeremonyError> {
    let found = session.key(&key.label, key.id.as_bytes())?;
    let mut expected: Attributes = key.attributes.clone();
    let attributes = session.attributes(found)?;
    if sameness == Sameness::Copy {
        expected.retain(|name, _| !name.tells_of_birth());
    }
    let differs: Vec<Deviation> = deviations(purpose, &expected, &attributes);
    if differs.is_empty() {
        Ok(found)
    } else {
        Err(CeremonyError::Differs { label: key.label.clone(), deviations: differs })
    }
}

fn open_proofs(plan: &TokenPlan, session: &Session, keys: KekKeys, record: &KekRecord) -> Result<usize, CeremonyError> {
    for proof in &record.proofs {
        let blob = proof.blob();
        let form = blob.form();
        let context = record.proof_context(form);
        let opened = session
            .open(keys, &plan.sealing, form, blob.iv(), context.as_bytes(), blob.ciphertext())
            .map_err(|error| CeremonyError::OtherKey { label: record.kek.label.clone(), error: Box::new(error) })?;
        if Sha256::digest(&*opened)[..] != proof.challenge_sha256.0 {
            return Err(CeremonyError::Proof("it opened a proof blob to something else"));
        }
    }
    Ok(record.proofs.len())
}

/// What a process of its own does with the key on one token.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Errand {
    /// Proves it.
    Prove,
    /// Puts it in, and proves it.
    Import,
    /// Proves it, and destroys it.
    Destroy,
    /// Makes sure that it is gone.
    SeeGone,
}

/// Sends a process to a token of the plan: a module is loaded once in a process, with one environment.
pub(super) fn send<T: DeserializeOwned>(
    errand: Errand,
    plan: &Path,
    serial: &str,
    record: &KekRecord,
    pin: Option<&Pin>,
    value: Option<&Restored>,
) -> Result<T, CeremonyError> {
    let value = value.map(|value| handed_over("value", value.expose())).transpose()?;
    let record = handed_over("record", record.to_json()?.as_bytes())?;
    let pin = pin.map(|pin| handed_over("pin", pin.expose_secret().as_bytes())).transpose()?;
    let mut command = Command::new("/proc/self/exe");
    command.arg("ceremony");
    match errand {
        Errand::Prove | Errand::Import => command.args(["clone-check", "--copy", serial]),
        Errand::Destroy => command.args(["destroy-key", "--serial", serial]),
        Errand::SeeGone => command.args(["destroy-key", "--gone", "--serial", serial]),
    };
    command.arg("--json").arg("--plan").arg(plan);
    command.arg("--record").arg(format!("/proc/self/fd/{}", record.as_raw_fd()));
    if let Some(value) = &value {
        command.arg("--value-descriptor").arg(value.as_raw_fd().to_string());
    }
    if let Some(pin) = &pin {
        command.arg("--pin-descriptor").arg(pin.as_raw_fd().to_string());
    }
    let system = |source| CeremonyError::System { what: "the token cannot be looked at", source };
    let output = command.stdin(Stdio::null()).output().map_err(system)?;
    let failed = |why: String| CeremonyError::Copy { serial: serial.to_owned(), why };
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let why = said.lines().find_map(|line| line.strip_prefix("hsm-kms: why: ")).unwrap_or("it did not say why");
        return Err(failed(why.to_owned()));
    }
    serde_json::from_slice(&output.stdout).map_err(|error| failed(error.to_string()))
}

/// A file in memory that a child inherits.
fn handed_over(name: &str, content: &[u8]) -> Result<OwnedFd, CeremonyError> {
    let system = |source| CeremonyError::System { what: "memory for a process cannot be had", source };
    let descriptor = memfd_create(name, MemfdFlags::empty()).map_err(|errno| system(errno.into()))?;
    let mut file = std::fs::File::from(descriptor);
    file.write_all(content).and_then(|()| file.rewind()).map_err(system)?;
    Ok(file.into())
}
