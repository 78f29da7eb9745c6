//! The attributes of a key that the ceremony sets, the record keeps, and every start reads back.
//!
//! Each has three possible readings: a value, another value, or "this module does not have it". The third is never taken
//! for either of the others (PKCS#11 2.40 section 4, `C_GetAttributeValue`).

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

/// What a key on the token is for. Its rights follow from it, and it has no others.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum KeyUse {
    /// `C_Encrypt` and `C_Decrypt`: the KEK of most seals.
    Encrypt,
    /// `C_Sign`: the MAC key beside a KEK that cannot authenticate what it seals.
    Mac,
    /// `C_WrapKey` and `C_UnwrapKey`: the KEK where only these seal.
    Wrap,
}

impl KeyUse {
    /// The rights that the use needs.
    pub fn rights(self) -> &'static [AttributeName] {
        match self {
            Self::Encrypt => &[AttributeName::Encrypt, AttributeName::Decrypt],
            Self::Mac => &[AttributeName::Sign],
            Self::Wrap => &[AttributeName::Wrap, AttributeName::Unwrap],
        }
    }
}

/// An audited attribute. Serialised by its PKCS#11 name.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[allow(missing_docs, reason = "each variant is the PKCS#11 attribute in its serde name")]
pub enum AttributeName {
    #[serde(rename = "CKA_ALLOWED_MECHANISMS")]
    AllowedMechanisms,
    #[serde(rename = "CKA_ALWAYS_SENSITIVE")]
    AlwaysSensitive,
    #[serde(rename = "CKA_COPYABLE")]
    Copyable,
    #[serde(rename = "CKA_DECRYPT")]
    Decrypt,
    #[serde(rename = "CKA_DERIVE")]
    Derive,
    #[serde(rename = "CKA_ENCRYPT")]
    Encrypt,
    #[serde(rename = "CKA_EXTRACTABLE")]
    Extractable,
    #[serde(rename = "CKA_KEY_GEN_MECHANISM")]
    KeyGenMechanism,
    #[serde(rename = "CKA_KEY_TYPE")]
    KeyType,
    #[serde(rename = "CKA_LOCAL")]
    Local,
    #[serde(rename = "CKA_MODIFIABLE")]
    Modifiable,
    #[serde(rename = "CKA_NEVER_EXTRACTABLE")]
    NeverExtractable,
    #[serde(rename = "CKA_PRIVATE")]
    Private,
    #[serde(rename = "CKA_SENSITIVE")]
    Sensitive,
    #[serde(rename = "CKA_SIGN")]
    Sign,
    #[serde(rename = "CKA_TOKEN")]
    Token,
    #[serde(rename = "CKA_UNWRAP")]
    Unwrap,
    #[serde(rename = "CKA_VALUE_LEN")]
    ValueLen,
    #[serde(rename = "CKA_VERIFY")]
    Verify,
    #[serde(rename = "CKA_WRAP")]
    Wrap,
}

/// What an attribute holds.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(untagged)]
pub enum AttributeValue {
    /// `CK_BBOOL`.
    Bool(bool),
    /// `CK_ULONG`: bytes for `CKA_VALUE_LEN`, a type code otherwise.
    Number(u64),
    /// `CK_MECHANISM_TYPE` list, sorted.
    Mechanisms(Vec<u64>),
    /// The module does not have the attribute.
    Unavailable(Unavailable),
}

/// The serialised form of "the module does not have the attribute".
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Unavailable {
    /// The one value.
    Unavailable,
}

/// What was read from a key, or what a record says was read.
pub type Attributes = BTreeMap<AttributeName, AttributeValue>;

/// One attribute that is not what it should be.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Deviation {
    /// The attribute.
    pub name: AttributeName,
    /// What was asked for.
    pub expected: AttributeValue,
    /// What the module says.
    pub found: AttributeValue,
}

