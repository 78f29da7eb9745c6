//! In the child: the vectors through the module.

use std::collections::BTreeMap;

use cryptoki::error::{Error, RvError};
use cryptoki::mechanism::aead::GcmParams;
use cryptoki::mechanism::rsa::{PkcsMgfType, PkcsOaepParams, PkcsOaepSource};
use cryptoki::mechanism::{Mechanism, MechanismType};
use cryptoki::object::{Attribute, KeyType, ObjectClass, ObjectHandle};
use cryptoki::session::Session;
use cryptoki::slot::Slot;
use cryptoki_sys as sys;
use hsm_kms::pkcs11::{KekKeys, Key};
use hsm_kms::seal::{IvLayout, IvSend, Seal, SealCall, SealForm, Sealing};

use super::Tally;
use super::file::Vector;
use crate::door::Door;

/// Every file.
pub fn all(door: &Door) -> BTreeMap<String, Tally> {
    let (login, slot) = door.log_in();
    let through = Through { door, slot };
    let oaep = |name: &'static str| (name, through.oaep(name));
    let tallies = [
        ("aes_gcm", through.gcm()),
        ("aes_kwp", through.kwp()),
        ("hmac_sha256", through.hmac()),
        oaep("rsa_oaep_3072_sha256_mgf1sha256"),
        oaep("rsa_oaep_4096_sha256_mgf1sha256"),
    ];
    // The login lasts as long as its session.
    drop(login);
    tallies.into_iter().map(|(name, tally)| (name.to_owned(), tally)).collect()
}

struct Through<'a> {
    door: &'a Door,
    slot: Slot,
}

