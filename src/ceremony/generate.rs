//! The strict template of a KEK, and what a token made of it.

use cryptoki_sys as sys;

use crate::attributes::{self, AttributeName, AttributeValue, Attributes, Deviation};
use crate::class::Class;
use crate::pkcs11::{Error, Key, KeyTemplate, Session};

/// Generates the KEK. A token that refuses the optional attributes is asked again without them; what it then made is judged
/// by reading back, not by the code it refused with.
pub(super) fn generate(session: &Session, label: &str, id: &[u8]) -> Result<Key, Error> {
    let template =
        |not_copyable, only_gcm| KeyTemplate { id: id.to_vec(), label: label.to_owned(), not_copyable, only_gcm };
    let mut refused = None;
    for (not_copyable, only_gcm) in [(true, true), (false, true), (true, false), (false, false)] {
        match session.generate(&template(not_copyable, only_gcm)) {
            Ok(key) => return Ok(key),
            Err(error) if may_be_the_template(&error) => refused = Some(error),
            Err(error) => return Err(error),
        }
    }
    Err(refused.unwrap_or_else(|| Error::Unreadable("the token made no key".to_owned())))
}

/// What of the key on the token is not as a KEK must be.
pub(super) fn deviations(found: &Attributes) -> Vec<Deviation> {
    attributes::deviations(&strict(), found)
}

/// A KEK as it must be.
fn strict() -> Attributes {
    AttributeName::ALL
        .into_iter()
        .map(|name| {
            let value = match name {
                AttributeName::KeyType => AttributeValue::Number(sys::CKK_AES),
                AttributeName::ValueLen => AttributeValue::Number(32),
                AttributeName::KeyGenMechanism => AttributeValue::Number(sys::CKM_AES_KEY_GEN),
                AttributeName::AllowedMechanisms => AttributeValue::Mechanisms(vec![sys::CKM_AES_GCM]),
                AttributeName::AlwaysSensitive
                | AttributeName::Decrypt
                | AttributeName::Encrypt
                | AttributeName::Local
                | AttributeName::NeverExtractable
                | AttributeName::Private
                | AttributeName::Sensitive
                | AttributeName::Token => AttributeValue::Bool(true),
                AttributeName::Copyable
                | AttributeName::Derive
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