impl AttributeName {
    /// All audited attributes, in the order they are read and shown.
    pub const ALL: [Self; 20] = [
        Self::KeyType,
        Self::ValueLen,
        Self::Token,
        Self::Private,
        Self::Sensitive,
        Self::AlwaysSensitive,
        Self::Extractable,
        Self::NeverExtractable,
        Self::Local,
        Self::Encrypt,
        Self::Decrypt,
        Self::Wrap,
        Self::Unwrap,
        Self::Sign,
        Self::Verify,
        Self::Derive,
        Self::Copyable,
        Self::Modifiable,
        Self::KeyGenMechanism,
        Self::AllowedMechanisms,
    ];

    /// The PKCS#11 name.
    pub fn name(self) -> &'static str {
        match self {
            Self::AllowedMechanisms => "CKA_ALLOWED_MECHANISMS",
            Self::AlwaysSensitive => "CKA_ALWAYS_SENSITIVE",
            Self::Copyable => "CKA_COPYABLE",
            Self::Decrypt => "CKA_DECRYPT",
            Self::Derive => "CKA_DERIVE",
            Self::Encrypt => "CKA_ENCRYPT",
            Self::Extractable => "CKA_EXTRACTABLE",
            Self::KeyGenMechanism => "CKA_KEY_GEN_MECHANISM",
            Self::KeyType => "CKA_KEY_TYPE",
            Self::Local => "CKA_LOCAL",
            Self::Modifiable => "CKA_MODIFIABLE",
            Self::NeverExtractable => "CKA_NEVER_EXTRACTABLE",
            Self::Private => "CKA_PRIVATE",
            Self::Sensitive => "CKA_SENSITIVE",
            Self::Sign => "CKA_SIGN",
            Self::Token => "CKA_TOKEN",
            Self::Unwrap => "CKA_UNWRAP",
            Self::ValueLen => "CKA_VALUE_LEN",
            Self::Verify => "CKA_VERIFY",
            Self::Wrap => "CKA_WRAP",
        }
    }

    /// The attribute with this PKCS#11 name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|attribute| attribute.name() == name)
    }

    /// Whether it says how the key came to its token, and so reads otherwise on a copy of it.
    pub fn tells_of_birth(self) -> bool {
        matches!(self, Self::AlwaysSensitive | Self::KeyGenMechanism | Self::Local | Self::NeverExtractable)
    }

    /// Whether a ceremony's plan may permit another value than the strict one for a key of this use.
    pub fn is_negotiable(self, purpose: KeyUse) -> bool {
        self.indispensable(purpose).is_none()
    }

    /// Without this exact value no key is a KEK or its MAC key, whatever its record says.
    fn indispensable(self, purpose: KeyUse) -> Option<AttributeValue> {
        match self {
            Self::Sensitive | Self::Token => Some(AttributeValue::Bool(true)),
            Self::Extractable => Some(AttributeValue::Bool(false)),
            right if purpose.rights().contains(&right) => Some(AttributeValue::Bool(true)),
            _ => None,
        }
    }
}

impl fmt::Display for AttributeName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(self.name())
    }
}

impl AttributeValue {
    /// "The module does not have it."
    pub const UNAVAILABLE: Self = Self::Unavailable(Unavailable::Unavailable);
}

impl fmt::Display for AttributeValue {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bool(value) => write!(formatter, "{value}"),
            Self::Number(value) => write!(formatter, "{value:#x}"),
            Self::Mechanisms(list) => {
                write!(formatter, "[")?;
                for (position, mechanism) in list.iter().enumerate() {
                    let separator = if position == 0 { "" } else { ", " };
                    write!(formatter, "{separator}{mechanism:#x}")?;
                }
                write!(formatter, "]")
            }
            Self::Unavailable(_) => formatter.write_str("unavailable"),
        }
    }
}

impl fmt::Display for Deviation {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} is {}, expected {}", self.name, self.found, self.expected)
    }
}

impl Deviation {
    /// Whether a ceremony's plan may permit it for a key of this use. A length that the token does not tell, yes; another one, no.
    pub fn is_negotiable(&self, purpose: KeyUse) -> bool {
        let is_length = self.name == AttributeName::ValueLen && self.found != AttributeValue::UNAVAILABLE;
        self.name.is_negotiable(purpose) && !is_length
    }
}

/// `CKA_VALUE_LEN` of every key.
const KEY_BYTES: AttributeValue = AttributeValue::Number(32);

