//! The attributes of a key: which the token takes, how they read back, and whether it keeps to them. And what it does for keys
//! that must not leave.

use std::collections::BTreeMap;

use cryptoki_sys as sys;
use serde::{Deserialize, Serialize};

use super::bench::{Bench, Setting, flag, number, with};
use super::candidates::Candidate;
use super::outcome::Outcome;
use super::steps::Trial;
use crate::attributes::KeyUse;
use crate::pkcs11::{Error, Key};
use crate::profile;

/// What came of one attribute in the template of a key.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct AttributeFinding {
    /// What stood in the template.
    pub value: Value,
    /// Whether a key was made of it.
    pub generate: Outcome,
    /// What the key says of it afterwards. `None`: it has no such attribute, or none was made.
    pub reads: Option<Value>,
    /// What came of the thing that it forbids: a refusal keeps to it. `None`: there is nothing to try.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub forbidden: Option<Outcome>,
}

/// An attribute's value.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Value {
    /// `CK_BBOOL`.
    Flag(bool),
    /// `CK_MECHANISM_TYPE` list, by name.
    Mechanisms(Vec<String>),
    /// Something else, in bytes.
    Bytes(Vec<u8>),
}

/// Tries each attribute in a template of its own. `in_session`: session keys can be made.
pub(super) fn run(
    bench: &mut Bench,
    trial: Trial,
    in_session: bool,
) -> Result<BTreeMap<String, AttributeFinding>, Error> {
    let candidate = bench.candidate(trial.candidate)?.clone();
    let mut findings = BTreeMap::new();
    for setting in settings(&candidate) {
        // In a session first: SoftHSM2 leaves half a key on the token, without a label, when it refuses a template.
        let mut finding = try_setting(bench, &candidate, &setting, trial.on_token && !in_session)?;
        if in_session && trial.on_token && finding.generate.works() && setting.0 != sys::CKA_DESTROYABLE {
            finding = try_setting(bench, &candidate, &setting, true)?;
        }
        findings.insert(profile::attribute_name(setting.0), finding);
    }
    Ok(findings)
}

/// What a key has of which nothing was said.
pub(super) fn defaults(bench: &mut Bench, on_token: bool) -> Result<BTreeMap<String, Option<bool>>, Error> {
    let template = [
        number(sys::CKA_CLASS, sys::CKO_SECRET_KEY),
        number(sys::CKA_KEY_TYPE, sys::CKK_AES),
        flag(sys::CKA_TOKEN, on_token),
        number(sys::CKA_VALUE_LEN, 32),
        (sys::CKA_LABEL, bench.label.as_bytes().to_vec()),
        flag(sys::CKA_ENCRYPT, true),
        flag(sys::CKA_DECRYPT, true),
    ];
    let key = bench.make(sys::CKM_AES_KEY_GEN, &template)?;
    let home = bench.home()?;
    let read = DEFAULTS.into_iter().map(|name| {
        let value = home.value(key, name).unwrap_or(None);
        (profile::attribute_name(name), value.and_then(|bytes| Some(*bytes.first()? != 0)))
    });
    let read = read.collect();
    bench.clear()?;
    Ok(read)
}

/// What the token must refuse of a key that is sensitive and cannot be extracted; a refusal is good. Each name is what was tried.
pub(super) fn secrecy(bench: &mut Bench, on_token: bool) -> Result<BTreeMap<String, Outcome>, Error> {
    let candidate = plain(bench)?;
    let template = bench.template(&candidate, KeyUse::Encrypt, on_token);
    let key = bench.make(candidate.generate, &template)?;
    let mut findings = BTreeMap::new();
    let mut put = |what: &str, outcome| findings.insert(what.to_owned(), outcome);
    let home = bench.home()?;
    put(
        "read-value",
        match home.value(key, sys::CKA_VALUE) {
            Ok(None) => Outcome::refused("C_GetAttributeValue", sys::CKR_ATTRIBUTE_TYPE_INVALID),
            Ok(Some(value)) if value.is_empty() => Outcome::differs("an empty value"),
            read => Outcome::of_forbidden(&read, "the value was read"),
        },
    );
    put("set-extractable", Outcome::of_forbidden(&home.set(key, sys::CKA_EXTRACTABLE, &[1]), DID));
    put("set-not-sensitive", Outcome::of_forbidden(&home.set(key, sys::CKA_SENSITIVE, &[0]), DID));
    let looser = [flag(sys::CKA_TOKEN, on_token), flag(sys::CKA_EXTRACTABLE, true)];
    put("copy-extractable", Outcome::of_forbidden(&home.copy(key, &looser), DID));
    bench.clear()?;

    put("wrap-out", forbidden_wrap(bench, &candidate, on_token, [true, false])?);
    put("wrap-without-right", forbidden_wrap(bench, &candidate, on_token, [false, true])?);
    bench.clear()?;
    Ok(findings)
}

