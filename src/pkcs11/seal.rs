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

#[cfg(test)]
mod tests {
    use std::env;
    use std::fs;
    use std::io::{BufWriter, Write};
    use std::process::{Command, Stdio};

    use super::*;

    const IV_BYTES: usize = 12;
    const COUNT: &str = "HSM_KMS_IVS";
    const FILE: &str = "HSM_KMS_TEST_IVS";

    /// From eight processes, four of them at a time: each is this test again, and writes what it got.
    #[test]
    fn ivs_do_not_repeat() {
        let number = env::var(COUNT).map_or(200_000, |count| count.parse().unwrap());
        if let Some(path) = env::var_os(FILE) {
            return write_ivs(&path, number);
        }
        let directory = tempfile::tempdir().unwrap();
        let mut ivs: Vec<[u8; IV_BYTES]> = Vec::new();
        for run in 0..2 {
            let start = |process| {
                let path = directory.path().join(format!("{run}-{process}"));
                let mut child = Command::new(env::current_exe().unwrap());
                child.args(["--exact", "pkcs11::seal::tests::ivs_do_not_repeat"]).env(FILE, &path);
                (path, child.env(COUNT, (number / 8).to_string()).stdout(Stdio::null()).spawn().unwrap())
            };
            for (path, mut child) in [0, 1, 2, 3].map(start) {
                assert!(child.wait().unwrap().success());
                ivs.extend(fs::read(path).unwrap().as_chunks::<IV_BYTES>().0);
            }
        }
        assert_eq!(ivs.len(), number / 8 * 8);
        ivs.sort_unstable();
        let repeated = ivs.windows(2).filter(|pair| pair[0] == pair[1]).count();
        assert_eq!(repeated, 0);
    }

    fn write_ivs(path: &std::ffi::OsStr, number: usize) {
        let mut file = BufWriter::new(fs::File::create(path).unwrap());
        for _ in 0..number {
            let mut iv = [0; IV_BYTES];
            random(&mut iv).unwrap();
            file.write_all(&iv).unwrap();
        }
        file.flush().unwrap();
    }
}
