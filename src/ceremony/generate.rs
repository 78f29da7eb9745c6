//! The strict template of a key, and what a token made of it.

use cryptoki_sys as sys;

use crate::attributes::{self, AttributeName, AttributeValue, Attributes, Deviation, KeyUse};
use crate::class::Class;
use crate::pkcs11::{Error, Key, KeyTemplate, Session};

/// Generates the key. A token that refuses the optional attributes is asked again without them; what it then made is judged
/// by reading back, not by the code it refused with.
pub(crate) fn generate(session: &Session, template: &KeyTemplate) -> Result<Key, Error> {
    let mut refused = None;
    for without in [
        &[][..],
        &[sys::CKA_COPYABLE],
        &[sys::CKA_ALLOWED_MECHANISMS],
        &[sys::CKA_COPYABLE, sys::CKA_ALLOWED_MECHANISMS],
    ] {
        let omit = [&template.omit, without].concat();
        match session.generate(&KeyTemplate { omit, ..template.clone() }) {
            Ok(key) => return Ok(key),
            Err(error) if may_be_the_template(&error) => refused = Some(error),
            Err(error) => return Err(error),
        }
    }
    Err(refused.unwrap_or_else(|| Error::Unreadable("the token made no key".to_owned())))
}

/// What of the key on the token is not as it must be.
pub(crate) fn deviations(template: &KeyTemplate, found: &Attributes) -> Vec<Deviation> {
    attributes::deviations(template.purpose, &strict_for(template, found), found)
}

/// What the key that was found must be. An attribute that is not there may be anything.
pub(super) fn strict_for(template: &KeyTemplate, found: &Attributes) -> Attributes {
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
    matches!(error, Error::Call { code, class, .. } if matches!(
        *code,
        sys::CKR_ATTRIBUTE_TYPE_INVALID
            | sys::CKR_ATTRIBUTE_VALUE_INVALID
            | sys::CKR_ATTRIBUTE_READ_ONLY
            | sys::CKR_TEMPLATE_INCONSISTENT
            | sys::CKR_TEMPLATE_INCOMPLETE
            | sys::CKR_GENERAL_ERROR
            | sys::CKR_FUNCTION_FAILED
    ) && *class != Class::PinOrConfig)
}
