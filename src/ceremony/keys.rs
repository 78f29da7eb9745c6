//! The keys of a ceremony: the KEK, and the MAC key beside it where the seal needs one. Made here, or, where `C_GenerateKey`
//! cannot, by the vendor's tool before the ceremony.

use cryptoki_sys as sys;

use super::generate::{generate, is_the_template};
use super::{CeremonyError, Plan};
use crate::attributes::KeyUse;
use crate::config::Token as TokenPlan;
use crate::pkcs11::{self, Key, KeyTemplate, Session};
use crate::profile::KeyGeneration;
use crate::record::{KekRecord, Origin};

/// The keys on the token, before anything is proved about them.
pub(super) struct Keys {
    /// The KEK as it was asked for, with the id that it has.
    pub(super) kek: KeyTemplate,
    /// The MAC key.
    pub(super) mac: Option<KeyTemplate>,
    /// Where their material comes from.
    pub(super) origin: Origin,
    /// What this ceremony has made, and destroys if it does not end well.
    made: Vec<(Key, KeyTemplate)>,
}

impl Keys {
    /// The keys of the plan, which do not exist yet and have no ids.
    pub(super) fn new(plan: &Plan) -> Self {
        Self::on(&plan.token, &plan.kek.label, plan.origin())
    }

    /// The keys of this label, as the profile of this token wants them.
    pub(super) fn on(token: &TokenPlan, label: &str, origin: Origin) -> Self {
        Self { kek: kek_template(token, label), mac: mac_template(token, label), origin, made: Vec::new() }
    }

    /// They get the ids that stand in a record: what is put in is what was there.
    pub(super) fn take_ids(&mut self, record: &KekRecord) {
        let recorded = [Some(&record.kek), record.mac_key.as_ref()].into_iter().flatten();
        for (template, key) in self.all_mut().zip(recorded) {
            template.id = key.id.as_bytes().to_vec();
        }
    }

    /// Each key with what it is for.
    pub(super) fn all(&self) -> impl Iterator<Item = &KeyTemplate> {
        [Some(&self.kek), self.mac.as_ref()].into_iter().flatten()
    }

    fn all_mut(&mut self) -> impl Iterator<Item = &mut KeyTemplate> {
        [Some(&mut self.kek), self.mac.as_mut()].into_iter().flatten()
    }

    /// Their labels, in words.
    pub(super) fn labels(&self) -> String {
        self.all().map(|template| format!("{:?}", template.label)).collect::<Vec<_>>().join(" and ")
    }

    /// Nothing on the token may have their labels.
    pub(super) fn check_free(&self, login: &Session) -> Result<(), CeremonyError> {
        for template in self.all() {
            let count = login.labelled(&template.label)?.len();
            if count > 0 {
                return Err(CeremonyError::LabelTaken { label: template.label.clone(), count });
            }
        }
        Ok(())
    }

    /// Gives them ids that nothing else has. To be known before the keys are made: it is how a half-made one is found again.
    pub(super) fn choose_ids(&mut self, login: &Session) -> Result<(), CeremonyError> {
        self.all_mut().try_for_each(|template| {
            template.id = random_id(login)?.to_vec();
            Ok(())
        })
    }

    /// Makes them. If that fails, some may have been made: see [`Self::destroy`].
    pub(super) fn generate(&mut self, login: &Session) -> Result<(), CeremonyError> {
        self.make(login, |template| generate(login, template)).map_err(|error| match error {
            CeremonyError::Pkcs11(error) if is_the_template(&error) => {
                CeremonyError::TemplateRefused { labels: self.labels(), error: Box::new(error) }
            }
            error => error,
        })
    }

    /// The same, each by `make`.
    pub(super) fn make(
        &mut self,
        login: &Session,
        mut make: impl FnMut(&KeyTemplate) -> Result<Key, pkcs11::Error>,
    ) -> Result<(), CeremonyError> {
        let Self { kek, mac, made, .. } = self;
        [Some(kek), mac.as_mut()].into_iter().flatten().try_for_each(|template| {
            let key = make(template)?;
            made.push((key, template.clone()));
            // Some modules give ids of their own.
            let id = login.key_id(key)?;
            if !id.is_empty() {
                template.id = id;
            }
            Ok(())
        })
    }

    /// Finds them where the vendor's tool made them.
    pub(super) fn find(&mut self, login: &Session) -> Result<(), CeremonyError> {
        self.all_mut().try_for_each(|template| {
            template.id = login.key_id(login.key_with_label(&template.label)?)?;
            Ok(())
        })
    }

