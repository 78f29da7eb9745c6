//! The HSM of an offline machine, which keeps the private half of an RSA recovery key: named by a file as in a ceremony's plan.

use std::path::Path;

use secrecy::ExposeSecret;
use serde::Deserialize;

use super::failure;
use crate::ceremony::Console;
use crate::class::Class;
use crate::cli::CliError;
use crate::cli::ceremony::with_environment;
use crate::config::{FileToken, Token};
use crate::exit::ExitCode;
use crate::pin::PinError;
use crate::pkcs11::{Error, Key, Module, Session};
use crate::profile::UserKind;
use crate::recovery::{Binding, Recipient, RecoveryBlob, unbind};
use crate::secret::{Pin, Plaintext};
use crate::strict::{self, Fault, FileError};

/// The token, as its file names it.
pub(super) struct OfflineToken {
    token: Token,
    serial: String,
    label: String,
}

/// The token, with the user logged in.
pub(super) struct OfflineSession {
    /// Its login lives as long as this.
    pub(super) session: Session,
    /// `CKA_LABEL` of the recovery key.
    pub(super) label: String,
    /// Module and library, for people.
    pub(super) module: String,
}

/// A private half in the token.
pub(super) struct HsmKey {
    session: Session,
    key: Key,
    recipient: Recipient,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(rename = "version")]
    _version: u64,
    token: FileToken,
    #[serde(deserialize_with = "strict::line")]
    serial: String,
    key: FileKey,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileKey {
    #[serde(deserialize_with = "strict::line")]
    label: String,
}

impl OfflineToken {
    /// Reads the file, and starts this program again with the token's environment if it has to: nothing may have been done before.
    pub(super) fn load(path: &Path) -> Result<Self, CliError> {
        let unusable = |why: String, hint: String| {
            failure(ExitCode::BadUsage, format!("the token of {} cannot be used", path.display()), why, hint)
        };
        let fault = |fault: Fault| {
            let error = FileError::new("token file", Some(path), fault);
            unusable(error.to_string(), error.hint())
        };
        let bytes = strict::read(path).map_err(fault)?;
        let File { token, serial, key, .. } = strict::yaml(&bytes, VERSION).map_err(fault)?;
        if key.label.len() > LABEL_BYTES {
            return Err(fault(Fault::Rule {
                field: "key.label",
                problem: format!("{} bytes, which some drivers hang on", key.label.len()),
                hint: format!("use at most {LABEL_BYTES} bytes"),
            }));
        }
        let profile = token.profile().map_err(|error| unusable(format!("`token.profile`: {error}"), error.hint()))?;
        let token = token.check_with_any_pin(profile).map_err(fault)?;
        with_environment(&token.environment)?;
        Ok(Self { token, serial, label: key.label })
    }

    /// Finds the token, and logs in, once. A PIN without a source is asked for.
    pub(super) fn log_in(self) -> Result<OfflineSession, CliError> {
        // Before the module opens files of its own: a descriptor that nobody passed on could be one of them.
        let pin = self.pin()?;
        let Self { token, serial, label } = self;
        let profile = &token.profile;
        let reserved = token.init_reserved.as_deref();
        let module = Module::load(&token.module, reserved, &profile.module.manufacturers, profile.codes.clone());
        let module = module.map_err(|error| refused(&error))?;
        let found = module.token_of(&token.label, Some(&serial)).map_err(|error| refused(&error))?;
        if found.info().serial != serial {
            let why = format!(
                "token {:?} has serial number {:?}, the file says {serial:?}",
                token.label,
                found.info().serial
            );
            return Err(failure(
                ExitCode::BadUsage,
                REFUSED,
                why,
                "the PIN was not tried; name the token that is there",
            ));
        }
        if !found.has_rsa_oaep().map_err(|error| refused(&error))? {
            let why = format!("token {:?} does not make RSA keys, or does not open RSA-OAEP", token.label);
            return Err(failure(ExitCode::DoesNotHold, REFUSED, why, NO_OAEP));
        }
        let info = module.info().map_err(|error| refused(&error))?;
        let session = found.login(profile.login.user, pin.as_ref()).map_err(|error| refused(&error))?;
        Ok(OfflineSession { session, label, module: format!("{} ({})", info.manufacturer, info.library) })
    }

