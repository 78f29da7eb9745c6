//! One recipient: a public key, its scheme and its fingerprint.

use std::fmt;
use std::ops::RangeInclusive;
use std::path::Path;
use std::str::FromStr;

use data_encoding::HEXLOWER;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest, Sha256};

use super::blob::RecoveryBlob;
use super::hybrid::{self, HybridPublic};
use super::rsa_oaep::{self, RsaPublic};
use super::{Binding, SealError};
use crate::envelope::{MAX_PLAINTEXT_BYTES, update_prefixed};
use crate::secret::Plaintext;
use crate::strict::{self, Base64, Fault, FileError};

/// How a seed is sealed to a recipient. The numbers are frozen: they are stored in etcd.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[repr(u8)]
pub enum Scheme {
    /// RSA-OAEP with SHA-256 and a modulus of 3072 bits (RFC 8017 section 7.1): the private half lives in an offline HSM.
    #[serde(rename = "rsa-oaep-3072")]
    RsaOaep3072 = 1,
    /// The same with 4096 bits.
    #[serde(rename = "rsa-oaep-4096")]
    RsaOaep4096 = 2,
    /// HPKE (RFC 9180) with the KEM X-Wing, which is X25519 and ML-KEM-768 together: secret as long as one of the two holds.
    #[serde(rename = "x25519-ml-kem-768")]
    Hybrid = 3,
}

/// SHA-256 over scheme and public key: the name of a recipient. Written as 64 lower-case hex digits.
#[derive(Clone, Copy, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Fingerprint([u8; 32]);

/// An offline public key that seeds are sealed to.
#[derive(Clone)]
pub struct Recipient {
    scheme: Scheme,
    key: PublicKey,
    fingerprint: Fingerprint,
    /// As it was read: RSA as the DER of its `SubjectPublicKeyInfo`, X-Wing as the 1216 bytes of its encapsulation key.
    encoded: Vec<u8>,
}

#[derive(Clone)]
enum PublicKey {
    Rsa(RsaPublic),
    Hybrid(Box<HybridPublic>),
}

impl Scheme {
    /// All schemes, in the order of their codes.
    pub const ALL: [Self; 3] = [Self::RsaOaep3072, Self::RsaOaep4096, Self::Hybrid];

    /// The scheme with this code.
    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|scheme| scheme.code() == code)
    }

    /// The code in the recovery blob.
    pub fn code(self) -> u8 {
        self as u8
    }

    /// As files write it.
    pub fn word(self) -> &'static str {
        match self {
            Self::RsaOaep3072 => "rsa-oaep-3072",
            Self::RsaOaep4096 => "rsa-oaep-4096",
            Self::Hybrid => "x25519-ml-kem-768",
        }
    }

    /// Bits of the modulus, where it is RSA.
    pub fn modulus_bits(self) -> Option<usize> {
        match self {
            Self::RsaOaep3072 => Some(3072),
            Self::RsaOaep4096 => Some(4096),
            Self::Hybrid => None,
        }
    }

    /// How many bytes it makes of a plaintext.
    pub(super) fn sealed_bytes(self) -> RangeInclusive<usize> {
        match self.modulus_bits() {
            Some(bits) => bits / 8..=bits / 8,
            None => hybrid::OVERHEAD_BYTES + 1..=hybrid::OVERHEAD_BYTES + MAX_PLAINTEXT_BYTES,
        }
    }
}

impl Recipient {
    /// The recipient with this public key: DER for RSA, 1216 bytes for X-Wing. The text says what is wrong with another.
    pub fn new(scheme: Scheme, encoded: Vec<u8>) -> Result<Self, String> {
        let key = match scheme.modulus_bits() {
            Some(bits) => PublicKey::Rsa(rsa_oaep::read(&encoded, bits)?),
            None => PublicKey::Hybrid(Box::new(hybrid::read(&encoded)?)),
        };
        let mut hash = Sha256::new();
        hash.update(DOMAIN);
        update_prefixed(&mut hash, scheme.word().as_bytes());
        update_prefixed(&mut hash, &encoded);
        Ok(Self { scheme, key, fingerprint: Fingerprint(hash.finalize().into()), encoded })
    }

    /// The recipient whose private half a token keeps, by the numbers of its RSA key (big endian).
    pub fn of_rsa(modulus: &[u8], exponent: &[u8]) -> Result<Self, String> {
        let unfit = || "the token's key is no RSA key of 3072 or 4096 bits".to_owned();
        let bits = modulus.iter().skip_while(|byte| **byte == 0).count().saturating_mul(8);
        let scheme = Scheme::ALL.into_iter().find(|scheme| scheme.modulus_bits() == Some(bits)).ok_or_else(unfit)?;
        Self::new(scheme, rsa_oaep::der(modulus, exponent).ok_or_else(unfit)?)
    }

