//! The attacks, each by its name in docs/attacks.md. What they give is checked: a value counts when it opens what the key sealed.

use std::slice;

use aes_gcm::aead::{Aead, Payload};
use aes_gcm::{Aes256Gcm, KeyInit};
use cryptoki::error::Error;
use cryptoki::mechanism::aead::GcmParams;
use cryptoki::mechanism::ekdf::AesCbcDeriveParams;
use cryptoki::mechanism::misc::KeyDerivationStringData;
use cryptoki::mechanism::rsa::{PkcsMgfType, PkcsOaepParams, PkcsOaepSource};
use cryptoki::mechanism::vendor_defined::VendorDefinedMechanism;
use cryptoki::mechanism::{Mechanism, MechanismType};
use cryptoki::object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle};
use cryptoki::session::Session;
use cryptoki_sys as sys;
use hsm_kms::pkcs11::{self, KekKeys};
use hsm_kms::seal::Sealing;

use super::intruder::Failure;
use super::outside::{
    OWN, cbc_decrypted, cbc_encrypted, cbc_pad_decrypted, ecb_decrypted, kw_decrypted, kwp_decrypted,
};

/// One attempt on one key.
pub struct Try<'a> {
    pub session: &'a Session,
    /// The session that logged in, by the product's own code.
    pub login: &'a pkcs11::Session,
    pub target: ObjectHandle,
    /// Of the target.
    pub label: &'a str,
    /// How the target seals.
    pub seal: &'a str,
}

/// What was gained.
type Gain = Result<String, Failure>;

type Attack = fn(&Try) -> Gain;

