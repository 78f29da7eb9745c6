//! Where things are tried: a token that is logged in to, and throw-away keys on it, all with the label of this run.

use cryptoki_sys as sys;

use super::candidates::Candidate;
use crate::attributes::KeyUse;
use crate::pkcs11::{Error, KekKeys, Key, Session, Token};
use crate::profile::{self, AttributeSetting};

/// A token, and what this run makes on it.
pub(super) struct Bench {
    pub(super) token: Token,
    /// Kept open: it holds the login, and the session keys.
    pub(super) login: Option<Session>,
    /// `CKA_LABEL` of everything that this run makes, and of nothing else.
    pub(super) label: String,
    pub(super) candidates: Vec<Candidate>,
    /// Whether keys were made since the last clean-up: some may be left, whatever one search says.
    pub(super) in_use: bool,
}

/// An attribute with its value as PKCS#11 has it.
pub(super) type Setting = (u64, Vec<u8>);

/// Throw-away keys, destroyed by [`Bench::clear`] and at the end of the run.
pub(super) struct Keys {
    pub(super) keys: KekKeys,
}

impl Bench {
    /// The session that made the keys.
    pub(super) fn home(&self) -> Result<&Session, Error> {
        self.login.as_ref().ok_or_else(|| Error::Unreadable("nobody is logged in".to_owned()))
    }

    pub(super) fn candidate(&self, number: usize) -> Result<&Candidate, Error> {
        self.candidates.get(number).ok_or_else(|| Error::Unreadable(format!("there is no candidate {number}")))
    }

    /// The keys that the candidate seals with.
    pub(super) fn keys(&mut self, candidate: &Candidate, on_token: bool) -> Result<Keys, Error> {
        let purpose = candidate.sealing.kek_use();
        let template = self.template(candidate, purpose, on_token);
        let key = self.make(candidate.generate, &template)?;
        let mac = candidate.sealing.mac_mechanism().map(|_| {
            let candidate = Candidate { kind: sys::CKK_GENERIC_SECRET, ..candidate.clone() };
            let template = self.template(&candidate, KeyUse::Mac, on_token);
            self.make(sys::CKM_GENERIC_SECRET_KEY_GEN, &template)
        });
        Ok(Keys { keys: KekKeys { key, mac: mac.transpose()? } })
    }

    /// Makes a key.
    pub(super) fn make(&mut self, generate: u64, template: &[Setting]) -> Result<Key, Error> {
        self.in_use = true;
        self.home()?.generate_with(generate, template)
    }

    /// A key like a KEK, but with no more in its template than it needs.
    pub(super) fn template(&self, candidate: &Candidate, purpose: KeyUse, on_token: bool) -> Vec<Setting> {
        let rights = match purpose {
            KeyUse::Encrypt => [sys::CKA_ENCRYPT, sys::CKA_DECRYPT].as_slice(),
            KeyUse::Mac => &[sys::CKA_SIGN],
            KeyUse::Wrap => &[sys::CKA_WRAP, sys::CKA_UNWRAP],
        };
        let mut template = vec![
            number(sys::CKA_CLASS, sys::CKO_SECRET_KEY),
            number(sys::CKA_KEY_TYPE, candidate.kind),
            flag(sys::CKA_TOKEN, on_token),
            flag(sys::CKA_PRIVATE, true),
            flag(sys::CKA_SENSITIVE, true),
            flag(sys::CKA_EXTRACTABLE, false),
            number(sys::CKA_VALUE_LEN, 32),
            (sys::CKA_LABEL, self.label.as_bytes().to_vec()),
        ];
        template.extend(rights.iter().map(|right| flag(*right, true)));
        for (name, setting) in &candidate.add {
            template = with(
                template,
                match setting {
                    AttributeSetting::Flag(value) => flag(*name, *value),
                    AttributeSetting::Number(value) => number(*name, *value),
                },
            );
        }
        template.retain(|(name, _)| !candidate.omit.contains(name));
        template
    }

    /// How many objects there are with this run's label.
    pub(super) fn count(&self) -> Result<usize, Error> {
        Ok(self.home()?.labelled(&self.label)?.len())
    }

    /// Destroys everything with this run's label, and says how much is still there.
    pub(super) fn clear(&self) -> Result<usize, Error> {
        let mut left = self.destroy_all()?;
        if left > 0 {
            // Once more: a token that others use may refuse a call, or miss an object in one search.
            left = self.destroy_all()?;
        }
        Ok(left)
    }

    /// How many are there afterwards, or could not be destroyed: one search that finds nothing is no proof.
    fn destroy_all(&self) -> Result<usize, Error> {
        let home = self.home()?;
        let mut refused = 0;
        for key in home.labelled(&self.label)? {
            // A module that heeds no label in a search would find the site's own keys.
            let label = home.value(key, sys::CKA_LABEL).ok().flatten();
            let is_ours = label.is_some_and(|label| label.as_slice() == self.label.as_bytes());
            if !is_ours || home.destroy(key).is_err() {
                refused += 1;
            }
        }
        Ok(self.count()?.max(refused))
    }
}

/// A `CK_BBOOL`.
pub(super) fn flag(name: u64, value: bool) -> Setting {
    (name, vec![u8::from(value)])
}

/// A `CK_ULONG`.
pub(super) fn number(name: u64, value: u64) -> Setting {
    (name, sys::CK_ULONG::to_ne_bytes(value).to_vec())
}

/// The template with this attribute, in place of any of the same number.
pub(super) fn with(mut template: Vec<Setting>, setting: Setting) -> Vec<Setting> {
    template.retain(|(name, _)| *name != setting.0);
    template.push(setting);
    template
}

/// The number of an attribute that stands in every KEK's template and may be left out, by name.
pub(super) fn usual(name: &str) -> Option<u64> {
    USUAL.into_iter().find(|number| profile::attribute_name(*number) == name)
}

const USUAL: [u64; 9] = [
    sys::CKA_WRAP,
    sys::CKA_UNWRAP,
    sys::CKA_SIGN,
    sys::CKA_VERIFY,
    sys::CKA_DERIVE,
    sys::CKA_PRIVATE,
    sys::CKA_COPYABLE,
    sys::CKA_MODIFIABLE,
    sys::CKA_ALLOWED_MECHANISMS,
];
