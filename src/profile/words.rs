//! The words of a profile file: names, numbers and the PKCS#11 constants that stand there by name.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use cryptoki_sys as sys;
use serde::de::{Deserializer, Visitor};
use serde::{Deserialize, Serialize};

use super::codes::{code_number, function_name};
use super::{AttributeSetting, KeyGeneration};
use crate::class::Class;
use crate::strict;

/// 1 to 63 of `a-z`, `0-9` and `-`.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) struct Name(pub(super) String);

impl FromStr for Name {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let letters = text.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-'));
        let fits = letters && (1..=63).contains(&text.len());
        fits.then(|| Self(text.to_owned())).ok_or("expected 1 to 63 of a-z, 0-9 and '-'")
    }
}

/// A text on one line, not empty.
#[derive(Clone, Debug)]
pub(super) struct Line(pub(super) String);

impl<'de> Deserialize<'de> for Line {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        strict::line(deserializer).map(Self)
    }
}

/// A whole number in a range.
#[derive(Clone, Copy, Debug)]
pub(super) struct Count<const MIN: u64, const MAX: u64>(pub(super) u64);

impl<'de, const MIN: u64, const MAX: u64> Deserialize<'de> for Count<MIN, MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        strict::number::<MIN, MAX, D>(deserializer).map(Self)
    }
}

/// A time: a number and `s`, `m` or `h`, at most a week.
#[derive(Clone, Copy, Debug)]
pub(super) struct Settle(pub(super) Duration);

impl FromStr for Settle {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let units = [("s", 1), ("m", 60), ("h", 3600)];
        let parts = units.into_iter().find_map(|(unit, seconds)| Some((text.strip_suffix(unit)?, seconds)));
        let number = parts.filter(|(digits, _)| digits.bytes().all(|byte| byte.is_ascii_digit()));
        let seconds = number.and_then(|(digits, seconds)| digits.parse::<u64>().ok()?.checked_mul(seconds));
        let time = seconds.filter(|seconds| *seconds <= 7 * 24 * 3600).map(Duration::from_secs);
        time.map(Self).ok_or("expected a number and `s`, `m` or `h`, such as 24h, at most a week")
    }
}

/// `CK_MECHANISM_TYPE`, by name or number.
#[derive(Clone, Copy, Debug)]
pub(super) struct Mechanism(pub(super) u64);

impl FromStr for Mechanism {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        constant(text, MECHANISMS, "a mechanism").map(Self)
    }
}

/// `CK_KEY_TYPE`, by name or number.
#[derive(Clone, Copy, Debug)]
pub(super) struct KeyType(pub(super) u64);

impl FromStr for KeyType {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        constant(text, KEY_TYPES, "a key type").map(Self)
    }
}

/// `tool`, or the mechanism of `C_GenerateKey`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Generate(pub(super) KeyGeneration);

impl FromStr for Generate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "tool" {
            return Ok(Self(KeyGeneration::Tool));
        }
        constant(text, MECHANISMS, "`tool` or a mechanism").map(|number| Self(KeyGeneration::Mechanism(number)))
    }
}

/// `CK_ATTRIBUTE_TYPE`, by name or number.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) struct Attribute(pub(super) u64);

impl FromStr for Attribute {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        constant(text, ATTRIBUTES, "an attribute").map(Self)
    }
}

/// The value of an attribute: true, false or a number.
#[derive(Clone, Copy, Debug)]
pub(super) struct Setting(pub(super) AttributeSetting);

impl<'de> Deserialize<'de> for Setting {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Value;
        impl Visitor<'_> for Value {
            type Value = Setting;
            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("true, false or a whole number")
            }
            fn visit_bool<E>(self, flag: bool) -> Result<Setting, E> {
                Ok(Setting(AttributeSetting::Flag(flag)))
            }
            fn visit_u64<E>(self, number: u64) -> Result<Setting, E> {
                Ok(Setting(AttributeSetting::Number(number)))
            }
        }
        deserializer.deserialize_any(Value)
    }
}

/// `CODE` or `CODE@FUNCTION`; the code is a `CKR_` name or a number such as `0x80000123`.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) struct Code {
    pub(super) number: u64,
    pub(super) function: Option<&'static str>,
    /// Keeps the same code written in two ways apart, so that both are seen.
    text: String,
}

impl FromStr for Code {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (code, function) = text.split_once('@').map_or((text, None), |(code, name)| (code, Some(name)));
        let number = number(code).or_else(|| code_number(code));
        let number = number.ok_or("not a return code of PKCS#11 (a CKR_ name, or a number such as 0x80000123)")?;
        if number == 0 {
            return Err("CKR_OK is no failure");
        }
        let known = |name| function_name(name).ok_or("not a function of PKCS#11, such as C_Decrypt");
        Ok(Self { number, function: function.map(known).transpose()?, text: text.to_owned() })
    }
}