/// Wraps a key: `may_wrap` of the wrapping key, `may_leave` of the wrapped. One of the two is false.
fn forbidden_wrap(
    bench: &mut Bench,
    candidate: &Candidate,
    on_token: bool,
    [may_wrap, may_leave]: [bool; 2],
) -> Result<Outcome, Error> {
    let made = Wrapping::new(bench, candidate, on_token)?;
    let Ok(wrapping) = made else { return Ok(made.err().unwrap_or(Outcome::WORKS)) };
    let template = bench.template(candidate, KeyUse::Encrypt, on_token);
    let by = if may_wrap {
        wrapping.key
    } else {
        bench.make(candidate.generate, &with(template.clone(), flag(sys::CKA_WRAP, false)))?
    };
    let key = bench.make(candidate.generate, &with(template, flag(sys::CKA_EXTRACTABLE, may_leave)))?;
    Ok(Outcome::of_forbidden(&bench.home()?.wrap_by(wrapping.mechanism, by, key), "the key was given away"))
}

fn try_setting(
    bench: &mut Bench,
    candidate: &Candidate,
    setting: &Setting,
    on_token: bool,
) -> Result<AttributeFinding, Error> {
    let value = value_of(setting.0, &setting.1);
    let untried = |why: &str| AttributeFinding {
        value: value.clone(),
        generate: Outcome::untried(why),
        reads: None,
        forbidden: None,
    };
    if setting.0 == sys::CKA_DESTROYABLE {
        return Ok(undestroyable(bench, candidate, setting).unwrap_or_else(|| untried("it would stay for ever")));
    }
    let template = with(bench.template(candidate, candidate.sealing.kek_use(), on_token), setting.clone());
    let made = bench.make(candidate.generate, &template);
    let generate = Outcome::of(&made);
    let (mut reads, mut forbidden) = (None, None);
    if let Ok(key) = made {
        let read = bench.home()?.value(key, setting.0);
        reads = read.unwrap_or(None).map(|bytes| value_of(setting.0, &bytes));
        forbidden = forbid(bench, candidate, setting.0, key, on_token)?;
    }
    bench.clear()?;
    Ok(AttributeFinding { value, generate, reads, forbidden })
}

/// Tries what the attribute forbids.
fn forbid(
    bench: &mut Bench,
    candidate: &Candidate,
    attribute: u64,
    key: Key,
    on_token: bool,
) -> Result<Option<Outcome>, Error> {
    let home = bench.home()?;
    Ok(match attribute {
        sys::CKA_COPYABLE => Some(Outcome::of_forbidden(&home.copy(key, &[flag(sys::CKA_TOKEN, on_token)]), DID)),
        sys::CKA_MODIFIABLE => Some(Outcome::of_forbidden(&home.set(key, sys::CKA_DERIVE, &[1]), DID)),
        sys::CKA_ALLOWED_MECHANISMS => {
            let other = sys::CKM_AES_CBC;
            let can_be_tried = candidate.kind == sys::CKK_AES && candidate.sealing.mechanism != other;
            if !can_be_tried || bench.token.mechanism(other)?.is_none() {
                return Ok(Some(Outcome::untried("no other mechanism for such a key")));
            }
            let used = super::seals::fresh(bench, |session| session.encrypt_block(key, other));
            Some(Outcome::of_forbidden(&used, DID))
        }
        sys::CKA_WRAP_WITH_TRUSTED => Some(match Wrapping::new(bench, candidate, on_token)? {
            Err(untried) => untried,
            Ok(wrapping) => {
                let template = bench.template(candidate, KeyUse::Encrypt, on_token);
                let template = with(with(template, flag(sys::CKA_EXTRACTABLE, true)), flag(attribute, true));
                let key = bench.make(candidate.generate, &template)?;
                Outcome::of_forbidden(&bench.home()?.wrap_by(wrapping.mechanism, wrapping.key, key), DID)
            }
        }),
        _ => None,
    })
}

/// `CKA_DESTROYABLE` false, on a session key of a session of its own, with which it goes. `None`: there are no session keys.
fn undestroyable(bench: &Bench, candidate: &Candidate, setting: &Setting) -> Option<AttributeFinding> {
    let session = bench.token.open_session().ok()?;
    let template = bench.template(candidate, candidate.sealing.kek_use(), false);
    // Without the attribute first: a module that has no session keys refuses for that reason, or puts the key on the token.
    let first = session.generate_with(candidate.generate, &template).ok()?;
    let stays = session.value(first, sys::CKA_TOKEN);
    session.destroy(first).ok()?;
    if stays.ok().flatten().is_none_or(|read| read.as_slice() != [0]) {
        return None;
    }
    let made = session.generate_with(candidate.generate, &with(template, setting.clone()));
    let key = made.as_ref().ok().copied();
    let read = key.and_then(|key| session.value(key, setting.0).ok().flatten());
    Some(AttributeFinding {
        value: Value::Flag(false),
        generate: Outcome::of(&made),
        reads: read.map(|bytes| value_of(setting.0, &bytes)),
        forbidden: key.map(|key| Outcome::of_forbidden(&session.destroy(key), DID)),
    })
}