    /// Reads the file that `hsm-kms recovery keygen` wrote.
    pub fn read(path: &Path) -> Result<Self, FileError> {
        let read = strict::read(path).and_then(|bytes| read(&bytes));
        read.map_err(|fault| FileError::new(WHAT, Some(path), fault))
    }

    /// As [`Recipient::read`], for bytes that are not from a file.
    pub fn parse(bytes: &[u8]) -> Result<Self, FileError> {
        read(bytes).map_err(|fault| FileError::new(WHAT, None, fault))
    }

    /// The text of that file.
    pub fn to_json(&self) -> String {
        let file = File { version: VERSION, recipient: self.clone() };
        let mut text = serde_json::to_string_pretty(&file).unwrap_or_default();
        text.push('\n');
        text
    }

    /// Its scheme.
    pub fn scheme(&self) -> Scheme {
        self.scheme
    }

    /// Its name.
    pub fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }

    /// Seals a seed to it.
    pub fn seal(&self, seed: &Plaintext, binding: &Binding) -> Result<Vec<u8>, SealError> {
        let sealed = match &self.key {
            PublicKey::Rsa(key) => rsa_oaep::seal(key, seed, binding)?,
            PublicKey::Hybrid(key) => hybrid::seal(key, seed, binding)?,
        };
        let blob = RecoveryBlob::new(self.scheme, &sealed).map_err(|error| SealError::Failed(error.to_string()))?;
        Ok(blob.encode())
    }
}

impl Fingerprint {
    /// The digest.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The annotation that carries what is sealed to this recipient: a fully qualified domain name, as the API server wants it.
    pub fn annotation(&self) -> String {
        let digits = HEXLOWER.encode(&self.0);
        format!("{}{ANNOTATION_SUFFIX}", digits.get(..ANNOTATION_DIGITS).unwrap_or(&digits))
    }
}

/// Whether an annotation with this name carries what is sealed to some recipient.
pub fn is_annotation(name: &str) -> bool {
    name.strip_suffix(ANNOTATION_SUFFIX).is_some_and(|digits| {
        digits.len() == ANNOTATION_DIGITS && digits.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
    })
}

const ANNOTATION_SUFFIX: &str = ".recovery.hsm-kms";
const ANNOTATION_DIGITS: usize = 16;

fn read(bytes: &[u8]) -> Result<Recipient, Fault> {
    strict::json(bytes, VERSION).map(|File { recipient, .. }| recipient)
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct File {
    version: u64,
    recipient: Recipient,
}

/// As files have it.
#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Form {
    scheme: Scheme,
    public_key: Base64,
    fingerprint: Fingerprint,
}

impl<'de> Deserialize<'de> for Recipient {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        use serde::de::Error;
        let form = Form::deserialize(deserializer)?;
        let recipient = Self::new(form.scheme, form.public_key.0).map_err(Error::custom)?;
        if recipient.fingerprint == form.fingerprint {
            Ok(recipient)
        } else {
            Err(Error::custom("the fingerprint is not that of this public key"))
        }
    }
}

impl Serialize for Recipient {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let public_key = Base64(self.encoded.clone());
        Form { scheme: self.scheme, public_key, fingerprint: self.fingerprint }.serialize(serializer)
    }
}

impl FromStr for Fingerprint {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bytes = HEXLOWER.decode(text.as_bytes()).ok().and_then(|bytes| bytes.try_into().ok());
        bytes.map(Self).ok_or("expected 64 lower-case hex digits")
    }
}

impl<'de> Deserialize<'de> for Fingerprint {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        strict::from_text(deserializer)
    }
}

impl Serialize for Fingerprint {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(&HEXLOWER.encode(&self.0))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Fingerprint({self})")
    }
}

impl fmt::Display for Scheme {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(self.word())
    }
}

impl PartialEq for Recipient {
    fn eq(&self, other: &Self) -> bool {
        self.fingerprint == other.fingerprint
    }
}

impl Eq for Recipient {}

impl fmt::Debug for Recipient {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Recipient({}, {})", self.scheme, self.fingerprint)
    }
}

const DOMAIN: &[u8] = b"hsm-kms/recipient/v1";
const VERSION: u64 = 1;
const WHAT: &str = "recovery recipient";
