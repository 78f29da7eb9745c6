//! Who is there: what module and token say of themselves, before any login.

use cryptoki_sys as sys;
use serde::{Deserialize, Serialize};

use crate::pkcs11::{Error, Module, ModuleInfo, Token, TokenInfo};

/// What module and token say of themselves.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Identity {
    /// The module.
    pub module: ModuleIdentity,
    /// The token.
    pub token: TokenIdentity,
}

/// What the module says of itself.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ModuleIdentity {
    /// manufacturerID.
    pub manufacturer: String,
    /// libraryDescription.
    pub library: String,
    /// libraryVersion.
    pub library_version: String,
    /// cryptokiVersion.
    pub cryptoki_version: String,
}

/// What the token says of itself.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct TokenIdentity {
    /// Label.
    pub label: String,
    /// manufacturerID.
    pub manufacturer: String,
    /// model.
    pub model: String,
    /// serialNumber.
    pub serial: String,
    /// firmwareVersion.
    pub firmware: String,
    /// `CKF_...` flags that are set.
    pub flags: Vec<String>,
    /// Least and greatest length of a PIN, as it says.
    pub pin_bytes: (u64, u64),
    /// Most sessions, as it says. `None`: no limit, or not told.
    pub sessions: Option<u64>,
}

pub(super) fn run(module: &Module, token: &Token) -> Result<Identity, Error> {
    Ok(Identity { module: of_module(module)?, token: of_token(token)? })
}

pub(super) fn of_module(module: &Module) -> Result<ModuleIdentity, Error> {
    let ModuleInfo { manufacturer, library, library_version, cryptoki_version } = module.info()?;
    Ok(ModuleIdentity { manufacturer, library, library_version, cryptoki_version })
}

pub(super) fn of_token(token: &Token) -> Result<TokenIdentity, Error> {
    let limits = token.limits()?;
    let flags = FLAGS.into_iter().filter(|(flag, _)| limits.flags & flag != 0).map(|(_, name)| name.to_owned());
    let TokenInfo { label, manufacturer, model, serial, firmware } = token.info().clone();
    Ok(TokenIdentity {
        label,
        manufacturer,
        model,
        serial,
        firmware,
        flags: flags.collect(),
        pin_bytes: limits.pin,
        sessions: Some(limits.sessions).filter(|most| !matches!(*most, 0 | sys::CK_UNAVAILABLE_INFORMATION)),
    })
}

macro_rules! flags {
    ($($name:ident)*) => { [$((sys::$name, stringify!($name))),*] };
}

const FLAGS: [(u64, &str); 15] = flags! {
    CKF_RNG CKF_WRITE_PROTECTED CKF_LOGIN_REQUIRED CKF_USER_PIN_INITIALIZED CKF_RESTORE_KEY_NOT_NEEDED CKF_CLOCK_ON_TOKEN
    CKF_PROTECTED_AUTHENTICATION_PATH CKF_DUAL_CRYPTO_OPERATIONS CKF_TOKEN_INITIALIZED CKF_SECONDARY_AUTHENTICATION
    CKF_USER_PIN_COUNT_LOW CKF_USER_PIN_FINAL_TRY CKF_USER_PIN_LOCKED CKF_USER_PIN_TO_BE_CHANGED CKF_ERROR_STATE
};
