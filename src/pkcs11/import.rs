//! A key that was made outside comes into the token: encrypted under a throw-away key of the token's own, and unwrapped there.
//!
//! The module encrypts the value itself, so it sees it in clear once. That costs nothing where a ceremony does this: on a machine of its
//! own, whose memory holds the value anyway. A public key of the token used by a library of ours would hide it from the module's
//! process memory, which is ours. `C_CreateObject` with the value would be shorter, but tokens in FIPS mode refuse it.

use std::fmt;

use cryptoki::mechanism::rsa::{PkcsMgfType, PkcsOaepParams, PkcsOaepSource};
use cryptoki::mechanism::{Mechanism as Named, MechanismType};
use cryptoki::object::{Attribute, KeyType, ObjectHandle};
use cryptoki_sys as sys;
use zeroize::Zeroizing;

use super::key::described;
use super::raw::{Mechanism, Parameter};
use super::{Error, Key, KeyTemplate, Session};

/// How a value comes into a token.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ImportWay {
    /// `CKM_RSA_PKCS_OAEP` with SHA-256, under an RSA key of 3072 bits.
    RsaOaepSha256,
    /// The same with SHA-1, for tokens that have no other: `SoftHSM2`. OAEP does not need the hash to resist collisions.
    RsaOaepSha1,
    /// `CKM_AES_KEY_WRAP` (RFC 3394), under an AES key of 256 bits, for tokens without RSA.
    AesKeyWrap,
}

/// A throw-away key of the token's, which lives as long as its session at most.
pub struct Transport<'a> {
    session: &'a Session,
    way: ImportWay,
    encrypts: ObjectHandle,
    unwraps: ObjectHandle,
}

impl ImportWay {
    /// All ways, the best first.
    pub const ALL: [Self; 3] = [Self::RsaOaepSha256, Self::RsaOaepSha1, Self::AesKeyWrap];

    fn mechanism(self) -> Named<'static> {
        let oaep = |hash, mask| Named::RsaPkcsOaep(PkcsOaepParams::new(hash, mask, PkcsOaepSource::empty()));
        match self {
            Self::RsaOaepSha256 => oaep(MechanismType::SHA256, PkcsMgfType::MGF1_SHA256),
            Self::RsaOaepSha1 => oaep(MechanismType::SHA1, PkcsMgfType::MGF1_SHA1),
            Self::AesKeyWrap => Named::AesKeyWrap,
        }
    }
}

impl fmt::Display for ImportWay {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(match self {
            Self::RsaOaepSha256 => "RSA-OAEP with SHA-256",
            Self::RsaOaepSha1 => "RSA-OAEP with SHA-1",
            Self::AesKeyWrap => "AES key wrap",
        })
    }
}

impl Session {
    /// Makes the throw-away key.
    pub fn transport(&self, way: ImportWay) -> Result<Transport<'_>, Error> {
        let keys = match way {
            ImportWay::RsaOaepSha256 | ImportWay::RsaOaepSha1 => {
                let public = [
                    Attribute::Token(false),
                    Attribute::ModulusBits(MODULUS_BITS.into()),
                    Attribute::PublicExponent(PUBLIC_EXPONENT.to_vec()),
                    Attribute::Encrypt(true),
                ];
                let private = [
                    Attribute::Token(false),
                    Attribute::Private(true),
                    Attribute::Sensitive(true),
                    Attribute::Extractable(false),
                    Attribute::Decrypt(false),
                    Attribute::Unwrap(true),
                ];
                self.session.generate_key_pair(&Named::RsaPkcsKeyPairGen, &public, &private)
            }
            ImportWay::AesKeyWrap => {
                let template = [
                    Attribute::Token(false),
                    Attribute::Private(true),
                    Attribute::Sensitive(true),
                    Attribute::Extractable(false),
                    Attribute::ValueLen(32.into()),
                    Attribute::Encrypt(true),
                    Attribute::Decrypt(false),
                    Attribute::Wrap(false),
                    Attribute::Unwrap(true),
                ];
                self.session.generate_key(&Named::AesKeyGen, &template).map(|key| (key, key))
            }
        };
        let (encrypts, unwraps) = keys.map_err(|error| self.module.error(error))?;
        Ok(Transport { session: self, way, encrypts, unwraps })
    }
}

