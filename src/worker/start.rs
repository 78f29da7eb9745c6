//! From Start to the first request: module, token, login, every KEK found, audited and proved.

use std::io::{Error as IoError, ErrorKind};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;

use rustix::io::Errno;
use rustix::process::{Signal, set_parent_process_death_signal};

use super::session::{SessionThread, prove, sealing, unknown_work};
use crate::attributes::{AttributeName, AttributeValue, Attributes, KeyUse, deviations};
use crate::class::Class;
use crate::pin::PinSource;
use crate::pkcs11::{Error, KekKeys, Key, Module, Sealed, Session, Token};
use crate::profile::{self, CodeOverride, PinForm, UserKind};
use crate::sandbox::{self, Connect, Held, Mode, Sources};
use crate::seal::Sealing;
use crate::wire::{Receiver, link};

/// Context and plaintext of a seal that is opened at once and thrown away.
const TRIAL: [u8; 32] = [0; 32];

/// One KEK to be found on the token, as the front described it.
#[derive(Clone)]
pub(super) struct Kek {
    key: TokenKey,
    /// Where the seal needs one.
    mac: Option<TokenKey>,
    pub(super) proofs: Vec<link::Proof>,
}

#[derive(Clone)]
struct TokenKey {
    id: Vec<u8>,
    label: String,
    attributes: Attributes,
}

/// Reads the launcher's Place from the control socket, then the front's Start and the session sockets attached to it.
pub(super) fn receive(control: &UnixStream) -> Result<(link::Place, link::Start, Vec<UnixStream>), IoError> {
    let by_hand = || IoError::new(ErrorKind::UnexpectedEof, "a worker is started by `hsm-kms serve`, not by hand");
    let mut receiver = Receiver::default();
    let place = receiver.next(control)?.ok_or_else(by_hand)?;
    let start = receiver.next(control)?.ok_or_else(by_hand)?;
    Ok((place, start, receiver.descriptors().into_iter().map(UnixStream::from).collect()))
}

/// What serves, and must be kept until the worker ends.
pub(super) struct Serving {
    pub(super) token: link::TokenInfo,
    /// The login lasts as long as the session that logged in.
    _login: Session,
    _threads: Vec<JoinHandle<()>>,
}

/// Does everything that must hold before the first request, then starts one thread per session socket.
///
/// `logging_in` tells the front when `C_Login` begins and when it has succeeded: killed in between, nobody knows whether the token
/// counted the attempt.
pub(super) fn start(
    place: &link::Place,
    request: &link::Start,
    streams: Vec<UnixStream>,
    logging_in: &mut dyn FnMut(bool) -> Result<(), IoError>,
) -> Result<Serving, Error> {
    // Before the module opens files of its own: a descriptor that nobody passed on could be one of them, and its content
    // would be sent to the token as a PIN.
    let form = PinForm::from_number(request.pin_form).ok_or_else(unknown_work)?;
    let user = UserKind::from_number(request.user).ok_or_else(unknown_work)?;
    let pin = place.pin.as_ref().map(|source| Ok::<_, Error>(pin_source(source)?.read(form)?)).transpose()?;
    let sealing = sealing(request.sealing.as_ref())?;
    let keks = request.keks.iter().map(|kek| Kek::new(kek, &sealing)).collect::<Result<Vec<_>, _>>()?;
    let codes = request.codes.iter().map(code_override).collect();
    let reserved = Some(place.init_reserved.as_str()).filter(|text| !text.is_empty());
    let held = confine(place)?;
    let module = Module::load(&PathBuf::from(&place.module), reserved, &request.manufacturers, codes)?;
    let token = module.token_of(&request.token_label, Some(&request.token_serial))?;
    let serial = &token.info().serial;
    if request.token_serial != *serial {
        return Err(Error::TokenSerial {
            label: request.token_label.clone(),
            expected: request.token_serial.clone(),
            found: serial.clone(),
        });
    }
    token.require(&sealing)?;
    // SoftHSM2 rewrites its token's file at every login, in place: killed meanwhile it loses the token and all keys in it. So
    // a front that dies now does not take this process along; the end of the control socket ends it a moment later.
    set_parent_process_death_signal(None).map_err(unguarded)?;
    let untold = |error: IoError| Error::Unreadable(format!("the front cannot be told of the login: {error}"));
    let login = token.login_telling(user, pin.as_ref(), &mut || logging_in(true).map_err(untold));
    set_parent_process_death_signal(Some(Signal::KILL)).map_err(unguarded)?;
    let login = login?;
    logging_in(false).map_err(untold)?;
    drop(pin);

    for kek in &keks {
        let found = kek.find(&login)?;
        kek.key.audit(&login, found.key, sealing.kek_use())?;
        if let (Some(mac), Some(key)) = (&kek.mac, found.mac) {
            mac.audit(&login, key, KeyUse::Mac)?;
        }
        for proof in &kek.proofs {
            prove(&login, found, &sealing, proof).map_err(|error| kek.judge_proof(&token, &sealing, error))?;
        }
    }

    let threads = streams
        .into_iter()
        .map(|stream| SessionThread::new(stream, token.clone(), sealing, keks.clone()).map(SessionThread::spawn))
        .collect::<Result<Vec<_>, _>>()?;
    let info = module.info()?;
    let token_info = token.info();
    let token = link::TokenInfo {
        label: token_info.label.clone(),
        manufacturer: token_info.manufacturer.clone(),
        model: token_info.model.clone(),
        serial: token_info.serial.clone(),
        firmware: token_info.firmware.clone(),
        library: format!("{} {}", info.library, info.library_version),
        sandbox: held.to_string(),
    };
    Ok(Serving { token, _login: login, _threads: threads })
}

