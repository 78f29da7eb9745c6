//! Keys that the attacker makes: one of known value with the KEK's name, and one as somebody without care would make it.

use cryptoki::error::Error;
use cryptoki::mechanism::{Mechanism, MechanismType};
use cryptoki::object::{Attribute, KeyType, ObjectClass, ObjectHandle};
use cryptoki::session::Session;

use super::intruder::{Failure, Work};
use super::list::own_key_of;
use super::outside::cbc_encrypted;

/// Label of the careless key.
pub const CARELESS: &str = "careless";

/// The value that the attacker knows.
const KNOWN: [u8; 32] = [0x5a; 32];

/// A key with default attributes, but for what a KEK must do anyway.
pub fn careless(session: &Session, extractable: bool) -> Result<ObjectHandle, Error> {
    let mut template = vec![
        Attribute::Token(true),
        Attribute::Label(CARELESS.as_bytes().to_vec()),
        Attribute::ValueLen(32.into()),
        Attribute::Encrypt(true),
        Attribute::Decrypt(true),
    ];
    if extractable {
        template.push(Attribute::Extractable(true));
    }
    session.generate_key(&Mechanism::AesKeyGen, &template)
}

/// By `C_CreateObject`.
pub fn create(session: &Session, work: &Work) -> Result<String, Failure> {
    let template = [template(work), vec![Attribute::Value(KNOWN.to_vec())], modifiable(work)].concat();
    session.create_object(&template)?;
    Ok("a key of known value".to_owned())
}

/// By `C_UnwrapKey`, under a key that the attacker knows too.
pub fn unwrap(session: &Session, work: &Work) -> Result<String, Failure> {
    let own = own_key_of(session, &KNOWN)?;
    let template = [template(work), modifiable(work)].concat();
    let wrapped = aes_kw::KekAes256::from(KNOWN).wrap_vec(&KNOWN).unwrap();
    let unwrapped = session.unwrap_key(&Mechanism::AesKeyWrap, own, &wrapped, &template);
    if unwrapped.is_err() {
        session.unwrap_key(&Mechanism::AesCbc([0; 16]), own, &cbc_encrypted(&KNOWN, &KNOWN), &template)?;
    }
    Ok("a key of known value".to_owned())
}

/// Everything of the KEK that a template may say.
fn template(work: &Work) -> Vec<Attribute> {
    let mut template = vec![Attribute::Class(ObjectClass::SECRET_KEY), Attribute::KeyType(KeyType::AES)];
    template.extend(work.name());
    let flags: [Flag; 12] = [
        ("CKA_TOKEN", Attribute::Token),
        ("CKA_PRIVATE", Attribute::Private),
        ("CKA_SENSITIVE", Attribute::Sensitive),
        ("CKA_EXTRACTABLE", Attribute::Extractable),
        ("CKA_ENCRYPT", Attribute::Encrypt),
        ("CKA_DECRYPT", Attribute::Decrypt),
        ("CKA_WRAP", Attribute::Wrap),
        ("CKA_UNWRAP", Attribute::Unwrap),
        ("CKA_SIGN", Attribute::Sign),
        ("CKA_VERIFY", Attribute::Verify),
        ("CKA_DERIVE", Attribute::Derive),
        ("CKA_COPYABLE", Attribute::Copyable),
    ];
    template.extend(flags.into_iter().filter_map(|(name, attribute)| work.flag(name).map(attribute)));
    if work.names_mechanisms() {
        template.push(Attribute::AllowedMechanisms(vec![MechanismType::AES_GCM]));
    }
    template
}

type Flag = (&'static str, fn(bool) -> Attribute);

/// Last: SoftHSM2 applies a template in order, and refuses what follows this.
fn modifiable(work: &Work) -> Vec<Attribute> {
    work.flag("CKA_MODIFIABLE").map(Attribute::Modifiable).into_iter().collect()
}
