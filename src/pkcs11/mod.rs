//! The only place that touches cryptoki: load a module, find a token, find and audit a KEK, seal and open.
//!
//! Plain blocking code. A call may hang without limit; whoever must not wait for it runs this in another process.

mod cbc_hmac;
pub mod codes;
mod error;
mod gcm;
mod import;
mod inspect;
mod key;
mod opaque;
mod raw;
mod rsa;
mod seal;
mod timing;
mod wrapped;

use std::ffi::CString;
use std::path::Path;
use std::sync::Arc;

use cryptoki::context::Pkcs11;
use cryptoki::slot::Slot;
use cryptoki_sys as sys;
use secrecy::ExposeSecret;

pub use self::error::Error;
pub use self::import::{ImportWay, Transport};
pub use self::inspect::{MechanismInfo, OneByte, TokenLimits};
pub use self::key::{KekKeys, Key, KeyTemplate};
use self::raw::Functions;
pub use self::rsa::{RsaNumbers, RsaPair};
pub use self::seal::Sealed;
pub use self::timing::{TimedCall, take_calls};
use crate::profile::{CodeOverride, UserKind};
use crate::seal::Sealing;
use crate::secret::Pin;

/// A loaded and initialised module. There is one per process; it is never finalised while calls may be in flight.
#[derive(Clone)]
pub struct Module {
    inner: Arc<Inner>,
}

struct Inner {
    cryptoki: Pkcs11,
    functions: Functions,
    codes: Vec<CodeOverride>,
}

/// What a module says of itself (`C_GetInfo`).
#[derive(Clone, Debug)]
pub struct ModuleInfo {
    /// manufacturerID.
    pub manufacturer: String,
    /// libraryDescription.
    pub library: String,
    /// libraryVersion, `major.minor`.
    pub library_version: String,
    /// cryptokiVersion, `major.minor`.
    pub cryptoki_version: String,
}

/// What a token says of itself (`C_GetTokenInfo`).
#[derive(Clone, Debug)]
pub struct TokenInfo {
    /// Label.
    pub label: String,
    /// manufacturerID.
    pub manufacturer: String,
    /// Model.
    pub model: String,
    /// serialNumber. Not unique on every module.
    pub serial: String,
    /// firmwareVersion, `major.minor`.
    pub firmware: String,
}

/// A token that was found by its label.
#[derive(Clone)]
pub struct Token {
    module: Module,
    slot: Slot,
    info: TokenInfo,
}

/// One PKCS#11 session. Not to be shared between threads.
pub struct Session {
    module: Module,
    session: cryptoki::session::Session,
}

impl Module {
    /// Loads and initialises the module, and checks that it is the vendor's that the profile is for.
    ///
    /// One of `manufacturers` must be what `C_GetInfo` says (none: not checked), since another library of the same name, or a proxy's
    /// interface, would otherwise be driven with the wrong profile. `reserved`: the text that some modules take at
    /// `C_Initialize`.
    pub fn load(
        path: &Path,
        reserved: Option<&str>,
        manufacturers: &[String],
        codes: Vec<CodeOverride>,
    ) -> Result<Self, Error> {
        let load = |reason: String| Error::Load { path: path.to_owned(), reason };
        let reserved = reserved.map(CString::new).transpose().map_err(|error| load(error.to_string()))?;
        let functions = Functions::load(path).map_err(load)?;
        let cryptoki = Pkcs11::new(path).map_err(|error| load(error.to_string()))?;
        raw::with_arguments(reserved.as_ref(), |arguments| cryptoki.initialize(arguments))
            .map_err(|error| Error::from_cryptoki(error, &codes))?;
        let module = Self { inner: Arc::new(Inner { cryptoki, functions, codes }) };
        let found = module.info().map_err(Error::or_split_state)?.manufacturer;
        let is_expected = manufacturers.contains(&found);
        if !(is_expected || manufacturers.is_empty() && found != P11_KIT) {
            return Err(Error::Manufacturer { expected: manufacturers.to_vec(), found });
        }
        Ok(module)
    }

