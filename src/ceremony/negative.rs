//! What a token must refuse to do with a KEK. Each is really tried; one success ends the ceremony.

use super::CeremonyError;
use crate::attributes::AttributeName;
use crate::pkcs11::{Error, Key, KeyTemplate, Session};

/// Something that was tried and refused, or could not be tried.
#[derive(Clone, Debug)]
pub struct Refusal {
    /// `CKA_LABEL` of the key.
    pub key: String,
    /// What was tried.
    pub attempt: &'static str,
    /// How the token refused it, or why it was not tried.
    pub answer: String,
}

/// Tries everything that a key of this use must not give. Every attempt runs on the same session: a refusal leaves no operation behind.
pub(crate) fn run(
    session: &Session,
    key: Key,
    KeyTemplate { label, purpose, .. }: &KeyTemplate,
) -> Result<Vec<Refusal>, CeremonyError> {
    let mut refusals = Vec::new();
    let mut untried = Vec::new();
    let mut expect = |attempt: &'static str, outcome: Result<(), Error>| match outcome {
        Ok(()) => Err(CeremonyError::NotRefused(attempt)),
        Err(error) => {
            refusals.push(Refusal { key: label.clone(), attempt, answer: error.to_string() });
            Ok(())
        }
    };
    if session.value_can_be_read(key)? {
        return Err(CeremonyError::NotRefused("read CKA_VALUE"));
    }
    match session.throwaway_wrapping_key() {
        Ok(wrapping) => {
            let wrapped = session.wrap(key, wrapping);
            session.destroy(wrapping)?;
            expect(WRAP, wrapped)?;
        }
        // Not a refusal to wrap, and not to be taken for one.
        Err(error) => {
            let answer = format!("not tried, no wrapping key: {error}");
            untried.push(Refusal { key: label.clone(), attempt: WRAP, answer });
        }
    }
    let is_right = |name: &AttributeName| purpose.rights().contains(name);
    for (attempt, name, value) in LOOSENING.into_iter().filter(|(_, name, _)| !is_right(name)) {
        expect(attempt, session.set_flag(key, name, value))?;
    }
    for (attempt, name, value) in LOOSENING_COPIES.into_iter().filter(|(_, name, _)| !is_right(name)) {
        expect(attempt, session.copy_with_flag(key, name, value))?;
    }
    let answer = "the token did not give it".to_owned();
    let mut all = vec![Refusal { key: label.clone(), attempt: "read CKA_VALUE", answer }];
    all.append(&mut refusals);
    all.append(&mut untried);
    Ok(all)
}

const WRAP: &str = "wrap it under another key";

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

const LOOSENING_COPIES: [(&str, AttributeName, bool); 4] = [
    ("copy with CKA_EXTRACTABLE true", AttributeName::Extractable, true),
    ("copy with CKA_SENSITIVE false", AttributeName::Sensitive, false),
    ("copy with CKA_WRAP true", AttributeName::Wrap, true),
    ("copy with CKA_MODIFIABLE true", AttributeName::Modifiable, true),
];
