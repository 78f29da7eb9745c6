//! Everything that must be true of the keys, seen through a session that did not make them.

use sha2::{Digest, Sha256};

use super::keys::{Keys, random};
use super::{CeremonyError, Plan, Refusal, generate, negative};
use crate::attributes::{AttributeName, Attributes, Deviation, KeyUse};
use crate::envelope::{Blob, Context};
use crate::pkcs11::{KekKeys, KeyTemplate, Sealed, Session};
use crate::record::{CeremonyId, CkaId, Proof, TokenKey, proof_context};
use crate::seal::Sealing;

/// Proof blobs made: one for health probes, one for copies, one kept for disputes.
pub(super) const PROOFS: usize = 3;

/// The keys as they were read back from the token.
pub(super) struct ReadBack {
    /// To work with, in this session.
    pub(super) keys: KekKeys,
    /// The KEK.
    pub(super) kek: TokenKey,
    /// The MAC key beside it.
    pub(super) mac: Option<TokenKey>,
    /// What differs from the strict template, and the plan permits it.
    pub(super) deviations: Vec<String>,
}

impl ReadBack {
    /// How many attributes were read.
    fn count(&self) -> usize {
        [Some(&self.kek), self.mac.as_ref()].into_iter().flatten().map(|key| key.attributes.len()).sum()
    }

    /// In a line.
    pub(super) fn summary(&self) -> String {
        let permitted = self.deviations.len();
        format!("{} attributes as they must be, {permitted} permitted deviations", self.count() - permitted)
    }
}

/// Reads every attribute back, and judges it.
pub(super) fn read_back(plan: &Plan, session: &Session, keys: &Keys) -> Result<ReadBack, CeremonyError> {
    let mut deviations = Vec::new();
    let mut audit = |template: &KeyTemplate| {
        let key = session.key(&template.label, &template.id)?;
        let attributes = session.attributes(key)?;
        deviations.extend(judge(plan, template, &attributes)?);
        let id = CkaId::new(&template.id).ok_or(CeremonyError::Proof("its id has a wrong length"))?;
        Ok::<_, CeremonyError>((key, TokenKey { id, label: template.label.clone(), attributes }))
    };
    let (key, kek) = audit(&keys.kek)?;
    let (mac, mac_key) = keys.mac.as_ref().map(audit).transpose()?.unzip();
    Ok(ReadBack { keys: KekKeys { key, mac }, kek, mac: mac_key, deviations })
}

/// What differs and is permitted, in words. What differs and is not stops the ceremony.
fn judge(plan: &Plan, template: &KeyTemplate, attributes: &Attributes) -> Result<Vec<String>, CeremonyError> {
    let is_permitted =
        |deviation: &Deviation| deviation.is_negotiable(template.purpose) && plan.kek.permit.contains(&deviation.name);
    let (permitted, refused): (Vec<_>, Vec<_>) =
        generate::deviations(template, plan.origin(), attributes).into_iter().partition(is_permitted);
    if !refused.is_empty() {
        return Err(CeremonyError::Deviates { label: template.label.clone(), deviations: refused });
    }
    let of_key = if template.purpose == KeyUse::Mac { format!("{}: ", template.label) } else { String::new() };
    Ok(permitted.iter().map(|deviation| format!("{of_key}{deviation}")).collect())
}

/// Tries what the token must refuse, on every key.
pub(super) fn refusals(
    plan: &Plan,
    session: &Session,
    keys: &Keys,
    read: &ReadBack,
) -> Result<Vec<Refusal>, CeremonyError> {
    let may_be_copied = plan.kek.permit.contains(&AttributeName::Copyable);
    let mut refusals = negative::run(session, read.keys.key, &keys.kek, &read.kek.attributes, may_be_copied)?;
    if let (Some(key), Some(mac), Some(template)) = (read.keys.mac, &read.mac, &keys.mac) {
        refusals.extend(negative::run(session, key, template, &mac.attributes, may_be_copied)?);
    }
    Ok(refusals)
}

/// Seals the proof blobs, and proves that they are proofs.
pub(super) fn proofs(
    plan: &Plan,
    session: &Session,
    id: &CeremonyId,
    read: &ReadBack,
) -> Result<Vec<Proof>, CeremonyError> {
    let sealing = &plan.token.sealing;
    let context = proof_context(sealing.form, id, &read.kek.id, &plan.recipients);
    // Lengths that are padded: a key wrap that is not RFC 5649 would give the padding back.
    reopened(session, read.keys, sealing, &context, &random::<1>()?)?;
    reopened(session, read.keys, sealing, &context, &random::<33>()?)?;
    (0..PROOFS).map(|_| proof(session, read.keys, sealing, &context)).collect()
}

/// Seals these bytes, and makes sure that the very same come out again.
fn reopened(
    session: &Session,
    key: KekKeys,
    sealing: &Sealing,
    context: &Context,
    plaintext: &[u8],
) -> Result<Sealed, CeremonyError> {
    let sealed = session.seal(key, sealing, context.as_bytes(), plaintext)?;
    let opened = session.open(key, sealing, sealing.form, &sealed.iv, context.as_bytes(), &sealed.ciphertext)?;
    if opened.as_slice() == plaintext {
        Ok(sealed)
    } else {
        Err(CeremonyError::Proof("it opened its own seal to something else"))
    }
}

/// Seals a random challenge, opens it again, and checks that nothing but the very same thing opens.
fn proof(session: &Session, key: KekKeys, sealing: &Sealing, context: &Context) -> Result<Proof, CeremonyError> {
    let form = sealing.form;
    let challenge = random::<32>()?;
    let Sealed { iv, ciphertext } = reopened(session, key, sealing, context, &challenge)?;
    let mut changed = ciphertext.clone();
    if let Some(byte) = changed.first_mut() {
        *byte ^= 1;
    }
    if session.open(key, sealing, form, &iv, context.as_bytes(), &changed).is_ok() {
        return Err(CeremonyError::Proof("it opened a changed blob"));
    }
    if session.open(key, sealing, form, &iv, &[0; 32], &ciphertext).is_ok() {
        return Err(CeremonyError::Proof("it opened a blob under another context"));
    }
    let blob = Blob::new(form, &iv, &ciphertext).map_err(|_| CeremonyError::Proof("its blob has a wrong length"))?;
    Ok(Proof::new(blob, Sha256::digest(challenge).into()))
}