/// Everything in `found` that differs from `expected`, and every indispensable attribute that does not hold.
///
/// Any difference counts, in either direction: the record says which key this is, and a key that reads otherwise is not it.
pub fn deviations(purpose: KeyUse, expected: &Attributes, found: &Attributes) -> Vec<Deviation> {
    AttributeName::ALL
        .into_iter()
        .filter_map(|name| {
            let read = found.get(&name).unwrap_or(&AttributeValue::UNAVAILABLE);
            let length = (name == AttributeName::ValueLen && *read != AttributeValue::UNAVAILABLE).then_some(KEY_BYTES);
            let indispensable = length.or(name.indispensable(purpose));
            let mut wanted = [indispensable, expected.get(&name).cloned()].into_iter().flatten();
            let expected = wanted.find(|wanted| wanted != read)?;
            Some(Deviation { name, expected, found: read.clone() })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kek() -> Attributes {
        AttributeName::ALL
            .into_iter()
            .map(|name| {
                let value = match name {
                    AttributeName::Extractable | AttributeName::Modifiable => AttributeValue::Bool(false),
                    AttributeName::ValueLen => AttributeValue::Number(32),
                    AttributeName::AllowedMechanisms => AttributeValue::Mechanisms(vec![0x1087]),
                    _ => AttributeValue::Bool(true),
                };
                (name, value)
            })
            .collect()
    }

    #[test]
    fn equal_attributes_deviate_nowhere() {
        assert_eq!(deviations(KeyUse::Encrypt, &kek(), &kek()), []);
    }

    #[test]
    fn unavailable_is_neither_true_nor_false() {
        for value in [AttributeValue::Bool(true), AttributeValue::Bool(false)] {
            let mut expected = kek();
            expected.insert(AttributeName::Local, value);
            let mut found = kek();
            found.insert(AttributeName::Local, AttributeValue::UNAVAILABLE);
            assert_eq!(deviations(KeyUse::Encrypt, &expected, &found).len(), 1);
        }
    }

    #[test]
    fn a_record_cannot_excuse_an_extractable_key() {
        let mut weak = kek();
        weak.insert(AttributeName::Extractable, AttributeValue::Bool(true));
        let found = deviations(KeyUse::Encrypt, &weak, &weak);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].to_string(), "CKA_EXTRACTABLE is true, expected false");
    }

    #[test]
    fn a_record_that_says_extractable_is_not_the_record_of_a_good_key() {
        let mut edited = kek();
        edited.insert(AttributeName::Extractable, AttributeValue::Bool(true));
        let found = deviations(KeyUse::Encrypt, &edited, &kek());
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].to_string(), "CKA_EXTRACTABLE is false, expected true");
    }

    #[test]
    fn no_record_excuses_a_shorter_key_and_no_plan_permits_one() {
        let mut short = kek();
        short.insert(AttributeName::ValueLen, AttributeValue::Number(16));
        let found = deviations(KeyUse::Encrypt, &short, &short);
        assert_eq!(found[0].to_string(), "CKA_VALUE_LEN is 0x10, expected 0x20");
        assert!(!found[0].is_negotiable(KeyUse::Encrypt));
        let mut untold = kek();
        untold.insert(AttributeName::ValueLen, AttributeValue::UNAVAILABLE);
        assert_eq!(deviations(KeyUse::Encrypt, &untold, &untold), []);
        assert!(deviations(KeyUse::Encrypt, &kek(), &untold)[0].is_negotiable(KeyUse::Encrypt));
    }

    #[test]
    fn names_and_json_agree() {
        for name in AttributeName::ALL {
            assert_eq!(serde_json::to_string(&name).unwrap(), format!("\"{}\"", name.name()));
            assert_eq!(AttributeName::from_name(name.name()), Some(name));
        }
        assert_eq!(serde_json::to_string(&AttributeValue::UNAVAILABLE).unwrap(), "\"unavailable\"");
        assert_eq!(serde_json::from_str::<AttributeValue>("\"unavailable\"").unwrap(), AttributeValue::UNAVAILABLE);
    }
}