/// Limits this process, which has read its PIN and has no other thread yet, to what its module needs.
fn confine(place: &link::Place) -> Result<Held, Error> {
    let own = place.sandbox.as_ref().ok_or_else(unknown_work)?;
    let mode = Mode::from_number(own.mode).ok_or_else(unknown_work)?;
    let paths = |list: &[String]| list.iter().filter_map(|path| path.parse().ok()).collect();
    let ports = own.connect.iter().filter_map(|port| u16::try_from(*port).ok()).collect();
    let sources = Sources {
        configuration: paths(&own.configuration),
        told: place.init_reserved.clone(),
        read: paths(&own.read),
        write: paths(&own.write),
        connect: if own.connect_any { Connect::Any } else { Connect::Ports(ports) },
    };
    let rules = sources.rules(|name| std::env::var_os(name));
    sandbox::worker(&rules, Path::new(&place.module), mode)
        .map_err(|unheld| Error::Sandbox { what: unheld.to_string() })
}

impl Kek {
    /// The KEK as the front described it; a MAC key must be there exactly where the seal needs one.
    fn new(kek: &link::Kek, sealing: &Sealing) -> Result<Self, Error> {
        if kek.mac.is_some() != sealing.mac_mechanism().is_some() {
            return Err(Error::SealUnsupported { form: sealing.form });
        }
        let key = kek.key.as_ref().map(TokenKey::new).ok_or_else(unknown_work)?;
        Ok(Self { key, mac: kek.mac.as_ref().map(TokenKey::new), proofs: kek.proofs.clone() })
    }

    /// Finds the keys anew: handles die with the login.
    pub(super) fn find(&self, session: &Session) -> Result<KekKeys, Error> {
        let mac = self.mac.as_ref().map(|mac| mac.find(session)).transpose()?;
        Ok(KekKeys { key: self.key.find(session)?, mac })
    }

    /// A proof that does not open means another key, unless the token failed for a reason of its own: a key that opens what it
    /// sealed a moment ago is well, and not the KEK. A sick token may answer with the code of a changed blob.
    pub(super) fn judge_proof(&self, token: &Token, sealing: &Sealing, error: Error) -> Error {
        if error.class() != Class::Data {
            return error;
        }
        let label = self.key.label.clone();
        match self.opens_its_own(token, sealing) {
            Ok(true) => Error::KekForeign { label },
            Ok(false) => Error::KekSick { label, error: Box::new(error) },
            Err(error) => Error::KekSick { label, error: Box::new(error) },
        }
    }

    fn opens_its_own(&self, token: &Token, sealing: &Sealing) -> Result<bool, Error> {
        let session = token.open_session()?;
        let keys = self.find(&session)?;
        let Sealed { iv, ciphertext } = session.seal(keys, sealing, &TRIAL, &TRIAL)?;
        let opened = session.open(keys, sealing, sealing.form, &iv, &TRIAL, &ciphertext)?;
        Ok(*opened == TRIAL)
    }
}

impl TokenKey {
    fn new(key: &link::TokenKey) -> Self {
        let attributes = key
            .attributes
            .iter()
            .filter_map(|expected| {
                let name = AttributeName::ALL.into_iter().find(|name| *name as u32 == expected.name)?;
                Some((name, attribute_value(expected.value.as_ref())))
            })
            .collect();
        Self { id: key.cka_id.clone(), label: key.label.clone(), attributes }
    }

    fn find(&self, session: &Session) -> Result<Key, Error> {
        session.key(&self.label, &self.id)
    }

    fn audit(&self, session: &Session, key: Key, purpose: KeyUse) -> Result<(), Error> {
        let deviations = deviations(purpose, &self.attributes, &session.attributes(key)?);
        if deviations.is_empty() { Ok(()) } else { Err(Error::KekWeak { label: self.label.clone(), deviations }) }
    }
}

fn attribute_value(value: Option<&link::expected_attribute::Value>) -> AttributeValue {
    use link::expected_attribute::Value;
    match value {
        Some(Value::Flag(flag)) => AttributeValue::Bool(*flag),
        Some(Value::Number(number)) => AttributeValue::Number(*number),
        Some(Value::Mechanisms(list)) => AttributeValue::Mechanisms(list.list.clone()),
        None => AttributeValue::UNAVAILABLE,
    }
}

fn code_override(entry: &link::CodeOverride) -> CodeOverride {
    CodeOverride {
        code: entry.code,
        function: profile::function_name(&entry.function),
        class: Class::from_number(entry.class),
    }
}

fn unguarded(error: Errno) -> Error {
    Error::Unreadable(format!("the parent-death signal cannot be set: {error}"))
}

fn pin_source(source: &link::PinSource) -> Result<PinSource, Error> {
    use link::pin_source::Source;
    match &source.source {
        Some(Source::File(path)) => Ok(PinSource::File(path.into())),
        Some(Source::Environment(name)) => Ok(PinSource::Environment(name.clone())),
        Some(Source::Credential(name)) => Ok(PinSource::Credential(name.clone())),
        Some(Source::Descriptor(number)) => Ok(PinSource::Descriptor(*number)),
        None => Err(unknown_work()),
    }
}
