//! The attacker: another program with the PIN.

use std::fmt;
use std::fs;
use std::path::Path;

use cryptoki::context::Pkcs11;
use cryptoki::error::{Error, RvError};
use cryptoki::object::{Attribute, ObjectClass, ObjectHandle};
use cryptoki::session::Session;
use cryptoki::slot::Slot;
use hsm_kms::pkcs11;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::list::{self, Try};
use super::plant;
use crate::door::{Door, in_child};
use crate::harness::TestToken;

/// What the child is to do, and with which token.
#[derive(Deserialize, Serialize)]
pub struct Work {
    label: String,
    id: Vec<u8>,
    /// The attributes of the KEK, as its record has them.
    attributes: Value,
    /// The seal of the KEK, by name.
    seal: String,
    task: Task,
}

#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum Task {
    /// All of [`list::ATTACKS`] against the KEK.
    Attack,
    /// The same against a key with default attributes, and perhaps `CKA_EXTRACTABLE` true.
    AttackCareless { extractable: bool },
    /// Makes a key of known value with the id and the label of the KEK by `C_CreateObject`.
    Create,
    /// The same by `C_UnwrapKey`.
    Unwrap,
    /// Destroys all keys with the id and the label of the KEK.
    Destroy,
}

/// How an attack went.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Outcome {
    pub verdict: Verdict,
    /// What was gained, or how it was refused.
    pub words: String,
}

#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum Verdict {
    /// It succeeded.
    Done,
    /// It was refused.
    Refused,
    /// The module has no such function or mechanism.
    Absent,
}

/// Why an attack did not succeed.
pub enum Failure {
    /// The module said so.
    Code(Error),
    /// The module has no means for it.
    Absent(String),
    /// It said `CKR_OK`, and nothing was gained.
    Nothing(String),
}

impl Work {
    pub fn new(record: &Path, seal: &str, task: Task) -> Self {
        let record: Value = serde_json::from_slice(&fs::read(record).unwrap()).unwrap();
        let kek = &record["kek"];
        let text = |name: &str| kek[name].as_str().unwrap().to_owned();
        Self {
            label: text("label"),
            id: data_encoding::HEXLOWER.decode(text("id").as_bytes()).unwrap(),
            attributes: kek["attributes"].clone(),
            seal: seal.to_owned(),
            task,
        }
    }

    /// Lets a child do it. Returns each attack, in the order in which it was tried.
    pub fn run(&self, token: &TestToken) -> Vec<(String, Outcome)> {
        in_child("attacks::attacks_when_asked", token, self)
    }

    /// In the child: does the work.
    pub fn attack(&self, door: &Door) -> Vec<(String, Outcome)> {
        let context = &door.context;
        let sees = |slot: &Slot| !targets(context, *slot, &self.label, &self.id).unwrap_or_default().is_empty();
        let seen_before = door.slots.iter().any(sees);
        let (login, slot) = door.log_in();
        let bench = Bench { work: self, context, slot, login: &login };
        match self.task {
            Task::Attack => {
                let unseen =
                    if seen_before { Outcome::done("it is there") } else { Outcome::refused("it is not seen") };
                let mut all = vec![("find it without the PIN".to_owned(), unseen)];
                all.extend(bench.all(&self.label, &self.id));
                all
            }
            Task::AttackCareless { extractable } => {
                plant::careless(&bench.session(), extractable).unwrap();
                bench.all(plant::CARELESS, b"")
            }
            Task::Create => vec![one(plant::create(&bench.session(), self))],
            Task::Unwrap => vec![one(plant::unwrap(&bench.session(), self))],
            Task::Destroy => {
                let session = bench.session();
                let keys = targets(context, slot, &self.label, &self.id).unwrap();
                let destroyed: Result<Vec<_>, _> = keys.into_iter().map(|key| session.destroy_object(key)).collect();
                vec![one(destroyed.map(|_| "it is gone".to_owned()).map_err(Failure::Code))]
            }
        }
    }

