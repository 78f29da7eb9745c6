//! The stored value: what stands in etcd for an encrypted object.

use aes_gcm::aead::{Aead, Payload};
use aes_gcm::{Aes256Gcm, KeyInit, Nonce};
use hmac::{Hmac, Mac};
use hsm_kms::etcd::proto::EncryptedDekSourceType;
use prost::Message;
use sha2::Sha256;

/// The message after the prefix.
pub use hsm_kms::etcd::proto::EncryptedObject as StoredValue;

/// What a plugin's Decrypt gives back, and what it is for.
#[derive(Clone)]
pub struct DekSource {
    source_type: EncryptedDekSourceType,
    secret: Vec<u8>,
}

const INFO: usize = 32;
const NONCE: usize = 12;

impl DekSource {
    /// A new seed for writing, as Kubernetes 1.29 and later makes it.
    pub fn random_seed() -> Self {
        Self { source_type: EncryptedDekSourceType::HkdfSha256XnonceAesGcmSeed, secret: random::<32>().to_vec() }
    }

    /// What the plugin opened; `None` if it has a wrong length for its type.
    pub fn opened(source_type: EncryptedDekSourceType, secret: &[u8]) -> Option<Self> {
        let fits = match source_type {
            EncryptedDekSourceType::AesGcmKey => secret.len() == 32,
            EncryptedDekSourceType::HkdfSha256XnonceAesGcmSeed => secret.len() >= 32,
        };
        fits.then(|| Self { source_type, secret: secret.to_vec() })
    }

    /// The bytes to seal.
    pub fn secret(&self) -> &[u8] {
        &self.secret
    }

    /// Encrypts an object, bound to its etcd key.
    pub fn seal(&self, path: &str, plaintext: &[u8]) -> Vec<u8> {
        self.seal_with(path, plaintext, &random(), random())
    }

    /// As [`Self::seal`], with chosen randomness.
    pub fn seal_with(&self, path: &str, plaintext: &[u8], info: &[u8; INFO], nonce: [u8; NONCE]) -> Vec<u8> {
        let payload = Payload { msg: plaintext, aad: path.as_bytes() };
        let info: &[u8] = match self.source_type {
            EncryptedDekSourceType::AesGcmKey => &[],
            EncryptedDekSourceType::HkdfSha256XnonceAesGcmSeed => info,
        };
        let sealed = self.cipher(info).encrypt(&Nonce::from(nonce), payload).unwrap();
        [info, &nonce[..], &sealed].concat()
    }

    /// Decrypts an object; `None` if it is not what was sealed under this etcd key.
    pub fn open(&self, path: &str, encrypted_data: &[u8]) -> Option<Vec<u8>> {
        let (info, rest) = match self.source_type {
            EncryptedDekSourceType::AesGcmKey => (&[][..], encrypted_data),
            EncryptedDekSourceType::HkdfSha256XnonceAesGcmSeed => encrypted_data.split_at_checked(INFO)?,
        };
        let (nonce, sealed) = rest.split_at_checked(NONCE)?;
        let payload = Payload { msg: sealed, aad: path.as_bytes() };
        self.cipher(info).decrypt(&Nonce::try_from(nonce).ok()?, payload).ok()
    }

    fn cipher(&self, info: &[u8]) -> Aes256Gcm {
        match self.source_type {
            EncryptedDekSourceType::AesGcmKey => Aes256Gcm::new_from_slice(&self.secret).unwrap(),
            EncryptedDekSourceType::HkdfSha256XnonceAesGcmSeed => Aes256Gcm::new(&expand(&self.secret, info).into()),
        }
    }
}

/// HKDF-Expand with SHA-256 to 32 bytes, the secret being the PRK (RFC 5869 section 2.3): its first block.
pub fn expand(secret: &[u8], info: &[u8]) -> [u8; 32] {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret).unwrap();
    mac.update(info);
    mac.update(&[1]);
    mac.finalize().into_bytes().into()
}

/// The whole value in etcd.
pub fn with_prefix(provider: &str, object: &StoredValue) -> Vec<u8> {
    [prefix(provider).into_bytes(), object.encode_to_vec()].concat()
}

/// The encoded message in a value of this provider.
pub fn strip_prefix<'a>(provider: &str, stored: &'a [u8]) -> Option<&'a [u8]> {
    stored.strip_prefix(prefix(provider).as_bytes())
}

fn prefix(provider: &str) -> String {
    format!("k8s:enc:kms:v2:{provider}:")
}

fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).unwrap();
    bytes
}