    /// Takes what is on the token for what this ceremony has made, if that is one of each.
    pub(super) fn adopt(&mut self, login: &Session) -> Result<bool, CeremonyError> {
        let mut found = Vec::new();
        for template in self.all() {
            let [key] = login.labelled(&template.label)?[..] else { return Ok(false) };
            found.push((key, login.key_id(key)?));
        }
        let mut made = Vec::new();
        for (template, (key, id)) in self.all_mut().zip(found) {
            if !id.is_empty() {
                template.id = id;
            }
            made.push((key, template.clone()));
        }
        self.made = made;
        Ok(true)
    }

    /// Objects with their labels, or with one of these ids (in hex): a key that was cut off amid being made may have no label yet.
    /// Each in words: label and id.
    pub(super) fn present(&self, login: &Session, ids: &[String]) -> Result<Vec<(Key, String)>, CeremonyError> {
        let mut present = Vec::new();
        for template in self.all() {
            for key in login.labelled(&template.label)? {
                let id = data_encoding::HEXLOWER.encode(&login.key_id(key)?);
                present.push((key, format!("{:?} with CKA_ID {id}", template.label)));
            }
        }
        for id in ids {
            let bytes = data_encoding::HEXLOWER.decode(id.as_bytes()).unwrap_or_default();
            let found = if bytes.is_empty() { Vec::new() } else { login.with_id(&bytes)? };
            for key in found {
                if present.iter().all(|(other, _)| *other != key) {
                    present.push((key, format!("an object without the label, with CKA_ID {id}")));
                }
            }
        }
        Ok(present)
    }

    /// Destroys what this ceremony made, because of `cause`; the result of each is told.
    pub(super) fn destroy(
        &mut self,
        login: &Session,
        mut cause: CeremonyError,
        told: &mut dyn FnMut(&str),
    ) -> CeremonyError {
        for (key, template) in self.made.drain(..) {
            match login.destroy(key) {
                Ok(()) => told("destroyed: the token is as it was"),
                Err(error) => {
                    told("NOT destroyed");
                    let id = data_encoding::HEXLOWER.encode(&template.id);
                    let error = Box::new(error);
                    cause = CeremonyError::LeftBehind { label: template.label, id, error, cause: Box::new(cause) };
                }
            }
        }
        cause
    }

    /// Their `CKA_ID`s, in hex.
    pub(super) fn ids(&self) -> Vec<String> {
        self.all().map(|template| data_encoding::HEXLOWER.encode(&template.id)).collect()
    }

    /// The attributes that each is asked for with, in order.
    pub(super) fn describe(&self) -> Result<Vec<Vec<String>>, CeremonyError> {
        let describe = match self.origin {
            Origin::Generated => KeyTemplate::describe,
            Origin::Imported => KeyTemplate::describe_import,
        };
        self.all().map(|template| Ok(describe(template)?)).collect()
    }

    /// Whether there is nothing to destroy.
    pub(super) fn is_nothing_made(&self) -> bool {
        self.made.is_empty()
    }

    /// What was adopted is somebody else's to judge.
    pub(super) fn forget(&mut self) {
        self.made.clear();
    }

    /// What was made, in words.
    pub(super) fn summary(&self) -> &'static str {
        if self.mac.is_some() { "two keys of 256 bits, non-extractable" } else { "256 bits, non-extractable" }
    }
}

/// The KEK, as the profile of the token wants it made.
fn kek_template(token: &TokenPlan, label: &str) -> KeyTemplate {
    let key = &token.profile.key;
    KeyTemplate {
        purpose: token.sealing.kek_use(),
        id: Vec::new(),
        label: label.to_owned(),
        kind: key.kind,
        generate: match key.generate {
            KeyGeneration::Mechanism(mechanism) => mechanism,
            KeyGeneration::Tool => sys::CKM_AES_KEY_GEN,
        },
        mechanism: token.sealing.mechanism,
        add: key.add.clone(),
        omit: key.omit.clone(),
    }
}

/// The MAC key, named after the KEK.
fn mac_template(token: &TokenPlan, label: &str) -> Option<KeyTemplate> {
    token.sealing.mac_mechanism().map(|mechanism| KeyTemplate {
        purpose: KeyUse::Mac,
        label: format!("{label}-mac"),
        kind: sys::CKK_GENERIC_SECRET,
        generate: sys::CKM_GENERIC_SECRET_KEY_GEN,
        mechanism,
        ..kek_template(token, label)
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

/// Bytes from the kernel.
pub(super) fn random<const N: usize>() -> Result<[u8; N], CeremonyError> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|error| CeremonyError::System {
        what: "no kernel randomness",
        source: std::io::Error::other(error),
    })?;
    Ok(bytes)
}