/// All of them, but for those that put another key in the KEK's place.
pub const ATTACKS: &[(&str, Attack)] = &[
    ("read its value", read),
    ("wrap it by AES-ECB", |it| it.wrap_with(&Mechanism::AesEcb, ecb_decrypted)),
    ("wrap it by AES-CBC", |it| it.wrap_with(&Mechanism::AesCbc([0; 16]), cbc_decrypted)),
    ("wrap it by AES-CBC-PAD", |it| it.wrap_with(&Mechanism::AesCbcPad([0; 16]), cbc_pad_decrypted)),
    ("wrap it by AES-KW", |it| it.wrap_with(&Mechanism::AesKeyWrap, kw_decrypted)),
    ("wrap it by AES-KW with padding", |it| it.wrap_with(&Mechanism::AesKeyWrapPad, kwp_decrypted)),
    ("wrap it by AES-KWP", wrap_by_kwp),
    ("wrap it by AES-GCM", wrap_by_gcm),
    ("wrap it by RSA PKCS#1", |it| it.wrap_with_rsa(&Mechanism::RsaPkcs)),
    ("wrap it by RSA-OAEP", |it| {
        let source = PkcsOaepSource::empty();
        let oaep = PkcsOaepParams::new(MechanismType::SHA1, PkcsMgfType::MGF1_SHA1, source);
        it.wrap_with_rsa(&Mechanism::RsaPkcsOaep(oaep))
    }),
    ("wrap it under itself, and decrypt", wrap_under_itself),
    ("wrap another key under it", wrap_another),
    ("encrypt a known key, and unwrap it with it", encrypt_and_unwrap),
    ("set CKA_EXTRACTABLE true", |it| it.set(Attribute::Extractable(true))),
    ("set CKA_SENSITIVE false", |it| it.set(Attribute::Sensitive(false))),
    ("set CKA_PRIVATE false", |it| it.set(Attribute::Private(false))),
    ("set CKA_WRAP true", |it| it.set(Attribute::Wrap(true))),
    ("set CKA_UNWRAP true", |it| it.set(Attribute::Unwrap(true))),
    ("set CKA_DERIVE true", |it| it.set(Attribute::Derive(true))),
    ("set CKA_SIGN true", |it| it.set(Attribute::Sign(true))),
    ("set CKA_COPYABLE true", |it| it.set(Attribute::Copyable(true))),
    ("set CKA_MODIFIABLE true", |it| it.set(Attribute::Modifiable(true))),
    ("set another CKA_LABEL", |it| it.set(Attribute::Label(b"other".to_vec()))),
    ("set another CKA_ID", |it| it.set(Attribute::Id(vec![0xfe, 0xed]))),
    ("copy it for the session", |it| it.copy(&[])),
    ("copy it with CKA_EXTRACTABLE true", copy_extractable),
    ("copy it with CKA_SENSITIVE false", copy_not_sensitive),
    ("copy it with CKA_WRAP true", |it| it.copy(&[Attribute::Wrap(true)])),
    ("copy it with CKA_DERIVE true, and derive", copy_and_derive),
    ("copy it with CKA_SIGN true", |it| it.copy(&[Attribute::Sign(true)])),
    ("copy it with another label", |it| it.copy(&[Attribute::Label(b"other".to_vec())])),
    ("use it for AES-ECB", |it| it.encrypt(&Mechanism::AesEcb)),
    ("use it for AES-CBC", |it| match it.seal {
        "aes-cbc-hmac" => Err(Failure::Absent("that is how it seals".to_owned())),
        _ => it.encrypt(&Mechanism::AesCbc([0; 16])),
    }),
    ("use it for AES-CTR", |it| {
        let counter = sys::CK_AES_CTR_PARAMS { ulCounterBits: 128, cb: [0; 16] };
        it.encrypt(&Mechanism::VendorDefined(VendorDefinedMechanism::new(MechanismType::AES_CTR, Some(&counter))))
    }),
    ("use it for AES-CMAC", |it| it.sign(&Mechanism::AesCMac)),
    ("use it for HMAC", |it| it.sign(&Mechanism::Sha256Hmac)),
    ("digest it by C_DigestKey", digest),
    ("derive by AES_CBC_ENCRYPT_DATA", |it| {
        it.derive(&Mechanism::AesCbcEncryptData(AesCbcDeriveParams::new([0; 16], &[0; 32])))
    }),
    ("derive by CONCATENATE_BASE_AND_DATA", |it| {
        it.derive(&Mechanism::ConcatenateBaseAndData(KeyDerivationStringData::new(b"0123456789abcdef")))
    }),
    ("derive by CONCATENATE_DATA_AND_BASE", |it| {
        it.derive(&Mechanism::ConcatenateDataAndBase(KeyDerivationStringData::new(b"0123456789abcdef")))
    }),
    ("derive by CONCATENATE_BASE_AND_KEY", |it| {
        let own = own_key_of(it.session, &OWN)?;
        it.derive(&Mechanism::ConcatenateBaseAndKey(own))
    }),
    ("derive by XOR_BASE_AND_DATA", |it| {
        let mut data = [0_u8; 32];
        let parameter = sys::CK_KEY_DERIVATION_STRING_DATA { pData: data.as_mut_ptr(), ulLen: 32 };
        let xor = VendorDefinedMechanism::new(MechanismType::XOR_BASE_AND_DATA, Some(&parameter));
        it.derive(&Mechanism::VendorDefined(xor))
    }),
    // Last: where there were none it cannot be put back.
    ("set CKA_ALLOWED_MECHANISMS to more", |it| {
        it.set(Attribute::AllowedMechanisms(vec![MechanismType::AES_GCM, MechanismType::AES_ECB]))
    }),
];

