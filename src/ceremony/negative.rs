//! What a token must refuse to do with a KEK. Each is really tried; one success ends the ceremony.

use std::borrow::Cow;

use cryptoki_sys as sys;
use serde::{Deserialize, Serialize};

use super::CeremonyError;
use crate::attributes::{AttributeName, AttributeValue, Attributes, KeyUse};
use crate::pkcs11::{Error, Key, KeyTemplate, Session};

/// Something that was tried and refused, or could not be tried.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Refusal {
    /// `CKA_LABEL` of the key.
    pub key: String,
    /// What was tried.
    pub attempt: Cow<'static, str>,
    /// How the token refused it, or why it was not tried.
    pub answer: String,
}

/// Tries everything that a key of this use must not give; `audited` is what was read of it. `may_be_copied`: the plan permits a
/// token without `CKA_COPYABLE`, so copies with another right count as permitted; none may be less secret, or become so. Every
/// attempt runs on the same session: a refusal leaves no operation behind.
pub(crate) fn run(
    session: &Session,
    key: Key,
    template: &KeyTemplate,
    audited: &Attributes,
    may_be_copied: bool,
) -> Result<Vec<Refusal>, CeremonyError> {
    let trial = Trial { session, key, template, audited, may_be_copied };
    let mut all = vec![trial.reading()?];
    let wraps = trial.wrapping()?;
    all.extend(trial.setting()?);
    all.extend(trial.copying()?);
    all.extend(wraps);
    Ok(all)
}

/// What is tried on a key of this use, in words.
pub(super) fn attempts(purpose: KeyUse) -> Vec<String> {
    let is_right = |name: AttributeName| purpose.rights().contains(&name);
    let wraps = WRAPPING.iter().map(|(attempt, _)| *attempt);
    let sets = LOOSENING.iter().filter(|(_, name, _)| !is_right(*name)).map(|(attempt, ..)| *attempt);
    let copies = LOOSENING_COPIES.iter().filter(|(_, name, _)| !is_right(*name)).map(|(attempt, ..)| *attempt);
    let by = |function: &'static str| move |attempt| format!("{function}: {attempt}: must fail");
    std::iter::once(READ)
        .map(by("C_GetAttributeValue"))
        .chain(["C_GenerateKey of a key for this session alone, which wraps".to_owned()])
        .chain(wraps.map(by("C_WrapKey")))
        .chain(["C_DestroyObject of that key".to_owned()])
        .chain(sets.map(by("C_SetAttributeValue")))
        .chain(copies.map(by("C_CopyObject")))
        .collect()
}

/// One key, and what is known of it.
struct Trial<'a> {
    session: &'a Session,
    key: Key,
    template: &'a KeyTemplate,
    audited: &'a Attributes,
    may_be_copied: bool,
}

