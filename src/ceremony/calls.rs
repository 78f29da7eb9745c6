//! What a ceremony will ask of the token: each step's PKCS#11 calls, for those who must agree to them before.

use serde::Serialize;

use super::keys::Keys;
use super::{CeremonyError, Plan, StepId, negative, steps};
use crate::profile::{UserKind, mechanism_name};
use crate::record::Origin;

/// A step, and its calls.
#[derive(Debug, Serialize)]
pub struct StepCalls {
    /// Its title.
    pub title: String,
    /// Its calls in order, each in a line.
    pub calls: Vec<String>,
}

/// Calls of `preflight`.
pub const PREFLIGHT_CALLS: &[&str] = &[
    "C_Initialize",
    "C_GetInfo",
    "C_GetSlotList",
    "C_GetTokenInfo of each token, to find the label",
    "C_GetMechanismInfo of each mechanism that the profile needs",
    "C_OpenSession, C_GetSessionInfo",
    "C_GenerateRandom, at most 1 MiB in pieces of 512 bytes; what comes is used for nothing",
    "C_CloseSession",
];

/// Calls of `verify-key` and `clone-check`.
pub const VERIFY_CALLS: &[&str] = &[
    "C_Initialize",
    "C_GetInfo",
    "C_GetSlotList",
    "C_GetTokenInfo of each token, to find the label; the serial number must be the expected one",
    "C_GetMechanismInfo of each mechanism that the profile needs",
    "C_OpenSession, C_GetSessionInfo",
    "C_Login, once; not if the token says that the PIN is locked or on its last try",
    "C_FindObjects by CKA_LABEL and CKA_ID of the record",
    "C_GetAttributeValue of each attribute of the record",
    "C_DecryptInit, C_Decrypt of each proof blob of the record",
    "C_CloseSession",
];

/// Calls of `restore`.
pub const RESTORE_CALLS: &[&str] = &[
    "C_Initialize",
    "C_GetInfo",
    "C_GetSlotList",
    "C_GetTokenInfo of each token, to find the label; the serial number must be the expected one",
    "C_GetMechanismInfo of each mechanism that the profile needs",
    "C_OpenSession",
    "C_Login, once; not if the token says that the PIN is locked or on its last try",
    "C_FindObjects by CKA_LABEL of the record: there must be none",
    "C_GenerateKeyPair or C_GenerateKey: a session key to bring the KEK in under",
    "C_EncryptInit, C_Encrypt of the KEK under it",
    "C_UnwrapKey with the template of the ceremony, CKA_LABEL and CKA_ID of the record",
    "C_DestroyObject of the session key",
    "then all that verify-key does",
];

/// The calls of every step of this plan.
pub fn calls(plan: &Plan) -> Result<Vec<StepCalls>, CeremonyError> {
    let keys = Keys::new(plan);
    let texts = |list: &[&str]| list.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
    let generate = || {
        let mut calls = vec![format!("C_FindObjects by CKA_LABEL {}: there must be none", keys.labels())];
        calls.push("C_GenerateRandom, 16 bytes for each CKA_ID".to_owned());
        for (template, attributes) in keys.all().zip(keys.describe()?) {
            calls.push(format!("C_GenerateKey by {}", mechanism_name(template.generate)));
            calls.extend(hidden_id(&attributes));
            calls.push("C_GetAttributeValue of CKA_ID: some tokens choose their own".to_owned());
        }
        Ok::<_, CeremonyError>(calls)
    };
    let login = match plan.token.profile.login.user {
        UserKind::None => texts(&["C_OpenSession, C_GetSessionInfo; nobody logs in"]),
        _ => texts(&["C_OpenSession, C_GetSessionInfo", "C_Login, once"]),
    };
    if plan.witnessed.as_ref().is_some_and(|witnessed| witnessed.destroys.is_some()) {
        let gone = ["C_FindObjects by CKA_LABEL and CKA_ID of the record, after a new login: there must be none"];
        let destroy = [VERIFY_CALLS, &["C_DestroyObject"], &gone].concat();
        let title = |id: StepId| format!("{}, on each token", id.name());
        return Ok(vec![
            StepCalls { title: StepId::Preflight.name().to_owned(), calls: texts(PREFLIGHT_CALLS) },
            StepCalls { title: title(StepId::Destroy), calls: texts(&destroy) },
        ]);
    }
    let import = || {
        let mut calls = texts(&[
            "C_GenerateRandom for the KEK and the shares, mixed with the kernel's",
            "C_GenerateKeyPair by CKM_RSA_PKCS_KEY_PAIR_GEN: a session key to bring the KEK in under, or",
            "C_GenerateKey by CKM_AES_KEY_GEN, where the token takes no OAEP",
            "C_EncryptInit, C_Encrypt of the KEK under it",
        ]);
        for attributes in keys.describe()? {
            calls.push("C_UnwrapKey".to_owned());
            calls.extend(hidden_id(&attributes));
        }
        calls.push("C_DestroyObject of the session key".to_owned());
        Ok::<_, CeremonyError>(calls)
    };
    let make = match keys.origin {
        Origin::Generated => (StepId::Generate, generate()?),
        Origin::Imported => (StepId::Import, import()?),
    };
    let parts = [
        (StepId::Preflight, texts(PREFLIGHT_CALLS)),
        (StepId::Login, login),
        make,
        (
            StepId::ReadBack,
            texts(&[
                "C_OpenSession, C_GetSessionInfo",
                "C_FindObjects by CKA_LABEL and CKA_ID",
                "C_GetAttributeValue of each attribute",
            ]),
        ),
        (StepId::NegativeTests, keys.all().flat_map(|template| negative::attempts(template.purpose)).collect()),
        (
            StepId::Proofs,
            texts(&[
                "C_EncryptInit, C_Encrypt and C_DecryptInit, C_Decrypt of 1 byte, of 33 bytes, and of 32 bytes three times",
                "C_DecryptInit, C_Decrypt of a changed blob, and of one out of context: both must fail",
                "C_CloseSession",
            ]),
        ),
    ];
    // A trial takes the same steps, without people.
    let titles = plan.witnessed.as_ref().map(|witnessed| steps(plan, witnessed));
    let title = |id: StepId| match &titles {
        Some(steps) => steps
            .iter()
            .position(|step| step.id == id)
            .map_or_else(|| id.name().to_owned(), |position| format!("step {}, {}", position + 1, id.name())),
        None => id.name().to_owned(),
    };
    Ok(parts.into_iter().map(|(id, calls)| StepCalls { title: title(id), calls }).collect())
}

/// A template in lines. The id is not known before.
fn hidden_id(attributes: &[String]) -> impl Iterator<Item = String> {
    attributes.iter().map(|attribute| match attribute.split_once(" = ") {
        Some(("CKA_ID", _)) => "  CKA_ID = (16 random bytes)".to_owned(),
        _ => format!("  {attribute}"),
    })
}