    fn pin(&self) -> Result<Option<Pin>, CliError> {
        let login = &self.token.profile.login;
        if login.user == UserKind::None {
            return Ok(None);
        }
        let unusable = |error: PinError| refused(&error.into());
        if let Some(source) = &self.token.pin {
            return source.read(login.pin).map(Some).map_err(unusable);
        }
        let untyped = |error: crate::ceremony::ConsoleError| {
            let hint = "run it on a terminal, or say where the PIN is: `pin: { file: ... }`";
            failure(ExitCode::BadUsage, "there is no PIN", error.to_string(), hint)
        };
        let mut console = Console::new(None).map_err(untyped)?;
        let pin = console.ask_hidden("pin", &format!("PIN of token {}", self.token.label)).map_err(untyped)?;
        if login.pin.fits(pin.expose_secret()) {
            Ok(Some(pin))
        } else {
            Err(unusable(PinError::Form { form: login.pin }))
        }
    }
}

impl HsmKey {
    /// The key that the token's file names.
    pub(super) fn find(token: OfflineSession) -> Result<Self, CliError> {
        let OfflineSession { session, label, .. } = token;
        let key = session.private_key(&label).map_err(|error| CliError {
            hint: "check key.label in the file, and that this is the token with the recovery key".to_owned(),
            ..refused(&error)
        })?;
        let recipient = public_half(&session, key)?;
        Ok(Self::new(session, key, recipient))
    }

    /// The private half behind this handle.
    pub(super) fn new(session: Session, key: Key, recipient: Recipient) -> Self {
        Self { session, key, recipient }
    }

    /// The public half.
    pub(super) fn recipient(&self) -> &Recipient {
        &self.recipient
    }

    /// The login, to undo what was made.
    pub(super) fn session(&self) -> &Session {
        &self.session
    }

    /// Opens a recovery blob that is bound to this. The text says why it does not open.
    pub(super) fn open(&self, blob: &RecoveryBlob<'_>, binding: &Binding) -> Result<Plaintext, String> {
        if blob.scheme() != self.recipient.scheme() {
            return Err(format!("it was sealed with {}, this key is for {}", blob.scheme(), self.recipient.scheme()));
        }
        let opened = self.session.open_rsa_oaep(self.key, blob.sealed()).map_err(|error| error.to_string())?;
        unbind(&opened, binding).map_err(|error| error.to_string())
    }
}

/// The public half of a key pair in the token.
pub(super) fn public_half(session: &Session, key: Key) -> Result<Recipient, CliError> {
    let numbers = session.rsa_numbers(key).map_err(|error| refused(&error))?;
    Recipient::of_rsa(&numbers.modulus, &numbers.exponent).map_err(|why| {
        let hint = "name the key that recovery keygen made";
        failure(ExitCode::DoesNotHold, "the token's key is no recovery key", why, hint)
    })
}

/// The token did not do what it was asked for.
pub(super) fn refused(error: &Error) -> CliError {
    let code = match error.class() {
        _ if error.is_usage() => ExitCode::BadUsage,
        Class::Gone | Class::Session | Class::Busy => ExitCode::NotReachable,
        _ => ExitCode::DoesNotHold,
    };
    failure(code, REFUSED, error.to_string(), error.hint())
}

const REFUSED: &str = "the offline HSM cannot be used";
/// What to do without OAEP.
pub(super) const NO_OAEP: &str = "use an HSM that opens RSA-OAEP with SHA-256, or keep the key in software: recovery keygen --key FILE, then recovery split";
const VERSION: u64 = 1;
/// As of a KEK's label.
const LABEL_BYTES: usize = 40;
