//! The return codes and functions of PKCS#11 by name (PKCS#11 3.2, `CKR_` constants).

/// The name of a return code. `None`: a vendor's own, or one of a later standard.
pub fn code_name(code: u64) -> Option<&'static str> {
    CODES.iter().find(|(_, number)| *number == code).map(|(name, _)| *name)
}

/// The return code with this name.
pub fn code_number(name: &str) -> Option<u64> {
    CODES.iter().find(|(known, _)| *known == name).map(|(_, number)| *number)
}

/// The function with this name, if PKCS#11 has it.
pub(super) fn function_name(name: &str) -> Option<&'static str> {
    FUNCTIONS.iter().copied().find(|known| *known == name)
}

macro_rules! codes {
    ($($name:ident)*) => { &[$((stringify!($name), cryptoki_sys::$name as u64)),*] };
}

const CODES: &[(&str, u64)] = codes! {
    CKR_OK CKR_CANCEL CKR_HOST_MEMORY CKR_SLOT_ID_INVALID CKR_GENERAL_ERROR CKR_FUNCTION_FAILED CKR_ARGUMENTS_BAD
    CKR_NO_EVENT CKR_NEED_TO_CREATE_THREADS CKR_CANT_LOCK CKR_ATTRIBUTE_READ_ONLY CKR_ATTRIBUTE_SENSITIVE
    CKR_ATTRIBUTE_TYPE_INVALID CKR_ATTRIBUTE_VALUE_INVALID CKR_ACTION_PROHIBITED CKR_DATA_INVALID CKR_DATA_LEN_RANGE
    CKR_DEVICE_ERROR CKR_DEVICE_MEMORY CKR_DEVICE_REMOVED CKR_ENCRYPTED_DATA_INVALID CKR_ENCRYPTED_DATA_LEN_RANGE
    CKR_AEAD_DECRYPT_FAILED CKR_FUNCTION_CANCELED CKR_FUNCTION_NOT_PARALLEL CKR_FUNCTION_NOT_SUPPORTED
    CKR_KEY_HANDLE_INVALID CKR_KEY_SIZE_RANGE CKR_KEY_TYPE_INCONSISTENT CKR_KEY_NOT_NEEDED CKR_KEY_CHANGED
    CKR_KEY_NEEDED CKR_KEY_INDIGESTIBLE CKR_KEY_FUNCTION_NOT_PERMITTED CKR_KEY_NOT_WRAPPABLE CKR_KEY_UNEXTRACTABLE
    CKR_MECHANISM_INVALID CKR_MECHANISM_PARAM_INVALID CKR_OBJECT_HANDLE_INVALID CKR_OPERATION_ACTIVE
    CKR_OPERATION_NOT_INITIALIZED CKR_PIN_INCORRECT CKR_PIN_INVALID CKR_PIN_LEN_RANGE CKR_PIN_EXPIRED CKR_PIN_LOCKED
    CKR_SESSION_CLOSED CKR_SESSION_COUNT CKR_SESSION_HANDLE_INVALID CKR_SESSION_PARALLEL_NOT_SUPPORTED
    CKR_SESSION_READ_ONLY CKR_SESSION_EXISTS CKR_SESSION_READ_ONLY_EXISTS CKR_SESSION_READ_WRITE_SO_EXISTS
    CKR_SIGNATURE_INVALID CKR_SIGNATURE_LEN_RANGE CKR_TEMPLATE_INCOMPLETE CKR_TEMPLATE_INCONSISTENT
    CKR_TOKEN_NOT_PRESENT CKR_TOKEN_NOT_RECOGNIZED CKR_TOKEN_WRITE_PROTECTED CKR_UNWRAPPING_KEY_HANDLE_INVALID
    CKR_UNWRAPPING_KEY_SIZE_RANGE CKR_UNWRAPPING_KEY_TYPE_INCONSISTENT CKR_USER_ALREADY_LOGGED_IN
    CKR_USER_NOT_LOGGED_IN CKR_USER_PIN_NOT_INITIALIZED CKR_USER_TYPE_INVALID CKR_USER_ANOTHER_ALREADY_LOGGED_IN
    CKR_USER_TOO_MANY_TYPES CKR_WRAPPED_KEY_INVALID CKR_WRAPPED_KEY_LEN_RANGE CKR_WRAPPING_KEY_HANDLE_INVALID
    CKR_WRAPPING_KEY_SIZE_RANGE CKR_WRAPPING_KEY_TYPE_INCONSISTENT CKR_RANDOM_SEED_NOT_SUPPORTED CKR_RANDOM_NO_RNG
    CKR_DOMAIN_PARAMS_INVALID CKR_CURVE_NOT_SUPPORTED CKR_BUFFER_TOO_SMALL CKR_SAVED_STATE_INVALID
    CKR_INFORMATION_SENSITIVE CKR_STATE_UNSAVEABLE CKR_CRYPTOKI_NOT_INITIALIZED CKR_CRYPTOKI_ALREADY_INITIALIZED
    CKR_MUTEX_BAD CKR_MUTEX_NOT_LOCKED CKR_NEW_PIN_MODE CKR_NEXT_OTP CKR_EXCEEDED_MAX_ITERATIONS
    CKR_FIPS_SELF_TEST_FAILED CKR_LIBRARY_LOAD_FAILED CKR_PIN_TOO_WEAK CKR_PUBLIC_KEY_INVALID CKR_FUNCTION_REJECTED
    CKR_TOKEN_RESOURCE_EXCEEDED CKR_OPERATION_CANCEL_FAILED CKR_KEY_EXHAUSTED CKR_PENDING
    CKR_SESSION_ASYNC_NOT_SUPPORTED CKR_SEED_RANDOM_REQUIRED CKR_OPERATION_NOT_VALIDATED CKR_TOKEN_NOT_INITIALIZED
    CKR_PARAMETER_SET_NOT_SUPPORTED
};