    /// Id and label of the KEK.
    pub fn name(&self) -> [Attribute; 2] {
        [Attribute::Label(self.label.as_bytes().to_vec()), Attribute::Id(self.id.clone())]
    }

    /// A flag of the KEK, where the module has it.
    pub fn flag(&self, name: &str) -> Option<bool> {
        self.attributes[name].as_bool()
    }

    /// Whether the KEK says with which mechanisms it may be used.
    pub fn names_mechanisms(&self) -> bool {
        self.attributes["CKA_ALLOWED_MECHANISMS"].is_array()
    }
}

fn targets(context: &Pkcs11, slot: Slot, label: &str, id: &[u8]) -> Result<Vec<ObjectHandle>, Error> {
    let session = context.open_rw_session(slot)?;
    let mut template = vec![Attribute::Class(ObjectClass::SECRET_KEY), Attribute::Label(label.as_bytes().to_vec())];
    if !id.is_empty() {
        template.push(Attribute::Id(id.to_vec()));
    }
    session.find_objects(&template)
}

/// Where the attacks are tried.
struct Bench<'a> {
    work: &'a Work,
    context: &'a Pkcs11,
    slot: Slot,
    login: &'a pkcs11::Session,
}

impl Bench<'_> {
    fn session(&self) -> Session {
        self.context.open_rw_session(self.slot).unwrap()
    }

    /// Each on a session of its own: some modules leave an operation behind.
    fn all(&self, label: &str, id: &[u8]) -> Vec<(String, Outcome)> {
        let tried = list::ATTACKS.iter().map(|(name, attack)| {
            let targets = targets(self.context, self.slot, label, id).unwrap();
            let [target] = targets[..] else { panic!("before {name}: {} keys {label}", targets.len()) };
            let session = self.session();
            let attempt = Try { session: &session, login: self.login, target, label, seal: &self.work.seal };
            ((*name).to_owned(), Outcome::of(attack(&attempt)))
        });
        tried.collect()
    }
}

fn one(outcome: Result<String, Failure>) -> (String, Outcome) {
    (String::new(), Outcome::of(outcome))
}

impl Outcome {
    pub fn done(words: &str) -> Self {
        Self { verdict: Verdict::Done, words: words.to_owned() }
    }

    pub fn refused(words: &str) -> Self {
        Self { verdict: Verdict::Refused, words: words.to_owned() }
    }

    fn of(outcome: Result<String, Failure>) -> Self {
        let (verdict, words) = match outcome {
            Ok(gained) => (Verdict::Done, gained),
            Err(Failure::Absent(why)) => (Verdict::Absent, why),
            Err(Failure::Nothing(why)) => (Verdict::Refused, why),
            Err(Failure::Code(error)) => of_code(&error),
        };
        Self { verdict, words }
    }
}

fn of_code(error: &Error) -> (Verdict, String) {
    let Error::Pkcs11(code, _) = error else { return (Verdict::Refused, format!("cryptoki: {error}")) };
    // A mechanism may be invalid for this key alone, so that is not taken for an answer about the module.
    let is_absent = *code == RvError::FunctionNotSupported;
    (if is_absent { Verdict::Absent } else { Verdict::Refused }, name(*code))
}

/// `KeyUnextractable` as `KEY_UNEXTRACTABLE`.
fn name(code: RvError) -> String {
    let mut name = String::new();
    for character in format!("{code:?}").chars() {
        if character.is_uppercase() && !name.is_empty() {
            name.push('_');
        }
        name.extend(character.to_uppercase());
    }
    name
}

impl fmt::Display for Outcome {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.verdict {
            Verdict::Done => write!(formatter, "**done**: {}", self.words),
            Verdict::Refused => write!(formatter, "{}", self.words),
            Verdict::Absent => write!(formatter, "- {}", self.words),
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Code(error)
    }
}