impl Try<'_> {
    /// Wraps the target under a key whose value is known, and decrypts it outside.
    fn wrap_with(&self, mechanism: &Mechanism, decrypted: fn(&[u8]) -> Option<Vec<u8>>) -> Gain {
        let own = own_key_of(self.session, &OWN)?;
        let wrapped = self.session.wrap_key(mechanism, own, self.target)?;
        self.is_wrapped(&wrapped, decrypted)
    }

    /// Some modules say that they need more room than they take, and cryptoki leaves what they did not fill.
    fn is_wrapped(&self, wrapped: &[u8], decrypted: fn(&[u8]) -> Option<Vec<u8>>) -> Gain {
        let lengths = [32, 40, 48].into_iter().filter(|length| *length < wrapped.len());
        let mut values = lengths.filter_map(|length| decrypted(&wrapped[..length]));
        let last = || self.is_its_value(&decrypted(wrapped).unwrap_or_default());
        values.find_map(|value| self.is_its_value(&value).ok()).map_or_else(last, Ok)
    }

    fn wrap_with_rsa(&self, mechanism: &Mechanism) -> Gain {
        let public = [
            Attribute::Token(false),
            Attribute::ModulusBits(2048.into()),
            Attribute::PublicExponent(vec![1, 0, 1]),
            Attribute::Encrypt(true),
            Attribute::Wrap(true),
        ];
        let private = [Attribute::Token(false), Attribute::Private(true), Attribute::Decrypt(true)];
        let pair = self.session.generate_key_pair(&Mechanism::RsaPkcsKeyPairGen, &public, &private);
        let (public, private) = pair.map_err(no_own_key)?;
        let wrapped = self.session.wrap_key(mechanism, public, self.target)?;
        self.is_its_value(&self.session.decrypt(mechanism, private, &wrapped)?)
    }

    /// A value counts if the target opens what is sealed with it outside.
    fn is_its_value(&self, value: &[u8]) -> Gain {
        let Ok(value) = <[u8; 32]>::try_from(value) else {
            return Err(Failure::Nothing(format!("OK, with {} bytes", value.len())));
        };
        let text = [7; 32];
        let opened = if self.seal == "aes-cbc-hmac" {
            self.session.decrypt(&Mechanism::AesCbc([0; 16]), self.target, &cbc_encrypted(&value, &text))?
        } else {
            let payload = Payload { msg: &text, aad: b"attack" };
            let sealed = Aes256Gcm::new(&value.into()).encrypt(&[0; 12].into(), payload).unwrap();
            let mut iv = [0; 12];
            let parameter = GcmParams::new(&mut iv, b"attack", 128.into())?;
            self.session.decrypt(&Mechanism::AesGcm(parameter), self.target, &sealed)?
        };
        if opened == text {
            Ok("its value".to_owned())
        } else {
            Err(Failure::Nothing("OK, with another value".to_owned()))
        }
    }

    /// Sets it, and puts the old value back if that changed anything.
    fn set(&self, attribute: Attribute) -> Gain {
        let kind = attribute.attribute_type();
        let read = || self.session.get_attributes(self.target, &[kind]).ok().and_then(|read| read.into_iter().next());
        let old = read();
        if old.as_ref() == Some(&attribute) {
            return Ok("it is so".to_owned());
        }
        self.session.update_attributes(self.target, slice::from_ref(&attribute))?;
        if read() != Some(attribute) {
            return Err(Failure::Nothing("OK, and nothing changed".to_owned()));
        }
        if let Some(old) = old {
            // Not possible for what can only be set one way. Then the next attacks have it easier.
            let _ = self.session.update_attributes(self.target, &[old]);
        }
        Ok("set".to_owned())
    }

    fn copy(&self, changes: &[Attribute]) -> Gain {
        self.copied(changes)?;
        Ok("a copy".to_owned())
    }

    fn copied(&self, changes: &[Attribute]) -> Result<ObjectHandle, Failure> {
        let copy = self.session.copy_object(self.target, &[&[Attribute::Token(false)], changes].concat())?;
        for change in changes {
            let read = self.session.get_attributes(copy, &[change.attribute_type()])?;
            if read.first() != Some(change) {
                return Err(Failure::Nothing("a copy, and as strict".to_owned()));
            }
        }
        Ok(copy)
    }

    fn encrypt(&self, mechanism: &Mechanism) -> Gain {
        let encrypted = self.session.encrypt(mechanism, self.target, &[0; 32])?;
        Ok(format!("{} bytes encrypted", encrypted.len()))
    }

    fn sign(&self, mechanism: &Mechanism) -> Gain {
        let signed = self.session.sign(mechanism, self.target, b"of the attacker's choice")?;
        Ok(format!("a MAC of {} bytes", signed.len()))
    }

    /// A derived key that may be read.
    fn derive(&self, mechanism: &Mechanism) -> Gain {
        let template = [
            Attribute::Class(ObjectClass::SECRET_KEY),
            Attribute::KeyType(KeyType::GENERIC_SECRET),
            Attribute::Token(false),
            Attribute::Sensitive(false),
            Attribute::Extractable(true),
            Attribute::ValueLen(32.into()),
        ];
        let derived = self.session.derive_key(mechanism, self.target, &template)?;
        match value_of(self.session, derived) {
            Some(value) if self.is_its_value(&value).is_ok() => Ok("its value".to_owned()),
            Some(value) => Ok(format!("a derived key of {} bytes, readable", value.len())),
            None => Ok("a derived key".to_owned()),
        }
    }

    /// The mechanism that the target seals with.
    fn with_its_mechanism(&self, run: impl FnOnce(&Mechanism) -> Gain) -> Gain {
        if self.seal == "aes-cbc-hmac" {
            return run(&Mechanism::AesCbc([0; 16]));
        }
        let mut iv = [0; 12];
        run(&Mechanism::AesGcm(GcmParams::new(&mut iv, b"attack", 128.into())?))
    }
}