/// The word of a [`Class`].
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum ClassWord {
    Busy,
    Data,
    Gone,
    Login,
    PinOrConfig,
    Session,
}

impl From<ClassWord> for Class {
    fn from(word: ClassWord) -> Self {
        match word {
            ClassWord::Busy => Self::Busy,
            ClassWord::Data => Self::Data,
            ClassWord::Gone => Self::Gone,
            ClassWord::Login => Self::Login,
            ClassWord::PinOrConfig => Self::PinOrConfig,
            ClassWord::Session => Self::Session,
        }
    }
}

/// The name of a mechanism, or its number in hex.
pub fn mechanism_word(number: u64) -> String {
    word(number, MECHANISMS)
}

/// The name of a key type, or its number in hex.
pub fn key_type_word(number: u64) -> String {
    word(number, KEY_TYPES)
}

/// The name of an attribute, or its number in hex.
pub fn attribute_word(number: u64) -> String {
    word(number, ATTRIBUTES)
}

/// Whether the ceremony always sets this attribute, in the one way that makes the key a KEK.
pub(super) fn is_fixed(attribute: u64) -> bool {
    matches!(
        attribute,
        sys::CKA_CLASS
            | sys::CKA_DECRYPT
            | sys::CKA_ENCRYPT
            | sys::CKA_EXTRACTABLE
            | sys::CKA_ID
            | sys::CKA_KEY_TYPE
            | sys::CKA_LABEL
            | sys::CKA_SENSITIVE
            | sys::CKA_TOKEN
            | sys::CKA_VALUE_LEN
    )
}

/// A right that a KEK has no use for.
pub(super) fn is_needless_right(attribute: u64) -> bool {
    matches!(
        attribute,
        sys::CKA_DERIVE
            | sys::CKA_SIGN
            | sys::CKA_SIGN_RECOVER
            | sys::CKA_TRUSTED
            | sys::CKA_UNWRAP
            | sys::CKA_VERIFY
            | sys::CKA_VERIFY_RECOVER
            | sys::CKA_WRAP
    )
}

type Constants = &'static [(&'static str, u64)];

fn constant(text: &str, known: Constants, what: &str) -> Result<u64, String> {
    let by_name = || known.iter().find(|(name, _)| *name == text).map(|(_, number)| *number);
    number(text).or_else(by_name).ok_or_else(|| {
        let names: Vec<_> = known.iter().map(|(name, _)| *name).collect();
        format!("expected {what}: one of {}, or a number such as 0x80000123", names.join(", "))
    })
}

fn word(number: u64, known: Constants) -> String {
    let name = known.iter().find(|(_, other)| *other == number).map(|(name, _)| (*name).to_owned());
    name.unwrap_or_else(|| format!("{number:#x}"))
}

/// A number in hex, such as 0x80000123.
fn number(text: &str) -> Option<u64> {
    let digits = text.strip_prefix("0x").filter(|digits| !digits.starts_with('+'))?;
    u64::from_str_radix(digits, 16).ok()
}

macro_rules! constants {
    ($($name:ident)*) => { &[$((stringify!($name), sys::$name)),*] };
}

const MECHANISMS: Constants = constants! {
    CKM_AES_GCM CKM_AES_KEY_WRAP_PAD CKM_AES_KEY_WRAP_KWP CKM_AES_CBC CKM_AES_KEY_GEN CKM_GENERIC_SECRET_KEY_GEN
    CKM_SHA256_HMAC
};

const KEY_TYPES: Constants = constants! { CKK_AES CKK_GENERIC_SECRET };

const ATTRIBUTES: Constants = constants! {
    CKA_ALLOWED_MECHANISMS CKA_CLASS CKA_COPYABLE CKA_DECRYPT CKA_DERIVE CKA_DESTROYABLE CKA_ENCRYPT CKA_EXTRACTABLE
    CKA_ID CKA_KEY_TYPE CKA_LABEL CKA_MODIFIABLE CKA_PRIVATE CKA_SENSITIVE CKA_SIGN CKA_SIGN_RECOVER CKA_TOKEN
    CKA_TRUSTED CKA_UNWRAP CKA_VALUE_LEN CKA_VERIFY CKA_VERIFY_RECOVER CKA_WRAP CKA_WRAP_WITH_TRUSTED
};

/// Reads these by their `FromStr`.
macro_rules! by_text {
    ($($name:ident)*) => {
        $(impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                strict::from_text(deserializer)
            }
        })*
    };
}

by_text! { Name Settle Mechanism KeyType Generate Attribute Code }
