//! The strict template of a key, and what a token made of it.

use cryptoki_sys as sys;

use crate::attributes::{self, AttributeName, AttributeValue, Attributes, Deviation, KeyUse};
use crate::class::Class;
use crate::pkcs11::{Error, Key, KeyTemplate, Session};
use crate::record::Origin;

/// Generates the key. A token that refuses the optional attributes is asked again without them; what it then made is judged
/// by reading back, not by the code it refused with.
pub(crate) fn generate(session: &Session, template: &KeyTemplate) -> Result<Key, Error> {
    with_or_without_optional(template, |template| session.generate(template))
}

/// The same for a key that `make` makes.
pub(super) fn with_or_without_optional(
    template: &KeyTemplate,
    mut make: impl FnMut(&KeyTemplate) -> Result<Key, Error>,
) -> Result<Key, Error> {
    let mut refused = None;
    for without in [
        &[][..],
        &[sys::CKA_COPYABLE],
        &[sys::CKA_ALLOWED_MECHANISMS],
        &[sys::CKA_COPYABLE, sys::CKA_ALLOWED_MECHANISMS],
    ] {
        let omit = [&template.omit, without].concat();
        match make(&KeyTemplate { omit, ..template.clone() }) {
            Ok(key) => return Ok(key),
            Err(error) if may_be_the_template(&error) => refused = Some(error),
            Err(error) => return Err(error),
        }
    }
    Err(refused.unwrap_or_else(|| Error::Unreadable("the token made no key".to_owned())))
}

/// What of the key on the token is not as it must be.
pub(crate) fn deviations(template: &KeyTemplate, origin: Origin, found: &Attributes) -> Vec<Deviation> {
    attributes::deviations(template.purpose, &strict_for(template, origin, found), found)
}

/// What the key that was found must be. An attribute that is not there may be anything.
pub(super) fn strict_for(template: &KeyTemplate, origin: Origin, found: &Attributes) -> Attributes {
    let mut strict = strict(template);
    if template.purpose == KeyUse::Mac {
        // What may sign may also verify: that gives nothing away.
        strict.remove(&AttributeName::Verify);
        // A key for this one MAC has a type of its own in PKCS#11, and some modules use it.
        let of_its_own = AttributeValue::Number(sys::CKK_SHA256_HMAC);
        if found.get(&AttributeName::KeyType) == Some(&of_its_own) {
            strict.insert(AttributeName::KeyType, of_its_own);
        }
    }
    if origin == Origin::Imported {
        // It must not say that it was made in the token, nor that it was always secret; some tokens say nothing of it.
        for (name, value) in [
            (AttributeName::AlwaysSensitive, AttributeValue::Bool(false)),
            (AttributeName::KeyGenMechanism, AttributeValue::Number(sys::CK_UNAVAILABLE_INFORMATION)),
            (AttributeName::Local, AttributeValue::Bool(false)),
            (AttributeName::NeverExtractable, AttributeValue::Bool(false)),
        ] {
            let is_told = found.get(&name).is_some_and(|found| *found != AttributeValue::UNAVAILABLE);
            strict.insert(name, if is_told { value } else { AttributeValue::UNAVAILABLE });
        }
    }
    strict
}

/// A key as it must be. What a profile adds changes nothing here: a value that is not this one is for the plan to permit.
fn strict(template: &KeyTemplate) -> Attributes {
    AttributeName::ALL
        .into_iter()
        .map(|name| {
            let value = match name {
                AttributeName::KeyType => AttributeValue::Number(template.kind),
                AttributeName::ValueLen => AttributeValue::Number(32),
                AttributeName::KeyGenMechanism => AttributeValue::Number(template.generate),
                AttributeName::AllowedMechanisms => AttributeValue::Mechanisms(vec![template.mechanism]),
                right if template.purpose.rights().contains(&right) => AttributeValue::Bool(true),
                AttributeName::AlwaysSensitive
                | AttributeName::Local
                | AttributeName::NeverExtractable
                | AttributeName::Private
                | AttributeName::Sensitive
                | AttributeName::Token => AttributeValue::Bool(true),
                AttributeName::Copyable
                | AttributeName::Decrypt
                | AttributeName::Derive
                | AttributeName::Encrypt
                | AttributeName::Extractable
                | AttributeName::Modifiable
                | AttributeName::Sign
                | AttributeName::Unwrap
                | AttributeName::Verify
                | AttributeName::Wrap => AttributeValue::Bool(false),
            };
            (name, value)
        })
        .collect()
}