fn read(it: &Try) -> Gain {
    match it.session.get_attributes(it.target, &[AttributeType::Value])?.first() {
        Some(Attribute::Value(value)) => it.is_its_value(value),
        _ => Err(Failure::Nothing("ATTRIBUTE_SENSITIVE".to_owned())),
    }
}

/// cryptoki has no name for it, so this is done by the product's own code. A wrapped key counts: the wrapping key is known.
fn wrap_by_kwp(it: &Try) -> Gain {
    let label = b"wrapping".to_vec();
    let own = own_key_of(it.session, &OWN)?;
    it.session.update_attributes(own, &[Attribute::Label(label)])?;
    let find = |label| it.login.labelled(label).ok().and_then(|found| found.first().copied());
    let (Some(wrapping), Some(target)) = (find("wrapping"), find(it.label)) else {
        return Err(Failure::Absent("the keys are not found".to_owned()));
    };
    match it.login.wrap_by(sys::CKM_AES_KEY_WRAP_KWP, wrapping, target) {
        Ok(()) => Ok("wrapped under a known key".to_owned()),
        Err(pkcs11::Error::Call { code, .. }) => {
            Err(Failure::Nothing(pkcs11::codes::name(code).trim_start_matches("CKR_").to_owned()))
        }
        Err(error) => Err(Failure::Nothing(error.to_string())),
    }
}

fn wrap_by_gcm(it: &Try) -> Gain {
    let own = own_key_of(it.session, &OWN)?;
    let mut iv = [0; 12];
    let wrapped =
        it.session.wrap_key(&Mechanism::AesGcm(GcmParams::new(&mut iv, b"attack", 128.into())?), own, it.target)?;
    let payload = Payload { msg: &wrapped, aad: b"attack" };
    it.is_its_value(&Aes256Gcm::new(&OWN.into()).decrypt(&[0; 12].into(), payload).unwrap_or_default())
}

fn wrap_under_itself(it: &Try) -> Gain {
    it.with_its_mechanism(|mechanism| {
        let wrapped = it.session.wrap_key(mechanism, it.target, it.target)?;
        it.is_its_value(&it.session.decrypt(mechanism, it.target, &wrapped)?)
    })
    .or_else(|failure| match it.session.wrap_key(&Mechanism::AesKeyWrap, it.target, it.target) {
        Ok(_) => Ok("it is wrapped under itself".to_owned()),
        Err(_) => Err(failure),
    })
}

fn wrap_another(it: &Try) -> Gain {
    let own = own_key_of(it.session, &OWN)?;
    it.with_its_mechanism(|mechanism| {
        it.session.wrap_key(mechanism, it.target, own)?;
        Ok("a key that is wrapped under it".to_owned())
    })
    .or_else(|failure| match it.session.wrap_key(&Mechanism::AesKeyWrap, it.target, own) {
        Ok(_) => Ok("a key that is wrapped under it".to_owned()),
        Err(_) => Err(failure),
    })
}