    /// What the module says of itself.
    pub fn info(&self) -> Result<ModuleInfo, Error> {
        let info = self.inner.functions.module_info().map_err(|failed| self.call_error(failed))?;
        Ok(ModuleInfo {
            manufacturer: info.manufacturer,
            library: info.description,
            library_version: info.version,
            cryptoki_version: info.cryptoki,
        })
    }

    /// The one token with this label. Slot numbers change between starts on some modules and are never used.
    pub fn token(&self, label: &str) -> Result<Token, Error> {
        self.token_of(label, None)
    }

    /// The same; if several have the label, the one with this serial number.
    pub fn token_of(&self, label: &str, serial: Option<&str>) -> Result<Token, Error> {
        let slots = self.inner.cryptoki.get_slots_with_token().map_err(|error| self.error(error))?;
        let mut matching = Vec::new();
        let mut present = Vec::new();
        for slot in slots {
            // A slot that cannot say who it is cannot be the one that is asked for.
            let info = match self.inner.functions.token_info(slot.id()) {
                Ok(info) => info,
                Err(failed) if failed.code == sys::CKR_CRYPTOKI_NOT_INITIALIZED => return Err(Error::SplitState),
                Err(_) => continue,
            };
            if info.flags & sys::CKF_TOKEN_INITIALIZED == 0 {
                continue;
            }
            if info.label == label {
                matching.push((slot, info));
            } else {
                present.push(info.label);
            }
        }
        if let (Some(serial), true) = (serial, matching.len() > 1) {
            let has_serial = |(_, info): &(Slot, raw::RawTokenInfo)| info.serial == serial;
            if matching.iter().filter(|token| has_serial(token)).count() == 1 {
                matching.retain(has_serial);
            }
        }
        let count = matching.len();
        match (matching.pop(), count) {
            (None, _) => Err(Error::TokenAbsent { label: label.to_owned(), present }),
            (Some((slot, info)), 1) => Ok(Token {
                module: self.clone(),
                slot,
                info: TokenInfo {
                    label: info.label,
                    manufacturer: info.manufacturer,
                    model: info.model,
                    serial: info.serial,
                    firmware: info.firmware,
                },
            }),
            _ => Err(Error::TokenTwice { label: label.to_owned(), count }),
        }
    }

    fn error(&self, error: cryptoki::error::Error) -> Error {
        Error::from_cryptoki(error, &self.inner.codes)
    }

    fn call_error(&self, failed: raw::CallFailed) -> Error {
        Error::from_call(failed, &self.inner.codes)
    }
}

impl Session {
    fn functions(&self) -> &Functions {
        &self.module.inner.functions
    }
}

impl Token {
    /// What the token says of itself.
    pub fn info(&self) -> &TokenInfo {
        &self.info
    }

    /// Opens a read-write session: some modules refuse private token objects to read-only ones.
    pub fn open_session(&self) -> Result<Session, Error> {
        let session =
            self.module.inner.cryptoki.open_rw_session(self.slot).map_err(|error| self.module.error(error))?;
        let known = self.module.inner.functions.knows_session(session.handle());
        known.map_err(|failed| self.module.call_error(failed).or_split_state())?;
        Ok(Session { module: self.module.clone(), session })
    }

    /// Whether the token has what it takes to seal so. Looked at before the login, which could cost an attempt.
    ///
    /// Only for message encryption do the flags count, since there a module may have functions that do nothing; elsewhere the
    /// mechanism's presence is enough: not every module is careful with its flags.
    pub fn require(&self, sealing: &Sealing) -> Result<(), Error> {
        let missing = self.missing(sealing.mechanisms())?;
        if missing.is_empty() {
            return Ok(());
        }
        let manufacturer = self.module.info()?.manufacturer;
        let has = |mechanism, flags| self.has_mechanism(mechanism, flags).unwrap_or(false);
        let fitting = crate::profile::fitting(&manufacturer, has);
        Err(Error::MechanismAbsent { label: self.info.label.clone(), missing, fitting })
    }

