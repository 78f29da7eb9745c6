//! What a return code means: `CK_RV` and function to [`Class`], by default table and profile overrides.
//!
//! The codes themselves are in PKCS#11 3.1, section 5.1. Where modules disagree about a code, the class is the one that is
//! safe if wrong: a needless new session costs microseconds, a needless PIN attempt can cost the token.

use cryptoki_sys as sys;

pub use super::raw::WRONG_LENGTH;
use crate::class::Class;
use crate::profile::{CodeOverride, code_name};

/// The class of `code` returned by `function`.
pub fn classify(function: &str, code: u64, overrides: &[CodeOverride]) -> Class {
    overrides
        .iter()
        .find(|entry| entry.code == code && entry.function.is_none_or(|name| name == function))
        .map_or_else(|| default_class(code), |entry| entry.class)
}

/// The name of a return code, `CKR_...`, with its number where there is no name.
pub fn name(code: u64) -> String {
    if code == WRONG_LENGTH {
        return "CKR_OK with a wrong length".to_owned();
    }
    code_name(code).map_or_else(|| format!("{code:#010x}"), str::to_owned)
}

fn default_class(code: u64) -> Class {
    match code {
        sys::CKR_FUNCTION_CANCELED | sys::CKR_CANCEL | sys::CKR_SESSION_COUNT | sys::CKR_HOST_MEMORY => Class::Busy,

        sys::CKR_ENCRYPTED_DATA_INVALID
        | sys::CKR_ENCRYPTED_DATA_LEN_RANGE
        | sys::CKR_DATA_INVALID
        | sys::CKR_DATA_LEN_RANGE
        | sys::CKR_AEAD_DECRYPT_FAILED
        | sys::CKR_SIGNATURE_INVALID
        | sys::CKR_SIGNATURE_LEN_RANGE
        | sys::CKR_WRAPPED_KEY_INVALID
        | sys::CKR_WRAPPED_KEY_LEN_RANGE => Class::Data,

        sys::CKR_USER_NOT_LOGGED_IN | sys::CKR_KEY_HANDLE_INVALID | sys::CKR_OBJECT_HANDLE_INVALID => Class::Login,

        sys::CKR_PIN_INCORRECT
        | sys::CKR_PIN_INVALID
        | sys::CKR_PIN_LEN_RANGE
        | sys::CKR_PIN_EXPIRED
        | sys::CKR_PIN_LOCKED
        | sys::CKR_PIN_TOO_WEAK
        | sys::CKR_USER_PIN_NOT_INITIALIZED
        | sys::CKR_USER_TYPE_INVALID
        | sys::CKR_USER_ANOTHER_ALREADY_LOGGED_IN
        | sys::CKR_USER_TOO_MANY_TYPES
        | sys::CKR_KEY_FUNCTION_NOT_PERMITTED
        | sys::CKR_KEY_TYPE_INCONSISTENT
        | sys::CKR_KEY_SIZE_RANGE
        | sys::CKR_MECHANISM_INVALID
        | sys::CKR_MECHANISM_PARAM_INVALID
        | sys::CKR_FUNCTION_NOT_SUPPORTED
        | sys::CKR_TOKEN_NOT_RECOGNIZED
        | sys::CKR_TOKEN_WRITE_PROTECTED
        | sys::CKR_ACTION_PROHIBITED => Class::PinOrConfig,

        WRONG_LENGTH
        | sys::CKR_BUFFER_TOO_SMALL
        | sys::CKR_OPERATION_ACTIVE
        | sys::CKR_OPERATION_NOT_INITIALIZED
        | sys::CKR_OPERATION_CANCEL_FAILED
        | sys::CKR_SESSION_CLOSED
        | sys::CKR_SESSION_HANDLE_INVALID
        | sys::CKR_SESSION_PARALLEL_NOT_SUPPORTED
        | sys::CKR_FUNCTION_FAILED => Class::Session,

        _ => Class::Gone,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_profile_reads_a_code_its_own_way_for_one_function_only() {
        let overrides =
            [CodeOverride { code: sys::CKR_GENERAL_ERROR, function: Some("C_Decrypt"), class: Class::Data }];
        assert_eq!(classify("C_Decrypt", sys::CKR_GENERAL_ERROR, &overrides), Class::Data);
        assert_eq!(classify("C_Encrypt", sys::CKR_GENERAL_ERROR, &overrides), Class::Gone);
    }

    #[test]
    fn a_pin_code_never_asks_for_another_try() {
        for code in [sys::CKR_PIN_INCORRECT, sys::CKR_PIN_LOCKED, sys::CKR_PIN_EXPIRED, sys::CKR_PIN_INVALID] {
            assert_eq!(classify("C_Login", code, &[]), Class::PinOrConfig);
        }
    }

    #[test]
    fn an_unknown_vendor_code_means_the_token_cannot_be_trusted() {
        assert_eq!(classify("C_Encrypt", sys::CKR_VENDOR_DEFINED | 0x1234, &[]), Class::Gone);
    }
}
