//! Every return code that matters from every call that the plugin makes.

use serde_json::json;

use super::{Case, case};

const CODES: [&str; 14] = [
    "CKR_GENERAL_ERROR",
    "CKR_DEVICE_ERROR",
    "CKR_DEVICE_REMOVED",
    "CKR_TOKEN_NOT_PRESENT",
    "CKR_SESSION_HANDLE_INVALID",
    "CKR_SESSION_CLOSED",
    "CKR_OBJECT_HANDLE_INVALID",
    "CKR_KEY_HANDLE_INVALID",
    "CKR_USER_NOT_LOGGED_IN",
    "CKR_FUNCTION_FAILED",
    "CKR_HOST_MEMORY",
    "CKR_BUFFER_TOO_SMALL",
    "CKR_PIN_INCORRECT",
    VENDOR,
];
const VENDOR: &str = "a vendor's 0x80000123";

/// Codes of a login that say the token was not asked.
const NOT_ASKED: [&str; 6] = [
    "CKR_DEVICE_ERROR",
    "CKR_DEVICE_REMOVED",
    "CKR_TOKEN_NOT_PRESENT",
    "CKR_SESSION_HANDLE_INVALID",
    "CKR_SESSION_CLOSED",
    "CKR_HOST_MEMORY",
];

pub fn cases() -> impl Iterator<Item = Case> {
    while_serving().chain(at_start())
}

fn while_serving() -> impl Iterator<Item = Case> {
    pairs(&["C_EncryptInit", "C_Encrypt", "C_DecryptInit", "C_Decrypt"], |function, code| {
        case(format!("{function} {code}"), async move |rig| rig.survives(function, &returning(code)).await)
    })
}

fn at_start() -> impl Iterator<Item = Case> {
    let functions = &["C_OpenSession", "C_FindObjectsInit", "C_FindObjects", "C_GetAttributeValue", "C_Login"];
    pairs(functions, |function, code| {
        case(format!("{function} {code} at start"), async move |rig| {
            let stops = if function == "C_Login" { !NOT_ASKED.contains(&code) } else { code == "CKR_PIN_INCORRECT" };
            if stops {
                rig.stops_at_start(function, &returning(code)).await
            } else {
                rig.survives_at_start(function, &returning(code)).await
            }
        })
    })
}

fn pairs(
    functions: &'static [&'static str],
    case: impl Fn(&'static str, &'static str) -> Case + Copy,
) -> impl Iterator<Item = Case> {
    functions.iter().flat_map(move |function| CODES.iter().map(move |code| case(function, code)))
}

fn returning(code: &str) -> serde_json::Value {
    json!({"return": if code == VENDOR { json!(0x8000_0123_u32) } else { json!(code) }})
}