impl Through<'_> {
    /// AES-GCM: the product opens, and cryptoki seals, since there the IV can be given.
    fn gcm(&self) -> Tally {
        let mut tally = Tally::default();
        for vector in Vector::all("aes_gcm") {
            let form =
                SealForm { iv_length: vector.iv.0.len().try_into().unwrap_or(u8::MAX), ..SealForm::AES_GCM_SENT };
            if let Some(why) = self.no_seal_of_ours(&vector, form) {
                tally.skip(why);
                continue;
            }
            let session = self.session();
            let handle = import(&session, KeyType::AES, &vector.key.0);
            let sealed = [&vector.ct.0[..], &vector.tag.0].concat();
            let open = |sealed: &[u8]| self.open(form, &vector, sealed);
            tally.judge(&vector, open(&sealed));
            if !vector.is_valid() {
                continue;
            }
            let mut changed = sealed.clone();
            *changed.last_mut().unwrap() ^= 1;
            match open(&changed) {
                None => tally.refused += 1,
                Some(_) => tally.wrong.push(format!("{}: it opens with another tag", vector.tc_id)),
            }
            let mut iv = vector.iv.0.clone();
            let parameter = GcmParams::new(&mut iv, &vector.aad.0, 128.into()).unwrap();
            match session.encrypt(&Mechanism::AesGcm(parameter), handle, &vector.msg.0) {
                Ok(found) if found == sealed => {}
                Err(Error::Pkcs11(RvError::BufferTooSmall, _)) => {
                    tally.skip("sealing: the module asks cryptoki for less room than it wants");
                }
                other => tally.wrong.push(format!("{}: it seals to {other:?}", vector.tc_id)),
            }
        }
        tally
    }

    /// By the product's own code, on a session of its own: an error may end one.
    fn open(&self, form: SealForm, vector: &Vector, sealed: &[u8]) -> Option<Vec<u8>> {
        let session = self.door.session();
        let key = session.key_with_label(LABEL).unwrap();
        let keys = KekKeys { key, mac: None };
        let sealing = Sealing { form, ..Sealing::AES_GCM_SENT };
        session.open(keys, &sealing, form, &vector.iv.0, &vector.aad.0, sealed).ok().map(|opened| opened.to_vec())
    }

    fn no_seal_of_ours(&self, vector: &Vector, form: SealForm) -> Option<&'static str> {
        if !self.has(MechanismType::AES_GCM) {
            return Some(NO_MECHANISM);
        }
        let whys = [
            (vector.key.0.len() != 32, OTHER_KEY),
            (!form.is_consistent(), "an IV length that no seal has"),
            (vector.msg.0.is_empty(), "an empty text, which nobody seals"),
        ];
        whys.into_iter().find_map(|(applies, why)| applies.then_some(why))
    }

    /// RFC 5649. The shortest seal of ours is longer than most of the vectors, so this goes below it.
    fn kwp(&self) -> Tally {
        let form = SealForm { seal: Seal::AesKwp, iv_layout: IvLayout::Inside, iv_length: 0 };
        let mechanism = sys::CKM_AES_KEY_WRAP_KWP;
        let sealing = Sealing { form, send: IvSend::Null, mechanism, call: SealCall::Encrypt };
        let mut tally = Tally::default();
        for vector in Vector::all("aes_kwp") {
            if !self.door.token().has_mechanism(mechanism, sys::CKF_ENCRYPT).unwrap() {
                tally.skip(NO_MECHANISM);
                continue;
            }
            if vector.key.0.len() != 32 {
                tally.skip(OTHER_KEY);
                continue;
            }
            let session = self.session();
            import(&session, KeyType::AES, &vector.key.0);
            let on = || -> (hsm_kms::pkcs11::Session, Key) {
                let session = self.door.session();
                let key = session.key_with_label(LABEL).unwrap();
                (session, key)
            };
            let (opening, key) = on();
            let length = opening.decrypt_anything(key, &sealing, &[], &[], &vector.ct.0);
            // Only the length is told of what opens, so it is sealed again: key wrap has no IV.
            let opened = length.ok().map(|length| {
                let (sealing_session, key) = on();
                let sealed = sealing_session.encrypt_anything(key, &sealing, &[], &vector.msg.0);
                let is_right = sealed.is_ok_and(|(sealed, _)| sealed == vector.ct.0) && length == vector.msg.0.len();
                if is_right { vector.msg.0.clone() } else { Vec::new() }
            });
            tally.judge(&vector, opened);
        }
        tally
    }

    /// HMAC-SHA-256 as the product uses it: made again and compared.
    fn hmac(&self) -> Tally {
        let mut tally = Tally::default();
        for vector in Vector::all("hmac_sha256") {
            if vector.key.0.len() != 32 || vector.tag.0.len() != 32 {
                tally.skip("another length of key or MAC than ours");
                continue;
            }
            let session = self.session();
            let key = import(&session, KeyType::GENERIC_SECRET, &vector.key.0);
            let made = session.sign(&Mechanism::Sha256Hmac, key, &vector.msg.0);
            let is_right = made.as_ref().is_ok_and(|made| *made == vector.tag.0);
            tally.judge(&vector, is_right.then(|| vector.msg.0.clone()));
        }
        tally
    }

    /// RSA-OAEP with SHA-256 and MGF1 with SHA-256.
    fn oaep(&self, name: &str) -> Tally {
        let mut tally = Tally::default();
        let vectors = Vector::all(name);
        let sample = vectors.iter().find(|vector| vector.is_valid() && !vector.msg.0.is_empty()).unwrap();
        if let Err(Error::Pkcs11(code, _)) = self.decrypted(sample) {
            tally.skipped.insert(format!("no SHA-256 in OAEP: {code:?}"), vectors.len());
            return tally;
        }
        for vector in vectors {
            tally.judge(&vector, self.decrypted(&vector).ok());
        }
        tally
    }

    fn decrypted(&self, vector: &Vector) -> Result<Vec<u8>, Error> {
        let session = self.session();
        let key = session.create_object(&[
            Attribute::Class(ObjectClass::PRIVATE_KEY),
            Attribute::KeyType(KeyType::RSA),
            Attribute::Token(false),
            Attribute::Private(true),
            Attribute::Decrypt(true),
            Attribute::Id(vec![1]),
            Attribute::Modulus(vector.private("modulus")),
            Attribute::PublicExponent(vector.private("publicExponent")),
            Attribute::PrivateExponent(vector.private("privateExponent")),
            Attribute::Prime1(vector.private("prime1")),
            Attribute::Prime2(vector.private("prime2")),
            Attribute::Exponent1(vector.private("exponent1")),
            Attribute::Exponent2(vector.private("exponent2")),
            Attribute::Coefficient(vector.private("coefficient")),
        ])?;
        let source = match &vector.label.0[..] {
            [] => PkcsOaepSource::empty(),
            label => PkcsOaepSource::data_specified(label),
        };
        let oaep = PkcsOaepParams::new(MechanismType::SHA256, PkcsMgfType::MGF1_SHA256, source);
        session.decrypt(&Mechanism::RsaPkcsOaep(oaep), key, &vector.ct.0)
    }

    fn session(&self) -> Session {
        self.door.context.open_rw_session(self.slot).unwrap()
    }

    fn has(&self, mechanism: MechanismType) -> bool {
        self.door.context.get_mechanism_list(self.slot).unwrap().contains(&mechanism)
    }
}

const LABEL: &str = "of a vector";
const NO_MECHANISM: &str = "the module has no such mechanism";
const OTHER_KEY: &str = "not a key of 256 bits, as a KEK is";

/// A key of this value, as long as the session lives.
fn import(session: &Session, kind: KeyType, value: &[u8]) -> ObjectHandle {
    let mut template = vec![
        Attribute::Class(ObjectClass::SECRET_KEY),
        Attribute::KeyType(kind),
        Attribute::Token(false),
        Attribute::Label(LABEL.as_bytes().to_vec()),
        Attribute::Value(value.to_vec()),
    ];
    template.extend(match kind {
        KeyType::AES => vec![Attribute::Encrypt(true), Attribute::Decrypt(true)],
        _ => vec![Attribute::Sign(true)],
    });
    session.create_object(&template).unwrap()
}

impl Tally {
    fn skip(&mut self, why: &str) {
        *self.skipped.entry(why.to_owned()).or_default() += 1;
    }

    /// What came out is what should, and nothing where nothing should.
    fn judge(&mut self, vector: &Vector, opened: Option<Vec<u8>>) {
        let number = vector.tc_id;
        match (vector.is_valid(), opened) {
            (true, Some(text)) if text == vector.msg.0 => self.opened += 1,
            (true, Some(_)) => self.wrong.push(format!("{number}: it opens to another text")),
            (true, None) => self.wrong.push(format!("{number}: it is valid, and refused")),
            (false, Some(_)) => self.wrong.push(format!("{number}: it is invalid, and opens")),
            (false, None) => self.refused += 1,
        }
    }
}