/// A look-alike: what the KEK encrypted becomes a key that may be read.
fn encrypt_and_unwrap(it: &Try) -> Gain {
    let template = [
        Attribute::Class(ObjectClass::SECRET_KEY),
        Attribute::KeyType(KeyType::AES),
        Attribute::Token(false),
        Attribute::Sensitive(false),
        Attribute::Extractable(true),
    ];
    let unwrapped = if it.seal == "aes-cbc-hmac" {
        let encrypted = it.session.encrypt(&Mechanism::AesCbc([0; 16]), it.target, &OWN)?;
        it.session.unwrap_key(&Mechanism::AesCbc([0; 16]), it.target, &encrypted, &template)?
    } else {
        // By the product's code: NSS says that less room is needed than it wants, and cryptoki believes it.
        let key = it.login.key_with_label(it.label).map_err(|error| Failure::Nothing(error.to_string()))?;
        let sealed = it
            .login
            .seal(KekKeys { key, mac: None }, &Sealing::AES_GCM_SENT, b"attack", &OWN)
            .map_err(|error| Failure::Nothing(error.to_string()))?;
        let mut iv = sealed.iv;
        let parameter = GcmParams::new(&mut iv, b"attack", 128.into())?;
        it.session.unwrap_key(&Mechanism::AesGcm(parameter), it.target, &sealed.ciphertext, &template)?
    };
    match value_of(it.session, unwrapped) {
        Some(value) if value == OWN => Ok("a key of known value".to_owned()),
        _ => Ok("a key".to_owned()),
    }
}

fn copy_extractable(it: &Try) -> Gain {
    let copy = it.copied(&[Attribute::Extractable(true)])?;
    let own = own_key_of(it.session, &OWN)?;
    let by = |mechanism: &Mechanism, decrypted| {
        let wrapped = it.session.wrap_key(mechanism, own, copy).ok()?;
        it.is_wrapped(&wrapped, decrypted).ok()
    };
    let value = by(&Mechanism::AesKeyWrap, kw_decrypted).or_else(|| by(&Mechanism::AesCbc([0; 16]), cbc_decrypted));
    Ok(value.unwrap_or_else(|| "a copy".to_owned()))
}

fn copy_and_derive(it: &Try) -> Gain {
    let copy = Try { target: it.copied(&[Attribute::Derive(true)])?, ..*it };
    let data = Mechanism::ConcatenateBaseAndData(KeyDerivationStringData::new(b"0123456789abcdef"));
    Ok(copy.derive(&data).unwrap_or_else(|_| "a copy".to_owned()))
}

fn copy_not_sensitive(it: &Try) -> Gain {
    let copy = it.copied(&[Attribute::Sensitive(false)])?;
    match value_of(it.session, copy) {
        Some(value) if it.is_its_value(&value).is_ok() => Ok("its value".to_owned()),
        _ => Ok("a copy".to_owned()),
    }
}

/// A digest of the value alone: an attacker may then test guesses, and a token that does so for parts of a key gives all of it.
fn digest(it: &Try) -> Gain {
    it.session.digest_init(&Mechanism::Sha256)?;
    it.session.digest_key(it.target)?;
    let digest = it.session.digest_final()?;
    Ok(format!("a digest of {} bytes", digest.len()))
}

/// A key of the attacker's own for this session, with a value that is known.
pub fn own_key_of(session: &Session, value: &[u8; 32]) -> Result<ObjectHandle, Failure> {
    let template = [
        Attribute::Class(ObjectClass::SECRET_KEY),
        Attribute::KeyType(KeyType::AES),
        Attribute::Token(false),
        Attribute::Sensitive(false),
        Attribute::Extractable(true),
        Attribute::Encrypt(true),
        Attribute::Decrypt(true),
        Attribute::Wrap(true),
        Attribute::Unwrap(true),
        Attribute::Value(value.to_vec()),
    ];
    session.create_object(&template).map_err(no_own_key)
}

fn no_own_key(error: Error) -> Failure {
    match error {
        Error::Pkcs11(_, function) => Failure::Absent(format!("no wrapping key: {function:?}")),
        other => Failure::Code(other),
    }
}

fn value_of(session: &Session, key: ObjectHandle) -> Option<Vec<u8>> {
    session.get_attributes(key, &[AttributeType::Value]).ok()?.into_iter().find_map(|attribute| match attribute {
        Attribute::Value(value) if !value.is_empty() => Some(value),
        _ => None,
    })
}