impl Transport<'_> {
    /// Makes a key of this value on the token (PKCS#11 3.1, section 5.18.4), as the template says but for how it is generated.
    pub fn import(&self, template: &KeyTemplate, value: &Zeroizing<[u8; 32]>) -> Result<Key, Error> {
        let Session { module, session } = self.session;
        let wrapped = match self.way {
            ImportWay::RsaOaepSha256 | ImportWay::RsaOaepSha1 => session
                .encrypt(&self.way.mechanism(), self.encrypts, value.as_slice())
                .map_err(|error| module.error(error))?,
            ImportWay::AesKeyWrap => {
                let mechanism = Mechanism { code: sys::CKM_AES_KEY_WRAP, parameter: Parameter::None };
                self.session.encrypt(Key { handle: self.encrypts }, mechanism, value.as_slice(), WRAPPED)?
            }
        };
        let attributes = template.imported().map_err(|error| module.error(error))?;
        session
            .unwrap_key(&self.way.mechanism(), self.unwraps, &wrapped, &attributes)
            .map(|handle| Key { handle })
            .map_err(|error| module.error(error))
    }

    /// Destroys the throw-away key.
    pub fn destroy(self) -> Result<(), Error> {
        let Session { module, session } = self.session;
        let both = [Some(self.unwraps), Some(self.encrypts).filter(|key| *key != self.unwraps)];
        // Both are tried, whatever becomes of the first.
        let outcomes = both.into_iter().flatten().map(|key| session.destroy_object(key)).collect::<Vec<_>>();
        outcomes.into_iter().collect::<Result<(), _>>().map_err(|error| module.error(error))
    }
}

impl KeyTemplate {
    /// The attributes that `C_UnwrapKey` is given, in the same form.
    pub fn describe_import(&self) -> Result<Vec<String>, Error> {
        let attributes = self.imported().map_err(|error| Error::Unreadable(error.to_string()))?;
        Ok(attributes.iter().map(described).collect())
    }

    /// For `C_UnwrapKey`: it takes the length from the value, and has to be told the type.
    fn imported(&self) -> Result<Vec<Attribute>, cryptoki::error::Error> {
        let mut template = self.attributes()?;
        template.retain(|attribute| !matches!(attribute, Attribute::ValueLen(_)));
        if self.kind == sys::CKK_AES {
            template.insert(0, Attribute::KeyType(KeyType::AES));
        }
        Ok(template)
    }
}

/// As strong as AES-128 (NIST SP 800-57, table 2): enough for the seconds that it lives.
const MODULUS_BITS: sys::CK_ULONG = 3072;
const PUBLIC_EXPONENT: [u8; 3] = [1, 0, 1];

/// Bytes of a 256-bit key wrapped by RFC 3394.
const WRAPPED: usize = 40;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attributes::KeyUse;

    #[test]
    fn a_key_from_outside_is_asked_for_as_any_other_but_for_its_length() {
        for (purpose, kind) in [(KeyUse::Encrypt, sys::CKK_AES), (KeyUse::Mac, sys::CKK_GENERIC_SECRET)] {
            let template = KeyTemplate {
                purpose,
                id: vec![1],
                label: "kek".to_owned(),
                kind,
                generate: sys::CKM_AES_KEY_GEN,
                mechanism: sys::CKM_AES_GCM,
                add: Vec::new(),
                omit: Vec::new(),
            };
            let numbers = |attributes: Vec<Attribute>| -> Vec<u64> {
                attributes.iter().map(|attribute| attribute.attribute_type().into()).collect()
            };
            let imported = template.imported().unwrap();
            assert!(
                imported.contains(&Attribute::Extractable(false)) && imported.contains(&Attribute::Sensitive(true))
            );
            assert_eq!(imported.last(), Some(&Attribute::Modifiable(false)));
            let mut imported = numbers(imported);
            assert_eq!(imported.iter().filter(|number| **number == sys::CKA_KEY_TYPE).count(), 1);
            let mut generated = numbers(template.attributes().unwrap());
            generated.retain(|number| *number != sys::CKA_VALUE_LEN && *number != sys::CKA_KEY_TYPE);
            imported.retain(|number| *number != sys::CKA_KEY_TYPE);
            assert_eq!(imported, generated);
        }
    }
}
