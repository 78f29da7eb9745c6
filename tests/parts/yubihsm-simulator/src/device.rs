//! The device: its sessions, and what it answers outside them.

use std::time::{Duration, Instant};

use crate::commands;
use crate::faults::Faults;
use crate::scp03::{CHALLENGE_LENGTH, Channel, MAC_LENGTH, StaticKeys};
use crate::store::{Store, kind};
use crate::wire::{self, Fields, Refusal, command};

/// Sessions that a YubiHSM 2 has.
const SESSIONS: usize = 16;
/// A session without a command for so long is lost.
const IDLE: Duration = Duration::from_secs(30);

pub struct Device {
    store: Store,
    sessions: [Option<Session>; SESSIONS],
    faults: Faults,
    /// Commands that `faults.device_error` names, since it was set.
    named_commands: u64,
}

struct Session {
    channel: Channel,
    authenticated: bool,
    last_used: Instant,
}

impl Device {
    pub fn new(store: Store) -> Self {
        Self { store, sessions: Default::default(), faults: Faults::default(), named_commands: 0 }
    }

    pub fn set_faults(&mut self, faults: Faults) {
        if faults == self.faults {
            return;
        }
        if faults.drop_sessions != self.faults.drop_sessions {
            self.sessions = Default::default();
        }
        self.named_commands = 0;
        self.faults = faults;
    }

    /// The answer to a message of the connector.
    pub fn answer(&mut self, message: &[u8]) -> Vec<u8> {
        let (command, data) = match wire::parse(message) {
            Ok(parsed) => parsed,
            Err(refusal) => return wire::answer(0, Err(refusal)),
        };
        let result = match command {
            command::ECHO => Ok(data.to_vec()),
            command::GET_DEVICE_INFO => commands::device_info(data),
            command::CREATE_SESSION => self.create_session(data),
            command::AUTHENTICATE_SESSION => self.authenticate(message, data),
            command::SESSION_MESSAGE => self.session_message(message, data),
            _ => Err(Refusal::INVALID_COMMAND),
        };
        wire::answer(command, result)
    }

    fn create_session(&mut self, data: &[u8]) -> Result<Vec<u8>, Refusal> {
        let mut fields = Fields(data);
        let (key, host) = (fields.u16()?, fields.array::<CHALLENGE_LENGTH>()?);
        fields.end()?;
        let keys =
            StaticKeys::new(&self.store.get(key, kind::AUTHENTICATION_KEY)?.value).ok_or(Refusal::STORAGE_FAILED)?;
        let place = self.free_session().filter(|_| !self.faults.sessions_full).ok_or(Refusal::SESSIONS_FULL)?;
        let card = random();
        let channel = Channel::new(&keys, host, card);
        let id = u8::try_from(place).expect("few sessions");
        let answer = [&[id][..], &card, &channel.card_cryptogram()].concat();
        self.sessions[place] = Some(Session { channel, authenticated: false, last_used: Instant::now() });
        Ok(answer)
    }

    /// A free place, or one of a session that nobody authenticated: else a few wrong PINs would lock out everybody.
    fn free_session(&self) -> Option<usize> {
        let free =
            |session: &Option<Session>| session.as_ref().is_none_or(|session| session.last_used.elapsed() > IDLE);
        let begun = |session: &Option<Session>| session.as_ref().is_some_and(|session| !session.authenticated);
        self.sessions.iter().position(free).or_else(|| self.sessions.iter().position(begun))
    }

    fn authenticate(&mut self, message: &[u8], data: &[u8]) -> Result<Vec<u8>, Refusal> {
        let mut fields = Fields(data);
        let (id, cryptogram, _mac) = (fields.u8()?, fields.array::<MAC_LENGTH>()?, fields.array::<MAC_LENGTH>()?);
        fields.end()?;
        let session = self.session(id, false)?;
        if cryptogram == session.channel.host_cryptogram() && session.channel.accept(message) {
            session.authenticated = true;
            Ok(Vec::new())
        } else {
            self.close(id);
            Err(Refusal::AUTHENTICATION_FAILED)
        }
    }

    /// A command in a session. Once its MAC is checked, refusals are inside the session, too.
    fn session_message(&mut self, message: &[u8], data: &[u8]) -> Result<Vec<u8>, Refusal> {
        let mut fields = Fields(data);
        let id = fields.u8()?;
        let ciphertext = fields.take(fields.0.len().checked_sub(MAC_LENGTH).ok_or(Refusal::WRONG_LENGTH)?)?;
        let session = self.session(id, true)?;
        let plain = if session.channel.accept(message) { session.channel.decrypt(ciphertext) } else { None };
        let Some((command, data)) = plain.as_deref().and_then(|plain| wire::parse(plain).ok()) else {
            self.close(id);
            return Err(Refusal::AUTHENTICATION_FAILED);
        };
        let result = self.demanded_error(command).map_or_else(|| commands::run(&mut self.store, command, data), Err);
        let answer = wire::answer(command, result);
        let channel = &mut self.session(id, true)?.channel;
        let mut sealed = [&[id][..], &channel.encrypt(&answer), &[0; MAC_LENGTH]].concat();
        let text = wire::message(command::SESSION_MESSAGE | command::ANSWER, &sealed);
        let mut mac = channel.answer_mac(&text[..text.len() - MAC_LENGTH]);
        if self.faults.wrong_mac {
            mac[0] ^= 1;
        }
        let end = sealed.len() - MAC_LENGTH;
        sealed[end..].copy_from_slice(&mac);
        if command == command::CLOSE_SESSION {
            self.close(id);
        }
        Ok(sealed)
    }

    fn demanded_error(&mut self, command: u8) -> Option<Refusal> {
        let error = self.faults.device_error.as_ref().filter(|error| error.command == command)?;
        self.named_commands += 1;
        error.nth.is_none_or(|nth| nth == self.named_commands).then_some(Refusal(error.code))
    }

    fn session(&mut self, id: u8, authenticated: bool) -> Result<&mut Session, Refusal> {
        let session =
            self.sessions.get_mut(usize::from(id)).and_then(Option::as_mut).ok_or(Refusal::INVALID_SESSION)?;
        if session.authenticated != authenticated || session.last_used.elapsed() > IDLE {
            return Err(Refusal::INVALID_SESSION);
        }
        session.last_used = Instant::now();
        Ok(session)
    }

    fn close(&mut self, id: u8) {
        if let Some(session) = self.sessions.get_mut(usize::from(id)) {
            *session = None;
        }
    }
}

/// Bytes from the kernel.
pub fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).expect("the kernel has random bytes");
    bytes
}
