//! A KEK on a token: found by label, class and id, audited, made, used.

use cryptoki::mechanism::Mechanism;
use cryptoki::object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle};
use cryptoki_sys as sys;

use super::{Error, Session};
use crate::attributes::{AttributeName, AttributeValue, Attributes, KeyUse};
use crate::profile::{self, AttributeSetting};

/// A key handle. Dies with the login: after any new login the key is found again.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Key {
    pub(super) handle: ObjectHandle,
}

/// The handles of a KEK: the key that encrypts, and the MAC key beside it where the seal needs one.
#[derive(Clone, Copy, Debug)]
pub struct KekKeys {
    /// The KEK itself.
    pub key: Key,
    /// `None`: the seal authenticates by itself.
    pub mac: Option<Key>,
}

/// What a key is made of: every attribute explicit, since modules default WRAP, SIGN and MODIFIABLE to true.
#[derive(Clone, Debug)]
pub struct KeyTemplate {
    /// What the key is for.
    pub purpose: KeyUse,
    /// `CKA_ID`.
    pub id: Vec<u8>,
    /// `CKA_LABEL`.
    pub label: String,
    /// `CK_KEY_TYPE`.
    pub kind: u64,
    /// `CK_MECHANISM_TYPE` of the generation.
    pub generate: u64,
    /// The one mechanism that the key may be used with.
    pub mechanism: u64,
    /// Attributes that the module wants beside the usual ones, or in their place, by `CK_ATTRIBUTE_TYPE`.
    pub add: Vec<(u64, AttributeSetting)>,
    /// Attributes that the module refuses, by `CK_ATTRIBUTE_TYPE`.
    pub omit: Vec<u64>,
}

impl Session {
    /// All secret keys with this label and id.
    pub fn keys(&self, label: &str, id: &[u8]) -> Result<Vec<Key>, Error> {
        let template = [
            Attribute::Class(ObjectClass::SECRET_KEY),
            Attribute::Label(label.as_bytes().to_vec()),
            Attribute::Id(id.to_vec()),
        ];
        self.find(&template)
    }

    /// The one secret key with this label, whatever its id.
    pub fn key_with_label(&self, label: &str) -> Result<Key, Error> {
        let template = [Attribute::Class(ObjectClass::SECRET_KEY), Attribute::Label(label.as_bytes().to_vec())];
        the_one(&self.find(&template)?, label, || "(any)".to_owned())
    }

    /// `CKA_ID` of the key, empty where it has none.
    pub fn key_id(&self, key: Key) -> Result<Vec<u8>, Error> {
        let values =
            self.session.get_attributes(key.handle, &[AttributeType::Id]).map_err(|error| self.module.error(error))?;
        Ok(values
            .into_iter()
            .find_map(|value| if let Attribute::Id(id) = value { Some(id) } else { None })
            .unwrap_or_default())
    }

    /// The one key with this label and id.
    pub fn key(&self, label: &str, id: &[u8]) -> Result<Key, Error> {
        the_one(&self.keys(label, id)?, label, || data_encoding::HEXLOWER.encode(id))
    }

    /// Reads every audited attribute of the key, one at a time: one that a module cannot answer spoils a common query.
    pub fn attributes(&self, key: Key) -> Result<Attributes, Error> {
        AttributeName::ALL.into_iter().map(|name| Ok((name, self.attribute(key, name)?))).collect()
    }

    /// Makes a 256-bit key on the token (PKCS#11 3.1, sections 6.13.1 and 6.8.2).
    pub fn generate(&self, template: &KeyTemplate) -> Result<Key, Error> {
        let mechanism = match template.generate {
            sys::CKM_GENERIC_SECRET_KEY_GEN => Mechanism::GenericSecretKeyGen,
            _ => Mechanism::AesKeyGen,
        };
        let attributes = template.attributes().map_err(|error| self.module.error(error))?;
        self.session
            .generate_key(&mechanism, &attributes)
            .map(|handle| Key { handle })
            .map_err(|error| self.module.error(error))
    }

    /// `C_DestroyObject`.
    pub fn destroy(&self, key: Key) -> Result<(), Error> {
        self.session.destroy_object(key.handle).map_err(|error| self.module.error(error))
    }