const FUNCTIONS: &[&str] = &[
    "C_AsyncComplete",
    "C_AsyncGetID",
    "C_AsyncJoin",
    "C_CancelFunction",
    "C_CloseAllSessions",
    "C_CloseSession",
    "C_CopyObject",
    "C_CreateObject",
    "C_DecapsulateKey",
    "C_Decrypt",
    "C_DecryptDigestUpdate",
    "C_DecryptFinal",
    "C_DecryptInit",
    "C_DecryptMessage",
    "C_DecryptMessageBegin",
    "C_DecryptMessageNext",
    "C_DecryptUpdate",
    "C_DecryptVerifyUpdate",
    "C_DeriveKey",
    "C_DestroyObject",
    "C_Digest",
    "C_DigestEncryptUpdate",
    "C_DigestFinal",
    "C_DigestInit",
    "C_DigestKey",
    "C_DigestUpdate",
    "C_EncapsulateKey",
    "C_Encrypt",
    "C_EncryptFinal",
    "C_EncryptInit",
    "C_EncryptMessage",
    "C_EncryptMessageBegin",
    "C_EncryptMessageNext",
    "C_EncryptUpdate",
    "C_Finalize",
    "C_FindObjects",
    "C_FindObjectsFinal",
    "C_FindObjectsInit",
    "C_GenerateKey",
    "C_GenerateKeyPair",
    "C_GenerateRandom",
    "C_GetAttributeValue",
    "C_GetFunctionList",
    "C_GetFunctionStatus",
    "C_GetInfo",
    "C_GetInterface",
    "C_GetInterfaceList",
    "C_GetMechanismInfo",
    "C_GetMechanismList",
    "C_GetObjectSize",
    "C_GetOperationState",
    "C_GetSessionInfo",
    "C_GetSessionValidationFlags",
    "C_GetSlotInfo",
    "C_GetSlotList",
    "C_GetTokenInfo",
    "C_InitPIN",
    "C_InitToken",
    "C_Initialize",
    "C_Login",
    "C_LoginUser",
    "C_Logout",
    "C_MessageDecryptFinal",
    "C_MessageDecryptInit",
    "C_MessageEncryptFinal",
    "C_MessageEncryptInit",
    "C_MessageSignFinal",
    "C_MessageSignInit",
    "C_MessageVerifyFinal",
    "C_MessageVerifyInit",
    "C_OpenSession",
    "C_SeedRandom",
    "C_SessionCancel",
    "C_SetAttributeValue",
    "C_SetOperationState",
    "C_SetPIN",
    "C_Sign",
    "C_SignEncryptUpdate",
    "C_SignFinal",
    "C_SignInit",
    "C_SignMessage",
    "C_SignMessageBegin",
    "C_SignMessageNext",
    "C_SignRecover",
    "C_SignRecoverInit",
    "C_SignUpdate",
    "C_UnwrapKey",
    "C_UnwrapKeyAuthenticated",
    "C_Verify",
    "C_VerifyFinal",
    "C_VerifyInit",
    "C_VerifyMessage",
    "C_VerifyMessageBegin",
    "C_VerifyMessageNext",
    "C_VerifyRecover",
    "C_VerifyRecoverInit",
    "C_VerifySignature",
    "C_VerifySignatureFinal",
    "C_VerifySignatureInit",
    "C_VerifySignatureUpdate",
    "C_VerifyUpdate",
    "C_WaitForSlotEvent",
    "C_WrapKey",
    "C_WrapKeyAuthenticated",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_agree() {
        for (name, number) in CODES {
            assert_eq!(code_name(*number), Some(*name));
            assert_eq!(code_number(name), Some(*number));
        }
        assert_eq!(code_number("CKR_PIN_INCORRECT"), Some(0xa0));
        assert_eq!(code_name(0x8000_0001), None);
        assert_eq!(code_number("CKR_NO"), None);
    }

    #[test]
    fn functions_are_known_by_their_exact_name() {
        assert_eq!(function_name("C_EncryptInit"), Some("C_EncryptInit"));
        assert_eq!(function_name("c_encryptinit"), None);
    }
}
