//! What the token lists: the mechanisms that a seal could use, with their flags, and how many there are at all.

use std::collections::BTreeMap;

use cryptoki_sys as sys;
use serde::{Deserialize, Serialize};

use super::bench::Bench;
use crate::pkcs11::{Error, MechanismInfo};
use crate::profile;

/// The mechanisms of a token.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Mechanisms {
    /// How many it lists.
    pub count: usize,
    /// Those that matter here. `None`: not there.
    pub known: BTreeMap<String, Option<Mechanism>>,
}

/// What the token says of one.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Mechanism {
    /// Least and greatest key size, in bits or bytes.
    pub key_size: (u64, u64),
    /// What it is for.
    pub flags: Vec<String>,
}

pub(super) fn run(bench: &Bench) -> Result<Mechanisms, Error> {
    let of_candidates = bench.candidates.iter().flat_map(|candidate| candidate.sealing.mechanisms());
    let numbers = ALWAYS.into_iter().chain(of_candidates.map(|(mechanism, _)| mechanism));
    let known = numbers.map(|number| {
        let info = bench.token.mechanism(number)?;
        Ok((profile::mechanism_name(number), info.as_ref().map(Mechanism::from)))
    });
    Ok(Mechanisms { count: bench.token.mechanism_count()?, known: known.collect::<Result<_, Error>>()? })
}

const ALWAYS: [u64; 3] = [sys::CKM_AES_KEY_GEN, sys::CKM_GENERIC_SECRET_KEY_GEN, sys::CKM_SHA256_HMAC];

impl From<&MechanismInfo> for Mechanism {
    fn from(info: &MechanismInfo) -> Self {
        let flags = FLAGS.into_iter().filter(|(flag, _)| info.flags & flag != 0).map(|(_, word)| word.to_owned());
        Self { key_size: info.key_size, flags: flags.collect() }
    }
}

const FLAGS: [(u64, &str); 10] = [
    (sys::CKF_HW, "hw"),
    (sys::CKF_ENCRYPT, "encrypt"),
    (sys::CKF_DECRYPT, "decrypt"),
    (sys::CKF_SIGN, "sign"),
    (sys::CKF_VERIFY, "verify"),
    (sys::CKF_WRAP, "wrap"),
    (sys::CKF_UNWRAP, "unwrap"),
    (sys::CKF_GENERATE, "generate"),
    (sys::CKF_MESSAGE_ENCRYPT, "message-encrypt"),
    (sys::CKF_MESSAGE_DECRYPT, "message-decrypt"),
];