    /// Random bytes from the token.
    pub fn random(&self, buffer: &mut [u8]) -> Result<(), Error> {
        self.session.generate_random_slice(buffer).map_err(|error| self.module.error(error))
    }

    /// Tries to read the key's value. `Ok(true)`: the token gave it away.
    pub fn value_can_be_read(&self, key: Key) -> Result<bool, Error> {
        Ok(self.secret_value(key.handle)?.is_some_and(|value| !value.is_empty()))
    }

    /// Makes a session key that may wrap others, to be tried on the KEK and destroyed.
    pub fn throwaway_wrapping_key(&self) -> Result<Key, Error> {
        let template = [
            Attribute::Class(ObjectClass::SECRET_KEY),
            Attribute::Token(false),
            Attribute::ValueLen(32.into()),
            Attribute::Wrap(true),
            Attribute::Encrypt(true),
        ];
        self.session
            .generate_key(&Mechanism::AesKeyGen, &template)
            .map(|handle| Key { handle })
            .map_err(|error| self.module.error(error))
    }

    /// Tries to set one boolean attribute of the key. `Ok(())`: the token let it happen.
    pub fn set_flag(&self, key: Key, name: AttributeName, value: bool) -> Result<(), Error> {
        self.session.update_attributes(key.handle, &[flag(name, value)?]).map_err(|error| self.module.error(error))
    }

    /// Tries to copy the key with one boolean attribute changed, as a session object. `Ok`: the token let it happen, and the
    /// copy is to be destroyed.
    pub fn copy_with_flag(&self, key: Key, name: AttributeName, value: bool) -> Result<Key, Error> {
        self.session
            .copy_object(key.handle, &[Attribute::Token(false), flag(name, value)?])
            .map(|handle| Key { handle })
            .map_err(|error| self.module.error(error))
    }

    pub(super) fn find(&self, template: &[Attribute]) -> Result<Vec<Key>, Error> {
        let handles = self.session.find_objects(template).map_err(|error| self.module.error(error))?;
        Ok(handles.into_iter().map(|handle| Key { handle }).collect())
    }

    fn attribute(&self, key: Key, name: AttributeName) -> Result<AttributeValue, Error> {
        match self.session.get_attributes(key.handle, &[attribute_type(name)]) {
            // No key has that length: SoftHSM2 says it of every key that was unwrapped.
            Ok(list) if matches!(list.as_slice(), [Attribute::ValueLen(length)] if **length == 0) => {
                Ok(AttributeValue::UNAVAILABLE)
            }
            Ok(list) => Ok(list.first().map_or(AttributeValue::UNAVAILABLE, attribute_value)),
            // cryptoki refuses what it has no name for (an unknown mechanism in a list, for one). That it cannot be named does not
            // mean that the module does not have it.
            Err(cryptoki::error::Error::NotSupported | cryptoki::error::Error::InvalidValue) => {
                let value = self.value(key, attribute_type(name).into())?;
                Ok(value.as_deref().map_or(AttributeValue::UNAVAILABLE, |bytes| raw_value(name, bytes)))
            }
            Err(cryptoki::error::Error::Pkcs11(
                cryptoki::error::RvError::AttributeTypeInvalid | cryptoki::error::RvError::AttributeValueInvalid,
                _,
            )) => Ok(AttributeValue::UNAVAILABLE),
            Err(error) => Err(self.module.error(error)),
        }
    }
}

impl KeyTemplate {
    /// The attributes that `C_GenerateKey` is given, in order, as `CKA_SENSITIVE = true`.
    pub fn describe(&self) -> Result<Vec<String>, Error> {
        let attributes = self.attributes().map_err(|error| Error::Unreadable(error.to_string()))?;
        Ok(attributes.iter().map(described).collect())
    }