/// A key that may wrap, and a mechanism by which it does.
struct Wrapping {
    key: Key,
    mechanism: u64,
}

impl Wrapping {
    /// `Err` within: nothing can be wrapped here, so no refusal would prove anything.
    fn new(bench: &mut Bench, candidate: &Candidate, on_token: bool) -> Result<Result<Self, Outcome>, Error> {
        let template = bench.template(candidate, KeyUse::Encrypt, on_token);
        let wrapping = with(template.clone(), flag(sys::CKA_WRAP, true));
        let made = bench.make(candidate.generate, &wrapping);
        let leaving = bench.make(candidate.generate, &with(template, flag(sys::CKA_EXTRACTABLE, true)));
        let refused = match (made, leaving) {
            (Ok(key), Ok(leaving)) => {
                let mut refused = Outcome::untried("no mechanism wraps");
                for mechanism in [sys::CKM_AES_KEY_WRAP, sys::CKM_AES_KEY_WRAP_KWP, sys::CKM_AES_KEY_WRAP_PAD] {
                    if !bench.token.has_mechanism(mechanism, sys::CKF_WRAP)? {
                        continue;
                    }
                    match bench.home()?.wrap_by(mechanism, key, leaving) {
                        Ok(()) => return Ok(Ok(Self { key, mechanism })),
                        Err(error) => {
                            refused = Outcome::untried(format!("nothing is wrapped, {}", Outcome::from(&error)));
                        }
                    }
                }
                refused
            }
            (Err(error), _) | (_, Err(error)) => {
                Outcome::untried(format!("no keys to wrap, {}", Outcome::from(&error)))
            }
        };
        Ok(Err(refused))
    }
}

/// The candidate whose key is a plain AES key.
fn plain(bench: &Bench) -> Result<Candidate, Error> {
    let found = bench.candidates.iter().find(|candidate| candidate.kind == sys::CKK_AES);
    found.cloned().ok_or_else(|| Error::Unreadable("there is no candidate with an AES key".to_owned()))
}

fn settings(candidate: &Candidate) -> Vec<Setting> {
    let purpose = candidate.sealing.kek_use();
    let needless = [sys::CKA_WRAP, sys::CKA_UNWRAP, sys::CKA_SIGN, sys::CKA_VERIFY, sys::CKA_DERIVE]
        .into_iter()
        .filter(|right| !(purpose == KeyUse::Wrap && matches!(*right, sys::CKA_WRAP | sys::CKA_UNWRAP)));
    let mut settings: Vec<_> = needless.map(|right| flag(right, false)).collect();
    settings.extend([
        flag(sys::CKA_PRIVATE, true),
        flag(sys::CKA_COPYABLE, false),
        flag(sys::CKA_MODIFIABLE, false),
        flag(sys::CKA_DESTROYABLE, false),
        flag(sys::CKA_WRAP_WITH_TRUSTED, true),
        flag(sys::CKA_TRUSTED, true),
        number(sys::CKA_ALLOWED_MECHANISMS, candidate.sealing.mechanism),
    ]);
    settings
}

fn value_of(attribute: u64, bytes: &[u8]) -> Value {
    match bytes {
        [byte] => Value::Flag(*byte != 0),
        bytes if attribute == sys::CKA_ALLOWED_MECHANISMS => {
            let (numbers, _) = bytes.as_chunks::<{ size_of::<sys::CK_ULONG>() }>();
            Value::Mechanisms(
                numbers.iter().map(|number| profile::mechanism_name(sys::CK_ULONG::from_ne_bytes(*number))).collect(),
            )
        }
        bytes => Value::Bytes(bytes.to_vec()),
    }
}

const DID: &str = "it was done";

const DEFAULTS: [u64; 11] = [
    sys::CKA_WRAP,
    sys::CKA_UNWRAP,
    sys::CKA_SIGN,
    sys::CKA_VERIFY,
    sys::CKA_DERIVE,
    sys::CKA_PRIVATE,
    sys::CKA_SENSITIVE,
    sys::CKA_EXTRACTABLE,
    sys::CKA_MODIFIABLE,
    sys::CKA_COPYABLE,
    sys::CKA_DESTROYABLE,
];
