//! Sealing and opening with a KEK: one file per mechanism, chosen here.

use zeroize::Zeroizing;

use super::raw::{CallFailed, Mechanism, Message, TAG_BYTES};
use super::{Error, KekKeys, Key, Session, cbc_hmac, gcm, opaque};
use crate::seal::{Seal, SealForm, Sealing};

/// What a seal made: the IV as the blob records it, and the ciphertext with its tag.
pub struct Sealed {
    /// Empty where the IV lies inside.
    pub iv: Vec<u8>,
    /// With the tag, and without the IV where that is known apart.
    pub ciphertext: Vec<u8>,
}

impl Session {
    /// Seals `plaintext`, bound to `context` (32 bytes). Two PKCS#11 calls, four with a MAC key.
    pub fn seal(&self, keys: KekKeys, sealing: &Sealing, context: &[u8], plaintext: &[u8]) -> Result<Sealed, Error> {
        match sealing.form.seal {
            Seal::AesGcm => gcm::seal(self, keys.key, sealing, context, plaintext),
            Seal::AesKwp | Seal::YubicoCcm => opaque::seal(self, keys.key, sealing, context, plaintext),
            Seal::AesCbcHmac => cbc_hmac::seal(self, keys, sealing, context, plaintext),
        }
    }

    /// Opens what [`Session::seal`] made on a token with this sealing. The IV layout may be another: a site may have changed its
    /// HSM's mode, and the blob's `form` says which it was.
    pub fn open(
        &self,
        keys: KekKeys,
        sealing: &Sealing,
        form: SealForm,
        iv: &[u8],
        context: &[u8],
        ciphertext: &[u8],
    ) -> Result<Zeroizing<Vec<u8>>, Error> {
        // No PKCS#11 call on what cannot be right: this KEK never sealed so; and a short ciphertext drives one module to write
        // to address 2^64 - 8.
        if form.seal != sealing.form.seal || ciphertext.len() < form.shortest_ciphertext() {
            return Err(self.data_error("C_Decrypt"));
        }
        match form.seal {
            Seal::AesGcm => gcm::open(self, keys.key, sealing, iv, context, ciphertext),
            Seal::AesKwp | Seal::YubicoCcm => opaque::open(self, keys.key, sealing, context, ciphertext),
            Seal::AesCbcHmac => cbc_hmac::open(self, keys, sealing, iv, context, ciphertext),
        }
    }

    pub(super) fn encrypt(
        &self,
        key: Key,
        mechanism: Mechanism<'_>,
        plaintext: &[u8],
        expected: usize,
    ) -> Result<Vec<u8>, Error> {
        self.encrypt_to(key, mechanism, plaintext, expected..=expected)
    }

    /// As [`Session::encrypt`], where the module decides how much it adds.
    pub(super) fn encrypt_to(
        &self,
        key: Key,
        mechanism: Mechanism<'_>,
        plaintext: &[u8],
        expected: std::ops::RangeInclusive<usize>,
    ) -> Result<Vec<u8>, Error> {
        self.functions()
            .encrypt(self.session.handle(), key.handle.handle(), mechanism, plaintext, expected)
            .map_err(|failed| self.module.call_error(failed))
    }

    pub(super) fn decrypt(
        &self,
        key: Key,
        mechanism: Mechanism<'_>,
        ciphertext: &[u8],
        expected: std::ops::RangeInclusive<usize>,
    ) -> Result<Zeroizing<Vec<u8>>, Error> {
        self.functions()
            .decrypt(self.session.handle(), key.handle.handle(), mechanism, ciphertext, expected)
            .map_err(|failed| self.module.call_error(failed))
    }

    pub(super) fn sign(
        &self,
        key: Key,
        mechanism: Mechanism<'_>,
        data: &[u8],
        expected: usize,
    ) -> Result<Zeroizing<Vec<u8>>, Error> {
        self.functions()
            .sign(self.session.handle(), key.handle.handle(), mechanism, data, expected)
            .map_err(|failed| self.module.call_error(failed))
    }

    pub(super) fn encrypt_message(&self, key: Key, message: Message<'_>, plaintext: &[u8]) -> Result<Vec<u8>, Error> {
        self.functions()
            .encrypt_message(self.session.handle(), key.handle.handle(), message, plaintext)
            .map_err(|failed| self.module.call_error(failed))
    }

    pub(super) fn decrypt_message(
        &self,
        key: Key,
        message: Message<'_>,
        ciphertext: &[u8],
    ) -> Result<Zeroizing<Vec<u8>>, Error> {
        let Some((ciphertext, tag)) = ciphertext.split_last_chunk::<TAG_BYTES>() else {
            return Err(self.data_error("C_DecryptMessage"));
        };
        self.functions()
            .decrypt_message(self.session.handle(), key.handle.handle(), message, ciphertext, &mut tag.clone())
            .map_err(|failed| self.module.call_error(failed))
    }

    /// The blob is at fault, as `function` would say it.
    pub(super) fn data_error(&self, function: &'static str) -> Error {
        let code = cryptoki_sys::CKR_ENCRYPTED_DATA_INVALID;
        self.module.call_error(CallFailed { function, code, mid_operation: false })
    }
}

/// Fills `buffer` from the kernel.
pub(super) fn random(buffer: &mut [u8]) -> Result<(), Error> {
    getrandom::fill(buffer).map_err(|error| Error::Unreadable(format!("no kernel randomness: {error}")))
}