    pub(super) fn attributes(&self) -> Result<Vec<Attribute>, cryptoki::error::Error> {
        let mut template = vec![
            Attribute::Class(ObjectClass::SECRET_KEY),
            Attribute::Token(true),
            Attribute::Private(true),
            Attribute::Sensitive(true),
            Attribute::Extractable(false),
            Attribute::Encrypt(self.may(AttributeName::Encrypt)),
            Attribute::Decrypt(self.may(AttributeName::Decrypt)),
            Attribute::Wrap(self.may(AttributeName::Wrap)),
            Attribute::Unwrap(self.may(AttributeName::Unwrap)),
            Attribute::Sign(self.may(AttributeName::Sign)),
            Attribute::Verify(false),
            Attribute::Derive(false),
            Attribute::ValueLen(32.into()),
            Attribute::Id(self.id.clone()),
            Attribute::Label(self.label.as_bytes().to_vec()),
            Attribute::Copyable(false),
        ];
        match self.kind {
            sys::CKK_AES => {}
            sys::CKK_GENERIC_SECRET => template.push(Attribute::KeyType(KeyType::GENERIC_SECRET)),
            vendor => template.push(Attribute::KeyType(KeyType::new_vendor_defined(vendor)?)),
        }
        // cryptoki has no name for some mechanisms, key wrap with padding among them.
        template.push(bare(sys::CKA_ALLOWED_MECHANISMS, sys::CK_ULONG::to_ne_bytes(self.mechanism).to_vec()));
        template.push(Attribute::Modifiable(false));
        // A profile's additions are meant for the KEK: they do not take from a MAC key what it is for.
        let is_right = |number: u64| self.purpose.rights().iter().any(|right| attribute_number(*right) == number);
        let additions = || self.add.iter().filter(|(number, _)| !is_right(*number));
        let added = |number: u64| additions().any(|(other, _)| *other == number);
        template.retain(|attribute| {
            let number = attribute.attribute_type().into();
            !self.omit.contains(&number) && !added(number)
        });
        let modifiable = template.pop_if(|attribute| matches!(attribute, Attribute::Modifiable(_)));
        template.extend(additions().map(|(number, setting)| {
            let bytes = match setting {
                AttributeSetting::Flag(flag) => vec![u8::from(*flag)],
                AttributeSetting::Number(number) => sys::CK_ULONG::to_ne_bytes(*number).to_vec(),
            };
            bare(*number, bytes)
        }));
        // Last: SoftHSM2 applies a template in order, and refuses what follows this.
        template.extend(modifiable);
        Ok(template)
    }

    fn may(&self, right: AttributeName) -> bool {
        self.purpose.rights().contains(&right)
    }
}

/// An attribute in words.
pub(super) fn described(attribute: &Attribute) -> String {
    let number: u64 = attribute.attribute_type().into();
    let value = match attribute {
        Attribute::Class(_) => "CKO_SECRET_KEY".to_owned(),
        Attribute::Id(id) => data_encoding::HEXLOWER.encode(id),
        Attribute::Label(label) => String::from_utf8_lossy(label).into_owned(),
        Attribute::VendorDefined((_, bytes)) if number == sys::CKA_ALLOWED_MECHANISMS => {
            match raw_value(AttributeName::AllowedMechanisms, bytes) {
                AttributeValue::Mechanisms(list) => {
                    list.into_iter().map(profile::mechanism_name).collect::<Vec<_>>().join(", ")
                }
                other => other.to_string(),
            }
        }
        Attribute::VendorDefined((_, bytes)) => data_encoding::HEXLOWER.encode(bytes),
        other => attribute_value(other).to_string(),
    };
    format!("{} = {value}", profile::attribute_name(number))
}

/// The key, if it is the only one found.
fn the_one(keys: &[Key], label: &str, id: impl FnOnce() -> String) -> Result<Key, Error> {
    match keys {
        [] => Err(Error::KekAbsent { label: label.to_owned(), id: id() }),
        [key] => Ok(*key),
        _ => Err(Error::KekTwice { label: label.to_owned(), id: id(), count: keys.len() }),
    }
}

/// An attribute by its bare number: cryptoki passes it on as it is.
pub(super) fn bare(number: u64, bytes: Vec<u8>) -> Attribute {
    Attribute::VendorDefined((AttributeType::VendorDefined(number), bytes))
}

fn attribute_number(name: AttributeName) -> u64 {
    attribute_type(name).into()
}