/// Modules refuse an unknown attribute with a code of their choice; NSS says `CKR_GENERAL_ERROR`.
fn may_be_the_template(error: &Error) -> bool {
    let is_vague = matches!(error, Error::Call { code: sys::CKR_GENERAL_ERROR | sys::CKR_FUNCTION_FAILED, .. });
    (is_vague || is_the_template(error)) && error.class() != Class::PinOrConfig
}

/// Whether the code says that the token does not like an attribute.
pub(super) fn is_the_template(error: &Error) -> bool {
    matches!(
        error,
        Error::Call {
            code: sys::CKR_ATTRIBUTE_TYPE_INVALID
                | sys::CKR_ATTRIBUTE_VALUE_INVALID
                | sys::CKR_ATTRIBUTE_READ_ONLY
                | sys::CKR_TEMPLATE_INCONSISTENT
                | sys::CKR_TEMPLATE_INCOMPLETE,
            ..
        }
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn template() -> KeyTemplate {
        KeyTemplate {
            purpose: KeyUse::Encrypt,
            id: vec![1],
            label: "kek".to_owned(),
            kind: sys::CKK_AES,
            generate: sys::CKM_AES_KEY_GEN,
            mechanism: sys::CKM_AES_GCM,
            add: Vec::new(),
            omit: Vec::new(),
        }
    }

    /// As a token reads that takes the strict template, with these attributes otherwise.
    fn read(others: &[(AttributeName, AttributeValue)]) -> Attributes {
        let mut read = strict(&template());
        read.extend(others.iter().cloned());
        read
    }

    fn imported(value: &AttributeValue, mechanism: AttributeValue) -> Attributes {
        read(&[
            (AttributeName::AlwaysSensitive, value.clone()),
            (AttributeName::KeyGenMechanism, mechanism),
            (AttributeName::Local, value.clone()),
            (AttributeName::NeverExtractable, value.clone()),
        ])
    }

    #[test]
    fn an_imported_key_says_so_or_says_nothing_of_it() {
        let told = imported(&AttributeValue::Bool(false), AttributeValue::Number(sys::CK_UNAVAILABLE_INFORMATION));
        let untold = imported(&AttributeValue::UNAVAILABLE, AttributeValue::UNAVAILABLE);
        for found in [told, untold] {
            assert_eq!(deviations(&template(), Origin::Imported, &found), []);
            assert_eq!(deviations(&template(), Origin::Generated, &found).len(), 4);
        }
        // One that claims to have been made in the token is not the one that came in.
        assert_eq!(deviations(&template(), Origin::Imported, &read(&[])).len(), 4);
    }

    #[test]
    fn an_imported_key_must_be_as_strict_as_any_other() {
        for (name, value) in [
            (AttributeName::Extractable, AttributeValue::Bool(true)),
            (AttributeName::Modifiable, AttributeValue::Bool(true)),
            (AttributeName::Wrap, AttributeValue::Bool(true)),
            (AttributeName::ValueLen, AttributeValue::Number(16)),
        ] {
            let mut found = imported(&AttributeValue::Bool(false), AttributeValue::UNAVAILABLE);
            found.insert(name, value);
            let deviations = deviations(&template(), Origin::Imported, &found);
            assert_eq!(deviations.iter().map(|deviation| deviation.name).collect::<Vec<_>>(), [name]);
        }
    }

    #[test]
    fn only_what_may_lie_at_the_template_is_tried_with_less() {
        let refused =
            |code| Error::Call { function: "C_UnwrapKey".to_owned(), code, class: Class::Gone, poisoned: false };
        let mut tried = Vec::new();
        let all = with_or_without_optional(&template(), |template| {
            tried.push(template.omit.len());
            Err(refused(sys::CKR_TEMPLATE_INCONSISTENT))
        });
        assert!(all.is_err());
        assert_eq!(tried, [0, 1, 1, 2]);
        let mut count = 0;
        let once = with_or_without_optional(&template(), |_| {
            count += 1;
            Err(refused(sys::CKR_DEVICE_ERROR))
        });
        assert!(once.is_err());
        assert_eq!(count, 1);
    }
}