impl Trial<'_> {
    fn reading(&self) -> Result<Refusal, CeremonyError> {
        if self.session.value_can_be_read(self.key)? {
            return Err(CeremonyError::NotRefused(READ));
        }
        Ok(self.answered(READ, "the token did not give it"))
    }

    /// By each mechanism that could do it. One that the token does not have proves nothing.
    fn wrapping(&self) -> Result<Vec<Refusal>, CeremonyError> {
        let wrapping = match self.session.throwaway_wrapping_key() {
            Ok(wrapping) => wrapping,
            // Not a refusal to wrap, and not to be taken for one.
            Err(error) => return Ok(vec![self.answered(WRAP, format!("not tried, no wrapping key: {error}"))]),
        };
        let tried: Vec<_> = WRAPPING
            .into_iter()
            .map(|(attempt, mechanism)| (attempt, self.session.wrap_by(mechanism, wrapping, self.key)))
            .collect();
        self.session.destroy(wrapping)?;
        let mut answers = Vec::new();
        let mut was_tried = false;
        for (attempt, wrapped) in tried {
            let error = wrapped.err().ok_or(CeremonyError::NotRefused(attempt))?;
            let is_absent = matches!(error, Error::Call { code: sys::CKR_MECHANISM_INVALID, .. });
            was_tried |= !is_absent;
            let why = if is_absent { "not tried, no such mechanism: " } else { "" };
            answers.push(self.answered(attempt, format!("{why}{error}")));
        }
        Ok(if was_tried { answers } else { vec![self.answered(WRAP, "not tried, no mechanism of the token wraps")] })
    }

    fn setting(&self) -> Result<Vec<Refusal>, CeremonyError> {
        // What it has already is no attempt.
        let looser = |name, value| self.audited.get(&name) != Some(&AttributeValue::Bool(value));
        LOOSENING
            .into_iter()
            .filter(|(_, name, value)| !self.is_right(*name) && looser(*name, *value))
            .map(|(attempt, name, value)| match self.session.set_flag(self.key, name, value) {
                Err(error) => Ok(self.answered(attempt, error.to_string())),
                // Put back, for a key that is not destroyed: one that the vendor's tool made.
                Ok(()) => Err(match self.session.set_flag(self.key, name, !value) {
                    Ok(()) => CeremonyError::NotRefused(attempt),
                    Err(error) => CeremonyError::Altered { attempt, error: Box::new(error) },
                }),
            })
            .collect()
    }

    fn copying(&self) -> Result<Vec<Refusal>, CeremonyError> {
        LOOSENING_COPIES
            .into_iter()
            .filter(|(_, name, _)| !self.is_right(*name))
            .map(|(attempt, name, value)| {
                let copy = match self.session.copy_with_flag(self.key, name, value) {
                    Ok(copy) => copy,
                    Err(error) => return Ok(self.answered(attempt, error.to_string())),
                };
                let is_permitted = self.may_be_copied && name.is_negotiable(self.template.purpose);
                let given = if is_permitted { self.loosened(copy) } else { Some(attempt) };
                if let Err(error) = self.session.destroy(copy) {
                    let (label, error) = (self.template.label.clone(), Box::new(error));
                    return Err(CeremonyError::CopyLeft { label, attempt: given.unwrap_or(attempt), error });
                }
                match given {
                    Some(attempt) => Err(CeremonyError::NotRefused(attempt)),
                    None => Ok(self.answered(attempt, "done, and the plan permits copies")),
                }
            })
            .collect()
    }

    /// What can be done to a copy that must not be.
    fn loosened(&self, copy: Key) -> Option<&'static str> {
        LOOSENING_OF_COPIES
            .into_iter()
            .find(|(_, name, value)| self.session.set_flag(copy, *name, *value).is_ok())
            .map(|(attempt, ..)| attempt)
    }

    fn is_right(&self, name: AttributeName) -> bool {
        self.template.purpose.rights().contains(&name)
    }

    fn answered(&self, attempt: &'static str, answer: impl Into<String>) -> Refusal {
        Refusal { key: self.template.label.clone(), attempt: Cow::Borrowed(attempt), answer: answer.into() }
    }
}

const READ: &str = "read CKA_VALUE";
const WRAP: &str = "wrap it under another key";

const WRAPPING: [(&str, u64); 6] = [
    ("wrap it under another key by CKM_AES_KEY_WRAP", sys::CKM_AES_KEY_WRAP),
    ("wrap it under another key by CKM_AES_KEY_WRAP_KWP", sys::CKM_AES_KEY_WRAP_KWP),
    ("wrap it under another key by CKM_AES_KEY_WRAP_PAD", sys::CKM_AES_KEY_WRAP_PAD),
    ("wrap it under another key by CKM_AES_CBC_PAD", sys::CKM_AES_CBC_PAD),
    ("wrap it under another key by CKM_AES_CBC", sys::CKM_AES_CBC),
    ("wrap it under another key by CKM_AES_ECB", sys::CKM_AES_ECB),
];

const LOOSENING: [(&str, AttributeName, bool); 10] = [
    ("set CKA_EXTRACTABLE true", AttributeName::Extractable, true),
    ("set CKA_SENSITIVE false", AttributeName::Sensitive, false),
    ("set CKA_ENCRYPT true", AttributeName::Encrypt, true),
    ("set CKA_DECRYPT true", AttributeName::Decrypt, true),
    ("set CKA_WRAP true", AttributeName::Wrap, true),
    ("set CKA_UNWRAP true", AttributeName::Unwrap, true),
    ("set CKA_DERIVE true", AttributeName::Derive, true),
    ("set CKA_SIGN true", AttributeName::Sign, true),
    ("set CKA_VERIFY true", AttributeName::Verify, true),
    ("set CKA_MODIFIABLE true", AttributeName::Modifiable, true),
];

const LOOSENING_COPIES: [(&str, AttributeName, bool); 5] = [
    ("copy with CKA_EXTRACTABLE true", AttributeName::Extractable, true),
    ("copy with CKA_SENSITIVE false", AttributeName::Sensitive, false),
    ("copy with CKA_WRAP true", AttributeName::Wrap, true),
    ("copy with CKA_DERIVE true", AttributeName::Derive, true),
    ("copy with CKA_MODIFIABLE true", AttributeName::Modifiable, true),
];

const LOOSENING_OF_COPIES: [(&str, AttributeName, bool); 2] = [
    ("copy it, and set CKA_EXTRACTABLE true on the copy", AttributeName::Extractable, true),
    ("copy it, and set CKA_SENSITIVE false on the copy", AttributeName::Sensitive, false),
];