fn attribute_type(name: AttributeName) -> AttributeType {
    match name {
        AttributeName::AllowedMechanisms => AttributeType::AllowedMechanisms,
        AttributeName::AlwaysSensitive => AttributeType::AlwaysSensitive,
        AttributeName::Copyable => AttributeType::Copyable,
        AttributeName::Decrypt => AttributeType::Decrypt,
        AttributeName::Derive => AttributeType::Derive,
        AttributeName::Encrypt => AttributeType::Encrypt,
        AttributeName::Extractable => AttributeType::Extractable,
        AttributeName::KeyGenMechanism => AttributeType::KeyGenMechanism,
        AttributeName::KeyType => AttributeType::KeyType,
        AttributeName::Local => AttributeType::Local,
        AttributeName::Modifiable => AttributeType::Modifiable,
        AttributeName::NeverExtractable => AttributeType::NeverExtractable,
        AttributeName::Private => AttributeType::Private,
        AttributeName::Sensitive => AttributeType::Sensitive,
        AttributeName::Sign => AttributeType::Sign,
        AttributeName::Token => AttributeType::Token,
        AttributeName::Unwrap => AttributeType::Unwrap,
        AttributeName::ValueLen => AttributeType::ValueLen,
        AttributeName::Verify => AttributeType::Verify,
        AttributeName::Wrap => AttributeType::Wrap,
    }
}

fn attribute_value(attribute: &Attribute) -> AttributeValue {
    match attribute {
        Attribute::AlwaysSensitive(value)
        | Attribute::Copyable(value)
        | Attribute::Decrypt(value)
        | Attribute::Derive(value)
        | Attribute::Encrypt(value)
        | Attribute::Extractable(value)
        | Attribute::Local(value)
        | Attribute::Modifiable(value)
        | Attribute::NeverExtractable(value)
        | Attribute::Private(value)
        | Attribute::Sensitive(value)
        | Attribute::Sign(value)
        | Attribute::Token(value)
        | Attribute::Unwrap(value)
        | Attribute::Verify(value)
        | Attribute::Wrap(value) => AttributeValue::Bool(*value),
        Attribute::KeyType(kind) => AttributeValue::Number(sys::CK_KEY_TYPE::from(*kind)),
        Attribute::KeyGenMechanism(mechanism) => AttributeValue::Number(sys::CK_MECHANISM_TYPE::from(*mechanism)),
        Attribute::ValueLen(length) => AttributeValue::Number(**length),
        Attribute::AllowedMechanisms(list) => {
            let mut list: Vec<u64> = list.iter().map(|mechanism| sys::CK_MECHANISM_TYPE::from(*mechanism)).collect();
            list.sort_unstable();
            AttributeValue::Mechanisms(list)
        }
        _ => AttributeValue::UNAVAILABLE,
    }
}

/// What an attribute holds whose content cryptoki has no names for.
fn raw_value(name: AttributeName, bytes: &[u8]) -> AttributeValue {
    let (numbers, rest) = bytes.as_chunks::<{ size_of::<sys::CK_ULONG>() }>();
    let mut numbers: Vec<u64> = numbers.iter().map(|bytes| sys::CK_ULONG::from_ne_bytes(*bytes)).collect();
    match (name, numbers.as_slice(), rest) {
        (AttributeName::AllowedMechanisms, _, []) => {
            numbers.sort_unstable();
            AttributeValue::Mechanisms(numbers)
        }
        (AttributeName::KeyType | AttributeName::KeyGenMechanism | AttributeName::ValueLen, [number], []) => {
            AttributeValue::Number(*number)
        }
        _ => AttributeValue::UNAVAILABLE,
    }
}

fn flag(name: AttributeName, value: bool) -> Result<Attribute, Error> {
    Ok(match name {
        AttributeName::Copyable => Attribute::Copyable(value),
        AttributeName::Decrypt => Attribute::Decrypt(value),
        AttributeName::Derive => Attribute::Derive(value),
        AttributeName::Encrypt => Attribute::Encrypt(value),
        AttributeName::Extractable => Attribute::Extractable(value),
        AttributeName::Modifiable => Attribute::Modifiable(value),
        AttributeName::Sensitive => Attribute::Sensitive(value),
        AttributeName::Sign => Attribute::Sign(value),
        AttributeName::Unwrap => Attribute::Unwrap(value),
        AttributeName::Verify => Attribute::Verify(value),
        AttributeName::Wrap => Attribute::Wrap(value),
        other => return Err(Error::Unreadable(format!("{other} is not a flag that can be set"))),
    })
}
