//! What a probe asks of a module beside sealing: lists, limits, keys of any template, single attributes, size queries.

use cryptoki::mechanism::Mechanism as Named;
use cryptoki::object::Attribute;
use cryptoki_sys as sys;
use zeroize::Zeroizing;

use super::key::bare;
use super::raw::{Mechanism, Parameter, TooSmall, WRONG_LENGTH};
use super::{Error, Key, Session, Token};
use crate::seal::{IvSend, Seal, Sealing};

/// What a module says of a mechanism (`C_GetMechanismInfo`).
#[derive(Clone, Copy, Debug)]
pub struct MechanismInfo {
    /// Least and greatest key size. Bits or bytes: it depends on the mechanism, and on the module.
    pub key_size: (u64, u64),
    /// `CKF_...` flags.
    pub flags: u64,
}

/// What a token says of its limits and its state (`C_GetTokenInfo`).
#[derive(Clone, Copy, Debug)]
pub struct TokenLimits {
    /// `CKF_...` flags.
    pub flags: u64,
    /// Least and greatest length of a PIN, in bytes. Not true on every module.
    pub pin: (u64, u64),
    /// `ulMaxSessionCount`; 0: no limit; all ones: not told.
    pub sessions: u64,
}

/// What came of an encryption into one byte, and of the same operation with enough room.
pub struct OneByte {
    /// The answer to the buffer that was too small.
    pub first: Result<(), Error>,
    /// The answer to the next call.
    pub then: Result<(), Error>,
}

impl Token {
    /// Name and version of each interface of the module (`C_GetInterfaceList`). Empty: it is older than PKCS#11 3.0. One wrapper
    /// (pkcs11-spy) crashes when it is asked.
    pub fn interfaces(&self) -> Vec<String> {
        self.module.inner.functions.interfaces().unwrap_or_default()
    }

    /// The token's limits and flags as they are now.
    pub fn limits(&self) -> Result<TokenLimits, Error> {
        let limits = self.module.inner.functions.token_limits(self.slot.id());
        let limits = limits.map_err(|failed| self.module.call_error(failed))?;
        Ok(TokenLimits { flags: limits.flags, pin: limits.pin, sessions: limits.sessions })
    }

    /// How many mechanisms the token lists.
    pub fn mechanism_count(&self) -> Result<usize, Error> {
        let count = self.module.inner.functions.mechanism_count(self.slot.id());
        count.map_err(|failed| self.module.call_error(failed))
    }

    /// What the token says of the mechanism. `None`: it does not have it.
    pub fn mechanism(&self, number: u64) -> Result<Option<MechanismInfo>, Error> {
        match self.module.inner.functions.mechanism_info(self.slot.id(), number) {
            Ok(info) => Ok(Some(MechanismInfo { key_size: (info.least, info.most), flags: info.flags })),
            Err(failed) if failed.code == sys::CKR_MECHANISM_INVALID => Ok(None),
            Err(failed) => Err(self.module.call_error(failed)),
        }
    }
}

impl Session {
    /// `C_GenerateKey` with `CKM_AES_KEY_GEN` or `CKM_GENERIC_SECRET_KEY_GEN`, and exactly these attributes.
    pub fn generate_with(&self, generate: u64, template: &[(u64, Vec<u8>)]) -> Result<Key, Error> {
        let mechanism = match generate {
            sys::CKM_GENERIC_SECRET_KEY_GEN => Named::GenericSecretKeyGen,
            _ => Named::AesKeyGen,
        };
        let made = self.session.generate_key(&mechanism, &attributes(template));
        made.map(|handle| Key { handle }).map_err(|error| self.module.error(error))
    }

    /// The value of one attribute. `None`: the key has no such attribute.
    pub fn value(&self, key: Key, attribute: u64) -> Result<Option<Zeroizing<Vec<u8>>>, Error> {
        match self.functions().attribute(self.session.handle(), key.handle.handle(), attribute) {
            Err(failed) if failed.code == sys::CKR_ATTRIBUTE_TYPE_INVALID => Ok(None),
            read => read.map_err(|failed| self.module.call_error(failed)),
        }
    }

    /// `C_SetAttributeValue` of one attribute. `Ok(())`: the token let it happen.
    pub fn set(&self, key: Key, attribute: u64, value: &[u8]) -> Result<(), Error> {
        let template = attributes(&[(attribute, value.to_vec())]);
        self.session.update_attributes(key.handle, &template).map_err(|error| self.module.error(error))
    }

    /// `C_CopyObject` with these attributes changed.
    pub fn copy(&self, key: Key, template: &[(u64, Vec<u8>)]) -> Result<Key, Error> {
        let copied = self.session.copy_object(key.handle, &attributes(template));
        copied.map(|handle| Key { handle }).map_err(|error| self.module.error(error))
    }

    /// `C_WrapKey` of a 256-bit key by a mechanism without parameter, or by AES-CBC. `Ok(())`: the token gave it away.
    pub fn wrap_by(&self, mechanism: u64, wrapping: Key, key: Key) -> Result<(), Error> {
        let (wrapping, key) = (wrapping.handle.handle(), key.handle.handle());
        let mut iv = [0; BLOCK];
        let parameter = match mechanism {
            sys::CKM_AES_CBC | sys::CKM_AES_CBC_PAD => Parameter::Iv(&mut iv),
            _ => Parameter::None,
        };
        let mechanism = Mechanism { code: mechanism, parameter };
        match self.functions().wrap(self.session.handle(), mechanism, wrapping, key, WRAPPED) {
            // It only wants more room than we gave.
            Err(failed) if matches!(failed.code, WRONG_LENGTH | sys::CKR_BUFFER_TOO_SMALL) => Ok(()),
            wrapped => wrapped.map(drop).map_err(|failed| self.module.call_error(failed)),
        }
    }

