//! One thread, one PKCS#11 session, one socketpair: requests in, replies out, in order.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::thread::JoinHandle;
use std::time::Duration;

use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use zeroize::{Zeroize, Zeroizing};

use super::calls::calls;
use super::start::Kek;
use crate::class::Class;
use crate::pkcs11::{Error, KekKeys, Sealed, Session, Token};
use crate::seal::{IvLayout, IvSend, Seal, SealCall, SealForm, Sealing};
use crate::wire::{self, FrameBuffer, Spin, link};

/// A session and everything needed to open another one in its place.
pub(super) struct SessionThread {
    stream: UnixStream,
    token: Token,
    sealing: Sealing,
    keks: Vec<Kek>,
    /// `None`: the last one was closed after an error, and the next request opens another.
    open: Option<OpenSession>,
}

struct OpenSession {
    session: Session,
    /// In the order of `keks`.
    keys: Vec<KekKeys>,
}

/// Replies are sent together while requests wait, but none is held back longer than this: on a slow token each goes at once.
const LONGEST_HOLD: Duration = Duration::from_micros(100);

impl SessionThread {
    pub(super) fn new(stream: UnixStream, token: Token, sealing: Sealing, keks: Vec<Kek>) -> Result<Self, Error> {
        let mut thread = Self { stream, token, sealing, keks, open: None };
        thread.session()?;
        Ok(thread)
    }

    pub(super) fn spawn(self) -> JoinHandle<()> {
        std::thread::spawn(move || self.serve())
    }

    /// Serves until the front closes its end, or until the token cannot be trusted any more: then closing ours tells the
    /// front to replace this process.
    fn serve(mut self) {
        let mut frames = FrameBuffer::default();
        let mut bytes = Zeroizing::new(vec![0; 64 * 1024]);
        let mut replies = Zeroizing::new(Vec::new());
        let mut spin = Spin::default();
        loop {
            let idle_since = now();
            let received = spin.receive(&self.stream, &mut bytes).unwrap_or_else(|| self.stream.read(&mut bytes));
            let Ok(count @ 1..) = received else { return };
            let received = bytes.get_mut(..count).unwrap_or_default();
            frames.push(received);
            received.zeroize();
            let mut held_since = now();
            let waited = held_since.saturating_sub(idle_since);
            let mut requests = 0;
            loop {
                let Ok(request) = frames.take::<link::Request>() else { return };
                let Some(request) = request else { break };
                requests += 1;
                let reply = self.answer(request);
                let broken = matches!(&reply.outcome, Some(link::reply::Outcome::Failure(failure))
                    if Class::from_number(failure.class).ends_worker());
                wire::append(&reply, &mut replies);
                wipe(reply);
                let finished = now();
                if broken || frames.is_empty() || finished.saturating_sub(held_since) > LONGEST_HOLD {
                    if self.stream.write_all(&replies).is_err() || broken {
                        return;
                    }
                    replies.zeroize();
                    held_since = finished;
                }
            }
            spin.learn(waited, requests == 1);
        }
    }

    fn answer(&mut self, mut request: link::Request) -> link::Reply {
        let outcome = if Duration::from_nanos(request.deadline) < now() {
            link::reply::Outcome::Failure(link::Failure {
                class: Class::Busy.number(),
                public: "the deadline passed in the queue".to_owned(),
                detail: "work was not begun: its deadline had passed".to_owned(),
                hint: "the HSM is slower than the load; add sessions or tokens".to_owned(),
            })
        } else {
            match self.work(&request) {
                Ok(outcome) => outcome,
                Err(error) => link::reply::Outcome::Failure(failure(&error)),
            }
        };
        if let Some(link::request::Work::Seal(seal)) = &mut request.work {
            seal.plaintext.zeroize();
        }
        link::Reply { id: request.id, outcome: Some(outcome), calls: calls() }
    }

    /// Tries the work; after a failure once more on a new session; then lets the proof blob judge whose fault it is.
    fn work(&mut self, request: &link::Request) -> Result<link::reply::Outcome, Error> {
        let opens = matches!(request.work, Some(link::request::Work::Open(_)));
        let first = match self.try_work(request) {
            // A blob says its own form: one of another IV length can make a module refuse the mechanism's parameter.
            Err(error) if opens || error.class() != Class::PinOrConfig => error,
            outcome => return outcome,
        };
        self.go_on(request)?;
        let second = match first.class() {
            Class::Data | Class::PinOrConfig => first,
            _ => match self.try_work(request) {
                Ok(outcome) => return Ok(outcome),
                Err(error) => error,
            },
        };
        self.go_on(request)?;
        // Return codes do not tell a corrupt blob from a sick token (SoftHSM2 and Kryoptic say CKR_GENERAL_ERROR for both).
        // If the KEK still opens its proof blob, the blob of the request is at fault.
        match (opens, self.prove_kek(request.kek)) {
            // Once more, since the proof may have opened because a passing fault had passed.
            (true, Ok(())) => {
                self.go_on(request)?;
                self.try_work(request).map_err(|_| Error::Call {
                    function: "C_Decrypt".to_owned(),
                    code: cryptoki_sys::CKR_ENCRYPTED_DATA_INVALID,
                    class: Class::Data,
                    poisoned: false,
                })
            }
            (false, Ok(())) => Err(second),
            (_, Err(error)) => Err(error),
        }
    }

