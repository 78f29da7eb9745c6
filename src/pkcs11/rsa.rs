//! An RSA key pair that lives in a token and opens what was sealed to it: `CKM_RSA_PKCS_OAEP` with SHA-256 (PKCS#11 3.1, section 6.1.8).

use cryptoki::mechanism::Mechanism;
use cryptoki::mechanism::MechanismType;
use cryptoki::mechanism::rsa::{PkcsMgfType, PkcsOaepParams, PkcsOaepSource};
use cryptoki::object::{Attribute, AttributeType, ObjectClass};
use cryptoki_sys as sys;
use zeroize::Zeroizing;

use super::{Error, Key, Session, Token};

/// A key pair of the token.
#[derive(Clone, Copy, Debug)]
pub struct RsaPair {
    /// Opens. Never leaves the token.
    pub private: Key,
    /// What others seal to.
    pub public: Key,
}

/// The public half, as numbers (big endian).
#[derive(Clone, Debug)]
pub struct RsaNumbers {
    /// `CKA_MODULUS`.
    pub modulus: Vec<u8>,
    /// `CKA_PUBLIC_EXPONENT`.
    pub exponent: Vec<u8>,
}

impl Token {
    /// Whether the token makes such pairs and opens with them. Which hashes it takes for OAEP no mechanism list says.
    pub fn has_rsa_oaep(&self) -> Result<bool, Error> {
        Ok(self.has_mechanism(sys::CKM_RSA_PKCS_KEY_PAIR_GEN, 0)? && self.has_mechanism(sys::CKM_RSA_PKCS_OAEP, 0)?)
    }
}

impl Session {
    /// Makes a pair with this label and `CKA_ID` that stays on the token, and whose private half may open and nothing else.
    pub fn generate_rsa_pair(&self, label: &str, id: &[u8], bits: usize) -> Result<RsaPair, Error> {
        let bits = sys::CK_ULONG::try_from(bits).map_err(|error| Error::Unreadable(error.to_string()))?;
        let public = [
            Attribute::Token(true),
            Attribute::Label(label.as_bytes().to_vec()),
            Attribute::Id(id.to_vec()),
            Attribute::ModulusBits(bits.into()),
            Attribute::PublicExponent(EXPONENT.to_vec()),
            Attribute::Encrypt(true),
            Attribute::Verify(false),
            Attribute::Wrap(false),
        ];
        let mut private = vec![
            Attribute::Token(true),
            Attribute::Private(true),
            Attribute::Sensitive(true),
            Attribute::Extractable(false),
            Attribute::Decrypt(true),
            Attribute::Sign(false),
            Attribute::Unwrap(false),
            Attribute::Derive(false),
            Attribute::Label(label.as_bytes().to_vec()),
            Attribute::Id(id.to_vec()),
            Attribute::Modifiable(false),
        ];
        let generate =
            |private: &[Attribute]| self.session.generate_key_pair(&Mechanism::RsaPkcsKeyPairGen, &public, private);
        let made = generate(&private).or_else(|error| {
            // Some modules take no CKA_MODIFIABLE. Sensitive and not extractable, a key stays so without it.
            private.pop();
            generate(&private).map_err(|_| error)
        });
        let (public, private) = made.map_err(|error| self.module.error(error))?;
        Ok(RsaPair { private: Key { handle: private }, public: Key { handle: public } })
    }

    /// How many keys of a pair have this label.
    pub fn count_pairs(&self, label: &str) -> Result<usize, Error> {
        let of = |class| self.find(&[Attribute::Class(class), Attribute::Label(label.as_bytes().to_vec())]);
        Ok(of(ObjectClass::PRIVATE_KEY)?.len() + of(ObjectClass::PUBLIC_KEY)?.len())
    }

    /// The one private key with this label.
    pub fn private_key(&self, label: &str) -> Result<Key, Error> {
        let template = [Attribute::Class(ObjectClass::PRIVATE_KEY), Attribute::Label(label.as_bytes().to_vec())];
        match self.find(&template)?.as_slice() {
            [key] => Ok(*key),
            [] => Err(Error::KekAbsent { label: label.to_owned(), id: "(any)".to_owned() }),
            keys => Err(Error::KekTwice { label: label.to_owned(), id: "(any)".to_owned(), count: keys.len() }),
        }
    }

    /// What a private key must be, and is not: names of attributes. Empty: it opens, does nothing else, and cannot leave the token.
    /// `CKA_LOCAL` is not asked: who calls this has made the key, and NSS says otherwise of its own.
    pub fn private_key_deviations(&self, key: Key) -> Result<Vec<&'static str>, Error> {
        let expected = [
            ("CKA_TOKEN", AttributeType::Token, true),
            ("CKA_PRIVATE", AttributeType::Private, true),
            ("CKA_SENSITIVE", AttributeType::Sensitive, true),
            ("CKA_EXTRACTABLE", AttributeType::Extractable, false),
            ("CKA_ALWAYS_SENSITIVE", AttributeType::AlwaysSensitive, true),
            ("CKA_NEVER_EXTRACTABLE", AttributeType::NeverExtractable, true),
            ("CKA_DECRYPT", AttributeType::Decrypt, true),
            ("CKA_SIGN", AttributeType::Sign, false),
            ("CKA_UNWRAP", AttributeType::Unwrap, false),
            ("CKA_DERIVE", AttributeType::Derive, false),
        ];
        let mut deviations = Vec::new();
        for (name, kind, must_be) in expected {
            if self.flag_of(key, kind)? != Some(must_be) {
                deviations.push(name);
            }
        }
        Ok(deviations)
    }

    /// The public half, as the private key has it.
    pub fn rsa_numbers(&self, key: Key) -> Result<RsaNumbers, Error> {
        let kinds = [AttributeType::Modulus, AttributeType::PublicExponent];
        let read = self.session.get_attributes(key.handle, &kinds).map_err(|error| self.module.error(error))?;
        let (mut modulus, mut exponent) = (Vec::new(), Vec::new());
        for attribute in read {
            match attribute {
                Attribute::Modulus(bytes) => modulus = bytes,
                Attribute::PublicExponent(bytes) => exponent = bytes,
                _ => {}
            }
        }
        Ok(RsaNumbers { modulus, exponent })
    }

    /// Opens what was sealed by RSA-OAEP with SHA-256, MGF1 with SHA-256 and no label.
    pub fn open_rsa_oaep(&self, key: Key, sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, Error> {
        let parameters = PkcsOaepParams::new(MechanismType::SHA256, PkcsMgfType::MGF1_SHA256, PkcsOaepSource::empty());
        let opened = self.session.decrypt(&Mechanism::RsaPkcsOaep(parameters), key.handle, sealed);
        opened.map(Zeroizing::new).map_err(|error| self.module.error(error))
    }

    fn flag_of(&self, key: Key, kind: AttributeType) -> Result<Option<bool>, Error> {
        let read = self.session.get_attributes(key.handle, &[kind]).map_err(|error| self.module.error(error))?;
        Ok(read.first().and_then(|attribute| match attribute {
            Attribute::Token(is)
            | Attribute::Private(is)
            | Attribute::Sensitive(is)
            | Attribute::Extractable(is)
            | Attribute::AlwaysSensitive(is)
            | Attribute::NeverExtractable(is)
            | Attribute::Decrypt(is)
            | Attribute::Sign(is)
            | Attribute::Unwrap(is)
            | Attribute::Derive(is) => Some(*is),
            _ => None,
        }))
    }
}

/// 65537.
const EXPONENT: [u8; 3] = [1, 0, 1];