    /// All objects with this label.
    pub fn labelled(&self, label: &str) -> Result<Vec<Key>, Error> {
        self.find(&[Attribute::Label(label.as_bytes().to_vec())])
    }

    /// All objects with this id.
    pub fn with_id(&self, id: &[u8]) -> Result<Vec<Key>, Error> {
        self.find(&[Attribute::Id(id.to_vec())])
    }

    /// How many objects the user sees, of any sort.
    pub fn object_count(&self) -> Result<usize, Error> {
        self.find(&[]).map(|found| found.len())
    }

    /// The size that the module asks for before it encrypts. Leaves an operation open: close the session.
    pub fn encrypted_size(&self, key: Key, sealing: &Sealing, context: &[u8], plaintext: &[u8]) -> Result<u64, Error> {
        let mut iv = first_iv(sealing);
        let mechanism = mechanism(sealing, &mut iv, context);
        let size = self.functions().encrypted_size(self.session.handle(), key.handle.handle(), mechanism, plaintext);
        size.map_err(|failed| self.module.call_error(failed))
    }

    /// The size that the module asks for before it decrypts. Leaves an operation open: close the session.
    pub fn decrypted_size(
        &self,
        key: Key,
        sealing: &Sealing,
        iv: &[u8],
        context: &[u8],
        ciphertext: &[u8],
    ) -> Result<u64, Error> {
        let mut iv = iv.to_vec();
        let mechanism = mechanism(sealing, &mut iv, context);
        let size = self.functions().decrypted_size(self.session.handle(), key.handle.handle(), mechanism, ciphertext);
        size.map_err(|failed| self.module.call_error(failed))
    }

    /// Encrypts into one byte, then goes on with enough room. The session must be closed.
    pub fn encrypt_into_one_byte(
        &self,
        key: Key,
        sealing: &Sealing,
        context: &[u8],
        plaintext: &[u8],
    ) -> Result<OneByte, Error> {
        let mut iv = first_iv(sealing);
        let mechanism = mechanism(sealing, &mut iv, context);
        let (session, key) = (self.session.handle(), key.handle.handle());
        let TooSmall { first, then } = self
            .functions()
            .encrypt_into_one_byte(session, key, mechanism, plaintext)
            .map_err(|failed| self.module.call_error(failed))?;
        Ok(OneByte {
            first: first.map_err(|failed| self.module.call_error(failed)),
            then: then.map_err(|failed| self.module.call_error(failed)),
        })
    }

    /// Encrypts with a large buffer. Gives what came out, and the IV as it is then.
    pub fn encrypt_anything(
        &self,
        key: Key,
        sealing: &Sealing,
        context: &[u8],
        plaintext: &[u8],
    ) -> Result<(Vec<u8>, Vec<u8>), Error> {
        let mut iv = first_iv(sealing);
        let mechanism = mechanism(sealing, &mut iv, context);
        let output = self
            .functions()
            .encrypt_anything(self.session.handle(), key.handle.handle(), mechanism, plaintext)
            .map_err(|failed| self.module.call_error(failed))?;
        Ok((output, iv))
    }

    /// Decrypts something that need not be a ciphertext, with a large buffer. Gives the number of bytes that came out. Some
    /// modules crash here.
    pub fn decrypt_anything(
        &self,
        key: Key,
        sealing: &Sealing,
        iv: &[u8],
        context: &[u8],
        ciphertext: &[u8],
    ) -> Result<usize, Error> {
        let mut iv = iv.to_vec();
        let mechanism = mechanism(sealing, &mut iv, context);
        self.functions()
            .decrypt_anything(self.session.handle(), key.handle.handle(), mechanism, ciphertext)
            .map_err(|failed| self.module.call_error(failed))
    }

    /// Encrypts 16 bytes by a mechanism that takes an IV of 16 bytes. `Ok(())`: the key may do that.
    pub fn encrypt_block(&self, key: Key, mechanism: u64) -> Result<(), Error> {
        let mut iv = [0; BLOCK];
        let mechanism = Mechanism { code: mechanism, parameter: Parameter::Iv(&mut iv) };
        self.encrypt(key, mechanism, &[0; BLOCK], BLOCK).map(drop)
    }
}

/// Room for a 256-bit key that was wrapped: 32 bytes by AES-CBC or ECB, 40 by RFC 3394 or RFC 5649, 48 with padding.
const WRAPPED: usize = 48;

const BLOCK: usize = 16;

fn attributes(template: &[(u64, Vec<u8>)]) -> Vec<Attribute> {
    template.iter().map(|(number, bytes)| bare(*number, bytes.clone())).collect()
}

/// An IV as it stands when a seal begins, only not random: nothing that matters is sealed with it.
fn first_iv(sealing: &Sealing) -> Vec<u8> {
    match sealing.send {
        IvSend::Null => Vec::new(),
        IvSend::Random => vec![7; sealing.form.iv_length.into()],
        IvSend::Zeros => vec![0; sealing.form.iv_length.into()],
    }
}

fn mechanism<'a>(sealing: &Sealing, iv: &'a mut [u8], aad: &'a [u8]) -> Mechanism<'a> {
    let parameter = match sealing.form.seal {
        Seal::AesGcm => Parameter::Gcm { iv, aad },
        Seal::AesCbcHmac => Parameter::Iv(iv),
        Seal::AesKwp | Seal::YubicoCcm => Parameter::None,
    };
    Mechanism { code: sealing.mechanism, parameter }
}