    /// Before a further attempt: tells the front that nothing hangs, unless the time of the request has passed meanwhile.
    fn go_on(&mut self, request: &link::Request) -> Result<(), Error> {
        if Duration::from_nanos(request.deadline) < now() {
            return Err(Error::Call {
                function: "C_Decrypt".to_owned(),
                code: cryptoki_sys::CKR_FUNCTION_CANCELED,
                class: Class::Busy,
                poisoned: false,
            });
        }
        let mut frame = Vec::new();
        let outcome = Some(link::reply::Outcome::GoesOn(true));
        wire::append(&link::Reply { id: request.id, outcome, calls: Vec::new() }, &mut frame);
        // A front that is gone is noticed at the reply.
        let _ = self.stream.write_all(&frame);
        Ok(())
    }

    fn try_work(&mut self, request: &link::Request) -> Result<link::reply::Outcome, Error> {
        let kek = request.kek as usize;
        let sealing = self.sealing;
        let open = self.session()?;
        let key = open.keys.get(kek).copied().ok_or_else(unknown_work)?;
        let outcome = match &request.work {
            Some(link::request::Work::Seal(work)) => open
                .session
                .seal(key, &sealing, &work.context, &work.plaintext)
                .map(|Sealed { iv, ciphertext }| link::reply::Outcome::Sealed(link::Sealed { iv, ciphertext })),
            Some(link::request::Work::Open(work)) => {
                open_blob(&open.session, key, &sealing, work).map(|mut plaintext| {
                    link::reply::Outcome::Opened(link::Opened { plaintext: std::mem::take(&mut *plaintext) })
                })
            }
            None => Err(unknown_work()),
        };
        if outcome.as_ref().is_err_and(Error::poisons_session) {
            self.open = None;
        }
        outcome
    }

    fn prove_kek(&mut self, index: u32) -> Result<(), Error> {
        let index = index as usize;
        let kek = self.keks.get(index).cloned().ok_or_else(unknown_work)?;
        let sealing = self.sealing;
        let open = self.session()?;
        let key = open.keys.get(index).copied().ok_or_else(unknown_work)?;
        let Some(proof) = kek.proofs.first() else { return Ok(()) };
        prove(&open.session, key, &sealing, proof).map_err(|error| {
            // Closed first: the judgement opens one of its own, and there may be no room for another.
            self.open = None;
            kek.judge_proof(&self.token, &sealing, error)
        })
    }

    fn session(&mut self) -> Result<&OpenSession, Error> {
        if self.open.is_none() {
            let session = self.token.open_session()?;
            let keys = self.keks.iter().map(|kek| kek.find(&session)).collect::<Result<_, _>>()?;
            self.open = Some(OpenSession { session, keys });
        }
        self.open.as_ref().ok_or_else(unknown_work)
    }
}

/// Opens a proof blob and compares the challenge.
pub(super) fn prove(session: &Session, key: KekKeys, sealing: &Sealing, proof: &link::Proof) -> Result<(), Error> {
    let challenge = open_blob(session, key, sealing, proof.open.as_ref().ok_or_else(unknown_work)?)?;
    let digest = Sha256::digest(&*challenge);
    if bool::from(digest.as_slice().ct_eq(&proof.digest)) {
        return Ok(());
    }
    Err(Error::Call {
        function: "C_Decrypt".to_owned(),
        code: cryptoki_sys::CKR_ENCRYPTED_DATA_INVALID,
        class: Class::Data,
        poisoned: false,
    })
}

/// A failure as it travels to the front.
pub(super) fn failure(error: &Error) -> link::Failure {
    link::Failure {
        class: error.class().number(),
        public: error.public().to_owned(),
        detail: error.to_string(),
        hint: error.hint(),
    }
}

fn open_blob(
    session: &Session,
    key: KekKeys,
    sealing: &Sealing,
    work: &link::Open,
) -> Result<Zeroizing<Vec<u8>>, Error> {
    let form = form(work.form.as_ref())?;
    session.open(key, sealing, form, &work.iv, &work.context, &work.ciphertext)
}

/// How the front says that this token seals.
pub(super) fn sealing(sealing: Option<&link::Sealing>) -> Result<Sealing, Error> {
    let sealing = sealing.ok_or_else(unknown_work)?;
    let send = IvSend::from_number(sealing.send).ok_or_else(unknown_work)?;
    let call = SealCall::from_number(sealing.call).ok_or_else(unknown_work)?;
    Ok(Sealing { form: form(sealing.form.as_ref())?, send, mechanism: sealing.mechanism, call })
}

fn form(form: Option<&link::Form>) -> Result<SealForm, Error> {
    let known = |form: &link::Form| {
        Some(SealForm {
            seal: Seal::from_code(u8::try_from(form.seal).ok()?)?,
            iv_layout: IvLayout::from_code(u8::try_from(form.iv_layout).ok()?)?,
            iv_length: u8::try_from(form.iv_length).ok()?,
        })
    };
    form.and_then(known).ok_or_else(unknown_work)
}

pub(super) fn unknown_work() -> Error {
    Error::Unreadable("the front asked for work that this worker does not know".to_owned())
}

fn wipe(reply: link::Reply) {
    if let Some(link::reply::Outcome::Opened(mut opened)) = reply.outcome {
        opened.plaintext.zeroize();
    }
}

/// `CLOCK_MONOTONIC`, which front and worker share.
fn now() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or(0))
}