    /// Which of these mechanisms with their flags it does not have, as [`Token::require`] takes them.
    pub fn missing(&self, mechanisms: impl IntoIterator<Item = (u64, u64)>) -> Result<Vec<u64>, Error> {
        let mut missing = Vec::new();
        for (mechanism, flags) in mechanisms {
            if !self.has_mechanism(mechanism, flags & (sys::CKF_MESSAGE_ENCRYPT | sys::CKF_MESSAGE_DECRYPT))? {
                missing.push(mechanism);
            }
        }
        Ok(missing)
    }

    /// Whether the token has the mechanism with all of these `CKF_...` flags. Asks for the one mechanism, not for the list:
    /// cryptoki drops from the list what it has no name for.
    pub fn has_mechanism(&self, mechanism: u64, flags: u64) -> Result<bool, Error> {
        Ok(self.mechanism(mechanism)?.is_some_and(|info| info.flags & flags == flags))
    }

    /// Opens a session and logs the user in, once. The login holds for all sessions while this one stays open.
    ///
    /// Reads the token's PIN flags first, and tries nothing on a locked PIN or on the last attempt. `None`: nobody logs in.
    pub fn login(&self, user: UserKind, pin: Option<&Pin>) -> Result<Session, Error> {
        self.login_telling(user, pin, &mut || Ok(()))
    }

    /// The same; `begins` is called right before `C_Login`.
    pub fn login_telling(
        &self,
        user: UserKind,
        pin: Option<&Pin>,
        begins: &mut dyn FnMut() -> Result<(), Error>,
    ) -> Result<Session, Error> {
        let user = match user {
            UserKind::User => sys::CKU_USER,
            UserKind::CryptoUser => CKU_CRYPTO_USER,
            UserKind::None => return self.open_session(),
        };
        let pin = pin.ok_or_else(|| Error::Unreadable("there is no PIN to log in with".to_owned()))?;
        let flags = self
            .module
            .inner
            .functions
            .token_info(self.slot.id())
            .map_err(|failed| self.module.call_error(failed))?
            .flags;
        for (mask, flag) in
            [(sys::CKF_USER_PIN_LOCKED, "CKF_USER_PIN_LOCKED"), (sys::CKF_USER_PIN_FINAL_TRY, "CKF_USER_PIN_FINAL_TRY")]
        {
            if flags & mask != 0 {
                return Err(Error::PinAtRisk { label: self.info.label.clone(), flag });
            }
        }
        let session = self.open_session()?;
        begins()?;
        let functions = &self.module.inner.functions;
        let login = functions.login(session.session.handle(), user, pin.expose_secret().as_bytes());
        match login.map_err(|failed| self.module.call_error(failed)) {
            // Success, though it proves nothing about the PIN.
            Err(Error::Call { code: sys::CKR_USER_ALREADY_LOGGED_IN, .. }) | Ok(()) => Ok(session),
            Err(error) => Err(error.at_login()),
        }
    }
}

/// `manufacturerID` of p11-kit's own interface: whoever gets it talks to a proxy, not to the module that was named.
const P11_KIT: &str = "PKCS#11 Kit";

/// Luna's limited user, who uses keys and cannot change them.
const CKU_CRYPTO_USER: u64 = 0x8000_0001;

impl Error {
    /// What was done through one function list is not known on the other.
    fn or_split_state(self) -> Self {
        match self {
            Self::Call { code: sys::CKR_CRYPTOKI_NOT_INITIALIZED | sys::CKR_SESSION_HANDLE_INVALID, .. } => {
                Self::SplitState
            }
            other => other,
        }
    }

    /// Whatever a login answers, it is not tried again: on some tokens malformed PINs count, too.
    fn at_login(self) -> Self {
        use crate::class::Class;
        match self {
            Self::Call { function, code, class, poisoned }
                if !matches!(
                    code,
                    sys::CKR_DEVICE_ERROR
                        | sys::CKR_DEVICE_REMOVED
                        | sys::CKR_TOKEN_NOT_PRESENT
                        | sys::CKR_SESSION_HANDLE_INVALID
                        | sys::CKR_SESSION_CLOSED
                        | sys::CKR_HOST_MEMORY
                ) =>
            {
                let _ = class;
                Self::Call { function, code, class: Class::PinOrConfig, poisoned }
            }
            other => other,
        }
    }
}
