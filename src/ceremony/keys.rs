//! The keys of a ceremony: the KEK, and the MAC key beside it where the seal needs one. Made here, or, where `C_GenerateKey`
//! cannot, by the vendor's tool before the ceremony.

use cryptoki_sys as sys;

use super::{CeremonyError, Plan, Progress, Watcher, generate, random};
use crate::attributes::KeyUse;
use crate::pkcs11::{Key, KeyTemplate, Session};
use crate::profile::KeyGeneration;

/// The keys on the token, before anything is proved about them.
pub(super) struct Keys {
    /// The KEK as it was asked for, with the id that it has.
    pub(super) kek: KeyTemplate,
    /// The MAC key.
    pub(super) mac: Option<KeyTemplate>,
    /// What this ceremony has made, and destroys if it does not end well.
    made: Vec<(Key, KeyTemplate)>,
}

/// Makes the keys of the plan, or finds them where the vendor's tool made them.
pub(super) fn make(plan: &Plan, login: &Session, watcher: Watcher<'_>) -> Result<Keys, CeremonyError> {
    let mut keys = Keys { kek: kek_template(plan), mac: mac_template(plan), made: Vec::new() };
    if plan.token.profile.key.generate == KeyGeneration::Tool {
        watcher(Progress::Begins("find the keys that the vendor's tool made"));
        for template in keys.all_mut() {
            template.id = login.key_id(login.key_with_label(&template.label)?)?;
        }
        watcher(Progress::Done(&keys.labels()));
        return Ok(keys);
    }
    watcher(Progress::Begins("check that the label is free"));
    for template in keys.all_mut() {
        let count = login.labelled(&template.label)?.len();
        if count > 0 {
            return Err(CeremonyError::LabelTaken { label: template.label.clone(), count });
        }
    }
    watcher(Progress::Done(&format!("nothing on the token is named {}", keys.labels())));

    watcher(Progress::Begins("generate the KEK in the HSM"));
    for template in [Some(keys.kek.clone()), keys.mac.clone()].into_iter().flatten() {
        let made = random_id(login).and_then(|id| {
            let template = KeyTemplate { id: id.to_vec(), ..template };
            Ok((generate(login, &template)?, template))
        });
        let outcome = made.and_then(|(key, template)| {
            keys.made.push((key, template));
            // Some modules give ids of their own.
            Ok(login.key_id(key)?)
        });
        match (outcome, keys.made.len()) {
            (Ok(id), 1) => keys.kek.id = keys.chosen(id),
            (Ok(id), _) => {
                let id = keys.chosen(id);
                if let Some(mac) = &mut keys.mac {
                    mac.id = id;
                }
            }
            (Err(cause), _) => return Err(keys.destroy(login, cause, watcher)),
        }
    }
    let what = if keys.mac.is_some() { "two keys of 256 bits, non-extractable" } else { "256 bits, non-extractable" };
    watcher(Progress::Done(what));
    Ok(keys)
}

impl Keys {
    /// Each key with what it is for.
    pub(super) fn all(&self) -> impl Iterator<Item = &KeyTemplate> {
        [Some(&self.kek), self.mac.as_ref()].into_iter().flatten()
    }

    fn all_mut(&mut self) -> impl Iterator<Item = &mut KeyTemplate> {
        [Some(&mut self.kek), self.mac.as_mut()].into_iter().flatten()
    }

    fn labels(&self) -> String {
        self.all().map(|template| format!("{:?}", template.label)).collect::<Vec<_>>().join(" and ")
    }

    /// The id that the module gave the key just made, or ours if it gives none away.
    fn chosen(&self, id: Vec<u8>) -> Vec<u8> {
        let asked = || self.made.last().map(|(_, template)| template.id.clone()).unwrap_or_default();
        if id.is_empty() { asked() } else { id }
    }

    /// Destroys what this ceremony made, because of `cause`.
    pub(super) fn destroy(self, login: &Session, cause: CeremonyError, watcher: Watcher<'_>) -> CeremonyError {
        let mut cause = cause;
        for (key, template) in self.made {
            watcher(Progress::Begins("destroy the key that was made"));
            match login.destroy(key) {
                Ok(()) => watcher(Progress::Done("destroyed: the token is as it was")),
                Err(error) => {
                    watcher(Progress::Done("NOT destroyed"));
                    let id = data_encoding::HEXLOWER.encode(&template.id);
                    let error = Box::new(error);
                    cause = CeremonyError::LeftBehind { label: template.label, id, error, cause: Box::new(cause) };
                }
            }
        }
        cause
    }
}

/// The KEK of the plan, as its profile wants it made.
fn kek_template(plan: &Plan) -> KeyTemplate {
    let key = &plan.token.profile.key;
    KeyTemplate {
        purpose: plan.token.sealing.kek_use(),
        id: Vec::new(),
        label: plan.kek.label.clone(),
        kind: key.kind,
        generate: match key.generate {
            KeyGeneration::Mechanism(mechanism) => mechanism,
            KeyGeneration::Tool => sys::CKM_AES_KEY_GEN,
        },
        mechanism: plan.token.sealing.mechanism,
        add: key.add.clone(),
        omit: key.omit.clone(),
    }
}

/// The MAC key of the plan, named after the KEK.
fn mac_template(plan: &Plan) -> Option<KeyTemplate> {
    plan.token.sealing.mac_mechanism().map(|mechanism| KeyTemplate {
        purpose: KeyUse::Mac,
        label: format!("{}-mac", plan.kek.label),
        kind: sys::CKK_GENERIC_SECRET,
        generate: sys::CKM_GENERIC_SECRET_KEY_GEN,
        mechanism,
        ..kek_template(plan)
    })
}

/// 16 bytes from the token, mixed with the kernel's: unique as long as one of the two is random.
fn random_id(session: &Session) -> Result<[u8; 16], CeremonyError> {
    let mut id = [0; 16];
    session.random(&mut id)?;
    for (byte, other) in id.iter_mut().zip(random::<16>()?) {
        *byte ^= other;
    }
    Ok(id)
}
